"""The simulations behind a capacity report: questions, each answered by itself in any process.

Owns which loads, rates and mistakes are simulated, and the plain numbers each leaves. Knows no
page and no file; ``ask`` hands the questions to the sweep in three rounds, since later ones depend
on what earlier ones found.

A whole study of the shipped traces is a few hundred simulations, none of them longer than the
trace. Closed loops replay its beginning: enough requests for every client to send many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from simulator.capacity.search import (
    Goal,
    Probe,
    fewest_replicas,
    most_traffic,
    offered_rate,
    probe,
    replica_capacity,
)
from simulator.engine.latency import itl_percentile_s
from simulator.fleet.fleet import simulate
from simulator.fleet.mistakes import MISTAKES, Mistake, believes, mistaken
from simulator.fleet.scenario import Outcome, Scenario
from simulator.study.first_start import warm_up
from simulator.study.metrics import (
    batch_interval,
    measure,
    met_slo,
    paired_difference,
    request_times,
)
from simulator.study.part import judged_part
from simulator.study.study import Run
from simulator.sweep.sweep import heed, sweep

Answer = dict[str, Any]

LOADS = (0.25, 0.5, 0.7, 0.85, 0.95, 1.05, 1.2, 1.5)
"""Loads of one replica, as shares of the most that any policy holds."""
TOLERANCE = 0.02
"""Of the most traffic that a replica holds; policies this close are chosen by other means."""
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
QUANTILES = tuple(np.linspace(0.0, 1.0, 201).tolist())
_NEAR_FULL = 4
"""Place in ``LOADS`` of a replica that is all but full."""
_CLOSED_REQUESTS = 4096


class Question(Protocol):
    """What a sweep's point is: a dataclass of all that its answer depends on."""

    def answer(self) -> Answer:
        """Plain numbers, the same in every process."""


def answer(question: Question) -> Answer:
    """The work of a sweep."""
    return question.answer()


