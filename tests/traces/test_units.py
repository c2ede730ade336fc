"""Units of time, block sizes and line endings: told rightly or asked for, never a silent factor."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from traces import read_requests
from traces.convert import main
from traces.importers.clock import UNITS, Clock

SINCE_S = 1_753_780_607
ENDINGS = ("\n", "\r\n", "\r")
JSON_FORMATS = ("mooncake", "aiperf", "guidellm", "bailian", "openai", "dynamo")
CSV_FORMATS = ("burstgpt", "guidellm-csv")


def times_in(times_s: list[float], unit: str, *, epoch: bool, whole: bool) -> list[int | float]:
    """As a file has them, without a float's rounding of times since 1970."""
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    base = SINCE_S * scale if epoch else 0
    return [base + (round(t * scale) if whole else t * scale) for t in times_s]


def hash_count(tokens: int, size: int) -> int:
    return -(-tokens // size)


def row_of(kind: str, number: int, time: int | float, tokens: int, size: int) -> dict[str, Any]:
    hashes = [number * 10_000 + place for place in range(hash_count(tokens, size))]
    if kind in ("guidellm", "guidellm-csv"):
        return {"timestamp": time, "input_length": tokens, "output_length": 7}
    if kind in ("mooncake", "aiperf"):
        row = {"timestamp": time, "input_length": tokens, "output_length": 7, "hash_ids": hashes}
        return row | ({"session_id": f"s{number}"} if kind == "aiperf" else {})
    if kind == "bailian":
        return {"chat_id": number, "parent_chat_id": -1, "timestamp": time, "input_length": tokens,
                "output_length": 7, "type": "text", "turn": 1, "hash_ids": hashes}  # fmt: skip
    if kind == "openai":
        return {"id": f"c{number}", "created": time,
                "usage": {"prompt_tokens": tokens, "completion_tokens": 7}}  # fmt: skip
    if kind == "dynamo":
        request = {"request_id": f"r{number}", "request_received_ms": time, "output_length": 7,
                   "trace_block_size": size, "input_length": tokens,
                   "input_sequence_hashes": hashes}  # fmt: skip
        return {"schema": "dynamo.request.trace.v1", "event_type": "request_end",
                "request": request}  # fmt: skip
    return {"Timestamp": time, "Model": "m", "Request tokens": tokens, "Response tokens": 7}


def text_of(kind: str, rows: list[dict[str, Any]], ending: str, delimiter: str) -> str:
    if kind in JSON_FORMATS:
        return "".join(json.dumps(row) + ending for row in rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=ending)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.law
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_file_converts_to_its_times_and_blocks_or_asks_for_a_flag(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("unit")
    kind = data.draw(st.sampled_from(JSON_FORMATS + CSV_FORMATS))
    unit, epoch = data.draw(st.sampled_from(tuple(UNITS))), data.draw(st.booleans())
    count = data.draw(st.integers(10, 40))
    gap_s = 1 / data.draw(st.floats(0.02, 80))
    parts = data.draw(st.lists(st.floats(0.05, 2.0), min_size=count - 1, max_size=count - 1))
    times_s = np.concatenate([[0.0], np.cumsum(parts) * gap_s]).tolist()
    written = times_in(times_s, unit, epoch=epoch, whole=epoch or data.draw(st.booleans()))
    truth_s = [(t - written[0]) * UNITS[unit] for t in written]
    assume(truth_s[-1] > 0)
    assume(0.01 <= (count - 1) / truth_s[-1] <= 100)
    size = data.draw(st.sampled_from((16, 32, 64, 128, 512, 1024)))
    prompts = data.draw(st.lists(st.integers(1, 5000), min_size=count, max_size=count))
    rows = [row_of(kind, i, written[i], prompts[i], size) for i in range(count)]
    text = text_of(
        kind, rows, data.draw(st.sampled_from(ENDINGS)), data.draw(st.sampled_from(",;\t"))
    )
    source, out = folder / "source", folder / "t.jsonl"
    raw = data.draw(st.sampled_from((b"", b"\xef\xbb\xbf"))) + text.encode()
    source.write_bytes(gzip.compress(raw) if data.draw(st.booleans()) else raw)

    status = main([str(source), "-o", str(out), "--quantum", "0"])
    if status == 0:
        _check(out, truth_s, prompts, rows, size)
        return
    assert status == 2
    assert not out.exists()
    asked = ["--time-unit", unit, "--quantum", "0"]
    if "hash_ids" in rows[0]:
        asked += ["--block-tokens", str(size)]
    assert main([str(source), "-o", str(out), *asked]) == 0
    _check(out, truth_s, prompts, rows, size)


def _check(
    out: Path, truth_s: list[float], prompts: list[int], rows: list[dict[str, Any]], size: int
) -> None:
    requests, meta = read_requests(out)
    times_s = [request.arrival_s for request in requests]
    np.testing.assert_allclose(times_s, truth_s, rtol=1e-6, atol=2e-6)
    assert [request.prompt_tokens for request in requests] == prompts
    assert meta is not None
    if meta.block_tokens is not None:
        full = [max(0, prompt // size) for prompt in prompts]
        told = [min(len(r.prefix_hashes or ()), r.prompt_tokens // meta.block_tokens)
                for r in requests]  # fmt: skip
        assert meta.block_tokens == size or told == full, "another size that shares the same"


@pytest.mark.law
@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.01, 100), count=st.integers(2, 400), true=st.sampled_from(tuple(UNITS)),
    shared=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_shared_names_are_never_read_in_another_unit_at_usual_rates(
    rate: float, count: int, true: str, shared: bool, seed: int
) -> None:
    times_s = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
    times_s -= times_s[0]
    assume(0.01 <= (count - 1) / times_s[-1] <= 100)
    clock = Clock(unit="ms", owner="Mooncake", shared=True, or_seconds=shared)
    rows = [{"timestamp": float(t)} for t in times_s / UNITS[true]]
    read = np.array([clock.read("x:1", row, "timestamp") for row in rows])
    try:
        found, _ = clock.seconds("x", read, str)
    except ValueError as error:
        found = times_s if "give --time-unit" in str(error) else times_s - 1
    np.testing.assert_allclose(found, times_s, rtol=1e-9, atol=1e-9)


@pytest.mark.example
@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_times_since_1970_show_their_unit_by_their_size(
    tmp_path: Path, unit: str, scale: float
) -> None:
    rows = [
        {"timestamp": str(round((SINCE_S + 2 * k) * scale)), "input_length": 5, "output_length": 3}
        for k in range(4)
    ]
    source = tmp_path / "source"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(source), "-o", str(tmp_path / "t.jsonl")]) == 0
    assert [r.arrival_s for r in read_requests(tmp_path / "t.jsonl")[0]] == [0, 2, 4, 6]


ROWS = {"input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
ASKED: list[tuple[str, list[dict[str, Any]], str]] = [
    (
        "seconds in Mooncake's fields",
        [ROWS | {"timestamp": 0.7 * k} for k in range(60)],
        "1.43 requests/s over 41.3 s if seconds, 1,429 requests/s over 0.0413 s if milliseconds; "
        "Mooncake documents milliseconds; give --time-unit s, ms, us or ns",
    ),
    (
        "microseconds",
        [ROWS | {"timestamp": 700_000 * k} for k in range(60)],
        "1.43 requests/s over 41.3 s if microseconds",
    ),
    (
        "a slow trace of seconds or a fast one of milliseconds",
        [ROWS | {"timestamp": 20 * k} for k in range(60)],
        "0.05 requests/s over 19.7 minutes if seconds, 50 requests/s over 1.18 s if milliseconds",
    ),
    (
        "one row in another unit of 1970",
        [ROWS | {"timestamp": t} for t in (SINCE_S * 1000, SINCE_S * 1000 + 9, SINCE_S)],
        ":3: time 1753780607 is not in milliseconds since 1970, as 2 of 3 are",
    ),
    (
        "one row without a time",
        [ROWS | {"timestamp": t} for t in (SINCE_S * 1000, 0, SINCE_S * 1000 + 9)],
        ":2: time 0 is not in milliseconds since 1970, as 2 of 3 are; mend or remove the row",
    ),
    (
        "dates among numbers",
        [ROWS | {"timestamp": t} for t in (0, "2026-01-01T00:00:00Z")],
        ':2: timestamp "2026-01-01T00:00:00Z" is a date and time, and those above it are not',
    ),
    (
        "dates with a zone and without",
        [ROWS | {"timestamp": t} for t in ("2026-01-01 00:00:00+02:00", "2026-01-01 00:00:01")],
        ":2: timestamp \"2026-01-01 00:00:01\" names no time zone, unlike those above it",
    ),
    (
        "delays in seconds",
        [ROWS | {"timestamp": 900 * k, "session_id": "s", "delay": 1.5} for k in range(4)],
        "half of its delays between turns are above 0.0015 s if they are in ms, too short or far",
    ),
    ("a negative time", [ROWS | {"timestamp": -1}], ":1: timestamp -1 must be a finite number"),
    ("no number", [ROWS | {"timestamp": float("nan")}], ":1: timestamp NaN must be a finite"),
    (
        "a rate that no unit explains",
        [ROWS | {"timestamp": SINCE_S * 1000 + k // 9} for k in range(90)],
        "9,889 requests/s if its times are milliseconds since 1970, above 1,000",
    ),
]  # fmt: skip


@pytest.mark.example
@pytest.mark.parametrize(("name", "rows", "sentence"), ASKED, ids=[row[0] for row in ASKED])
def test_what_is_not_sure_is_asked_for_with_what_each_answer_would_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, rows: Any, sentence: str
) -> None:
    source = tmp_path / "source"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(source), "-o", str(tmp_path / "t.jsonl")]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.example
def test_seconds_under_names_that_guidellm_writes_too_are_told_by_fractions_and_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"timestamp": t, "input_length": 256, "output_length": 64} for t in (0.0, 0.5, 1.2)]
    (tmp_path / "source").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(tmp_path / "source"), "-o", str(tmp_path / "t.jsonl")]) == 0
    assert [r.arrival_s for r in read_requests(tmp_path / "t.jsonl")[0]] == [0, 0.5, 1.2]
    assert "times are read as seconds: 3" in capsys.readouterr().err


