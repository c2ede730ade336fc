"""The step log: exact, bounded, harmless, and replayable."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.policy import (
    POLICIES,
    ConfidenceThreshold,
    FixedLength,
    GlobalBudget,
    Goodput,
    Policy,
    PolicyFile,
    SGLangPlanner,
)
from sglang_dspark.core.state import VerifyPlan
from sglang_dspark.logs import step_log
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.logs.step_log import StepLog, read, replay
from sglang_dspark.logs.step_parts import encode, part_bytes, read_part
from tests.logs.step_records import GAMMA, MODEL, header_with, random_record
from tests.waiting import HUNG_S

MIB = 2**20
EVERY: list[Policy] = [
    *(kind() for kind in POLICIES.values()),
    SGLangPlanner(table="additive"),
    SGLangPlanner(table="flat"),
    ConfidenceThreshold(threshold=0.3),
    FixedLength(length=2),
    Goodput(ttft_ms=500.0, tpot_ms=30.0, slack_weight=1.0, priority_weight=0.5),
]


def same_bits(left: Any, right: Any) -> bool:
    """Equal, NaN to NaN, arrays in type and shape too."""
    if dataclasses.is_dataclass(left):
        names = [field.name for field in dataclasses.fields(left)]
        return all(same_bits(getattr(left, n), getattr(right, n)) for n in names)
    if isinstance(left, np.ndarray):
        alike = left.dtype == right.dtype and left.shape == right.shape
        return bool(alike and left.tobytes() == right.tobytes())
    return type(left) is type(right) and (left == right or (left != left and right != right))


def written(folder: Path, records: list[StepRecord], **options: Any) -> StepLog:
    log = StepLog(folder, **{"header": header_with(), "poll_s": 0.01, **options})
    for record in records:
        log.observe(record)
    log.close()
    return log


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("steps-*.parquet"))


def until(condition: Any, seconds: float = HUNG_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.law
@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_part_gives_back_every_bit(seeds: list[int]) -> None:
    records = [random_record(seed, step=i) for i, seed in enumerate(seeds)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steps-1.parquet"
        batches = [encode(records[:3]), *([encode(records[3:])] if records[3:] else [])]
        path.write_bytes(part_bytes(batches, header_with()))
        header, found = read_part(path)
        again = list(found)
    assert header == header_with()
    assert len(again) == len(records)
    assert all(same_bits(a, b) for a, b in zip(records, again, strict=True))


@pytest.mark.example
def test_empty_batches_missing_rows_and_infinities_survive(tmp_path: Path) -> None:
    full = random_record(1, rows=3)
    full.state.stale_logits[0] = np.nan
    full.state.logits[1] = -np.inf
    full.state.logits[2, 0] = np.inf
    records = [random_record(2, rows=0), full, random_record(3, rows=0)]
    written(tmp_path, records)
    again = list(read(tmp_path))
    assert all(same_bits(a, b) for a, b in zip(records, again, strict=True))
    assert again[1].state.logits.flags.writeable  # compiled code is compiled for writable arrays


@pytest.mark.example
def test_every_part_explains_itself(tmp_path: Path) -> None:
    policy = PolicyFile(
        policy=GlobalBudget(),
        calibration=Calibration(temperatures=(1.5,) * GAMMA),
        note="tuned on chat",
    )
    records = [random_record(i, rows=32) for i in range(600)]
    written(tmp_path, records, header=header_with(policy), limit_mb=1)
    assert len(parts(tmp_path)) > 2
    for path in parts(tmp_path):
        header, _ = read_part(path)
        assert header.gamma == GAMMA
        assert header.policy["calibration"]["temperatures"] == [1.5] * GAMMA
        assert header.cost_model["name"] == MODEL.name
        assert header.versions["sglang"] == "0.5.15.post1"
        assert header.planner().policy == GlobalBudget()


@pytest.mark.law
def test_the_folder_never_outgrows_the_limit_and_the_oldest_go_first(tmp_path: Path) -> None:
    log = StepLog(tmp_path, header=header_with(), limit_mb=1, poll_s=0.01)
    for step in range(6000):
        log.observe(random_record(step % 50, step=step, rows=32))
        if step % 96 == 95:
            until(lambda taken=step + 1: log.written + log._pending == taken)
            until(lambda: log._pending_bytes < log._part_bytes)  # nothing is being written
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= MIB
    log.close()
    steps = [record.step for record in read(tmp_path)]
    assert log.written == 6000
    assert log.dropped == 0
    assert steps == list(range(6000 - len(steps), 6000))
    assert 0 < len(steps) < 6000


@pytest.mark.example
def test_parts_of_earlier_servers_go_first(tmp_path: Path) -> None:
    old = tmp_path / "steps-0000000000001-1-000000.parquet"
    old.write_bytes(bytes(MIB))
    log = written(tmp_path, [random_record(0)], limit_mb=1)
    assert log.written == 1
    assert not old.exists()


@pytest.mark.example
def test_a_part_appears_when_its_first_record_is_old_enough(tmp_path: Path) -> None:
    log = StepLog(tmp_path, header=header_with(), interval_s=0.2, poll_s=0.01)
    start = time.monotonic()
    log.observe(random_record(0))
    until(lambda: parts(tmp_path))
    assert time.monotonic() - start >= 0.2
    until(lambda: log.written == 1)
    log.close()
    assert len(parts(tmp_path)) == 1


@pytest.mark.example
def test_what_a_burst_leaves_behind_appears_in_time_too(tmp_path: Path) -> None:
    records = [random_record(step % 20, step=step, rows=16) for step in range(11 * 32)]
    log = StepLog(tmp_path, header=header_with(), limit_mb=1, interval_s=0.3, poll_s=0.5)
    for record in records:  # all before the writer looks: parts in full, and one group left over
        log.observe(record)
    until(lambda: log.written == len(records))
    assert len(parts(tmp_path)) > 1
    log.close()


@pytest.mark.law
def test_records_beyond_the_queue_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    inside = threading.Event()
    plain = step_log.encode

    def slow(records: Any) -> Any:
        inside.set()
        gate.wait(20)
        return plain(records)

    monkeypatch.setattr(step_log, "encode", slow)
    log = StepLog(tmp_path, header=header_with(), queue_records=8, interval_s=0.0, poll_s=0.01)
    log.observe(random_record(0, step=0))
    inside.wait(20)  # a disk that hangs
    start = time.perf_counter()
    for step in range(1, 101):
        log.observe(random_record(0, step=step, rows=1))
    assert time.perf_counter() - start < 5
    assert log.dropped == 92
    gate.set()
    log.close()
    assert [record.step for record in read(tmp_path)] == list(range(9))
    assert log.written + log.dropped == 101
    assert replay(tmp_path).dropped == 92


WRITER = """
import time
from pathlib import Path
from tests.logs.step_records import header_with, random_record
from sglang_dspark.logs.step_log import StepLog
{before}
log = StepLog({folder!r}, header=header_with(), interval_s={interval_s}, poll_s=0.02)
for step in range({steps}):
    log.observe(random_record(step % 20, step=step, rows=8))
    print(step, time.time(), flush=True)
    time.sleep(0.002)
{after}
"""


def child(folder: Path, **fields: Any) -> subprocess.Popen[str]:
    values = {"before": "", "after": "", "steps": 10**6, "interval_s": 0.5, **fields}
    code = WRITER.format(folder=str(folder), **values)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.law
@pytest.mark.parametrize("run_s", [0.6, 0.87, 1.2])
def test_a_killed_server_leaves_whole_parts_and_loses_the_last_interval(
    tmp_path: Path, run_s: float
) -> None:
    process = child(tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    until(lambda: parts(tmp_path))
    time.sleep(run_s)
    process.send_signal(signal.SIGKILL)
    lines = process.communicate()[0].splitlines()[:-1]  # the last one may be cut
    times = {int(step): float(at_s) for step, at_s in (line.split() for line in lines)}
    steps = [record.step for record in read(tmp_path)]
    assert steps == list(range(len(steps)))
    killed_s = times[max(times)]
    lost = [step for step in times if step >= len(steps)]
    # The interval, as long as it is on this machine, one look at the queue, and the writing.
    written_s = [part.stat().st_mtime for part in parts(tmp_path)]
    interval_s = max([0.5, *(b - a for a, b in pairwise(written_s))])
    assert killed_s - times[min(lost)] <= interval_s + 0.02 + 0.6
    assert steps


@pytest.mark.example
def test_what_a_killed_writer_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    dead = tmp_path / "steps-1-1-000000.parquet.tmp-999999999"
    mine = tmp_path / f"steps-1-1-000001.parquet.tmp-{os.getpid()}"
    living = tmp_path / f"steps-1-1-000002.parquet.tmp-{os.getppid()}"
    for path in (dead, mine, living):
        path.touch()
    written(tmp_path, [])
    assert [path.exists() for path in (dead, mine, living)] == [False, False, True]


FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"
STILL_ALIVE = """
while not log.stopped:
    time.sleep(0.01)
