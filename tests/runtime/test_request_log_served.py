"""The request log of real servers: complete, in agreement with the answers, and harmless."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sglang_dspark.logs.request_parts import BLOCK_TOKENS, RequestRecord, read_requests
from sglang_dspark.logs.step_log import read, replay
from simulator.run import main as simulate
from tests.runtime.servers import Nursery, Server, dspark_arguments, plain_arguments
from tests.runtime.serving_client import Job, Outcome, serve, server_info
from tests.runtime.serving_scenes import Pair
from tests.waiting import HUNG_S, wait_until
from traces import load_trace
from traces.record import main

QUICK = "tests.runtime.request_log_patches:quick_request_log"
GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
COMPACT = {"SGLANG_RAGGED_VERIFY_MODE": "compact"}
"""What SGLang's own DSPARK needs in order to be steered; 0.5.15 does not know it."""


def recorded_by(arguments: list[str], folder: Path) -> list[str]:
    return [*arguments, "--speculative-dspark-request-log", str(folder)]


def mixed_jobs(pair: Pair) -> list[Job]:
    """Streams and whole answers, greedy and sampled, some walked away from."""
    rng = random.Random(3)
    jobs = []
    for number in range(24):
        prompt = [*pair.conversation(number % 6), *pair.conversation(number)]
        jobs.append(
            Job(
                prompt=prompt[: rng.randint(20, 120)],
                # Those walked away from would not end by themselves for a while.
                sampling={
                    **GREEDY,
                    "temperature": number % 3 / 2,
                    "max_new_tokens": 400 if number % 6 == 0 else 12,
                },
                stream=number % 2 == 0,
                abort_after=3 if number % 6 == 0 else None,
                hang_up=number % 12 == 0,
                extra={"session_id": f"chat-{number}"} if number % 4 == 1 else {},
            )
        )
    return jobs


def logs_of(server: Server) -> dict[str, Any]:
    """What the server says of its logs."""
    found: dict[str, Any] = server_info(server.url)["internal_states"][0]["dspark_logs"]
    return found


def ids_on_disk(folder: Path) -> set[str]:
    """The ids of the requests on disk; none before the first part."""
    if not any(folder.rglob("*.parquet")):
        return set()
    return {record.request_id for record in read_requests(folder).records}


def settled(server: Server, folder: Path, count: int) -> dict[str, RequestRecord]:
    """The records once so many are on disk."""
    deadline = time.monotonic() + HUNG_S
    while True:
        logs = logs_of(server)
        if logs["requests"] >= count or time.monotonic() > deadline:
            assert logs["stopped"] == "", logs
            return {record.request_id: record for record in read_requests(folder).records}
        time.sleep(0.1)


def agrees(record: RequestRecord, outcome: Outcome) -> None:
    meta = outcome.meta
    assert record.finish == outcome.finish
    assert record.streamed == outcome.job.stream
    assert record.prompt_tokens == meta["prompt_tokens"] == len(outcome.job.prompt)
    assert record.output_tokens == meta["completion_tokens"]
    assert record.cached_tokens == meta["cached_tokens"]
    assert record.temperature == outcome.job.sampling["temperature"]
    assert record.session_id == outcome.job.extra.get("session_id")
    # Another process's clock: on a busy machine it hears of the end a little later.
    assert record.latency_s == pytest.approx(meta["e2e_latency"], abs=0.02, rel=0.15)
    assert record.queue_s is not None
    assert record.ttft_s is not None
    assert 0 <= record.queue_s <= record.ttft_s <= record.latency_s
    assert record.prefill_s is not None
    assert 0 <= record.prefill_s <= record.latency_s
    assert record.max_new_tokens == outcome.job.sampling["max_new_tokens"]
    assert len(record.prefix_hashes) == record.prompt_tokens // BLOCK_TOKENS