@pytest.mark.example
def test_a_parquet_files_dates_are_times(tmp_path: Path) -> None:
    table = pa.table(
        {
            "timestamp": pa.array([0, 1_500_000], pa.timestamp("us", "UTC")),
            "input_length": [5, 6],
            "output_length": [1, 2],
        }
    )
    pq.write_table(table, tmp_path / "source")
    assert main([str(tmp_path / "source"), "-o", str(tmp_path / "t.jsonl")]) == 0
    assert [r.arrival_s for r in read_requests(tmp_path / "t.jsonl")[0]] == [0, 1.5]


@pytest.mark.example
@pytest.mark.parametrize(("delay", "delay_s"), [(700, 0.7), (700_000, 0.7)])
def test_delays_are_in_the_unit_that_was_said_or_in_their_formats_own(
    tmp_path: Path, delay: int, delay_s: float
) -> None:
    rows = [ROWS | {"timestamp": 900_000 * k, "session_id": "s"} | ({"delay": delay} if k else {})
            for k in range(4)]  # fmt: skip
    (tmp_path / "source").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["-o", str(tmp_path / "t.jsonl"), "--time-unit", "us"]
    assert main([str(tmp_path / "source"), *words]) == 0
    requests, _ = read_requests(tmp_path / "t.jsonl")
    assert [r.delay_s for r in requests] == [None, *[delay_s] * 3]
    assert requests[3].arrival_s == pytest.approx(2.7)
    for row in rows:
        row["timestamp"] /= 1e6
    (tmp_path / "source").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words[-1:] = ["s", "--force"]
    if delay < 1000:  # seven minutes between turns that are a second apart are milliseconds
        assert main([str(tmp_path / "source"), *words]) == 0
        assert read_requests(tmp_path / "t.jsonl")[0][1].delay_s == delay_s


