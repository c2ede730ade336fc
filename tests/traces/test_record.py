"""Recording a server, and traces of it: nothing twice, nothing torn, one sentence per fault."""

from __future__ import annotations

import json
import math
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.logs.info_records import Converter, Ledger, dumps_of, logit
from sglang_dspark.logs.request_parts import (
    BLOCK_TOKENS,
    RequestHeader,
    RequestRecord,
    encode,
    part_bytes,
    prefix_hashes,
)
from sglang_dspark.logs.request_parts import read_requests as request_log
from sglang_dspark.logs.step_log import read
from sglang_dspark.logs.writer import parquet_bytes
from sglang_dspark.server_client import ServerClient
from simulator.run import main as simulate
from tests.traces.recorded_servers import GAMMA, FakeServer, info_of, step
from tests.waiting import HUNG_S
from traces import load_trace, read_requests
from traces.measured import measured_path, read_measured
from traces.pulling import CLEAR_AT, Pull
from traces.record import main, record

ROOT = Path(__file__).parents[2]
KEY = b"k" * 32


def request(number: int = 0, **fields: Any) -> RequestRecord:
    plain: dict[str, Any] = {
        "request_id": f"r{number}",
        "arrival_s": 1.7e9 + 0.5 * number,
        "prompt_tokens": 200,
        "output_tokens": 20,
        "cached_tokens": 0,
        "finish": "length",
        "streamed": True,
        "starting": False,
        "queue_s": 0.001,
        "ttft_s": 0.05,
        "latency_s": 0.43,
        "retractions": 0,
        "decode_steps": None,
        "session_id": None,
        "temperature": 0.7,
        "priority": None,
        "prefix_hashes": np.empty(0, dtype=np.int64),
    }
    return RequestRecord(**{**plain, **fields})


def write_log(folder: Path, records: list[RequestRecord], *, dropped: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    header = RequestHeader(block_tokens=BLOCK_TOKENS, versions={}, dropped=dropped)
    (folder / "requests-1-1-000000.parquet").write_bytes(part_bytes([encode(records)], header))


def convert(tmp_path: Path, records: list[RequestRecord], **options: Any) -> tuple[list[Any], Any]:
    write_log(tmp_path / "log", records, **options)
    out = tmp_path / "t.jsonl"
    assert main(["--from", str(tmp_path / "log"), "-o", str(out)]) == 0
    load_trace(out)
    return read_requests(out)


def measured(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "t.measured.jsonl").read_text().splitlines()]


@pytest.mark.example
def test_a_log_becomes_a_trace_with_its_times_beside_it(tmp_path: Path) -> None:
    hashes = np.array([7, 2**63 - 1, -5])
    records = [
        request(1, prefix_hashes=hashes[:2], session_id="s", priority=3, prompt_tokens=150),
        request(
            0,
            prefix_hashes=hashes,
            decode_steps=9,
            cached_tokens=128,
            max_new_tokens=64,
            prefill_s=0.02,
        ),
    ]
    requests, meta = convert(tmp_path, records)
    assert [(r.request_id, r.arrival_s, r.prefix_hashes) for r in requests] == [
        ("r0", 0.0, [0, 1, 2]),
        ("r1", 0.5, [0, 1]),
    ]
    assert (requests[1].session_id, requests[1].priority, requests[1].temperature) == ("s", 3, 0.7)
    assert meta.block_tokens == BLOCK_TOKENS
    assert meta.source == "request log log, from 2023-11-14T22:13:20+00:00"
    first, second = measured(tmp_path)
    assert first["request_id"] == "r0"
    assert (first["cached_tokens"], first["decode_steps"]) == (128, 9)
    assert first["tpot_s"] == pytest.approx((0.43 - 0.05) / 19)
    assert second["latency_s"] == 0.43
    assert [r.max_new_tokens for r in requests] == [64, None]
    assert (first["received_s"], first["prefill_s"]) == (1.7e9, 0.02)
    assert read_measured(measured_path(tmp_path / "t.jsonl"))["r1"].received_s == 1.7e9 + 0.5


