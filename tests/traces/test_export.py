"""Traces written for other tools, and what comes back of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import Request, load_trace, read_requests, write_trace
from traces.convert import main as convert
from traces.export import main as export
from traces.exported import export_path
from traces.statistics import statistics

SIZE = 64


def written(path: Path, requests: list[Request]) -> Path:
    write_trace(path, requests, source="by hand", command="", block_tokens=SIZE)
    return path


def session_trace(path: Path) -> Path:
    """Two conversations that wait, one of which forgets, and a request of nobody."""
    rows: list[dict[str, Any]] = [
        {"arrival_s": 0.0, "prompt_tokens": 130, "output_tokens": 70, "session_id": "a",
         "prefix_hashes": [0, 1], "temperature": 0.5, "domain": "chat"},
        {"arrival_s": 0.25, "prompt_tokens": 100, "output_tokens": 9},
        {"arrival_s": 1.5, "prompt_tokens": 300, "output_tokens": 20, "session_id": "a",
         "delay_s": 1.5, "prefix_hashes": [0, 1, 2, 3]},
        {"arrival_s": 2.0, "prompt_tokens": 140, "output_tokens": 20, "session_id": "b",
         "prefix_hashes": [0, 5], "priority": 2},
        {"arrival_s": 2.5, "prompt_tokens": 200, "output_tokens": 20, "session_id": "a",
         "delay_s": 1.0, "prefix_hashes": [0, 1, 2]},
        {"arrival_s": 3.1254, "prompt_tokens": 400, "output_tokens": 20, "session_id": "b",
         "prefix_hashes": [0, 5, 6, 7, 8, 9], "slo": "fast", "max_new_tokens": 40},
    ]  # fmt: skip
    return written(path, [Request(request_id=f"q{i}", **row) for i, row in enumerate(rows)])


def exported(trace: Path, out: Path, *words: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    assert export([str(trace), "-o", str(out), *words]) == 0
    meta = json.loads(export_path(out).read_text())
    if out.suffix == ".csv":
        return list(csv.DictReader(out.read_text().splitlines())), meta
    return [json.loads(line) for line in out.read_text().splitlines()], meta


@pytest.mark.example
def test_csv_keeps_every_field_and_comes_back_the_same(tmp_path: Path) -> None:
    trace = session_trace(tmp_path / "t.jsonl")
    rows, meta = exported(trace, tmp_path / "t.csv")
    assert rows[2]["prefix_hashes"] == "0 1 2 3"
    assert (rows[2]["delay_s"], rows[5]["slo"], rows[5]["max_new_tokens"]) == ("1.5", "fast", "40")
    assert meta["dropped"] is None
    for name in ("t.csv", "alone.csv"):
        (tmp_path / name).write_bytes((tmp_path / "t.csv").read_bytes())
        assert convert([str(tmp_path / name), "-o", str(tmp_path / "b.jsonl"), "--force"]) == 0
        assert read_requests(tmp_path / "b.jsonl")[0] == read_requests(trace)[0]
        back = read_requests(tmp_path / "b.jsonl")[1]
        assert back is not None
        assert back.block_tokens == SIZE


@pytest.mark.example
def test_mooncake_has_a_hash_for_every_block_and_says_what_it_has_no_place_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = session_trace(tmp_path / "t.jsonl")
    rows, meta = exported(trace, tmp_path / "m.jsonl", "--format", "mooncake")
    assert [row["timestamp"] for row in rows] == [0, 250, 1500, 2000, 2500, 3125]
    assert all(len(row["hash_ids"]) == -(-row["input_length"] // SIZE) for row in rows)
    assert rows[0]["hash_ids"][:2] == rows[2]["hash_ids"][:2]
    assert meta["dropped"] == {
        "times rounded to milliseconds": 1, "not carried: domain": 1,
        "not carried: max_new_tokens": 1, "not carried: slo": 1, "not carried: session_id": 5,
        "not carried: delay_s": 2, "not carried: temperature": 1, "not carried: priority": 1,
    }  # fmt: skip
    assert "not carried: session_id: 5" in capsys.readouterr().err
    coarse, meta = exported(
        trace, tmp_path / "c.jsonl", "--format", "mooncake", "--block-tokens", "128"
    )
    assert meta["block_tokens"] == 128
    assert [len(row["hash_ids"]) for row in coarse] == [2, 1, 3, 2, 2, 4]
    assert coarse[0]["hash_ids"][0] == coarse[2]["hash_ids"][0]
    assert coarse[3]["hash_ids"][0] != coarse[0]["hash_ids"][0]
    wrong = ["--format", "mooncake", "--block-tokens", "100"]
    assert export([str(trace), "-o", str(tmp_path / "x"), *wrong]) == 2
    assert "has blocks of 64; give a multiple of it" in capsys.readouterr().err


@pytest.mark.example
def test_aiperf_gets_what_each_turn_adds_because_it_sends_the_session_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = session_trace(tmp_path / "t.jsonl")
    rows, meta = exported(trace, tmp_path / "a.jsonl", "--format", "aiperf")
    assert "give AIPerf --isl-block-size 64" in capsys.readouterr().out
    times = [{k: row[k] for k in ("session_id", "timestamp", "delay") if k in row} for row in rows]
    assert times == [
        {"session_id": "a", "timestamp": 0}, {"timestamp": 250}, {"session_id": "a", "delay": 1500},
        {"session_id": "b", "timestamp": 2000}, {"session_id": "a#2", "timestamp": 2500},
        {"session_id": "b", "timestamp": 3125.4},
    ]  # fmt: skip
    assert [row["input_length"] for row in rows] == [130, 100, 100, 140, 200, 240]
    assert rows[0]["extra"] == {"temperature": 0.5}
    assert meta["dropped"]["turns no longer than their session, begun as one of their own"] == 1
    assert convert([str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "b.jsonl")]) == 0
    back, given = read_requests(tmp_path / "b.jsonl")[0], read_requests(trace)[0]
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "delay_s", "temperature"):
        if name != "delay_s":
            assert [getattr(r, name) for r in back] == [getattr(r, name) for r in given], name
    assert [r.delay_s for r in back] == [None, None, 1.5, None, None, None]
    # b's second turn is no longer known to wait, and a's history is a shared prefix again.
    assert back[2].prefix_hashes is not None
    assert back[2].prefix_hashes[:2] == back[0].prefix_hashes


@pytest.mark.example
def test_an_export_that_was_edited_is_read_like_any_file(tmp_path: Path) -> None:
    trace = session_trace(tmp_path / "t.jsonl")
    rows, _ = exported(trace, tmp_path / "a.jsonl", "--format", "aiperf")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    words = ["-o", str(tmp_path / "b.jsonl"), "--block-tokens", "64"]
    assert convert([str(tmp_path / "a.jsonl"), *words]) == 0
    assert [r.prompt_tokens for r in read_requests(tmp_path / "b.jsonl")[0]] == [130, 100, 100]


@pytest.mark.example
def test_wrong_words_end_in_one_line_and_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = session_trace(tmp_path / "t.jsonl")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert export([str(trace), "-o", str(tmp_path / "x.jsonl")]) == 2
    assert "give --format csv, mooncake, aiperf" in capsys.readouterr().err
    assert export([str(trace), "-o", str(trace), "--format", "csv"]) == 2
    assert "is the input" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    (tmp_path / "x.csv").write_text("mine")
    assert export([str(trace), "-o", str(tmp_path / "x.csv")]) == 2
    assert "exists and holds something else" in capsys.readouterr().err


@pytest.mark.law
@settings(max_examples=40, deadline=None)
@given(data=st.data(), kind=st.sampled_from(("csv", "mooncake", "aiperf")))
def test_a_trace_comes_back_with_its_times_prompts_and_reuse(
    data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("export")
    count = data.draw(st.integers(1, 25))
    gaps = data.draw(st.lists(st.integers(0, 40_000), min_size=count, max_size=count))
    held: dict[str, int] = {}
    requests = []
    for row, ms in enumerate(np.cumsum([0, *gaps[1:]]).tolist()):
        session = data.draw(st.sampled_from((None, "x", "y", "z")))
        before = held.get(session or "", 0)
        prompt = before + data.draw(st.integers(1, 300))
        output = data.draw(st.integers(1, 90))
        held[session or "" if session else "nobody"] = prompt + output
        delay = data.draw(st.sampled_from((None, 0.0, 0.25, 7.0))) if before and session else None
        family = f"{session}" if session else f"n{row}"
        requests.append(
            Request(
                request_id=f"r{row}", arrival_s=ms / 1e3, prompt_tokens=prompt,
                output_tokens=output, session_id=session, delay_s=delay,
                prefix_hashes=[f"{family}-{place}" for place in range(prompt // SIZE)] or None,
            )
        )  # fmt: skip
    trace = written(folder / "t.jsonl", requests)
    out = folder / f"o.{kind}"
    assert export([str(trace), "-o", str(out), "--format", kind]) == 0
    words = ["--quantum", "0", "-o", str(folder / "b.jsonl")]
    assert convert([str(out), *words]) == 0
    given_, back = load_trace(trace), load_trace(folder / "b.jsonl")
    for name in ("prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(np.sort(getattr(back, name)), np.sort(getattr(given_, name)))
    if kind != "aiperf":  # there a turn that waits has no time of its own
        np.testing.assert_allclose(back.arrival_s, given_.arrival_s, atol=1e-9)
    if kind != "mooncake":
        assert sorted(back.delay_s[back.follows >= 0]) == pytest.approx(
            sorted(given_.delay_s[given_.follows >= 0])
        )
    if kind == "csv" or (kind == "mooncake" and given_.block_tokens):
        assert statistics(back).prefix.hit_tokens_share == (
            statistics(given_).prefix.hit_tokens_share
        )
