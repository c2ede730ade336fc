"""Every format that people hold: a small file of each worked by hand, and what is wrong with it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from traces import load_trace, read_requests
from traces.convert import main
from traces.importers.detect import FORMATS

HELD = Path(__file__).resolve().parents[3] / "shared" / "cases" / "formats"
EPOCH_MS = 1_753_780_607_000


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def converted(tmp_path: Path, content: str | bytes, *words: str) -> tuple[list[Any], Any]:
    source = tmp_path / "source"
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main([str(source), "-o", str(tmp_path / "t.jsonl"), *words]) == 0
    load_trace(tmp_path / "t.jsonl")
    requests, meta = read_requests(tmp_path / "t.jsonl")
    assert meta is not None
    return requests, meta


def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes, *words: str
) -> str:
    source = tmp_path / "source"
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    capsys.readouterr()
    assert main([str(source), "-o", str(tmp_path / "t.jsonl"), *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
    return err


# One of each row


@pytest.mark.example
def test_burstgpt_leaves_out_failures_and_waits_where_it_says_how_long_answers_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
        "Log Type\n5,7,3.5,ChatGPT,472,18,490,chat\n45,7,2,GPT-4,1087,230,1317,chat\n"
        "46,7,1,GPT-4,50,5,55,chat\n47,,,ChatGPT,60,0,60,API\n"
    )
    requests, meta = converted(tmp_path, text)
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in requests] == [
        (0, 472, 18), (40, 1087, 230), (41, 50, 5)
    ]  # fmt: skip
    assert [r.delay_s for r in requests] == [None, 36.5, None]
    assert meta.notes == {
        "not carried: Log Type": 4,
        "left out: failed, without a response": 1,
        "turns sent before the answer before them ended: they keep their recorded times": 1,
        "requests to model ChatGPT, replayed as one with the others": 1,
        "requests to model GPT-4, replayed as one with the others": 2,
    }
    assert "left out: failed, without a response: 1" in capsys.readouterr().err


@pytest.mark.example
def test_bailian_is_seconds_blocks_of_16_and_sessions_by_parent(tmp_path: Path) -> None:
    def chat(number: int, parent: int, at: float, tokens: int) -> dict[str, Any]:
        return {"chat_id": number, "parent_chat_id": parent, "timestamp": at,
                "input_length": tokens, "output_length": 9, "type": "text", "turn": 1,
                "hash_ids": list(range(-(-tokens // 16)))}  # fmt: skip

    rows = (chat(1, -1, 61.114, 521), chat(2, 1, 95.2, 700), chat(3, 2, 99, 720),
            chat(5, 4, 240.0, 40))  # fmt: skip
    requests, meta = converted(tmp_path, lines(*rows))
    assert [r.arrival_s for r in requests] == [0, 34.086, 37.886, 178.886]
    assert [r.session_id for r in requests] == ["1", "1", "1", "5"]
    assert [r.prompt_tokens for r in requests] == [521, 700, 720, 40]
    assert meta.block_tokens == 16
    assert meta.notes["turns whose parent is not in the file: a session of their own"] == 1
    assert meta.notes["not carried: type"] == 4
    assert sum(n for name, n in meta.notes.items() if name.startswith("turns at their rec")) == 2


@pytest.mark.example
def test_a_session_follows_its_delays_and_starts_when_the_file_says(tmp_path: Path) -> None:
    rows = [
        {"session_id": "a", "timestamp": 500, "input_length": 60, "output_length": 4},
        {"session_id": "b", "timestamp": 1700, "input_length": 60, "output_length": 4},
        {"session_id": "a", "delay": 700, "input_length": 90, "output_length": 4},
        {"session_id": "b", "timestamp": 3700, "delay": 250, "input_length": 30,
         "output_length": 2},
        {"session_id": "a", "input_length": 99, "output_length": 4},
    ]  # fmt: skip
    requests, meta = converted(tmp_path, lines(*rows))
    assert [(r.session_id, r.arrival_s, r.delay_s) for r in requests] == [
        ("a", 0, None), ("a", 0.7, 0.7), ("a", 0.7, 0.0), ("b", 1.2, None), ("b", 3.2, 0.25),
    ]  # fmt: skip
    assert meta.notes["turns without a time or a delay: sent when the answer before them ends"] == 1
    assert [r.prompt_tokens for r in requests] == [60, 90, 99, 60, 30]
    below = [n for name, n in meta.notes.items() if "--turn-input new" in name]
    assert below == [1]


@pytest.mark.example
def test_turns_that_add_to_their_session_share_what_it_holds(tmp_path: Path) -> None:
    rows = [
        {"session_id": "a", "timestamp": 0, "input_length": 600, "output_length": 40,
         "hash_ids": [1, 2]},
        {"session_id": "a", "delay": 700, "input_length": 900, "output_length": 40,
         "hash_ids": [8, 9]},
    ]  # fmt: skip
    requests, _ = converted(tmp_path, lines(*rows), "--turn-input", "new")
    assert [r.prompt_tokens for r in requests] == [600, 1540]
    assert [r.prefix_hashes for r in requests] == [[1], [1, "a+1", "a+2"]]


@pytest.mark.example
def test_sessions_without_times_are_drawn_at_the_rate_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"session_id": f"s{k}", "input_length": 60, "output_length": 4}
        | ({"delay": 900} if t else {})
        for k in range(300)
        for t in range(3)
    ]  # fmt: skip
    err = refused(tmp_path, capsys, lines(*rows))
    assert "has no arrival times of its sessions; give --rate SESSIONS_S" in err
    requests, meta = converted(tmp_path, lines(*rows), "--rate", "4")
    starts = [r.arrival_s for r in requests if r.delay_s is None]
    assert len(starts) == 300
    assert len(starts) / starts[-1] == pytest.approx(4, rel=0.2)
    assert all(r.delay_s in (None, 0.9) for r in requests)
    assert meta.notes["arrivals of sessions drawn (Poisson)"] == 300


@pytest.mark.example
def test_copilots_calls_wait_for_the_answer_before_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(at: str, ms: int, prompt: int, cached: int) -> dict[str, Any]:
        return {"timestamp": f"2026-03-01T10:00:{at}Z", "duration_ms": ms, "model": "m",
                "tokens": {"prompt": prompt, "completion": 60, "cached": cached}}  # fmt: skip

    session = {"session_id": "s1", "date": "2026-03-01", "turns": [
        {"llm_calls": [call("00", 2000, 5000, 0), call("04", 1500, 5400, 5000)],
         "tool_batches": []},
        {"llm_calls": [call("09", 1000, 5600, 5400)]},
    ]}  # fmt: skip
    requests, _ = converted(tmp_path, lines(session))
    assert [(r.arrival_s, r.delay_s) for r in requests] == [(0, None), (4, 2.0), (9, 3.5)]
    assert {r.session_id for r in requests} == {"s1"}
    for path in tmp_path.iterdir():
        path.unlink()
    session["turns"][0]["llm_calls"][1]["tokens"]["cached"] = 9000  # type: ignore[index]
    err = refused(tmp_path, capsys, lines(session))
    assert ":1: llm_calls[1]: 9000 cached of 5400 prompt tokens" in err


@pytest.mark.example
def test_wekas_conversations_have_own_hashes_subagents_and_starts_to_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {"id": "c1", "block_size": 64, "requests": [
        {"t": 0.0, "type": "n", "in": 120, "out": 40, "hash_ids": [1, 2], "api_time": 2.0},
        {"t": 2.0, "type": "subagent", "agent_id": "x", "requests": [
            {"t": 0.5, "in": 64, "out": 2, "hash_ids": [9], "api_time": 1.0},
            {"t": 2.5, "in": 128, "out": 2, "hash_ids": [9, 10], "api_time": 1.0}]},
        {"t": 5.5, "type": "s", "in": 300, "out": 40, "hash_ids": [1, 2, 3, 4, 5]},
    ]}  # fmt: skip
    requests, meta = converted(tmp_path, json.dumps(first, indent=1))
    assert [(r.session_id, r.arrival_s, r.delay_s) for r in requests] == [
        ("c1", 0, None), ("c1/x", 2.5, None), ("c1/x", 4.5, 1.0), ("c1", 5.5, 3.5),
    ]  # fmt: skip
    assert meta.block_tokens == 64
    second = {"id": "c2", "requests": [{"t": 0.0, "in": 120, "out": 40, "hash_ids": [1, 2]}]}
    for path in tmp_path.iterdir():
        path.unlink()
    assert "give --rate SESSIONS_S" in refused(tmp_path, capsys, lines(first, second))
    requests, meta = converted(tmp_path, lines(first, second), "--rate", "0.1")
    assert meta.notes["arrivals of sessions drawn (Poisson)"] == 2
    c1 = [r for r in requests if r.session_id != "c2"]
    c2 = [r for r in requests if r.session_id == "c2"]
    assert [round(r.arrival_s - c1[0].arrival_s, 6) for r in c1] == [0, 2.5, 4.5, 5.5]
    shared = set(c1[0].prefix_hashes or ()) & set(c2[0].prefix_hashes or ())
    assert not shared, "hashes of two conversations are never the same text"


@pytest.mark.example
def test_dynamo_is_read_in_both_layouts_and_over_its_shards(tmp_path: Path) -> None:
    def event(request: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"schema": "dynamo.request.trace.v1", "event_type": "request_end",
                "agent_context": {"session_id": "s"}, "request": request, **more}  # fmt: skip

    flat = event(
        {
            "request_id": "r1",
            "request_received_ms": EPOCH_MS,
            "trace_block_size": 64,
            "input_length": 130,
            "input_sequence_hashes": [11, 2**64 - 9, 33],
            "output_length": 40,
            "ttft_ms": 50.0,
        },
        event_time_unix_ms=EPOCH_MS + 700,
    )
    nested = event(
        {
            "request_id": "r2",
            "request_received_ms": EPOCH_MS + 5700,
            "output_tokens": 8,
            "total_time_ms": 900.0,
            "replay": {
                "trace_block_size": 64,
                "input_length": 260,
                "input_sequence_hashes": [11, 2**64 - 9, 5, 6],
            },
        }
    )
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "b.jsonl").write_text(lines({"schema": "dynamo.x", "event_type": "tool"}, nested))
    (shards / "a.jsonl.gz").write_bytes(gzip.compress(lines(flat).encode()))
    assert main([str(shards), "-o", str(tmp_path / "t.jsonl")]) == 0
    requests, meta = read_requests(tmp_path / "t.jsonl")
    assert [(r.arrival_s, r.delay_s, r.prompt_tokens) for r in requests] == [
        (0, None, 130), (5.7, 5.0, 260),
    ]  # fmt: skip
    assert requests[0].prefix_hashes == [11, str(2**64 - 9), 33]
    assert meta is not None
    assert (meta.block_tokens, meta.notes) == (64, {"passed over: other events": 1})
    assert "a.jsonl.gz (sha256 " in meta.source


@pytest.mark.example
def test_baseten_is_parquet_whose_prompts_are_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"timestamp_start_unix_ms": EPOCH_MS, "prompt": "a b", "input_tokens": 300,
         "output_tokens": 20, "provided_session_id": "x", "total_hashes": [1, 2, 3, 4],
         "block_size": 64, "request_canceled": False, "duration_e2e_ms": 900.0,
         "duration_ttft_ms": 100.0},
        {"timestamp_start_unix_ms": EPOCH_MS + 1500, "prompt": "c", "input_tokens": 400,
         "output_tokens": 0, "provided_session_id": "x", "total_hashes": [1, 2, 3, 4, 5, 6],
         "block_size": 64, "request_canceled": True, "duration_e2e_ms": 100.0,
         "duration_ttft_ms": None},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in")
    requests, meta = converted(tmp_path, (tmp_path / "in").read_bytes())
    assert [(r.arrival_s, r.delay_s, r.output_tokens) for r in requests] == [
        (0, None, 20), (1.5, 0.6, 1),
    ]  # fmt: skip
    assert meta.block_tokens == 64
    assert meta.notes["canceled by its client, kept as far as it came"] == 1
    capsys.readouterr()
    for path in tmp_path.iterdir():
        path.unlink()
    rows[0]["duration_ttft_ms"] = 1000.0
    rows[1]["block_size"] = 16
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "source")
    data = (tmp_path / "source").read_bytes()
    assert ": record 1: duration_ttft_ms 1000 is above" in refused(tmp_path, capsys, data)
    rows[0]["duration_ttft_ms"] = 1.0
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "source")
    data = (tmp_path / "source").read_bytes()
    assert ": record 2: block_size 16, and 64 above it" in refused(tmp_path, capsys, data)
    assert "damaged parquet" in refused(tmp_path, capsys, data[:-30])


def bench(**changes: Any) -> dict[str, Any]:
    return {
        "backend": "vllm", "request_rate": 4.0, "duration": 3.0, "completed": 3,
        "input_lens": [200, 100, 300], "output_lens": [30, 30, 30], "ttfts": [0.05, 0.06, 0.07],
        "itls": [[0.01] * 29] * 3, "start_times": [1000.0, 1000.5, 1009.5],
        "errors": ["", "", ""], "spec_decode_acceptance_rate": 61.2,
    } | changes  # fmt: skip


@pytest.mark.example
@pytest.mark.parametrize("indent", [None, 2])
def test_vllm_benchmarks_keep_their_start_times(tmp_path: Path, indent: int | None) -> None:
    result = bench(request_rate="inf", errors=["", "timeout", ""])
    requests, meta = converted(tmp_path, json.dumps(result, indent=indent))
    assert [(r.arrival_s, r.prompt_tokens) for r in requests] == [(0, 200), (9.5, 300)]
    assert meta.notes == {"left out: failed in the benchmark": 1}
    assert meta.seed is None


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    (bench(spec_decode_acceptance_rate=140), ":1: spec_decode_acceptance_rate 140 % is above 100"),
    (
        bench(spec_decode_accepted_tokens=9, spec_decode_draft_tokens=5),
        "more accepted than drafted",
    ),
    (
        bench(accept_length=9.0, server_info={"speculative_num_draft_tokens": 7}),
        ":1: accept_length 9 must be at least 1 and at most the 7 drafted and one",
    ),
    (bench(accept_length=0.5), ":1: accept_length 0.5 must be at least 1;"),
    (bench(itls=[[1e-6] * 29] * 3, ttfts=[1e-5] * 3), ":1: 30 tokens in 3.9e-05 s, at 769,231"),
    (bench(ttfts=[-0.05, 1, 1]), ":1: ttfts[0] -0.05 must be a finite number, 0 or more"),
    (bench(start_times=[1.0]), ":1: input_lens, output_lens and start_times must be equally long"),
    (bench(start_times=[1.0, float("nan"), 2.0]), ":1: start_times[1] NaN must be a finite"),
    (bench(start_times=[1.0, -2.0, 2.0]), ":1: start_times[1] -2.0 must be a finite number"),
    ({"request_throughput": 1.4, "completed": 3}, "a benchmark's averages, without its requests"),
]


@pytest.mark.example
@pytest.mark.parametrize(("record", "sentence"), IMPOSSIBLE)
def test_what_no_benchmark_measures_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record: dict[str, Any], sentence: str
) -> None:
    assert sentence in refused(tmp_path, capsys, lines(record))


@pytest.mark.example
def test_one_run_of_several_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = lines(bench(), bench(input_lens=[7, 8, 9]))
    assert "holds 2 runs; a trace is one run: give --run 1 to 2" in refused(tmp_path, capsys, text)
    assert "--run 3: " in refused(tmp_path, capsys, text, "--run", "3")
    requests, _ = converted(tmp_path, text, "--run", "2")
    assert [r.prompt_tokens for r in requests] == [7, 8, 9]


def guidellm(**changes: Any) -> dict[str, Any]:
    request = {
        "request_id": "a", "info": {"timings": {"request_start": 5.0, "request_end": 7.0}},
        "input_metrics": {"text_tokens": 20}, "output_metrics": {"text_tokens": 30},
    } | changes  # fmt: skip
    older = {"request_id": "b", "start_time": 6.5, "end_time": 7.0, "prompt_tokens": 9,
             "output_tokens": 2}  # fmt: skip
    return {"metadata": {"version": 1}, "benchmarks": [{"requests": {
        "successful": [request, older], "errored": [{}], "incomplete": [{}, {}]}}]}  # fmt: skip


@pytest.mark.example
def test_guidellms_report_gives_the_requests_it_completed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = pytest.importorskip("yaml")
    for text in (json.dumps(guidellm()), json.dumps(guidellm(), indent=1), yaml.dump(guidellm())):
        requests, meta = converted(tmp_path, text, "--force")
        assert [(r.request_id, r.arrival_s, r.prompt_tokens) for r in requests] == [
            ("a", 0, 20), ("b", 1.5, 9),
        ]  # fmt: skip
        assert meta.notes == {"left out: errored": 1, "left out: incomplete": 2}
    for path in tmp_path.iterdir():
        path.unlink()
    wrong = guidellm(info={"timings": {"request_start": 5.0, "request_end": 4.0}})
    err = refused(tmp_path, capsys, json.dumps(wrong))
    assert "requests.successful[0]: request_end 4 is before request_start 5" in err


@pytest.mark.example
def test_aiperfs_records_are_its_answered_requests_and_a_users_turns_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def record(user: str, start_ms: int, ms: int, **more: Any) -> dict[str, Any]:
        start = (EPOCH_MS + start_ms) * 1_000_000 + 317
        return {
            "metadata": {"x_request_id": f"{user}{start_ms}", "x_correlation_id": user,
                         "request_start_ns": start, "request_end_ns": start + ms * 1_000_000,
                         "benchmark_phase": "profiling"},
            "metrics": {"input_sequence_length": {"value": 550, "unit": "tokens"},
                        "output_sequence_length": {"value": 9, "unit": "tokens"}},
            "error": None,
        } | more  # fmt: skip

    rows = [record("a", 0, 400), record("b", 300, 400), record("a", 1400, 400),
            record("c", 900, 1, error={"code": 499}, metrics={})]  # fmt: skip
    requests, meta = converted(tmp_path, lines(*rows))
    assert [(r.arrival_s, r.session_id, r.delay_s) for r in requests] == [
        (0, "a", None), (0.3, None, None), (1.4, "a", 1.0),
    ]  # fmt: skip
    assert meta.notes == {"left out: failed in the benchmark": 1}
    for path in tmp_path.iterdir():
        path.unlink()
    err = refused(tmp_path, capsys, lines(record("a", 0, -5)))
    assert ":1: request_end_ns" in err


@pytest.mark.example
def test_error_answers_of_a_log_are_left_out_and_counted(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    rows = [
        {"id": "a", "created": 1753780607, "usage": usage, "model": "q"},
        {"error": {"message": "too long", "code": 400}},
        {"object": "error", "message": "x", "code": 429},
        {"custom_id": "t", "response": {"status_code": 500, "body": {"error": {"message": "x"}}}},
        {"custom_id": "u", "response": None, "error": {"code": "expired"}},
        {"id": "b", "created": 1753780609, "usage": usage, "model": "q"},
    ]
    requests, meta = converted(tmp_path, lines(*rows))
    assert [r.request_id for r in requests] == ["a", "b"]
    assert meta.notes == {"left out: error answers": 4}


@pytest.mark.example
def test_a_log_that_accepts_more_than_it_drafts_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = {"id": "a", "prompt_tokens": 5, "completion_tokens": 5, "request_received_ts": 1.75e9,
            "spec_accept_token_num": 9, "spec_draft_token_num": 5}  # fmt: skip
    err = refused(tmp_path, capsys, lines({"meta_info": meta}))
    assert ":1: spec_accept_token_num 9 is above spec_draft_token_num 5: more accepted" in err


NO_TRACE: list[tuple[str, str, str]] = [
    (
        "sglang log",
        "[2026-03-01 10:00:00] Prefill batch. #new-seq: 1, #new-token: 5\n"
        "[2026-03-01 10:00:01] Decode batch. #running-req: 1, accept len: 2.1\n",
        "run the server with --log-requests --log-requests-format json",
    ),
    (
        "vllm log",
        "INFO 09-01 10:10:10 Engine 000: Avg prompt throughput: 10.0 tokens/s, Running: 1\n",
        "convert what vllm bench serve --save-result --save-detailed writes",
    ),
    (
        "sharegpt",
        json.dumps([{"id": "a", "conversations": [{"from": "human", "value": "Hi"}]}], indent=1),
        "holds conversations as text, without times or token counts (ShareGPT, LMSYS); send them",
    ),
    (
        "lmsys",
        lines({"conversation_id": "1", "conversation": [{"role": "user", "content": "Hi"}]}),
        "--log-requests --log-requests-format json",
    ),
    (
        "aiperf messages",
        lines({"timestamp": 0, "messages": [{"role": "user", "content": "x"}], "output_length": 4}),
        "write input_length and output_length into every row",
    ),
    (
        "messages among counts",
        lines({"timestamp": 0, "input_length": 5, "output_length": 4},
              {"timestamp": 900, "messages": [], "output_length": 4}),
        ":2: messages and no input_length: a trace holds token counts, not text",
    ),
    (
        "no output length",
        lines({"timestamp": 0, "input_length": 5}),
        ":1: no output_length: a trace needs the tokens that each request generates",
    ),
    (
        "speculation profile",
        json.dumps({"conditional_accept_rates": [0.8], "marginal_accept_rates": [0.8]}),
        "is a drafter's speculation_profile: rates of acceptance and no requests",
    ),
    (
        "own table",
        "when,prompt_len,out_len\n0,10,5\n",
        "--columns timestamp=NAME,input_length=NAME,output_length=NAME",
    ),
    ("git lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:a\n", "git lfs pull"),
    ("cost model", json.dumps({"schema_version": 3, "provenance": []}), "is a cost model or"),
    ("short row", "TIMESTAMP,ContextTokens,GeneratedTokens\n2026-01-01,5\n", ": 2 values under 3"),
    ("two columns", "TIMESTAMP,ContextTokens,ContextTokens\n1,2,3\n", ":1: two columns 'contextt"),
    ("middle", '{"timestamp": 0, "input_length": 5, "output_length": 4}\n{"times\n{}\n',
     ":2: not valid JSON"),
    ("pretty and cut", '{\n "benchmarks": [\n', "not valid JSON"),
]  # fmt: skip


@pytest.mark.example
@pytest.mark.parametrize(("name", "text", "sentence"), NO_TRACE, ids=[row[0] for row in NO_TRACE])
def test_what_is_no_trace_is_refused_with_what_would_make_it_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, sentence: str
) -> None:
    assert sentence in refused(tmp_path, capsys, text)


# What files are made of

AZURE_ROWS = [
    ("2024-05-10 00:00:00.5+00:00", "2162", "5"),
    ("2024-05-10 02:00:02+02:00", "76", "9"),
]
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def azure(**style: Any) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, **style)
    writer.writerows([AZURE, *AZURE_ROWS])
    return text.getvalue()


FILES: list[tuple[str, bytes]] = [
    ("as it is", azure().encode()),
    ("BOM", b"\xef\xbb\xbf" + azure().encode()),
    ("UTF-16", azure().encode("utf-16")),
    ("CRLF", azure(lineterminator="\r\n").encode()),
    ("CR", azure(lineterminator="\r").encode()),
    ("gzip", gzip.compress(azure().encode())),
    ("semicolons", azure(delimiter=";").encode()),
    ("tabs", azure(delimiter="\t").encode()),
    ("quotes", azure(quoting=csv.QUOTE_ALL).encode()),
    ("capitals", azure().upper().encode()),
    ("empty lines", b"\n\n" + azure(lineterminator="\n\n").encode() + b"\n\n"),
    ("commas at the end", azure(lineterminator=",\n").encode()),
    (
        "another order",
        b"GeneratedTokens,TIMESTAMP,ContextTokens\n"
        + "".join(f"{o},{t},{p}\n" for t, p, o in AZURE_ROWS).encode(),
    ),
]


@pytest.mark.example
@pytest.mark.parametrize(("name", "data"), FILES, ids=[row[0] for row in FILES])
def test_a_csv_is_the_same_however_it_is_written(tmp_path: Path, name: str, data: bytes) -> None:
    requests, _ = converted(tmp_path, data)
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in requests] == [
        (0, 2162, 5), (1.5, 76, 9),
    ]  # fmt: skip


@pytest.mark.example
def test_json_is_the_same_in_lines_in_a_list_pretty_and_in_arrow(tmp_path: Path) -> None:
    rows = [{"timestamp": 700 * k, "input_length": 600, "output_length": 5, "hash_ids": [1, k + 2]}
            for k in range(5)]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(tmp_path / "arrow", table.schema) as file:
        file.write_table(table)
    pq.write_table(table, tmp_path / "parquet")
    texts = (lines(*rows), json.dumps(rows), json.dumps(rows, indent=2),
             "".join(json.dumps(row, indent=1) + "\n" for row in rows))  # fmt: skip
    contents = [*(text.encode() for text in texts),
                *((tmp_path / name).read_bytes() for name in ("arrow", "parquet"))]  # fmt: skip
    found = [converted(tmp_path, content, "--force")[0] for content in contents]
    assert all(requests == found[0] for requests in found)
    assert [r.arrival_s for r in found[0]] == [0, 0.7, 1.4, 2.1, 2.8]


@pytest.mark.example
def test_a_tables_names_are_the_same_in_parquet_and_in_json(tmp_path: Path) -> None:
    rows = [dict(zip(AZURE, (at, int(p), int(o)), strict=True)) for at, p, o in AZURE_ROWS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet")
    for content in ((tmp_path / "parquet").read_bytes(), lines(*rows), json.dumps(rows)):
        requests, _ = converted(tmp_path, content, "--force")
        assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in requests] == [
            (0, 2162, 5), (1.5, 76, 9),
        ]  # fmt: skip


@pytest.mark.example
def test_a_cut_last_line_is_left_out_and_a_damaged_gzip_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"timestamp": 900 * k, "input_length": 60, "output_length": 5} for k in range(30)]
    requests, meta = converted(tmp_path, lines(*rows)[:-12])
    assert len(requests) == 29
    assert meta.notes == {"left out: the last line, which is cut off": 1}
    for path in tmp_path.iterdir():
        path.unlink()
    capsys.readouterr()
    latin = lines(*rows[:2]).encode() + '{"é": 1}\n'.encode("latin-1")
    assert "source:3: byte 0xe9 is not UTF-8; save it as UTF-8" in refused(tmp_path, capsys, latin)
    packed = gzip.compress(lines(*rows).encode())
    assert "damaged gzip" in refused(tmp_path, capsys, packed[:-20])


@pytest.mark.example
def test_columns_of_ones_own_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "When;Prompt Len;Out\n0,5;10;5\n1,25;11;6\n"
    names = "timestamp=When,input_length=Prompt Len,output_length=Out"
    requests, _ = converted(tmp_path, text, "--columns", names, "--time-unit", "s")
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in requests] == [
        (0, 10, 5), (0.75, 11, 6),
    ]  # fmt: skip
    for path in tmp_path.iterdir():
        path.unlink()
    capsys.readouterr()
    wrong = text.replace("11", "x")
    assert ':3: Prompt Len "x" must be a whole' in refused(
        tmp_path, capsys, wrong, "--columns", names
    )
    assert "unknown key 'when'" in refused(tmp_path, capsys, text, "--columns", "when=When")


@pytest.mark.example
def test_a_part_of_a_files_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"timestamp": 900 * k, "input_length": 60 + k, "output_length": 5} for k in range(9)]
    requests, _ = converted(tmp_path, lines(*rows), "--rows", "2:5")
    assert [r.prompt_tokens for r in requests] == [62, 63, 64]
    for path in tmp_path.iterdir():
        path.unlink()
    capsys.readouterr()
    assert "give FIRST:END" in refused(tmp_path, capsys, lines(*rows), "--rows", "5:2")


@pytest.mark.example
def test_a_file_given_to_a_command_that_replays_is_pointed_to_convert(tmp_path: Path) -> None:
    for content in (azure(), lines({"timestamp": 0, "input_length": 5, "output_length": 2}),
                    json.dumps(bench(), indent=2)):  # fmt: skip
        path = tmp_path / "prod.csv"
        path.write_text(content)
        with pytest.raises(ValueError, match=r"begins no trace .*dspark traces convert .*prod.csv"):
            load_trace(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match=r"is a Parquet .*dspark traces convert"):
        load_trace(path)


@pytest.mark.law
def test_text_beside_the_counts_is_never_held(tmp_path: Path) -> None:
    source = tmp_path / "big.jsonl"
    with source.open("w") as file:
        for k in range(2000):
            row = {"timestamp": 300 * k, "input_length": 900, "output_length": 3,
                   "text_input": "word " * 10_000}  # fmt: skip
            file.write(json.dumps(row) + "\n")
    assert source.stat().st_size > 95e6
    tracemalloc.start()
    try:
        assert main([str(source), "-o", str(tmp_path / "t.jsonl")]) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12e6, f"{peak / 1e6:.0f} MB held of a file of 100 MB"


@pytest.mark.law
@pytest.mark.parametrize("when", ["reading", "writing"])
def test_ctrl_c_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    place = {
        "reading": "traces.importers.imported.check_speed",
        "writing": "traces.store.write_json",
    }
    monkeypatch.setattr(place[when], interrupt)
    source = tmp_path / "source"
    source.write_text(lines({"timestamp": 0, "input_length": 5, "output_length": 2}))
    assert main([str(source), "-o", str(tmp_path / "t.jsonl")]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


# The files beside this checkout, where they are

CONVERT: dict[str, tuple[int, float, int | None]] = {
    "aiperf_session_ts.jsonl": (4, 2.6, 512),
    "azure2023.csv": (4, 2.52004, None),
    "azure2024.csv": (4, 198_000.99007, None),
    "azure2024_bom.csv": (3, 2.02507, None),
    "azure_lmm2025.csv": (2, 1.0, None),
    "azure_semicolon.csv": (2, 1.007405, None),
    "bailian.jsonl": (3, 178.886, 16),
    "bailian_short.jsonl": (5, 160.0, 16),
    "baseten.parquet": (2, 1.0, 64),
    "burstgpt.csv": (3, 113.0, None),
    "burstgpt2.csv": (2, 40.0, None),
    "copilot.jsonl": (2, 4.0, None),
    "dynamo.jsonl.gz": (3, 1.6, 64),
    "dynamo_request_trace.jsonl": (3, 1.6, 64),
    "guidellm_out.json": (1, 0.0, None),
    "guidellm_trace.jsonl": (5, 3.3, None),
    "mc_ms600.jsonl": (600, 419.3, 512),
    "mooncake.jsonl.gz": (5, 27.482, 512),
    "mooncake_bom.jsonl": (5, 27.482, 512),
    "mooncake_conv.jsonl": (5, 27.482, 512),
    "mooncake_epoch_ms.jsonl": (6, 1.25, 512),
    "mooncake_ns_string.jsonl": (6, 1.25, 512),
    "mooncake_partial.jsonl": (3, 2.0, 512),
    "openai_answers.jsonl": (6, math.nan, None),
    "openai_ms.jsonl": (6, 2.5, None),
    "own_schema.jsonl": (2, 0.1, None),
    "sglang_bench.jsonl": (3, math.nan, None),
    "sglang_bench_failed.jsonl": (2, math.nan, None),
    "vllm_bench.json": (4, 9.5, None),
    "vllm_bench_inf.json": (4, 9.5, None),
    "vllm_bench_pretty.json": (4, 9.5, None),
}
ASK = {
    "aiperf_messages.jsonl": "write input_length and output_length into every row",
    "aiperf_session.jsonl": "give --rate SESSIONS_S",
    "mc_sec600.jsonl": "give --time-unit",
    "mooncake_seconds.jsonl": "give --time-unit",
    "mooncake_toofew.jsonl": "give the right --block-tokens",
    "mooncake_toomany.jsonl": "give the right --block-tokens",
    "sglang_bench_nodetail.jsonl": "--output-details",
    "sharegpt.json": "without times or token counts",
    "weka.jsonl": "give --rate SESSIONS_S",
}


@pytest.mark.golden
@pytest.mark.skipif(not HELD.exists(), reason="the cases are not beside this checkout")
def test_every_case_beside_this_checkout_converts_or_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {path.name for path in HELD.iterdir()}
    assert names == set(CONVERT) | set(ASK)
    for name, (count, last_s, size) in CONVERT.items():
        out = tmp_path / f"{name}.jsonl"
        assert main([str(HELD / name), "-o", str(out)]) == 0, name
        requests, meta = read_requests(out)
        assert meta is not None
        assert (len(requests), meta.block_tokens) == (count, size), name
        if not math.isnan(last_s):
            assert requests[-1].arrival_s == pytest.approx(last_s, abs=1e-5), name
    capsys.readouterr()
    for name, sentence in ASK.items():
        out = tmp_path / f"{name}.jsonl"
        assert main([str(HELD / name), "-o", str(out)]) == 2, name
        assert sentence in capsys.readouterr().err, name
        assert not out.exists()


@pytest.mark.law
def test_the_page_lists_every_format() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "traces.md").read_text()
    assert all(f"`{name}`" in page for name in FORMATS)