@pytest.mark.example
def test_what_a_trace_cannot_hold_is_counted(tmp_path: Path) -> None:
    records = [
        request(0, starting=True),
        request(1, output_tokens=0, finish="abort"),
        request(2, finish="abort"),
        request(2),
        request(4, prompt_tokens=0),
        request(5, output_tokens=1, ttft_s=None),
    ]
    requests, meta = convert(tmp_path, records, dropped=4)
    assert [r.request_id for r in requests] == ["r2", "r2#2", "r5"]
    assert requests[0].arrival_s == 0.0
    assert meta.notes == {
        "missing: dropped by the recorder": 4,
        "left out: the server's own warm-up": 1,
        "left out: generated nothing": 1,
        "left out: no prompt tokens": 1,
        "kept: aborted, as far as it came": 1,
        "request_id used before, numbered": 1,
    }
    assert [m["tpot_s"] is None for m in measured(tmp_path)] == [False, False, True]


@pytest.mark.example
def test_parts_of_the_first_version_are_read(tmp_path: Path) -> None:
    """They say nothing of what came later."""
    new = {"max_new_tokens", "prefill_s"}
    old = encode([request(0)]).drop_columns(sorted(new))
    header = {"block_tokens": BLOCK_TOKENS, "versions": {}, "schema_version": 1, "dropped": 0}
    key = "sglang_dspark.request_log"
    part = parquet_bytes([old], schema=old.schema, key=key, header=header)
    (tmp_path / "requests-1-1-000000.parquet").write_bytes(part)
    (found,) = request_log(tmp_path).records
    assert (found.request_id, found.max_new_tokens, found.prefill_s) == ("r0", None, None)
    header["schema_version"] = 7
    part = parquet_bytes([old], schema=old.schema, key=key, header=header)
    (tmp_path / "requests-1-1-000000.parquet").write_bytes(part)
    with pytest.raises(ValueError, match="schema_version 7 is not 2; record a new request log"):
        request_log(tmp_path)


@pytest.mark.example
def test_an_engine_that_never_says_it_is_up_has_no_warm_up(tmp_path: Path) -> None:
    requests, _ = convert(tmp_path, [request(0, starting=True), request(1, starting=True)])
    assert len(requests) == 2


@pytest.mark.example
def test_a_session_longer_than_its_hashes_say_still_loads(tmp_path: Path) -> None:
    requests, meta = convert(tmp_path, [request(prompt_tokens=70, prefix_hashes=np.arange(3))])
    assert requests[0].prefix_hashes == [0]
    assert meta.block_tokens == BLOCK_TOKENS


