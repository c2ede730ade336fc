"""Many simulations at once: a list of runs, rows in the order asked for.

A run is one policy at one load; ``simulator.sweep`` performs them, here or elsewhere. Results do
not depend on where. Ctrl-C ends every run where it stands and keeps what it has.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_dspark.files import atomic_write
from simulator.engine.layout import Records
from simulator.fleet.config import FleetConfig
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Outcome, Scenario
from simulator.slo import Slo
from simulator.study.first_start import warm_up
from simulator.study.metrics import measure
from simulator.study.part import steady_part
from simulator.study.results import Batches, ResultFolder, requests_table, steps_table
from simulator.sweep.sweep import advance, heed, sweep

STEP_CAPACITY = 1 << 15
_SATURATING_REQUESTS = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One simulation of a study."""

    label: str
    """The policy as the results call it."""
    scenario: Scenario
    slo: Slo


@dataclass(frozen=True, kw_only=True)
class StepExtent:
    """How small and large the decode steps of a pool were."""

    least_tokens: int
    most_tokens: int
    """Below ``least_tokens`` where there was no step."""
    most_requests: int


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """What a run leaves in memory; the rest is in the result folder."""

    number: int
    """Its place in the list of runs."""
    row: dict[str, Any]
    """Its entry in ``summary.json``."""
    requests: Records
    """[judged] REQUEST, for comparisons between runs."""
    cpu_s: float
    """CPU seconds of the replay. Not part of the row, which is the same for the same inputs."""
    interrupted: bool
    extents: tuple[StepExtent, ...]
    """Per pool of the fleet."""


