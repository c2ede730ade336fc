"""The request log: every request once, measured, without its text, and harmless to the server."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import subprocess
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.logs.request_parts import (
    BLOCK_TOKENS,
    SCHEMA,
    RequestHeader,
    RequestRecord,
    encode,
    part_bytes,
    read_part,
    read_requests,
)
from sglang_dspark.runtime import request_log
from sglang_dspark.runtime.request_log import RequestLog, RequestRecorder
from sglang_dspark.runtime.settings import Settings
from tests.logs.writing_children import full_disk, killed, python, stopped
from tests.waiting import HUNG_S

ROOT = Path(__file__).parents[2]
INTEGERS = st.integers(0, 2**40)
SECONDS = st.floats(0, 1e6)
TEXT = st.text(max_size=8).filter(lambda text: text.isascii())


def record_strategy() -> st.SearchStrategy[RequestRecord]:
    return st.builds(
        RequestRecord,
        request_id=TEXT,
        arrival_s=SECONDS,
        prompt_tokens=INTEGERS,
        output_tokens=INTEGERS,
        cached_tokens=st.none() | INTEGERS,
        finish=st.sampled_from(["stop", "length", "abort"]),
        streamed=st.booleans(),
        starting=st.booleans(),
        queue_s=st.none() | SECONDS,
        ttft_s=st.none() | SECONDS,
        latency_s=SECONDS,
        retractions=INTEGERS,
        decode_steps=st.none() | INTEGERS,
        session_id=st.none() | TEXT,
        temperature=st.none() | st.floats(0, 2),
        priority=st.none() | st.integers(-9, 9),
        max_new_tokens=st.none() | INTEGERS,
        prefill_s=st.none() | SECONDS,
        prefix_hashes=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5).map(
            lambda values: np.array(values, dtype=np.int64)
        ),
    )


def fields(record: RequestRecord) -> dict[str, Any]:
    named = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return {**named, "prefix_hashes": record.prefix_hashes.tolist()}


@pytest.mark.law
@given(st.lists(record_strategy(), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_part_gives_back_every_field(records: list[RequestRecord]) -> None:
    header = RequestHeader(block_tokens=BLOCK_TOKENS, versions={"sglang": "x"}, dropped=3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests-1.parquet"
        batches = [encode(records[:2]), *([encode(records[2:])] if records[2:] else [])]
        path.write_bytes(part_bytes(batches, header))
        found, again = read_part(path)
        assert [fields(record) for record in again] == [fields(record) for record in records]
    assert found == header


@pytest.mark.example
def test_no_column_holds_text_or_tokens() -> None:
    assert set(SCHEMA.names) == {f.name for f in dataclasses.fields(RequestRecord)}
    assert not {"text", "input_ids", "output_ids", "tokens"} & set(SCHEMA.names)


# --- the hooks, with messages as SGLang's ------------------------------------------------------


class TokenizedGenerateReqInput(SimpleNamespace):
    """By its name the recorder knows it."""


class BatchTokenizedGenerateReqInput(SimpleNamespace):
    """A batch of them."""


class Manager:
    """What the hooks see of SGLang's tokenizer manager."""

    def __init__(self, status: str = "Up") -> None:
        self.server_status = SimpleNamespace(name=status)
        self.rid_to_state: dict[str, Any] = {}

    def message(self, rid: str, tokens: Any, **given: Any) -> TokenizedGenerateReqInput:
        stats = SimpleNamespace(created_time=time.perf_counter())
        self.rid_to_state[rid] = SimpleNamespace(time_stats=stats, output_ids=[])
        plain: dict[str, Any] = {
            "stream": True,
            "session_params": None,
            "session_id": None,
            "mm_inputs": None,
            "lora_id": None,
            "extra_key": None,
            "priority": None,
            "sampling_params": SimpleNamespace(temperature=1.0, top_k=1 << 30, max_new_tokens=99),
        }
        return TokenizedGenerateReqInput(rid=rid, input_ids=tokens, **{**plain, **given})