@pytest.mark.law
@given(
    base=st.lists(st.integers(0, 10**6), min_size=300, max_size=300),
    ends=st.lists(st.integers(0, 300), min_size=2, max_size=6),
    other=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_prompts_share_as_many_blocks_as_whole_blocks_of_tokens(
    base: list[int], ends: list[int], other: int
) -> None:
    prompts = [[*base[:end], other, *base[end:]] for end in ends]
    hashed = [prefix_hashes(prompt, key=KEY).tolist() for prompt in prompts]
    for a, left in zip(prompts, hashed, strict=True):
        assert len(left) == len(a) // BLOCK_TOKENS
        for b, right in zip(prompts, hashed, strict=True):
            same = [x == y for x, y in zip(a, b, strict=True)]
            common = same.index(False) if False in same else len(same)
            shared = [x == y for x, y in zip(left, right, strict=True)]
            assert sum(shared) == common // BLOCK_TOKENS
            assert shared == sorted(shared, reverse=True)
    first = prefix_hashes(base, key=KEY).tolist()
    for stranger in (prefix_hashes(base, key=b"x"), prefix_hashes(base, key=KEY, root="lora")):
        assert not set(first) & set(stranger.tolist())


@pytest.mark.filterwarnings("ignore:cost model")  # whose acceptance it is does not matter here
@pytest.mark.law
def test_a_recorded_trace_replays_in_the_simulator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    shared = prefix_hashes(range(128), key=KEY)
    records = [
        request(
            number,
            arrival_s=1.7e9 + 0.05 * number,
            prompt_tokens=int(rng.integers(128, 400)),
            output_tokens=int(rng.integers(1, 60)),
            prefix_hashes=shared,
        )
        for number in range(40)
    ]
    convert(tmp_path, records)
    words = ["--policy", "fixed", "--policy", "global", "--jobs", "1", "--check", "--json"]
    out = ["--out", str(tmp_path / "results")]
    assert simulate([str(tmp_path / "t.jsonl"), *words, *out]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    total = sum(record_.prompt_tokens for record_ in records)
    for policy in found["policies"]:
        assert policy["completed"] == 40
        assert policy["whole_run"]["prefix_hit_share"] == pytest.approx(39 * 128 / total, abs=1e-6)


# --- SGLang's own record ---------------------------------------------------------------------


@pytest.mark.law
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("run"), st.integers(1, 5)),
            st.tuples(st.sampled_from(["look", "clear", "restart"]), st.just(0)),
        ),
        max_size=40,
    ),
    st.integers(2, 12),
)
@settings(max_examples=300, deadline=None)
def test_every_record_is_taken_once_through_clears_and_restarts(
    events: list[tuple[str, int]], kept: int
) -> None:
    ledger, seed, count = Ledger(), 0, 0
    held: list[dict[str, Any]] = []
    unseen: list[dict[str, Any]] = []
    for kind, number in [*events, ("look", 0)]:
        if kind == "run":
            for _ in range(number):
                count += 3  # prefills count as well
                made = step(count, seed=seed, rows=1)
                held.append(made)
                unseen.append(made)
            held = held[-kept:]
            unseen = [one for one in unseen if one in held]  # SGLang keeps so many
        elif kind == "look":
            assert ledger.new(held) == unseen
            unseen = []
        elif kind == "clear":
            held, unseen = [], []
        else:
            seed, count, held, unseen = seed + 1, 0, [], []
    assert ledger.unusable == 0


@pytest.mark.example
def test_a_record_becomes_a_step(tmp_path: Path) -> None:
    shown = [step(count) for count in (4, 7, 9)]
    converter = Converter(gamma=GAMMA, mode="compact")
    steps = converter.convert(shown, now_s=100.0)
    third, wanted = steps[2], shown[2]
    reqs = wanted["reqs"]
    assert third.step == 9
    assert third.request_ids == ("r0", "r1")
    assert third.plan.lengths.tolist() == [req["verify_len"] - 1 for req in reqs]
    assert third.accepted.tolist() == [req["correct_drafts"] for req in reqs]
    assert third.state.context_tokens.tolist() == [req["prefix_len"] for req in reqs]
    for row in range(2):
        assert third.state.logits[row] == pytest.approx(logit(reqs[row]["confidence"], GAMMA))
        stale = logit(shown[0]["reqs"][row]["confidence"], GAMMA)
        assert third.state.stale_logits[row] == pytest.approx(stale)
    assert third.state.stale_age.tolist() == [2, 2]
    assert np.isnan(steps[1].state.stale_logits).all()
    assert third.step_s == pytest.approx(wanted["step_cpu_ms"] / 1e3)
    assert third.end_s == 100.0
    assert steps[1].end_s == pytest.approx(100.0 - third.step_s)
    assert third.plan.predicted_step_s == 0.01
    assert third.plan.expected_tokens == pytest.approx(5.0)
    assert third.computed_tokens == sum(req["verify_len"] for req in reqs)
    assert third.shape == "ragged"


