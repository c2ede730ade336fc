"""Importers: small files of every kind worked by hand, every wrong row, the public files whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import load_trace, read_requests
from traces.convert import main
from traces.draws import stream
from traces.importers.arrivals import quantum, spread
from traces.importers.detect import detect_format
from traces.importers.sources import Source
from traces.mixture import Quantiles, load_mixture
from traces.statistics import statistics

PUBLIC = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
VIDUR = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n"
SERVEGEN = "timestamp_s,client_id,input_tokens,output_tokens,reason_ratio\n"


def finished(
    rid: str, *, at: str, latency_s: float = 1.0, meta: dict[str, Any] | None = None, **obj: Any
) -> str:
    """A line as SGLang's JSON request logger writes it, the logger's own stamp in front."""
    meta_info = {
        "id": rid,
        "finish_reason": {"type": "stop", "matched": 2},
        "prompt_tokens": 30,
        "completion_tokens": 7,
        "cached_tokens": 4,
        "e2e_latency": latency_s,
    }
    record = {
        "timestamp": at,
        "event": "request.finished",
        "rid": rid,
        "obj": {"rid": rid, "stream": True, **obj},
        "out": {"text": "hi", "meta_info": meta_info | (meta or {})},
    }
    return f"[{at[:19].replace('T', ' ')}] {json.dumps(record)}\n"


def convert(tmp_path: Path, text: str, *words: str) -> tuple[list[Any], Any]:
    """The requests and sidecar that the command makes of a file."""
    source = tmp_path / "source"
    source.write_text(text)
    assert main([str(source), "-o", str(tmp_path / "t.jsonl"), *words]) == 0
    load_trace(tmp_path / "t.jsonl")
    return read_requests(tmp_path / "t.jsonl")


@pytest.mark.example
def test_azure_rows_start_at_zero_and_keep_their_fractions(tmp_path: Path) -> None:
    text = AZURE + "2023-11-16 23:59:59.9800000,374,44\n2023-11-17 00:00:01.2300000,396,109\n"
    requests, meta = convert(tmp_path, text, "--domain", "chat")
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens, r.domain) for r in requests] == [
        (0.0, 374, 44, "chat"),
        (1.25, 396, 109, "chat"),
    ]
    assert meta.source.startswith("azure file source (sha256 ")
    assert meta.seed is None


@pytest.mark.example
def test_rows_that_cannot_stay_as_they_are_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SERVEGEN + "5.0,1,10,0,0\n4.0,1,20,3,0\n6.0,1,0,3,0\n"
    requests, meta = convert(tmp_path, text)
    assert [(r.request_id, r.arrival_s, r.output_tokens) for r in requests] == [
        ("r1", 0.0, 3),
        ("r0", 1.0, 1),
    ]
    assert meta.notes == {
        "not carried: client_id": 3,
        "not carried: reason_ratio": 3,
        "0 output tokens raised to 1": 1,
        "left out: no prompt tokens": 1,
        "out of order, sorted by arrival": 1,
    }
    err = capsys.readouterr().err
    assert "traces.convert: left out: no prompt tokens: 1\n" in err


@pytest.mark.example
def test_vidur_lengths_get_poisson_arrivals_at_the_rate_asked_for(tmp_path: Path) -> None:
    text = VIDUR + "100,20,120,5.0\n" * 4000
    requests, meta = convert(tmp_path, text, "--rate", "8", "--seed", "4")
    figures = statistics(load_trace(tmp_path / "t.jsonl")).arrivals
    assert len(requests) == 4000
    assert figures.rate_req_s == pytest.approx(8, rel=0.06)
    assert figures.interarrival_cv == pytest.approx(1, abs=0.06)
    assert meta.seed == 4
    first = (tmp_path / "t.jsonl").read_bytes()
    convert(tmp_path, text, "--rate", "8", "--seed", "4")
    assert (tmp_path / "t.jsonl").read_bytes() == first
    convert(tmp_path, text, "--rate", "8", "--seed", "5", "--force")
    assert (tmp_path / "t.jsonl").read_bytes() != first


@pytest.mark.example
def test_vidur_files_with_arrivals_keep_them(tmp_path: Path) -> None:
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,374,44\n2.0,396,109\n"
    requests, _ = convert(tmp_path, text)
    assert [r.arrival_s for r in requests] == [0.0, 1.5]


@pytest.mark.example
def test_mooncake_hashes_stay_and_rounded_times_are_spread(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 3000 * (k // 10), "input_length": 600, "output_length": 5, "hash_ids": [0, k]}
        for k in range(1, 60)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    requests, meta = convert(tmp_path, text)
    assert [r.prefix_hashes for r in requests] == [[0, k] for k in range(1, 60)]
    assert [int(r.arrival_s // 3) for r in requests] == [k // 10 for k in range(1, 60)]
    assert len({r.arrival_s for r in requests}) == 59
    assert (meta.block_tokens, meta.seed) == (512, 0)
    assert meta.notes == {"arrivals spread inside a quantum of 3 s": 59}
    requests, meta = convert(tmp_path, text, "--quantum", "0", "--force")
    assert [r.arrival_s for r in requests] == [3.0 * (k // 10) for k in range(1, 60)]
    assert (meta.notes, meta.seed) == (None, None)


@pytest.mark.law
@settings(max_examples=60, deadline=None)
@given(
    ticks=st.lists(st.integers(0, 40), min_size=1, max_size=200).map(sorted),
    quantum_s=st.floats(0.1, 10),
    seed=st.integers(0, 1000),
)
def test_spreading_keeps_order_and_stays_inside_the_quantum(
    ticks: list[int], quantum_s: float, seed: int
) -> None:
    times = np.array(ticks) * quantum_s
    after = spread(times, quantum_s, stream(seed, "x"))
    assert (np.diff(after) >= 0).all()
    assert (after >= times).all()
    assert (after <= times + quantum_s * (1 + 1e-9)).all()


@pytest.mark.example
def test_the_quantum_is_found_only_where_times_were_rounded() -> None:
    ticks = np.repeat(np.arange(50), 7)
    assert quantum(ticks * 3.0) == 3.0
    assert quantum(np.repeat([0.0, 2.997, 5.997, 12.0], 5)) == pytest.approx(3, abs=0.01)
    assert quantum(np.arange(100) * 3.0) == 0
    assert quantum(np.repeat(np.arange(50) * 0.01, 7)) == 0
    assert quantum(np.zeros(9)) == 0


@pytest.mark.example
def test_sglang_request_log_arrives_when_received_not_when_finished(tmp_path: Path) -> None:
    received = {"timestamp": "2026-03-01T10:00:00", "event": "request.received", "rid": "b"}
    text = (
        "[2026-03-01 10:00:00] server is warm\n"
        + json.dumps(received)
        + "\n"
        + finished("b", at="2026-03-01T10:00:09.500000", latency_s=2.5)
        + finished(
            "a",
            at="2026-03-01T10:00:10",
            latency_s=8.0,
            sampling_params={"temperature": 0.6},
            session_params={"id": "talk"},
            priority=3,
        )
        + finished(
            "c",
            at="2026-03-01T10:00:11",
            meta={"completion_tokens": 0, "finish_reason": {"type": "abort", "message": "gone"}},
        )
        + finished("a", at="2026-03-01T10:00:12")
    )
    requests, meta = convert(tmp_path, text)
    assert [(r.request_id, r.arrival_s) for r in requests] == [("a", 0), ("b", 5), ("a#2", 9)]
    first = requests[0]
    assert (first.prompt_tokens, first.output_tokens) == (30, 7)
    assert (first.temperature, first.session_id, first.priority) == (0.6, "talk", 3)
    assert {name.split("(")[0].strip(): count for name, count in meta.notes.items()} == {
        "passed over: log lines that are not JSON": 1,
        "passed over: other events": 1,
        "not carried: cached tokens, a count without the prefixes": 3,
        "left out: aborted before its first token": 1,
        "request_id used before, numbered": 1,
        "out of order, sorted by arrival": 1,
    }


@pytest.mark.example
def test_sglang_answers_use_the_server_clock_where_every_row_has_it(tmp_path: Path) -> None:
    text = "".join(
        finished(name, at="2026-03-01T10:00:09", meta={"request_received_ts": stamp})
        for name, stamp in (("a", 1700000007.25), ("b", 1700000003.0))
    )
    requests, _ = convert(tmp_path, text)
    assert [(r.request_id, r.arrival_s) for r in requests] == [("b", 0), ("a", 4.25)]


@pytest.mark.example
def test_openai_answers_are_read_bare_and_from_batch_files(tmp_path: Path) -> None:
    bare = {
        "id": "cmpl-1", "created": 1700000000, "temperature": 0.2,
        "usage": {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16},
    }  # fmt: skip
    body = {"id": "r", "created_at": 1700000002.5, "usage": {"input_tokens": 9, "output_tokens": 2}}
    batch = {"custom_id": "task-7", "response": {"status_code": 200, "body": body}}
    requests, _ = convert(tmp_path, f"{json.dumps(bare)}\n{json.dumps(batch)}\n")
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in requests] == [
        (0, 12, 4),
        (2.5, 9, 2),
    ]
    assert requests[0].temperature == 0.2


@pytest.mark.example
def test_a_benchmark_result_takes_the_rate_it_was_run_at(tmp_path: Path) -> None:
    result = {
        "backend": "sglang", "request_rate": 4.0, "input_lens": [10, 20, 30],
        "output_lens": [1, 2, 0], "ttfts": [0.1, 0.2, 0.0], "errors": ["", "", "refused"],
    }  # fmt: skip
    requests, meta = convert(tmp_path, json.dumps(result))
    assert [(r.prompt_tokens, r.output_tokens) for r in requests] == [(10, 1), (20, 2)]
    assert meta.notes == {"left out: failed in the benchmark": 1, "arrivals drawn (Poisson)": 2}
    # Python writes an unlimited rate as a bare Infinity.
    (tmp_path / "source").write_text(json.dumps(result | {"request_rate": float("inf")}))
    assert main([str(tmp_path / "source"), "-o", str(tmp_path / "u.jsonl")]) == 2
    assert main([str(tmp_path / "source"), "-o", str(tmp_path / "u.jsonl"), "--rate", "1"]) == 0


ANSWER = {"id": "a", "created": 1, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
WRONG: list[tuple[str, list[str], str]] = [
    ("", [], "source: is empty"),
    ("hello\n", [], ": 'hello' begins no known format; it must be JSON lines"),
    (AZURE, [], "holds no request; check --format"),
    (AZURE + "2023-11-16 18:17:03,12\n", [], ":2: 2 values under 3 columns"),
    (AZURE + "yesterday,12,3\n", [], ":2: TIMESTAMP 'yesterday' is not a date and time"),
    (AZURE + "2023-11-16 18:17:03,12,-3\n", [], ':2: GeneratedTokens "-3" must be a whole number'),
    (AZURE + "2023-11-16 18:17:03,1e400,3\n", [], ':2: ContextTokens "1e400" must be a whole'),
    (AZURE + '2023-11-16 18:17:03,"12,3\n', [], ":2: not valid CSV"),
    (
        "TIMESTAMP,ContextTokens\n1,2\n",
        [],
        ":2: no column generatedtokens in the header, which has",
    ),
    (AZURE + "2023-11-16 18:17:03,12,3\n", ["--rate", "3"], "has its own arrivals; leave --rate"),
    (VIDUR + "3,4,7,1\n", [], "has no arrival times; give --rate"),
    (VIDUR + "3,4,7,1\n", ["--rate", "0"], "--rate 0.0 must be a number above 0"),
    (VIDUR + "3.5,4,7,1\n", ["--rate", "1"], ':2: num_prefill_tokens "3.5" must be a whole'),
    (SERVEGEN + "nan,1,2,3,0\n", [], ':2: timestamp_s "nan" must be a finite number'),
    (SERVEGEN + "1,1,2,3,0\n", ["--quantum", "-1"], "--quantum -1.0 must be a number of seconds"),
    (SERVEGEN + "1,1,2,3,0\n", ["--seed", "-1"], "--seed -1 must be 0 or more"),
    ('{"timestamp": 0, "input_length": 5}\n', [], ":1: no output_length"),
    (
        '{"timestamp": 0, "input_length": 5, "output_length"',
        ["--format", "mooncake"],
        "not valid J",
    ),
    (
        '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2, 3]}\n',
        [],
        ":1: 3 hash_ids, but input_length 600 makes at most 2 blocks of 512; give the right",
    ),
    (
        '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0.5]}\n',
        [],
        ":1: hash_ids [0.5] must be a list of numbers or texts",
    ),
    ('{"a": 1}\n', [], ": no known format has the fields a; if these are requests"),
    (
        json.dumps(ANSWER) + "\n[1]\n",
        ["--format", "log"],
        "passed over: log lines that are not JSON",
    ),
    (json.dumps(ANSWER) + '\n{"usage"\n', [], ":2: not valid JSON"),
    (json.dumps(ANSWER | {"usage": 3}), [], ":1: usage 3 is not an object"),
    (json.dumps({"usage": ANSWER["usage"]}), [], ":1: no created, so no arrival"),
    (json.dumps({"meta_info": {"prompt_tokens": 3, "completion_tokens": 1}}), [], "so no arrival"),
    (finished("a", at="noon"), [], ":1: timestamp 'noon' is not a date and time"),
    (finished("a", at="2026-03-01", meta={"prompt_tokens": None}), [], "prompt_tokens null must"),
    (finished("a", at="2026-03-01", priority="high"), [], ':1: priority "high" must be a whole'),
    ("[2026-03-01 10:00:00] Finish: obj=GenerateReqInput({})\n", [], "--log-requests-format json"),
    ('{"input_lens": [1, 2], "output_lens": [1]}\n', [], ":1: input_lens, output_lens and errors"),
    (
        '{"input_lens": [1], "output_lens": [1]}\n' * 2,
        [],
        ": holds 2 runs; a trace is one run: give --run 1 to 2",
    ),
]


@pytest.mark.example
@pytest.mark.parametrize(("text", "words", "sentence"), WRONG)
def test_wrong_input_ends_in_status_2_with_one_line_and_no_file(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    words: list[str],
    sentence: str,
) -> None:
    source = tmp_path / "source"
    source.write_text(text)
    status = main([str(source), "-o", str(tmp_path / "t.jsonl"), *words])
    err = capsys.readouterr().err
    assert sentence in err
    assert err.startswith("traces.convert: ")
    assert err.count("\n") == 1
    if "passed over: log lines" in sentence:
        assert status == 0
    else:
        assert status == 2
        assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.example
def test_a_missing_source_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "-o", str(tmp_path / "t.jsonl")]) == 2
    assert "none: cannot read: No such file" in capsys.readouterr().err


PUBLIC_FILES = [
    ("mooncake_conversation_trace.jsonl", "mooncake", 12031, []),
    ("mooncake_synthetic_trace.jsonl", "mooncake", 3993, []),
    ("azure2023_conv.csv", "azure", 19366, []),
    ("azure2023_code.csv", "azure", 8819, []),
    ("servegen_deepseek-r1_1h_6rps_sample.csv", "servegen", 22010, []),
    (
        "vidur_arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
        "vidur",
        28257,
        ["--rate", "6"],
    ),
]


@pytest.mark.golden
@pytest.mark.skipif(not PUBLIC.exists(), reason="the public traces are not beside this checkout")
@pytest.mark.parametrize(("name", "kind", "rows", "words"), PUBLIC_FILES)
def test_public_files_convert_whole(
    tmp_path: Path, name: str, kind: str, rows: int, words: list[str]
) -> None:
    assert detect_format(Source([PUBLIC / name])) == kind
    assert main([str(PUBLIC / name), "-o", str(tmp_path / "t.jsonl"), *words]) == 0
    trace = load_trace(tmp_path / "t.jsonl")
    assert len(trace) == rows
    figures = statistics(trace)
    if name == "mooncake_conversation_trace.jsonl":
        # The raw gaps vary by 3.03: an artefact of rounding to 3 s.
        assert figures.arrivals.interarrival_cv == pytest.approx(1.01, abs=0.03)
        assert figures.prefix.hit_share == pytest.approx(0.366, abs=0.001)
    if name == "azure2023_code.csv":
        assert figures.arrivals.interarrival_cv == pytest.approx(13.15, abs=0.01)
        assert figures.arrivals.busiest_10s == 327


@pytest.mark.golden
@pytest.mark.skipif(not PUBLIC.exists(), reason="the public traces are not beside this checkout")
@pytest.mark.parametrize(
    ("mixture", "name"),
    [
        ("chat", "azure2023_conv.csv"),
        ("code", "azure2023_code.csv"),
        ("math", "servegen_deepseek-r1_1h_6rps_sample.csv"),
    ],
)
def test_shipped_mixtures_hold_the_public_quantiles(
    tmp_path: Path, mixture: str, name: str
) -> None:
    assert main([str(PUBLIC / name), "-o", str(tmp_path / "t.jsonl")]) == 0
    figures = statistics(load_trace(tmp_path / "t.jsonl"))
    domain = load_mixture(mixture)[0].domains[0]
    for asked, measured in (
        (domain.prompt_tokens, figures.prompt_tokens),
        (domain.output_tokens, figures.output_tokens),
    ):
        assert isinstance(asked, Quantiles)
        assert [p for p, _ in asked.table] == [p for p, _ in measured.quantiles]
        for (_, one), (_, two) in zip(asked.table, measured.quantiles, strict=True):
            assert abs(one - two) <= 0.5