@pytest.mark.law
@pytest.mark.parametrize("lane", ["plain", "dspark"])
def test_every_request_is_on_record_as_it_was_answered(
    pair: Pair, nursery: Nursery, tmp_path: Path, lane: str
) -> None:
    arguments = (
        plain_arguments(pair.target_folder)
        if lane == "plain"
        else dspark_arguments(pair.target_folder, pair.drafter_folder, policy="fixed")
    )
    jobs = mixed_jobs(pair)
    with nursery.start(
        recorded_by(arguments, tmp_path), environment=COMPACT, patch=QUICK
    ) as server:
        outcomes = serve(server.url, jobs, concurrency=6)
        several = Job(prompt=jobs[0].prompt, sampling={**GREEDY, "n": 2})
        serve(server.url, [several], concurrency=1)
        found = settled(server, tmp_path, len(jobs) + 3)
    answered = [outcome for outcome in outcomes if "id" in outcome.meta and outcome.finish]
    assert len(answered) >= len(jobs) - 4
    for outcome in answered:
        agrees(found[outcome.meta["id"]], outcome)
    # Two answers to one prompt are two requests, behind one that only fills the cache.
    assert len(found) == len(jobs) + 3
    assert any(record.finish == "abort" for record in found.values())
    whole = [r for r in found.values() if r.finish == "length" and r.output_tokens > 1]
    for record in whole:
        if lane == "dspark":
            assert record.decode_steps is not None
            assert 0 < record.decode_steps < record.output_tokens
        else:
            assert record.decode_steps is None
    assert "DSPARK request log stopped" not in server.log


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a server was asked, one after the other, and its log of it."""

    log: Path
    outcomes: list[Outcome]
    records: dict[str, RequestRecord]


@pytest.fixture(scope="module")
def shared_beginnings(
    pair: Pair, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    """Prompts that share their beginnings, to a server without speculation."""
    rng = random.Random(1)
    words = sorted(set(pair.conversation(1)))
    trunk = [rng.choice(words) for _ in range(400)]
    prompts = []
    for _ in range(30):
        keep = rng.choice([10, 64, 100, 128, 200, 256, 300])
        tail = [rng.choice(words) for _ in range(rng.randint(20, 120))]
        prompts.append([*trunk[:keep], *tail])
    arguments = [*plain_arguments(pair.target_folder, kv_tokens=16384), "--skip-server-warmup"]
    log = tmp_path_factory.mktemp("shared") / "log"
    with nursery.start(recorded_by(arguments, log), patch=QUICK) as server:
        body = {"temperature": 0, "max_new_tokens": 2, "ignore_eos": True}
        jobs = [Job(prompt=prompt, sampling=body, extra={}) for prompt in prompts]
        outcomes = serve(server.url, jobs, concurrency=1)
        found = settled(server, log, len(jobs))
    return Recorded(log=log, outcomes=outcomes, records=found)


@pytest.mark.law
def test_hashes_reuse_what_the_radix_cache_reuses(shared_beginnings: Recorded) -> None:
    """SGLang's own cached_tokens, prompt by prompt."""
    seen: set[int] = set()
    shared_tokens = 0
    for outcome in shared_beginnings.outcomes:
        hashes = shared_beginnings.records[outcome.meta["id"]].prefix_hashes.tolist()
        hits = sum(value in seen for value in hashes)
        assert hits == outcome.meta["cached_tokens"] // BLOCK_TOKENS
        assert set(hashes[:hits]) <= seen
        seen.update(hashes)
        shared_tokens += hits * BLOCK_TOKENS
    assert shared_tokens > 1000