@pytest.mark.example
def test_parts_that_were_timed_are_kept_apart() -> None:
    shown = {**step(1), "step_gpu_ms": 9.0, "draft_gpu_ms": 2.0, "target_verify_gpu_ms": 6.0}
    del shown["step_cpu_ms"]
    (made,) = Converter(gamma=GAMMA, mode="static").convert([shown], now_s=0.0)
    assert (made.draft_s, made.verify_s) == (0.002, 0.006)
    assert made.commit_s == pytest.approx(0.001)
    assert (made.shape, made.computed_tokens) == ("uniform", 2 * (GAMMA + 1))


@pytest.mark.example
def test_rounded_confidences_stay_finite_and_none_means_nothing_doubted() -> None:
    assert logit([0.0, 1.0, 0.5], 3) == pytest.approx([-9.903, 9.903, 0.0], abs=1e-3)
    converter = Converter(gamma=GAMMA, mode="static")
    (made,) = converter.convert([step(1, confidence=False)], now_s=0.0)
    assert np.isposinf(made.state.logits).all()
    assert converter.without_confidence == 1


def bent(**fields: Any) -> dict[str, Any]:
    return {**step(5), **fields}


def bent_req(**fields: Any) -> dict[str, Any]:
    whole = step(5)
    whole["reqs"][0].update(fields)
    return whole


@pytest.mark.law
@pytest.mark.parametrize(
    "record_",
    [
        bent(reqs=None),
        bent(reqs="x"),
        bent(reqs=[1]),
        bent_req(verify_len=0),
        bent_req(verify_len=GAMMA + 2),
        bent_req(acc_len=99),
        bent_req(acc_len="x"),
        bent_req(confidence=[0.5]),
        bent_req(confidence=[math.nan] * GAMMA),
        bent_req(confidence=["x"] * GAMMA),
        {"forward_ct": 5},
        {"forward_ct": "5"},
        "text",
        None,
    ],
)
def test_a_record_that_makes_no_sense_is_passed_over(record_: Any) -> None:
    ledger = Ledger()
    converter = Converter(gamma=GAMMA, mode="compact")
    steps = converter.convert(ledger.new([record_, step(8)]), now_s=0.0)
    assert [made.step for made in steps] == [8]
    assert ledger.unusable + converter.unusable == 1


@pytest.mark.law
@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        "x",
        {},
        {"internal_states": None},
        {"internal_states": [1]},
        {"internal_states": [{"dspark_info_record": 5}]},
        {"internal_states": [{"dspark_info_record": {"gamma": 3}}]},
        {"internal_states": [{"dspark_info_record": {"gamma": "3", "records": []}}]},
        {"internal_states": [{"dspark_info_record": {"gamma": 0, "records": []}}]},
        {"internal_states": [{"dspark_info_record": {"gamma": 3, "records": {}}}]},
    ],
)
def test_an_answer_that_is_not_sglangs_is_one_sentence(answer: Any) -> None:
    with pytest.raises(ValueError, match=r"internal_states|dspark_info_record") as caught:
        dumps_of(answer)
    assert len(str(caught.value).splitlines()) == 1


# --- a whole recording -----------------------------------------------------------------------


def pull_of(server: FakeServer, folder: Path, **options: Any) -> Pull:
    return Pull(client=ServerClient(server.url, timeout_s=5), folder=folder, **options)


@pytest.mark.law
def test_nothing_is_written_twice_and_the_server_is_relieved(tmp_path: Path) -> None:
    with FakeServer() as server:
        pull = pull_of(server, tmp_path)
        for count in (0, 1, 1, 5):
            if not server.records or server.records[-1]["forward_ct"] != count:
                server.records.append(step(count, rows=1))
            pull.look()
        server.records.extend(step(count, rows=1) for count in range(2000, 2000 + CLEAR_AT))
        pull.look()
        assert server.cleared == 1
        assert server.records == []
        server.records.append(step(4000, rows=1))
        pull.look()
    steps = [made.step for made in read(tmp_path)]
    assert len(steps) == pull.steps
    assert steps == [0, 1, 5, *range(2000, 2000 + CLEAR_AT), 4000]


