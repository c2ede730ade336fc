"""The simulations behind a capacity report: what is asked, in which order, and what came of it.

Owns which loads, rates and mistakes are simulated. Knows no page and no file; ``ask`` hands the
questions to the sweep in rounds, since later ones depend on what earlier ones found.

A whole study of the shipped traces is a few hundred simulations, none of them longer than the
trace. Closed loops replay its beginning: enough requests for every client to send many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from simulator.capacity.choice import Choice, choose, make_bench
from simulator.capacity.questions import (
    Answer,
    ClosedQuestion,
    HeadroomQuestion,
    LoadQuestion,
    PointQuestion,
    Question,
    SizeQuestion,
    TrafficQuestion,
    answer,
)
from simulator.capacity.search import Goal, offered_rate
from simulator.fleet.config import FleetConfig
from simulator.fleet.mistakes import MISTAKES, Mistake, believes, mistaken
from simulator.fleet.scenario import Scenario
from simulator.study.first_start import warm_up
from simulator.study.price_doubt import price_mistakes, priced
from simulator.study.study import Run
from simulator.sweep.sweep import sweep
from traces import Trace

LOADS = (0.25, 0.5, 0.7, 0.85, 0.95, 1.05, 1.2, 1.5)
"""Loads of one replica, as shares of the most that any policy holds."""
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_NEAR_FULL = 4
"""Place in ``LOADS`` of a replica that is all but full."""
_CLOSED_REQUESTS = 4096
_WAYS = 6
"""In how many ways prices are off where the cost model says how far they may be."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inquiry:
    """What a capacity report asks."""

    runs: tuple[Run, ...]
    """Each policy on one replica, open loop, at the trace's own rate."""
    goal: Goal
    rates: tuple[float, ...]
    """Factors on the trace's rate that fleets are sized for, increasing."""
    current: str
    """The label of the policy that runs today."""
    replicas: int | None = None
    """A fleet that stands already, whose headroom is asked for."""
    users: Mapping[float, Trace] = field(default_factory=dict)
    """The trace with so many times its users, by rate; where there is none, its own requests come
    so many times as fast."""

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
        room = min(scenario.places(), len(scenario.trace) // 4)
        return tuple(c for c in CONCURRENCIES if c <= room) or CONCURRENCIES[:1]

    @property
    def questions(self) -> int:
        """How many there are in all, for a progress bar."""
        credulous = sum(believes(run.scenario.policy) for run in self.runs)
        each = 1 + len(self.rates) + len(LOADS) + len(self.concurrencies)
        whole = len(self.runs) * each + 1 + credulous * 2 * len(MISTAKES)
        whole += len(self.price_ways) * len(self.rates)
        return whole + len(self.rates) + 2 * (self.replicas is not None)

    @property
    def price_ways(self) -> list[Mistake]:
        """How prices may be off; none where the cost model does not say."""
        return price_mistakes(priced(self.runs), _WAYS)

    def at(self, run: Run, rate: float) -> Scenario:
        """``run`` at a traffic that fleets are sized for."""
        if rate in self.users:
            return replace(run.scenario, trace=self.users[rate])
        return replace(run.scenario, rate_factor=rate)


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What the simulations found; keys are policy labels."""

    traffic: dict[str, Answer]
    sizes: dict[str, list[Answer]]
    """By rate, in the inquiry's order."""
    choices: tuple[Choice | None, ...]
    """Which policy to run, by rate; None where nothing holds it, or the trace is too short."""
    headroom: dict[str, Answer]
    """Of the fleet that stands already, under the chosen and the current policy; empty where none
    does."""
    load_rates: tuple[float, ...]
    """Factors on the trace's rate behind ``loads``."""
    loads: dict[str, list[Answer]]
    closed: dict[str, list[Answer]]
    """By concurrency, in the inquiry's order."""
    chosen: str
    """The policy to run at the first of the rates; where that is not known, the current one if its
    replica holds any traffic, else the one whose replica holds the most."""
    point_rate: float
    """The traffic it just holds, as a factor on the trace's rate."""
    point: dict[str, Answer]
    mistake_loads: tuple[int, ...]
    """Concurrent requests: about as many as at the point, and the most."""
    doubted: tuple[tuple[int | None, ...], ...]
    """By rate, the fewest replicas of the chosen policy with prices off in each way; None where no
    number holds it. Empty where the cost model says nothing of it."""
    mistakes: dict[str, list[Answer]]
    """By load, under each of ``MISTAKES``. Policies without beliefs are absent."""


def closed_loop(scenario: Scenario, clients: int) -> Scenario:
    """The beginning of the trace, sent by so many clients; the same requests for every number."""
    part = scenario.trace.head(min(_CLOSED_REQUESTS, len(scenario.trace)))
    return replace(scenario, trace=part, concurrency=clients, rate_factor=1.0, fleet=FleetConfig())


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
            scenario=inquiry.at(run, rate),
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
    sizes = _by_policy(runs, found[: ends[0]])
    loads = _by_policy(runs, found[ends[0] : ends[1]])
    closed = _by_policy(runs, found[ends[1] :])
    choices = _choices(inquiry, sizes, jobs=jobs, ray=ray, journal=journal)
    before += len(inquiry.rates)
    on_done(before)
    chosen = _chosen(inquiry, traffic, choices)
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
    ways = inquiry.price_ways
    run = next(run for run in runs if run.label == chosen)
    off = answers(
        [
            SizeQuestion(
                scenario=mistaken(inquiry.at(run, rate), way), goal=goal, capacity_req_s=None
            )
            for rate in inquiry.rates
            for way in ways
        ]
    )
    advised = {chosen, inquiry.current} if inquiry.replicas is not None else set()
    standing = [run for run in runs if run.label in advised]
    left = answers(
        [
            HeadroomQuestion(
                scenario=replace(inquiry.at(run, inquiry.rates[0]), replicas=inquiry.replicas or 1),
                goal=goal,
                capacity_req_s=traffic[run.label]["capacity_req_s"],
            )
            for run in standing
        ]
    )
    return Findings(
        traffic=traffic,
        sizes=sizes,
        choices=choices,
        headroom={run.label: one for run, one in zip(standing, left, strict=True)},
        load_rates=load_rates,
        loads=loads,
        closed=closed,
        chosen=chosen,
        point_rate=point_rate,
        point=last[0],
        doubted=tuple(
            tuple(one["replicas"] for one in off[i * len(ways) : (i + 1) * len(ways)])
            for i in range(len(inquiry.rates) if ways else 0)
        ),
        mistake_loads=mistake_loads,
        mistakes=_by_policy(credulous, last[1:]),
    )


def _choices(
    inquiry: Inquiry,
    sizes: dict[str, list[Answer]],
    *,
    jobs: int,
    ray: str | None,
    journal: Path | None,
) -> tuple[Choice | None, ...]:
    """By rate, on as many replicas as the policy that needs the fewest takes."""
    policies = {run.label: run.scenario.policy for run in inquiry.runs}
    current = next(run for run in inquiry.runs if run.label == inquiry.current)
    try:
        bench = make_bench(
            current.scenario,
            inquiry.goal.slo,
            jobs=jobs,
            ray=ray,
            journal=journal,
            on_done=lambda known: None,
        )
    except ValueError:  # too short for windows
        return (None,) * len(inquiry.rates)
    found: list[Choice | None] = []
    for i, rate in enumerate(inquiry.rates):
        known = [rows[i]["replicas"] for rows in sizes.values() if rows[i]["replicas"]]
        found.append(choose(bench, policies, current.label, rate / min(known)) if known else None)
    return tuple(found)


def _chosen(inquiry: Inquiry, traffic: dict[str, Answer], choices: Sequence[Choice | None]) -> str:
    if choices[0] is not None:
        return choices[0].policy
    held = {label: one["rate_factor"] or 0.0 for label, one in traffic.items()}
    return inquiry.current if held[inquiry.current] else max(held, key=lambda label: held[label])


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