log.observe(random_record(0))
log.close()
print(log.written, log.dropped, log.stopped)
"""


@pytest.mark.law
def test_a_full_disk_stops_the_log_with_one_line_and_not_the_server(tmp_path: Path) -> None:
    process = child(tmp_path, before=FULL_DISK, after=STILL_ALIVE, steps=400, interval_s=0.3)
    out, err = process.communicate(timeout=HUNG_S)
    assert process.returncode == 0, err
    count, dropped, reason = out.splitlines()[-1].split(" ", 2)
    assert int(count) + int(dropped) == 401
    assert int(dropped) > 0
    assert "cannot write" in reason
    assert err.count("DSPARK step log stopped") == 1
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.glob("*.tmp-*"))
    if int(count):
        assert len(list(read(tmp_path))) == int(count)


@pytest.mark.example
def test_a_folder_that_cannot_be_made_stops_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        log = StepLog(tmp_path / "file" / "log", header=header_with(), poll_s=0.01)
        until(lambda: log.stopped)
        log.observe(random_record(0))
        log.close()
    assert log.dropped == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot make the folder" in caplog.text


@pytest.mark.example
def test_a_limit_below_a_megabyte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0 MiB must be at least 1"):
        StepLog(tmp_path, header=header_with(), limit_mb=0)


def planned(policy: PolicyFile, count: int = 60) -> list[StepRecord]:
    planner = header_with(policy).planner()
    return [random_record(i, step=i, planner=planner) for i in range(count)]


@pytest.mark.law
@pytest.mark.parametrize("policy", EVERY, ids=[f"{i}-{p.name}" for i, p in enumerate(EVERY)])
def test_every_policy_replays_to_the_same_plans(tmp_path: Path, policy: Policy) -> None:
    calibration = Calibration(temperatures=(1.3, 1.1, 0.9, 0.7), biases=(0.1, 0.0, -0.1, 0.2))
    file = PolicyFile(policy=policy, calibration=calibration)
    written(tmp_path, planned(file), header=header_with(file))
    counts = replay(tmp_path)
    assert (counts.steps, counts.same, counts.different) == (60, 60, 0), counts.first_different


def tampered(record: StepRecord, **fields: Any) -> StepRecord:
    return dataclasses.replace(record, plan=dataclasses.replace(record.plan, **fields))


@pytest.mark.law
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("lengths", lambda old: (old + 1) % (GAMMA + 1)),
        ("draft_next", lambda old: ~old),
        ("predicted_step_s", lambda old: old * (1 + 1e-9)),
        ("expected_tokens", lambda old: old * (1 - 1e-9)),
        ("stop_reason", lambda _: "threshold"),
    ],
)
def test_a_tampered_plan_is_found(tmp_path: Path, field: str, change: Any) -> None:
    records = planned(PolicyFile(policy=GlobalBudget()))
    victim = next(i for i, record in enumerate(records) if record.requests > 3)
    records[victim] = tampered(
        records[victim], **{field: change(getattr(records[victim].plan, field))}
    )
    written(tmp_path, records)
    counts = replay(tmp_path)
    assert counts.different == 1
    assert counts.first_different.startswith(f"step {victim}: {field}")


@pytest.mark.example
def test_degraded_steps_are_counted_apart(tmp_path: Path) -> None:
    records = planned(PolicyFile(policy=GlobalBudget()), 5)
    everything = VerifyPlan(
        lengths=np.full(records[2].requests, GAMMA),
        draft_next=np.ones(records[2].requests, dtype=bool),
        predicted_step_s=float("nan"),
        expected_tokens=float("nan"),
        stop_reason="exhausted",
    )
    records[2] = dataclasses.replace(records[2], plan=everything, degraded="NaN confidences")
    written(tmp_path, records)
    counts = replay(tmp_path)
    assert (counts.same, counts.different, counts.degraded) == (4, 0, 1)


@pytest.mark.example
def test_two_servers_with_two_policies_replay_from_one_folder(tmp_path: Path) -> None:
    for policy in (PolicyFile(policy=GlobalBudget()), PolicyFile(policy=FixedLength(length=1))):
        written(tmp_path, planned(policy, 10), header=header_with(policy))
    assert replay(tmp_path).same == 20


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sglang_dspark.logs.step_log", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.example
def test_the_command_says_one_line_and_its_status(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    records = planned(PolicyFile(policy=GlobalBudget()), 8)
    written(good, records)
    found = command(str(good))
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == (
        "8 steps: 8 plans the same, 0 different, 0 degraded (not the policy's), 0 records dropped\n"
    )
    written(bad, [*records[:-1], tampered(records[-1], stop_reason="threshold")])
    found = command(str(bad))
    assert (found.returncode, found.stderr) == (1, "")
    assert "first difference: step 7: stop_reason 'threshold' recorded" in found.stdout
    assert len(found.stdout.splitlines()) == 1
    found = command(str(tmp_path / "missing"))
    assert (found.returncode, found.stdout) == (2, "")
    assert "no step log here" in found.stderr


@pytest.mark.example
def test_bad_files_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "steps-1.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"steps-1\.parquet: not a whole Parquet file"):
        list(read(tmp_path))
    pq.write_table(pa.table({"step": [1]}), path)
    with pytest.raises(ValueError, match="no step-log header"):
        list(read(tmp_path))
    header = json.dumps({**dataclasses.asdict(header_with()), "schema_version": 9})
    table = pa.table({"step": [1]})
    key = "sglang_dspark.step_log"
    pq.write_table(table.replace_schema_metadata({key: header}), path)
    with pytest.raises(ValueError, match="schema_version 9 is not 3; record a new step log"):
        list(read(tmp_path))
    pq.write_table(table.replace_schema_metadata({key: "{"}), path)
    with pytest.raises(ValueError, match="its header is damaged"):
        list(read(tmp_path))
    unknown = dataclasses.replace(header_with(), policy={"policy": "clairvoyant"})
    written(tmp_path / "unknown", [random_record(0)], header=unknown)
    with pytest.raises(ValueError, match="no policy 'clairvoyant'; known: none, fixed"):
        replay(tmp_path / "unknown")
    header = json.dumps(dataclasses.asdict(header_with()))
    pq.write_table(table.replace_schema_metadata({key: header}), path)
    with pytest.raises(ValueError, match="columns are not a step log's"):
        list(read(tmp_path))


@pytest.mark.law
def test_a_log_is_read_without_sglang_or_torch() -> None:
    code = (
        "import sys, sglang_dspark.logs.step_log, sglang_dspark.logs.records; "
        "print([name for name in ('sglang', 'torch') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.law
def test_no_column_holds_text_or_tokens() -> None:
    from sglang_dspark.logs.step_parts import SCHEMA

    texts = {field.name for field in SCHEMA if "string" in str(field.type)}
    assert texts == {"request_ids", "shape", "degraded", "stop_reason"}
    assert not {name for name in SCHEMA.names if "token_id" in name or "input" in name}