def output(rids: list[str], reasons: list[Any], **given: Any) -> SimpleNamespace:
    plain: dict[str, Any] = {
        "time_stats": None,
        "prompt_tokens": [100] * len(rids),
        "completion_tokens": [7] * len(rids),
        "cached_tokens": [64] * len(rids),
        "retraction_counts": [1] * len(rids),
        "spec_verify_ct": [],
    }
    return SimpleNamespace(rids=rids, finished_reasons=reasons, **{**plain, **given})


async def nothing(*args: Any) -> str:
    return "answered"


def answer(recorder: RequestRecorder, manager: Manager, batch: Any) -> None:
    assert asyncio.run(recorder.answered(nothing, manager, batch)) == "answered"


def recorder_into(folder: Path) -> RequestRecorder:
    recorder = RequestRecorder(Settings(request_log=str(folder)))
    recorder._log = RequestLog(folder, interval_s=0.05, poll_s=0.01)
    return recorder


def until(condition: Any, seconds: float = HUNG_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


STOP, LENGTH, ABORT = ({"type": kind} for kind in ("stop", "length", "abort"))


@pytest.mark.law
@given(
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=12),
    steps=st.lists(st.integers(0, 3), min_size=12, max_size=12),
    batched=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_every_request_is_recorded_once_whatever_the_order(
    lengths: list[int], steps: list[int], batched: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        recorder, manager = recorder_into(Path(name)), Manager()
        rids = [f"r{number}" for number in range(len(lengths))]
        messages = [
            manager.message(rid, list(range(length)), stream=number % 2 == 0)
            for number, (rid, length) in enumerate(zip(rids, lengths, strict=True))
        ]
        if batched:
            recorder.dispatched(manager, BatchTokenizedGenerateReqInput(batch=messages))
        else:
            for message in messages:
                recorder.dispatched(manager, message)
        for rid, count in zip(rids, steps, strict=False):
            for _ in range(count):
                answer(recorder, manager, output([rid], [None]))
            manager.rid_to_state.pop(rid)  # a client that hung up
            if count == 3:
                recorder.aborted(manager, SimpleNamespace(rid=rid))
            else:
                answer(recorder, manager, output([rid], [LENGTH]))
            answer(recorder, manager, output([rid], [STOP]))  # late, after its end
        log = recorder.log()
        log.close()
        assert (recorder.failed, log.dropped, len(recorder._open)) == ("", 0, 0)
        found = {record.request_id: record for record in read_requests(name).records}
        assert sorted(found) == sorted(rids)
        for number, rid in enumerate(rids):
            record = found[rid]
            aborted = steps[number] == 3
            assert record.finish == ("abort" if aborted else "length")
            assert record.streamed == (number % 2 == 0)
            assert len(record.prefix_hashes) == lengths[number] // BLOCK_TOKENS
            assert 0 <= record.latency_s < 60
            if record.streamed and not aborted:
                assert record.ttft_s is not None
                assert 0 <= record.ttft_s <= record.latency_s
            elif not record.streamed:
                assert record.ttft_s is None


@pytest.mark.example
def test_what_the_scheduler_times_is_taken_where_it_can_be_right(tmp_path: Path) -> None:
    recorder, manager = recorder_into(tmp_path), Manager("Starting")
    for rid in ("a", "b"):
        recorder.dispatched(manager, manager.message(rid, [1] * 70, stream=False))
    created = recorder._open["a"].created
    right = SimpleNamespace(
        forward_entry_time=recorder._open["a"].created + 1e-6,
        prefill_finished_time=recorder._open["a"].created + 3e-6,
    )
    wrong = SimpleNamespace(forward_entry_time=created - 5, prefill_finished_time=created + 1e6)
    both = output(["a", "b"], [STOP, STOP], time_stats=[right, wrong], spec_verify_ct=[4, 5])
    answer(recorder, manager, both)
    recorder.log().close()
    a, b = read_requests(tmp_path).records
    assert a.queue_s == pytest.approx(1e-6, abs=1e-9)
    assert a.ttft_s == pytest.approx(3e-6, abs=1e-9)
    assert a.prefill_s == pytest.approx(2e-6, abs=1e-9)
    assert (b.queue_s, b.prefill_s, b.ttft_s, b.tpot_s) == (None, None, None, None)
    assert (a.max_new_tokens, b.max_new_tokens) == (99, 99)
    assert (a.decode_steps, b.decode_steps) == (4, 5)
    assert (a.starting, a.prompt_tokens, a.cached_tokens, a.retractions) == (True, 100, 64, 1)
    assert abs(a.arrival_s - time.time()) < 60


@pytest.mark.example
@pytest.mark.parametrize("metrics", [False, True])
def test_times_travel_when_a_request_is_done_and_leave_no_trace(metrics: bool) -> None:
    def pack(stats: Any) -> dict[str, float]:
        return {"forward_entry_time": stats.entered} if stats.enable_metrics else {}

    stats = SimpleNamespace(enable_metrics=metrics, completion_time=0.0, entered=3.0)
    assert request_log._times(pack, stats) == pack(stats)
    stats.completion_time = 5.0
    # What is unpacked and packed again on the way, as the detokenizer does, still has them.
    assert request_log._times(pack, stats) == {"forward_entry_time": 3.0, "enable_metrics": True}
    assert stats.enable_metrics is metrics


@pytest.mark.example
def test_prompts_that_do_not_tell_what_is_shared_have_no_hashes(tmp_path: Path) -> None:
    recorder, manager = recorder_into(tmp_path), Manager()
    tokens = list(range(2 * BLOCK_TOKENS))
    cases: dict[str, dict[str, Any]] = {
        "plain": {"session_id": "chat-1"},
        "again": {},
        "tenant": {"extra_key": "x"},
        "adapter": {"lora_id": "y"},
        "picture": {"mm_inputs": object()},
        "session": {"session_params": SimpleNamespace(id="s")},
        "embeds": {},
    }
    for rid, given_ in cases.items():
        message = manager.message(rid, None if rid == "embeds" else tokens, **given_)
        message.sampling_params = SimpleNamespace(temperature=1.0, top_k=1)
        recorder.dispatched(manager, message)
    recorder.dispatched(manager, manager.message("HEALTH_CHECK_1", [1]))
    recorder.dispatched(manager, SimpleNamespace(rid="flush"))
    for rid in cases:
        answer(recorder, manager, output([rid], [STOP]))
    recorder.log().close()
    found = {record.request_id: record for record in read_requests(tmp_path).records}
    assert set(found) == set(cases)
    hashes = {rid: record.prefix_hashes.tolist() for rid, record in found.items()}
    assert hashes["plain"] == hashes["again"]
    assert len(hashes["plain"]) == 2
    assert not set(hashes["plain"]) & {*hashes["tenant"], *hashes["adapter"]}
    assert not set(hashes["tenant"]) & set(hashes["adapter"])
    assert hashes["picture"] == hashes["session"] == hashes["embeds"] == []
    assert (found["plain"].session_id, found["session"].session_id) == ("chat-1", "s")
    assert found["plain"].temperature == 0.0


@pytest.mark.law
def test_a_prompt_is_let_go_as_soon_as_it_is_hashed(tmp_path: Path) -> None:
    recorder, manager = recorder_into(tmp_path), Manager()
    recorder.dispatched(manager, manager.message("r", [1] * 1000))
    until(lambda: recorder._open["r"].hashes is not None)
    assert recorder._open["r"].tokens is None
    recorder.log().close()
    recorder.dispatched(manager, manager.message("late", [1] * 1000))
    assert recorder._open["late"].tokens is None


@pytest.mark.law
def test_a_message_that_is_not_as_expected_ends_the_log_and_not_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder, manager = recorder_into(tmp_path), Manager()
    recorder.dispatched(manager, manager.message("r", [1]))
    with caplog.at_level(logging.WARNING):
        answer(recorder, manager, SimpleNamespace(rids=["r"], finished_reasons=[STOP]))
        answer(recorder, manager, SimpleNamespace())
        recorder.dispatched(manager, TokenizedGenerateReqInput())
        recorder.aborted(manager, SimpleNamespace())
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "the server goes on without it: AttributeError" in caplog.text
    assert "AttributeError" in recorder.summary()["stopped"]
    assert not recorder._open


@pytest.mark.example
def test_requests_that_sglang_lost_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "_MOST_OPEN", 5)
    recorder, manager = recorder_into(tmp_path), Manager()
    for number in range(9):
        recorder.dispatched(manager, manager.message(f"r{number}", [1]))
    assert list(recorder._open) == [f"r{number}" for number in range(4, 9)]
    recorder.log().close()


@pytest.mark.law
@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        ({"tokenizer_worker_num": 4}, {}, "--tokenizer-worker-num 4"),
        ({"grpc_mode": True}, {}, "--grpc-mode True"),
        ({}, {"SGLANG_RUST_SERVER": "1"}, "SGLANG_RUST_SERVER"),
    ],
)
def test_servers_that_the_log_would_not_see_are_refused(
    arguments: dict[str, Any],
    variables: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request_log.check(SimpleNamespace(tokenizer_worker_num=1, grpc_mode=False))
    request_log.check(SimpleNamespace())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said) as caught:
        request_log.check(SimpleNamespace(**arguments))
    assert "--speculative-dspark-request-log" in str(caught.value)


