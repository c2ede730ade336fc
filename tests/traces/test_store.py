"""Traces written and read back, the laws between requests, and every wrong line."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from traces import (
    Request,
    Trace,
    load_trace,
    meta_path,
    read_requests,
    shipped_traces,
    write_trace,
)

GOOD: dict[str, Any] = {
    "request_id": "a",
    "arrival_s": 1.5,
    "prompt_tokens": 600,
    "output_tokens": 20,
}


def write_lines(path: Path, *records: object, block_tokens: int | None = None) -> Path:
    """A trace file by hand, its sidecar only when there is a block size to tell."""
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    if block_tokens is not None:
        requests = [Request(request_id="x", arrival_s=0, prompt_tokens=1, output_tokens=1)]
        write_trace(path, requests, source="hand", command="none", block_tokens=block_tokens)
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        meta = json.loads(meta_path(path).read_text())
        meta["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        meta_path(path).write_text(json.dumps(meta))
    return path


@st.composite
def request_lists(draw: st.DrawFn) -> list[Request]:
    names = draw(st.lists(st.text(max_size=6), min_size=1, max_size=12, unique=True))
    arrivals = sorted(
        draw(st.lists(st.floats(0, 1e6, allow_nan=False), min_size=len(names), max_size=len(names)))
    )
    requests = []
    for name, arrival_s in zip(names, arrivals, strict=True):
        prompt_tokens = draw(st.integers(1, 200))
        # One chain per kind of hash: equal hash, equal prefix.
        kind = draw(st.sampled_from(["number", "text"]))
        blocks = draw(st.integers(0, -(-prompt_tokens // 64)))
        output_tokens = draw(st.integers(1, 2**31 - 1))
        requests.append(
            Request(
                request_id=name,
                arrival_s=arrival_s,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                max_new_tokens=draw(st.none() | st.integers(output_tokens, 2**31 - 1)),
                domain=draw(st.none() | st.text(max_size=4)),
                session_id=draw(st.none() | st.sampled_from(["s", "t"])),
                prefix_hashes=[k if kind == "number" else f"h{k}" for k in range(blocks)] or None,
                temperature=draw(st.none() | st.floats(0, 2)),
                priority=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
                slo=draw(st.none() | st.sampled_from(["interactive", "relaxed"])),
            )
        )
    return requests


@pytest.mark.law
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests=request_lists())
def test_what_is_written_is_read_back(tmp_path: Path, requests: list[Request]) -> None:
    path = tmp_path / "t.jsonl"
    written = write_trace(path, requests, source="law", command="none", seed=3, block_tokens=64)
    trace = load_trace(path)
    assert read_requests(path)[0] == requests
    assert_same_columns(written, trace)
    assert trace.request_id == [r.request_id for r in requests]
    assert trace.arrival_s.tolist() == [r.arrival_s for r in requests]
    assert trace.output_tokens.tolist() == [r.output_tokens for r in requests]
    assert trace.priority.tolist() == [r.priority or 0 for r in requests]
    assert trace.max_new_tokens.tolist() == [r.max_new_tokens or 0 for r in requests]
    names = [None, *trace.domain_names]
    assert [names[code + 1] for code in trace.domain] == [r.domain for r in requests]
    slo_names = [None, *trace.slo_names]
    assert [slo_names[code + 1] for code in trace.slo] == [r.slo for r in requests]
    temperatures = [None if np.isnan(t) else t for t in trace.temperature.tolist()]
    assert temperatures == [r.temperature for r in requests]


def assert_same_columns(one: Trace, two: Trace) -> None:
    for field in Trace.__dataclass_fields__:
        np.testing.assert_equal(getattr(one, field), getattr(two, field), err_msg=field)


@pytest.mark.law
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests=request_lists())
def test_equal_block_numbers_mean_equal_hashes(tmp_path: Path, requests: list[Request]) -> None:
    trace = write_trace(
        tmp_path / "t.jsonl", requests, source="law", command="none", block_tokens=64
    )
    seen: dict[int, object] = {}
    for row, request in enumerate(requests):
        start, end = trace.prefix_offsets[row : row + 2]
        blocks = trace.prefix_blocks[start:end].tolist()
        assert len(blocks) == len(request.prefix_hashes or [])
        for block, hashed in zip(blocks, request.prefix_hashes or [], strict=True):
            assert seen.setdefault(block, hashed) == hashed
    assert sorted(seen) == list(range(trace.n_blocks))
    assert len(set(seen.values())) == trace.n_blocks
    assert trace.block_tokens == (64 if trace.n_blocks else 0)


@pytest.mark.example
def test_head_and_scaled_keep_the_columns_together(tmp_path: Path) -> None:
    requests = [
        Request(
            request_id=str(k), arrival_s=k, prompt_tokens=200, output_tokens=k + 1,
            prefix_hashes=[7, 8 + k],
        )
        for k in range(5)
    ]  # fmt: skip
    trace = write_trace(tmp_path / "t.jsonl", requests, source="x", command="x", block_tokens=100)
    head = trace.head(2).scaled(rate_factor=2.0)
    assert len(head) == 2
    assert head.arrival_s.tolist() == [0, 0.5]
    assert head.output_tokens.tolist() == [1, 2]
    assert head.prefix_offsets.tolist() == [0, 2, 4]
    assert head.prefix_blocks.tolist() == [0, 1, 0, 2]
    assert len(trace.head(99)) == 5
    with pytest.raises(ValueError, match="head of 0 requests"):
        trace.head(0)
    with pytest.raises(ValueError, match="rate factor -1"):
        trace.scaled(rate_factor=-1)


@pytest.mark.example
def test_a_trace_without_sidecar_loads_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", GOOD, b"  ", GOOD | {"request_id": "b"}, b"")
    trace = load_trace(path)
    assert trace.request_id == ["a", "b"]
    assert (trace.name, trace.block_tokens, trace.n_blocks) == ("t", 0, 0)


WRONG_LINES: list[tuple[object, str]] = [
    (b'{"request_id": "b", "arri', "not valid JSON .*truncated"),
    ([1, 2], r"\[1, 2\] is not a JSON object"),
    ({k: v for k, v in GOOD.items() if k != "prompt_tokens"}, "no prompt_tokens; every request"),
    (GOOD | {"prompt_token": 3}, "unknown field 'prompt_token'; did you mean 'prompt_tokens'"),
    (GOOD | {"colour": 3}, "unknown field 'colour'; known: request_id"),
    (GOOD | {"arrival_s": float("nan")}, "arrival_s nan is not a finite number"),
    (GOOD | {"arrival_s": float("inf")}, "arrival_s inf is not a finite number"),
    (b'{"request_id":"b","arrival_s":1e999,"prompt_tokens":1,"output_tokens":1}', "arrival_s inf"),
    (GOOD | {"request_id": "b", "arrival_s": -1}, "arrival_s -1.0 must be a finite"),
    (GOOD | {"arrival_s": "soon"}, 'arrival_s "soon": Expected `float`'),
    (GOOD | {"request_id": "b", "prompt_tokens": 0}, "prompt_tokens 0 must be a whole number"),
    (GOOD | {"request_id": "b", "output_tokens": -4}, "output_tokens -4 must be a whole number"),
    (GOOD | {"output_tokens": 2.5}, "output_tokens 2.5: Expected `int`, got `float`"),
    (GOOD | {"prompt_tokens": 2**31}, "prompt_tokens 2147483648 must be a whole number from 1"),
    (GOOD | {"prompt_tokens": 10**30}, "prompt_tokens 10{30}: Expected `int` <="),
    (GOOD | {"arrival_s": 0.25}, "arrival_s 0.25 is before the 1.5 of the request above"),
    (GOOD, "request_id 'a' was used before, at .*t.jsonl:1;"),
    (GOOD | {"request_id": "b", "temperature": -0.5}, "temperature -0.5 must be a finite"),
    (GOOD | {"request_id": "b", "prefix_hashes": [1]}, 'prefix_hashes without block_tokens; .*"bl'),
    (b'{"request_id": ' + b"9" * 5000 + b"}", "not valid JSON"),
    (b'{"request_id":"\xff"}', "byte 0xff is not UTF-8"),
]


@pytest.mark.example
@pytest.mark.parametrize(("wrong", "sentence"), WRONG_LINES)
def test_a_wrong_line_is_named_with_its_value(tmp_path: Path, wrong: object, sentence: str) -> None:
    path = write_lines(tmp_path / "t.jsonl", GOOD, wrong)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_trace(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.example
def test_prefix_hashes_must_fit_the_prompt_and_be_chained(tmp_path: Path) -> None:
    long = GOOD | {"prefix_hashes": [1, 2, 3, 4]}
    path = write_lines(tmp_path / "t.jsonl", long, block_tokens=256)
    with pytest.raises(
        ValueError, match=r":1: 4 prefix_hashes, but 600 .* at most 3 blocks of 256"
    ):
        load_trace(path)
    two = [GOOD | {"prefix_hashes": [1, 2]}, GOOD | {"request_id": "b", "prefix_hashes": [3, 2]}]
    path = write_lines(tmp_path / "t.jsonl", *two, block_tokens=256)
    with pytest.raises(ValueError, match=r":2: prefix hash 2 follows another block"):
        load_trace(path)
    path = write_lines(tmp_path / "t.jsonl", GOOD | {"prefix_hashes": [5, 5]}, block_tokens=256)
    with pytest.raises(ValueError, match=r":1: prefix hash 5 follows another block"):
        load_trace(path)


@pytest.mark.example
def test_an_edited_file_does_not_pass_for_the_one_its_sidecar_describes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", GOOD, block_tokens=256)
    path.write_text(path.read_text().replace("600", "601"))
    with pytest.raises(ValueError, match=r"t\.meta\.json: sha256 .* is not that of t\.jsonl"):
        load_trace(path)


@pytest.mark.example
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"block_token": 3}, "unknown key 'block_token'; did you mean 'block_tokens'"),
        ({"block_tokens": 0}, "block_tokens 0 must be at least 1"),
    ],
)
def test_a_wrong_sidecar_is_refused(tmp_path: Path, change: dict[str, int], sentence: str) -> None:
    path = write_lines(tmp_path / "t.jsonl", GOOD, block_tokens=256)
    meta = json.loads(meta_path(path).read_text())
    meta_path(path).write_text(json.dumps(meta | change))
    with pytest.raises(ValueError, match=sentence):
        load_trace(path)


@pytest.mark.example
def test_empty_missing_folder_and_marked_files_are_refused(tmp_path: Path) -> None:
    for text in ("", "\n\n"):
        (tmp_path / "t.jsonl").write_text(text)
        with pytest.raises(ValueError, match="holds no request"):
            load_trace(tmp_path / "t.jsonl")
    with pytest.raises(ValueError, match=r"none\.jsonl: cannot read: No such file"):
        load_trace(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="cannot read: Is a directory"):
        load_trace(tmp_path)
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    with pytest.raises(ValueError, match=":1: begins with a byte order mark"):
        load_trace(tmp_path / "t.jsonl")


@pytest.mark.example
def test_a_shipped_trace_goes_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(shipped_traces()) == ["chat", "code", "math", "mixed"]
    trace = load_trace("chat")
    assert (trace.name, len(trace)) == ("chat", 4695)
    assert trace.sha256 == load_trace(shipped_traces()["chat"]).sha256
    requests, meta = read_requests("chat")
    assert (len(requests), meta and meta.block_tokens) == (4695, 256)


@pytest.mark.example
def test_only_a_file_of_exactly_that_path_stands_before_a_shipped_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = json.dumps(GOOD) + "\n"
    (tmp_path / "chat.jsonl").write_text(own)
    (tmp_path / "code").mkdir()
    assert len(load_trace("chat")) == 4695
    assert len(load_trace("code")) == 4880
    assert len(load_trace("chat.jsonl")) == 1
    (tmp_path / "chat").write_text(own)
    assert len(load_trace("chat")) == 1


@pytest.mark.example
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("chta", "no trace 'chta'; did you mean 'chat'? shipped: chat, code, math, mixed; or give"),
        ("none", "no trace 'none'; shipped: chat, code, math, mixed; or give a .jsonl file"),
        ("traces/chat.jsonl", "check the path, or name a shipped trace: chat, code, math, mixed"),
    ],
)
def test_a_name_that_is_no_trace_lists_the_shipped_ones(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(says)):
        load_trace(name)


@pytest.mark.example
def test_nothing_is_written_when_a_law_is_broken_or_the_place_is_missing(tmp_path: Path) -> None:
    good = msgspec.convert(GOOD, Request)
    with pytest.raises(ValueError, match=r"t\.jsonl: request 2: request_id 'a' was used before"):
        write_trace(tmp_path / "t.jsonl", [good, good], source="x", command="x")
    with pytest.raises(ValueError, match="cannot write: No such file"):
        write_trace(tmp_path / "none" / "t.jsonl", [good], source="x", command="x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.example
def test_a_sidecar_that_cannot_be_written_leaves_the_old_trace(tmp_path: Path) -> None:
    good = msgspec.convert(GOOD, Request)
    write_trace(tmp_path / "t.jsonl", [good], source="x", command="x")
    before = (tmp_path / "t.jsonl").read_bytes()
    meta_path(tmp_path / "t.jsonl").unlink()
    meta_path(tmp_path / "t.jsonl").mkdir()
    with pytest.raises(ValueError, match="cannot write"):
        write_trace(tmp_path / "t.jsonl", [good], source="y", command="y")
    assert (tmp_path / "t.jsonl").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.jsonl", "t.meta.json"]