@pytest.mark.example
def test_keep_leaves_the_servers_records_alone(tmp_path: Path) -> None:
    with FakeServer() as server:
        server.records = [step(count, rows=1) for count in range(CLEAR_AT)]
        pull_of(server, tmp_path, keep=True).look()
        assert server.cleared == 0


@pytest.mark.example
def test_a_restarted_server_begins_anew(tmp_path: Path) -> None:
    with FakeServer() as server:
        pull = pull_of(server, tmp_path)
        server.records = [step(count, seed=1) for count in range(5)]
        pull.look()
        server.records = [step(count, seed=2) for count in range(3)]
        pull.look()
    assert (pull.restarts, pull.steps) == (1, 8)
    assert [made.step for made in read(tmp_path)] == [0, 1, 2, 3, 4, 0, 1, 2]


@pytest.mark.example
def test_no_secret_of_the_server_is_written(tmp_path: Path) -> None:
    with FakeServer() as server:
        pull_of(server, tmp_path).look()
    text = (tmp_path / "server.json").read_text()
    assert "secret" not in text
    told = json.loads(text)
    assert told["version"] == "0.5.21"
    assert (told["memory_usage"], told["running_requests_limit"]) == ([None], [None])


@pytest.mark.example
def test_logs_on_this_machine_are_copied_part_by_part(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    write_log(log, [request(0)])
    with FakeServer() as server:
        server.state["dspark_logs"] = {
            "host": socket.gethostname(),
            "request_log": str(log),
            "step_log": None,
        }
        pull = pull_of(server, out)
        pull.look()
        pull.look()
        assert pull.parts == 1
        (log / "requests-1-1-000001.parquet").write_bytes(
            (log / "requests-1-1-000000.parquet").read_bytes()
        )
        (log / "requests-1-1-000002.parquet.tmp-1").write_bytes(b"half")
        pull.look()
        again = pull_of(server, out)  # a second recording goes on where the first stopped
        again.look()
        server.state["dspark_logs"]["host"] = "elsewhere"
        again.look()
        hints = again.hints
    assert (pull.parts, again.parts) == (2, 0)
    assert sorted(p.name for p in out.glob("*.parquet*")) == [
        "requests-1-1-000000.parquet",
        "requests-1-1-000001.parquet",
    ]
    assert any("lies on elsewhere" in hint for hint in hints)


@pytest.mark.example
def test_a_server_that_tells_nothing_gets_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer() as server:
        server.answer = json.dumps(info_of(None)).encode()
        assert main(["--url", server.url, "-o", str(tmp_path), "--seconds", "0.1"]) == 0
    said = capsys.readouterr()
    assert "SGLANG_DSPARK_DEBUG_DUMP=core,step_cpu_time,reqs" in said.err
    assert "--speculative-dspark-request-log" in said.err
    assert said.out == f"{tmp_path}: 0 parts copied, 0 steps written\n"


@pytest.mark.law
@pytest.mark.parametrize("answer", [b"", b"{", b"hang up", b"[1]", b"<html>"])
def test_a_first_answer_that_is_none_is_wrong_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes
) -> None:
    with FakeServer() as server:
        server.answer = answer
        assert main(["--url", server.url, "-o", str(tmp_path), "--seconds", "1"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.match(r"traces.record: http://.*\n$", said.err)


@pytest.mark.example
@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense"])
def test_a_wrong_address_is_wrong_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert main(["--url", url, "-o", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.law
@pytest.mark.parametrize("how", ["dies", "hangs up", "babbles"])
def test_a_server_that_goes_away_leaves_what_was_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    with FakeServer() as server:
        server.records = [step(count) for count in range(5)]
        looks = 0

        def wait(seconds: float) -> bool:
            nonlocal looks
            looks += 1
            if looks == 1:
                server.records.append(step(20))
            elif looks == 2 and how == "dies":
                server.close()
            elif looks == 2:
                server.answer = b"hang up" if how == "hangs up" else b"[]"
            time.sleep(0.02)
            return False

        status = record(
            pull_of(server, tmp_path), seconds=60, every_s=0.01, patience_s=0.1, wait=wait
        )
    assert status == 1
    assert [made.step for made in read(tmp_path)] == [0, 1, 2, 3, 4, 20]
    said = capsys.readouterr()
    assert "what was recorded until then stands" in said.err
    assert "6 steps written from dspark_info_record" in said.out


@pytest.mark.example
def test_a_server_that_comes_back_is_recorded_on(tmp_path: Path) -> None:
    with FakeServer() as server:
        server.records = [step(1)]
        now = 0.0

        def wait(seconds: float) -> bool:
            nonlocal now
            now += 1.0
            server.answer = b"[]" if now in (1.0, 2.0) else None
            if now == 2.0:
                server.records = [step(1, seed=9), step(2, seed=9)]
            return False

        status = record(
            pull_of(server, tmp_path),
            seconds=5,
            every_s=1.0,
            patience_s=10,
            clock=lambda: now,
            wait=wait,
        )
    assert status == 0
    assert [made.step for made in read(tmp_path)] == [1, 1, 2]


def recorder(server: FakeServer, folder: Path, *, before: str = "") -> subprocess.Popen[str]:
    code = f"{before}\nimport sys\nfrom traces.record import main\nsys.exit(main(sys.argv[1:]))"
    words = ["--url", server.url, "-o", str(folder), "--every", "0.05"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def until(condition: Any, seconds: float = HUNG_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.law
def test_ctrl_c_ends_well_and_a_killed_recorder_leaves_whole_parts(tmp_path: Path) -> None:
    with FakeServer() as server:
        server.records = [step(count, rows=4) for count in range(50)]
        process = recorder(server, tmp_path / "a")
        until(lambda: server.asked >= 3)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=HUNG_S)
        assert process.returncode == 0
        assert "50 steps written" in out
        assert len(list(read(tmp_path / "a"))) == 50
        asked = server.asked
        process = recorder(server, tmp_path / "b")
        for count in range(200, 400):
            server.records.append(step(count))
            time.sleep(0.005)
            if server.asked > asked + 8:
                break
        until(lambda: server.asked > asked + 8)
        process.kill()
        process.communicate()
        steps = [made.step for made in read(tmp_path / "b")]
    assert len(steps) == len(set(steps)) >= 50


@pytest.mark.law
def test_a_full_disk_ends_the_recording_with_one_sentence(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000))"
    with FakeServer() as server:
        server.records = [step(count) for count in range(10)]
        process = recorder(server, tmp_path, before=limit)
        until(lambda: list(tmp_path.glob("steps-*.parquet")))
        server.records.extend(step(count, rows=30) for count in range(100, 700))
        err = process.communicate(timeout=HUNG_S)[1]
    assert process.returncode == 2
    assert "cannot write" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert [made.step for made in read(tmp_path)] == list(range(10))
    assert not list(tmp_path.glob("*.tmp-*"))
    assert server.cleared == 0


@pytest.mark.law
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "one of the arguments --url --from is required"),
        (["--url", "http://x", "--from", "y"], "not allowed with"),
        (["--from", "nowhere"], "a name that ends with .jsonl"),
        (["--url", "http://127.0.0.1:9", "--seconds", "0"], "--seconds 0.0 must be"),
        (["--url", "http://127.0.0.1:9", "--every", "nan"], "--every nan must be"),
    ],
)
def test_wrong_words_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main([*words, "-o", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.example
def test_a_folder_without_a_request_log_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--from", str(tmp_path), "-o", str(tmp_path / "t.jsonl")]) == 2
    assert "no request log here (requests-*.parquet)" in capsys.readouterr().err
    write_log(tmp_path / "log", [request(0, output_tokens=0)])
    assert main(["--from", str(tmp_path / "log"), "-o", str(tmp_path / "t.jsonl")]) == 2
    assert "generated nothing: 1" in capsys.readouterr().err
    assert not (tmp_path / "t.jsonl").exists()