WRITER = """
import time
from pathlib import Path
from tests.runtime import test_request_log as t
{before}
recorder, manager = t.RequestRecorder(t.Settings(request_log={folder!r})), t.Manager()
recorder._log = t.RequestLog({folder!r}, interval_s=0.5, poll_s=0.02)
for number in range({count}):
    recorder.dispatched(manager, manager.message(str(number), [number] * 640))
    t.answer(recorder, manager, t.output([str(number)], [t.STOP]))
    print(number, time.time(), flush=True)
    time.sleep(0.002)
{after}
"""


def child(folder: Path, **given_: Any) -> subprocess.Popen[str]:
    values = {"before": "", "after": "", "count": 10**6, **given_}
    return python(WRITER.format(folder=str(folder), **values))


@pytest.mark.law
def test_a_killed_process_leaves_whole_parts_and_loses_the_last_interval(tmp_path: Path) -> None:
    times = killed(child(tmp_path), tmp_path, after_s=1.2)
    kept = [int(record.request_id) for record in read_requests(tmp_path).records]
    assert kept == list(range(len(kept)))
    assert kept
    lost = [number for number in times if number >= len(kept)]
    # The interval, as long as it is on this machine, one look at the queue, and the writing.
    written_s = sorted(part.stat().st_mtime for part in tmp_path.glob("*.parquet"))
    interval_s = max([0.5, *(b - a for a, b in pairwise(written_s))])
    assert times[max(times)] - times[min(lost)] <= interval_s + 0.02 + 0.6