@pytest.mark.filterwarnings("ignore:cost model")  # whose acceptance it is does not matter here
@pytest.mark.law
def test_the_simulator_reuses_what_the_radix_cache_reused(
    shared_beginnings: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = shared_beginnings.outcomes
    trace = tmp_path / "t.jsonl"
    assert main(["--from", str(shared_beginnings.log), "-o", str(trace)]) == 0
    assert len(load_trace(trace)) == len(outcomes)
    capsys.readouterr()
    # So slow an arrival that no request overlaps the one before, as they were sent.
    words_ = ["--policy", "none", "--rate", "0.01", "--jobs", "1", "--check", "--json"]
    assert simulate([str(trace), *words_, "--out", str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["policies"][0]
    blocks = [outcome.meta["cached_tokens"] // BLOCK_TOKENS for outcome in outcomes]
    total = sum(outcome.meta["prompt_tokens"] for outcome in outcomes)
    assert told["completed"] == len(outcomes)
    assert told["whole_run"]["prefix_hit_share"] == pytest.approx(
        sum(blocks) * BLOCK_TOKENS / total, abs=1e-5
    )


@pytest.mark.filterwarnings("ignore:cost model")  # whose acceptance it is does not matter here
@pytest.mark.law
def test_a_recording_of_a_running_server_replays(
    pair: Pair, nursery: Nursery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both logs, copied from the server while it runs; the trace is one for the simulator."""
    steps, requests, out = (tmp_path / name for name in ("steps", "requests", "live"))
    arguments = dspark_arguments(pair.target_folder, pair.drafter_folder, policy="fixed")
    jobs = [Job(prompt=pair.conversation(n)[:40], sampling=GREEDY) for n in range(16)]
    with nursery.start(
        [*recorded_by(arguments, requests), "--speculative-dspark-step-log", str(steps)],
        environment=COMPACT,
        patch="tests.runtime.request_log_patches:quick_logs",
    ) as server:
        outcomes = serve(server.url, jobs, concurrency=4)
        words = ["--url", server.url, "-o", str(out), "--seconds", "2", "--every", "0.3"]
        assert main(words) == 0
        block = server_info(server.url)["internal_states"][0]["dspark"]
    assert " from request log, step log" in capsys.readouterr().out
    committed: dict[str, int] = {}
    records = list(read(out))
    for step in records:
        for rid, accepted in zip(step.request_ids, step.accepted.tolist(), strict=True):
            committed[rid] = committed.get(rid, 0) + 1 + accepted
    assert len(records) == block["steps"]
    assert replay(out).different == 0
    recorded = {record.request_id: record for record in read_requests(out).records}
    for outcome in outcomes:
        rid = outcome.meta["id"]
        agrees(recorded[rid], outcome)
        # The first token is the prefill's; the last step may commit beyond the end.
        assert committed[rid] >= recorded[rid].output_tokens - 1
        assert sum(rid in step.request_ids for step in records) >= recorded[rid].decode_steps
    trace = tmp_path / "live.jsonl"
    assert main(["--from", str(out), "-o", str(trace)]) == 0
    asked = ["--policy", "fixed", "--jobs", "1", "--check", "--json", "--out", str(tmp_path / "o")]
    capsys.readouterr()
    assert simulate([str(trace), *asked]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["policies"][0]
    assert told["completed"] == len(jobs)


@pytest.mark.law
def test_a_server_killed_in_the_middle_leaves_all_but_the_last_interval(
    pair: Pair, nursery: Nursery, tmp_path: Path
) -> None:
    jobs = [Job(prompt=pair.conversation(n)[:30], sampling=GREEDY) for n in range(40)]
    with nursery.start(
        recorded_by(plain_arguments(pair.target_folder), tmp_path), patch=QUICK
    ) as server:
        written = {outcome.meta["id"] for outcome in serve(server.url, jobs[:20], concurrency=2)}
        wait_until(lambda: written <= ids_on_disk(tmp_path))
        serve(server.url, jobs[20:], concurrency=2)
        os.kill(server.pid, signal.SIGKILL)
    assert written <= ids_on_disk(tmp_path)


@pytest.mark.law
@pytest.mark.parametrize(
    ("patch", "said"),
    [("full_disk", "cannot write: ENOSPC"), ("broken_hooks", "AttributeError: no such field")],
)
def test_a_log_that_stops_does_not_stop_the_server(
    pair: Pair, nursery: Nursery, tmp_path: Path, patch: str, said: str
) -> None:
    with nursery.start(
        recorded_by(plain_arguments(pair.target_folder), tmp_path),
        patch=f"tests.runtime.request_log_patches:{patch}",
    ) as server:
        jobs = [Job(prompt=pair.conversation(n)[:30], sampling=GREEDY) for n in range(6)]
        serve(server.url, jobs, concurrency=2)
        wait_until(lambda: said in logs_of(server)["stopped"])
        outcomes = serve(server.url, jobs, concurrency=2)
    assert all(outcome.whole for outcome in outcomes)
    assert server.log.count("DSPARK request log stopped, the server goes on without it") == 1


@pytest.mark.example
def test_a_folder_that_cannot_be_made_refuses_the_start(
    pair: Pair, nursery: Nursery, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    arguments = recorded_by(plain_arguments(pair.target_folder), tmp_path / "file" / "log")
    server = nursery.start(arguments, wait=False)
    wait_until(lambda: server.exit_code() is not None)
    code, lines = server.exit_code(), server.log.splitlines()
    server.stop()
    assert code == 1
    assert any("sglang-dspark:" in line and "cannot make the folder" in line for line in lines)