BLOCKS: list[tuple[list[int], list[int], list[str], int | None, str]] = [
    ([700, 600], [2, 2], [], 512, ""),
    ([600, 900], [10, 15], [], 64, "blocks of 64 tokens, told from the counts of hashes: 2"),
    ([521, 700], [32, 43], [], 16, "blocks of 16 tokens, told from the counts of hashes: 2"),
    ([20], [2], [], None, "2 hash_ids, but input_length 20 makes at most 1 blocks of 512; give"),
    ([10000], [1], [], None, "1 hash_ids, but 10000 tokens make 20 blocks of 512; give the right"),
    ([10000], [1], ["--block-tokens", "512"], 512, "fewer hashes than blocks: the rest of those"),
    ([600, 900], [10, 2], [], None, "10 hash_ids, but input_length 600 makes at most 2 blocks"),
    ([20], [2], ["--block-tokens", "16"], 16, ""),
]


@pytest.mark.example
@pytest.mark.parametrize(("prompts", "counts", "words", "size", "said"), BLOCKS)
def test_block_sizes_are_told_from_counts_that_agree_or_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prompts: list[int], counts: list[int],
    words: list[str], size: int | None, said: str,
) -> None:  # fmt: skip
    rows = [
        {"timestamp": 900 * i, "input_length": prompt, "output_length": 5,
         "hash_ids": [i * 1000 + place for place in range(count)]}
        for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True))
    ]  # fmt: skip
    (tmp_path / "source").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status = main([str(tmp_path / "source"), "-o", str(tmp_path / "t.jsonl"), *words])
    assert said in capsys.readouterr().err
    assert status == (2 if size is None else 0)
    if size is not None:
        meta = read_requests(tmp_path / "t.jsonl")[1]
        assert meta is not None
        assert meta.block_tokens == size


@pytest.mark.example
def test_hashes_of_single_blocks_are_chained_so_that_equal_means_equal_prefix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # AIPerf's own documentation has these: 1 follows 0, then begins a prompt.
    rows = [
        {"timestamp": t, "input_length": n, "output_length": 5, "hash_ids": hashes}
        for t, n, hashes in (
            (0, 1200, [0, 1, 2]), (1050, 1800, [0, 3, 4, 5]), (2274, 1300, [1, 4, 6]),
        )
    ]  # fmt: skip
    (tmp_path / "source").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(tmp_path / "source"), "-o", str(tmp_path / "t.jsonl")]) == 0
    first, second, third = (r.prefix_hashes or [] for r in read_requests(tmp_path / "t.jsonl")[0])
    assert first[0] == second[0]
    assert not set(first[1:]) & set(second[1:])
    assert not set(third) & {*first, *second}
    assert "chained to what is before them: 10" in capsys.readouterr().err