STILL_ALIVE = """
log = recorder.log()
while not log.stopped:
    time.sleep(0.01)
recorder.dispatched(manager, manager.message("late", [1] * 640))
t.answer(recorder, manager, t.output(["late"], [t.STOP]))
log.close()
print(log.written, log.dropped, log.stopped)
"""


@pytest.mark.law
def test_a_full_disk_stops_the_log_with_one_line_and_not_the_server(tmp_path: Path) -> None:
    process = child(tmp_path, before=full_disk(6_000), after=STILL_ALIVE, count=600)
    stopped(process, tmp_path, log="request", told=601)


def size_of(folder: Path) -> int:
    """Bytes of the files there; one may go while it is looked at."""
    size = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


@pytest.mark.law
def test_the_folder_never_outgrows_the_limit(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, limit_mb=1, interval_s=0.05, poll_s=0.005)
    recorder, manager = RequestRecorder(Settings(request_log=str(tmp_path))), Manager()
    recorder._log = log
    rng = np.random.default_rng(0)
    for number in range(1500):
        tokens = rng.integers(0, 10**6, 64 * 150)
        recorder.dispatched(manager, manager.message(str(number), tokens))
        answer(recorder, manager, output([str(number)], [STOP]))
        if number % 50 == 0:
            until(lambda: len(log._queue) < 50)
            assert size_of(tmp_path) <= 2**20
    log.close()
    found = read_requests(tmp_path).records
    assert log.written == 1500
    assert 0 < len(found) < 1500
    assert 0.6 * 2**20 < size_of(tmp_path) <= 2**20