def saturated_rate(scenario: Scenario) -> float | None:
    """Requests per second that the fleet finishes when it never runs out of work.

    Replays the trace closed-loop at the batch limit (a quarter of the trace where that is less)
    and counts what finishes in its steady state. Of a long trace the first 8,192 requests, or 16
    for each client, are enough. None below 100 requests.
    """
    clients = min(scenario.places() * scenario.replicas, len(scenario.trace) // 4)
    if len(scenario.trace) < 100:
        return None
    enough = max(_SATURATING_REQUESTS, 16 * clients)
    full = dataclasses.replace(
        scenario,
        trace=scenario.trace.head(min(enough, len(scenario.trace))),
        concurrency=clients,
        fleet=FleetConfig(),
        step_capacity=0,
    )
    outcome = simulate(full, on_progress=heed)
    if outcome.interrupted:
        raise KeyboardInterrupt
    part = steady_part(outcome)
    return part.counted("done") / part.duration_s if part else None


_NO_LOAD: dict[str, Any] = dict.fromkeys(("offered_req_s", "capacity_req_s", "load", "saturated"))


def _load(outcome: Outcome) -> dict[str, Any]:
    """Offered load against capacity; all None in a closed loop or with turns that wait for answers,
    which adapt to the server, and for a fleet whose replicas differ, fail or come and go."""
    scenario = outcome.scenario
    arrival_s = outcome.requests["arrival_s"]
    span_s = float(arrival_s.max() - arrival_s.min())
    waits = scenario.turns_wait and (scenario.trace.follows >= 0).any()
    unsteady = scenario.concurrency is not None or waits or not scenario.fleet.steady
    if unsteady or span_s <= 0 or outcome.interrupted:
        return _NO_LOAD
    offered = (arrival_s.size - 1) / span_s
    capacity = saturated_rate(scenario)
    return {
        "offered_req_s": round(offered, 6),
        "capacity_req_s": capacity and round(capacity, 6),
        "load": capacity and round(offered / capacity, 6),
        "saturated": capacity and bool(offered >= capacity),
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """A run as a worker gets it."""

    run: Run
    number: int
    folder: ResultFolder | None
    """Where its parts go; None keeps no records."""
    steps: bool
    """Whether every step is kept there."""
    check: bool


def _perform(task: _Task) -> RunResult:
    run, number, folder = task.run, task.number, task.folder
    before = 0

    def progress(done: int) -> None:
        nonlocal before
        more, before = done - before, done
        advance(more)

    label = {"policy": run.label, "concurrency": run.scenario.concurrency}
    steps = folder.part("steps", number) if folder and task.steps else None
    batches = Batches()

    def on_steps(replica: int, records: Records) -> None:
        batches.add(records)
        if steps is not None:
            steps.write(steps_table(replica, records, label))

    capacity = STEP_CAPACITY if folder else 0
    scenario = dataclasses.replace(run.scenario, step_capacity=capacity)
    started = time.process_time()
    outcome = simulate(scenario, on_steps=on_steps, on_progress=progress, check=task.check)
    cpu_s = time.process_time() - started
    if steps is not None:
        steps.close()
    if folder:
        tables = {"requests": requests_table(outcome, label), "batches": batches.table(label)}
        for kind, table in tables.items():
            part = folder.part(kind, number)
            part.write(table)
            part.close()
    try:
        load, interrupted = _load(outcome), outcome.interrupted
    except KeyboardInterrupt:
        load, interrupted = _NO_LOAD, True
    row = label | measure(outcome, run.slo) | load
    return RunResult(
        number=number,
        row=row,
        requests=outcome.requests[outcome.scenario.judged_requests],
        cpu_s=cpu_s,
        interrupted=interrupted,
        extents=_extents(outcome),
    )


def _extents(outcome: Outcome) -> tuple[StepExtent, ...]:
    state = np.concatenate([memory.state for memory in outcome.memories])
    ends = np.cumsum([pool.most for pool in outcome.scenario.pools])[:-1]
    return tuple(
        StepExtent(
            least_tokens=int(part["least_tokens"].min()),
            most_tokens=int(part["most_tokens"].max()),
            most_requests=int(part["most_requests"].max()),
        )
        for part in np.split(state, ends)
    )


def _perform_away(task: _Task) -> tuple[RunResult, dict[str, bytes]]:
    """On a machine that need not share a disk: the parts come back with the result, by name."""
    with tempfile.TemporaryDirectory(prefix="sglang-dspark-") as away:
        folder = ResultFolder(away) if task.folder else None
        result = _perform(dataclasses.replace(task, folder=folder))
        parts = folder.parts.iterdir() if folder else ()
        return result, {part.name: part.read_bytes() for part in parts}


def perform(
    runs: Sequence[Run],
    *,
    jobs: int = 1,
    ray: str | None = None,
    folder: ResultFolder | None = None,
    steps: bool = False,
    check: bool = False,
    on_wait: Callable[[float], None] = lambda seconds: None,
    on_progress: Callable[[int], None] = lambda finished: None,
) -> tuple[list[RunResult], bool]:
    """Perform the runs; returns their results in order, and whether Ctrl-C cut them short.

    Every step is kept where ``steps``. ``jobs`` and ``ray`` are those of ``sweep``, ``on_wait`` is
    ``warm_up``'s. ``on_progress`` hears how many requests have finished, over all runs. After an
    interruption runs that had not begun are missing from the list.
    """
    warm_up(runs[0].scenario, on_wait)
    tasks = [
        _Task(run=run, number=i, folder=folder, steps=steps, check=check)
        for i, run in enumerate(runs)
    ]
    results: list[RunResult | None]
    if ray is None:
        results, interrupted = sweep(tasks, _perform, jobs=jobs, on_units=on_progress)
    else:
        found, interrupted = sweep(tasks, _perform_away, jobs=jobs, ray=ray, on_units=on_progress)
        results = [pair and pair[0] for pair in found]
        for name, data in (part for pair in found if pair for part in pair[1].items()):
            assert folder is not None
            with atomic_write(folder.parts / name, "wb") as file:
                file.write(data)
    kept = [result for result in results if result is not None]
    return kept, interrupted or any(result.interrupted for result in kept)