@dataclass(frozen=True, kw_only=True, eq=False)
class TrafficQuestion:
    """How much traffic does one replica hold?"""

    scenario: Scenario
    goal: Goal

    def answer(self) -> Answer:
        """``rate_factor`` and ``misses_at`` of the trace's rate, and the saturated rate."""
        capacity = replica_capacity(self.scenario)
        found = most_traffic(self.scenario, self.goal, tolerance=TOLERANCE, capacity_req_s=capacity)
        return {
            "capacity_req_s": capacity,
            "rate_factor": found.rate_factor,
            "misses_at": found.misses_at,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class SizeQuestion:
    """How many replicas hold the trace at the scenario's rate?"""

    scenario: Scenario
    goal: Goal
    capacity_req_s: float | None

    def answer(self) -> Answer:
        """The size, its bound and load, and the probes at the size and one below."""
        found = fewest_replicas(self.scenario, self.goal, capacity_req_s=self.capacity_req_s)
        size = found.replicas
        return {
            "replicas": size,
            "bound": found.bound,
            "load": found.load,
            "at": _numbers(found.probes[size or found.bound]),
            "one_less": _numbers(found.probes[size - 1]) if size and size > 1 else None,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadQuestion:
    """What do users see at the scenario's rate?"""

    scenario: Scenario
    goal: Goal

    def answer(self) -> Answer:
        """Attainment and latencies."""
        return _numbers(probe(self.scenario, self.goal))


@dataclass(frozen=True, kw_only=True, eq=False)
class ClosedQuestion:
    """What does one replica do with so many clients, and with so much error in its beliefs?"""

    scenario: Scenario
    goal: Goal
    mistake: Mistake | None = None

    def answer(self) -> Answer:
        """The row of the summary, and the sizes of steps that the cost model was asked for."""
        asked = mistaken(self.scenario, self.mistake) if self.mistake else self.scenario
        outcome = _whole(asked)
        state = np.concatenate([memory.state for memory in outcome.memories])
        return measure(outcome, self.goal.slo) | {
            "most_tokens": int(state["most_tokens"].max()),
            "most_requests": int(state["most_requests"].max()),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class PointQuestion:
    """What do users see under every policy at the same traffic, request by request?"""

    runs: tuple[Run, ...]
    goal: Goal
    chosen: str
    """The policy that the others are compared with."""

    def answer(self) -> Answer:
        """By policy: latency quantiles, and differences from the chosen one with intervals."""
        outcomes = {run.label: _whole(run.scenario) for run in self.runs}
        judged = outcomes[self.chosen].scenario.judged_requests
        met = {
            label: met_slo(o, self.goal.slo)[judged].astype(float) for label, o in outcomes.items()
        }
        theirs = outcomes[self.chosen].requests[judged]
        found = {}
        for label, outcome in outcomes.items():
            difference = batch_interval(met[label] - met[self.chosen])
            found[label] = {
                "quantiles_s": _quantiles(outcome),
                "attainment": float(met[label].mean()),
                "attainment_difference": None if label == self.chosen else difference,
                "differences": paired_difference(outcome.requests[judged], theirs),
            }
        return found


def _whole(scenario: Scenario) -> Outcome:
    outcome = simulate(scenario, on_progress=heed)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return outcome


def _numbers(found: Probe) -> Answer:
    row, whole = found.row, found.row["whole_run"]
    names = (
        "ttft_ms", "tpot_ms", "e2e_ms", "tok_s_user_p50", "output_tok_s", "duration_s",
        "utilisation", "rejected", "truncated", "requests_in_system_mean",
    )  # fmt: skip
    return {
        "replicas": found.replicas,
        "attainment": found.attainment,
        "interval": found.interval,
        "generated_tokens": whole["output_tok_s"] * whole["duration_s"],
        **{name: row[name] for name in names},
    }


def _quantiles(outcome: Outcome) -> dict[str, list[float]]:
    """Seconds at ``QUANTILES`` of TTFT, TPOT and e2e per request and of ITL per burst."""
    part = judged_part(outcome)
    found = {}
    for name, times in request_times(outcome.requests[part.judged]).items():
        known = times[~np.isnan(times)]
        found[name] = np.quantile(known, QUANTILES).tolist() if known.size else []
    bursts = [itl_percentile_s(part.itl, 100.0 * q) for q in QUANTILES] if part.itl.sum() else []
    return found | {"itl": bursts}


@dataclass(frozen=True, kw_only=True, eq=False)
class Inquiry:
    """What a capacity report asks."""

    runs: tuple[Run, ...]
    """Each policy on one replica, open loop, at the trace's own rate."""
    goal: Goal
    rates: tuple[float, ...]
    """Factors on the trace's rate that fleets are sized for, increasing."""

    def __post_init__(self) -> None:
        for rate in self.rates:
            if not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"rate {rate:g} must be a finite number above 0")
        if offered_rate(self.runs[0].scenario) is None:
            raise ValueError(
                f"{self.runs[0].scenario.trace.path}: all requests arrive at once, so there is no "
                "traffic to size a fleet for; give a trace whose arrivals take time"
            )

    @property
    def concurrencies(self) -> tuple[int, ...]:
        """Those that one replica's batch and the trace's length have room for."""
        scenario = self.runs[0].scenario
        room = min(scenario.engine.max_running_requests, len(scenario.trace) // 4)
        return tuple(c for c in CONCURRENCIES if c <= room) or CONCURRENCIES[:1]

    @property
    def questions(self) -> int:
        """How many there are in all, for a progress bar."""
        credulous = sum(believes(run.scenario.policy) for run in self.runs)
        each = 1 + len(self.rates) + len(LOADS) + len(self.concurrencies)
        return len(self.runs) * each + 1 + credulous * 2 * len(MISTAKES)


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What the simulations found; keys are policy labels."""

    traffic: dict[str, Answer]
    sizes: dict[str, list[Answer]]
    """By rate, in the inquiry's order."""
    load_rates: tuple[float, ...]
    """Factors on the trace's rate behind ``loads``."""
    loads: dict[str, list[Answer]]
    closed: dict[str, list[Answer]]
    """By concurrency, in the inquiry's order."""
    chosen: str
    """The policy whose one replica holds the most traffic; of those within ``TOLERANCE`` of it,
    the one with the most throughput in a full batch, which is what an overload meets."""
    point_rate: float
    """The traffic it just holds, as a factor on the trace's rate."""
    point: dict[str, Answer]
    mistake_loads: tuple[int, ...]
    """Concurrent requests: about as many as at the point, and the most."""
    mistakes: dict[str, list[Answer]]
    """By load, under each of ``MISTAKES``. Policies without beliefs are absent."""


def closed_loop(scenario: Scenario, clients: int) -> Scenario:
    """The beginning of the trace, sent by so many clients; the same requests for every number."""
    part = scenario.trace.head(min(_CLOSED_REQUESTS, len(scenario.trace)))
    return replace(scenario, trace=part, concurrency=clients, rate_factor=1.0)


def ask(
    inquiry: Inquiry,
    *,
    jobs: int = 1,
    ray: str | None = None,
    journal: Path | None = None,
    on_done: Callable[[int], None] = lambda finished: None,
) -> Findings:
    """All simulations of a report; ``jobs``, ``ray`` and ``journal`` as ``sweep`` takes them.

    ``KeyboardInterrupt`` when cut short.
    """
    runs, goal = inquiry.runs, inquiry.goal
    warm_up(runs[0].scenario)
    before = 0

    def answers(questions: Sequence[Question]) -> list[Answer]:
        nonlocal before
        found, interrupted = sweep(
            questions,
            answer,
            jobs=jobs,
            ray=ray,
            journal=journal,
            on_done=lambda n: on_done(before + n),
        )
        if interrupted:
            raise KeyboardInterrupt
        before += len(questions)
        return [one for one in found if one is not None]

    traffics = answers([TrafficQuestion(scenario=run.scenario, goal=goal) for run in runs])
    traffic = {run.label: one for run, one in zip(runs, traffics, strict=True)}
    most = max(one["rate_factor"] or 0.0 for one in traffics)
    anchor = most or _half_saturated(inquiry, traffic)
    load_rates = tuple(anchor * share for share in LOADS)
    sized: list[Question] = [
        SizeQuestion(
            scenario=replace(run.scenario, rate_factor=rate),
            goal=goal,
            capacity_req_s=traffic[run.label]["capacity_req_s"],
        )
        for run in runs
        for rate in inquiry.rates
    ]
    loaded: list[Question] = [
        LoadQuestion(scenario=replace(run.scenario, rate_factor=rate), goal=goal)
        for run in runs
        for rate in load_rates
    ]
    looped: list[Question] = [
        ClosedQuestion(scenario=closed_loop(run.scenario, clients), goal=goal)
        for run in runs
        for clients in inquiry.concurrencies
    ]
    found = answers([*sized, *loaded, *looped])
    ends = np.cumsum([len(sized), len(loaded)]).tolist()
    loads = _by_policy(runs, found[ends[0] : ends[1]])
    closed = _by_policy(runs, found[ends[1] :])
    chosen = _choice(traffic, closed)
    point_rate = traffic[chosen]["rate_factor"] or anchor
    compared = PointQuestion(
        runs=tuple(_at_rate(run, point_rate) for run in runs), goal=goal, chosen=chosen
    )
    in_system = loads[chosen][_NEAR_FULL]["requests_in_system_mean"] or 1.0
    near = min(inquiry.concurrencies, key=lambda c: abs(math.log(c / in_system)))
    credulous = [run for run in runs if believes(run.scenario.policy)]
    mistake_loads = (near, inquiry.concurrencies[-1])
    last = answers(
        [
            compared,
            *(
                ClosedQuestion(scenario=closed_loop(run.scenario, c), goal=goal, mistake=mistake)
                for run in credulous
                for c in mistake_loads
                for mistake in MISTAKES
            ),
        ]
    )
    return Findings(
        traffic=traffic,
        sizes=_by_policy(runs, found[: ends[0]]),
        load_rates=load_rates,
        loads=loads,
        closed=closed,
        chosen=chosen,
        point_rate=point_rate,
        point=last[0],
        mistake_loads=mistake_loads,
        mistakes=_by_policy(credulous, last[1:]),
    )


def _choice(traffic: dict[str, Answer], closed: dict[str, list[Answer]]) -> str:
    held = {label: one["rate_factor"] or 0.0 for label, one in traffic.items()}
    near = [label for label in held if held[label] * (1.0 + TOLERANCE) >= max(held.values())]
    return max(near, key=lambda label: closed[label][-1]["output_tok_s"] or 0.0)


def _at_rate(run: Run, rate: float) -> Run:
    return replace(run, scenario=replace(run.scenario, rate_factor=rate))


def _half_saturated(inquiry: Inquiry, traffic: dict[str, Answer]) -> float:
    """Where nothing is held, the report looks at half the rate that saturates a replica."""
    capacity = max((one["capacity_req_s"] or 0.0) for one in traffic.values())
    offered = offered_rate(inquiry.runs[0].scenario)
    assert offered is not None
    return 0.5 * capacity / offered if capacity else 1.0


def _by_policy(runs: Sequence[Run], found: Sequence[Answer]) -> dict[str, list[Answer]]:
    each = len(found) // len(runs) if runs else 0
    return {run.label: list(found[i * each : (i + 1) * each]) for i, run in enumerate(runs)}
