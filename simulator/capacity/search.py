"""How many replicas hold a traffic, and how much traffic a fleet holds, under an objective.

Owns the two searches and the statement that each of their answers makes. A fleet *holds* a traffic
when at least a share of all requests sent meets its SLO (DistServe's attainment, 0.9 by its
convention). Knows no file, no process and no page: every probe is one ``simulate``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from simulator.capacity.misses import misses_by_class
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Scenario
from simulator.slo import Slo
from simulator.study.metrics import batch_interval, measure, met_slo
from simulator.study.study import saturated_rate
from simulator.sweep.sweep import heed

MOST_REPLICAS = 64
LEAST_RATE = 1 / 64
"""Of a fleet's saturation: a fleet that misses its objective there misses it without any load."""
_MOST_DOUBLINGS = 6


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What it means to hold a traffic."""

    slo: Slo
    """Of requests whose trace names no class."""
    attainment: float = 0.9
    """Least share of the requests sent that meet their SLO."""

    def __post_init__(self) -> None:
        if not 0 < self.attainment <= 1:
            raise ValueError(
                f"attainment {self.attainment:g} must lie in (0, 1]; 0.9 is DistServe's"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """One simulated fleet at one traffic."""

    replicas: int
    rate_factor: float
    holds: bool
    attainment: float
    """Share of the requests sent that meet their SLO."""
    interval: tuple[float, float] | None
    """95 %, from batch means over consecutive arrivals; None where the trace is too short."""
    row: dict[str, Any]
    """``simulator.study.metrics.measure``."""
    misses: list[dict[str, Any]]
    """``misses_by_class``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FleetSize:
    """The answer to "how many replicas?"."""

    replicas: int | None
    """Every count from here to ``bound`` holds the traffic and the count below does not; None:
    ``bound`` replicas do not hold it."""
    bound: int
    """The largest count that the answer speaks of."""
    load: float | None
    """Offered rate / rate at which so many replicas saturate; 1 - load is the distance to
    saturation. None without an answer or for a trace too short to saturate one."""
    probes: dict[int, Probe]
    """What was simulated, by replicas."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Traffic:
    """The answer to "how much traffic?"."""

    rate_factor: float | None
    """The fleet holds the trace at this factor; None: not even at ``LEAST_RATE`` of saturation."""
    sustained: float | None
    """The same, but no more than what the replicas finish when they are always full: a short trace
    ends before its queue can grow."""
    misses_at: float | None
    """It does not hold it at this one, larger by no more than the tolerance; None: nothing up to
    2^6 times saturation was too much, so the trace is too short to tell."""
    probes: dict[float, Probe]
    """What was simulated, by rate factor."""


def probe(scenario: Scenario, goal: Goal) -> Probe:
    """Simulate once and ask whether the fleet holds. ``KeyboardInterrupt`` when cut short."""
    outcome = simulate(scenario, on_progress=heed)
    if outcome.interrupted:
        raise KeyboardInterrupt
    row = measure(outcome, goal.slo)
    judged = scenario.judged_requests if row["judged"] else slice(None)  # no steady state
    met = met_slo(outcome, goal.slo)[judged]
    interval = batch_interval(met.astype(float))
    attainment = row["slo_attainment"]
    if attainment is None:  # all at once: there is no time between warm-up and cool-down
        attainment = row["whole_run"]["slo_attainment"] or 0.0
    return Probe(
        replicas=scenario.replicas,
        rate_factor=scenario.rate_factor,
        holds=attainment >= goal.attainment,
        attainment=attainment,
        interval=interval and (max(0.0, interval[1]), min(1.0, interval[2])),
        row=row,
        misses=misses_by_class(outcome, goal.slo, judged),
    )


def offered_rate(scenario: Scenario) -> float | None:
    """Requests per second of the trace at the scenario's rate; None where all arrive at once."""
    arrival_s = scenario.trace.arrival_s
    span_s = float(arrival_s[-1] - arrival_s[0])
    return (len(arrival_s) - 1) / span_s * scenario.rate_factor if span_s > 0 else None


def replica_capacity(scenario: Scenario) -> float | None:
    """Requests per second of one replica that never runs out of work; None for a short trace.

    A fleet of n equal replicas behind a round-robin router saturates at n times as many.
    """
    return saturated_rate(replace(scenario, replicas=1))


def _load(scenario: Scenario, capacity_req_s: float | None) -> float | None:
    offered = offered_rate(scenario)
    return offered / (capacity_req_s * scenario.replicas) if offered and capacity_req_s else None


def fewest_replicas(
    scenario: Scenario,
    goal: Goal,
    *,
    most: int = MOST_REPLICAS,
    capacity_req_s: float | None = None,
) -> FleetSize:
    """The fewest replicas that hold the trace, and no larger count up to a bound that misses it.

    More replicas split the arrivals and the prefix caches differently, so that a larger fleet may
    miss what a smaller one holds. Counts are therefore tried from the bound downwards to the first
    that misses: an answer with this guarantee cannot be had from fewer simulations. The bound lies
    half as high again as the load asks for, or higher where that misses, up to ``most``.
    ``capacity_req_s`` is ``replica_capacity``, where it is known already.
    """
    if most < 1:
        raise ValueError(f"most {most} must be at least 1 replica")
    if capacity_req_s is None:
        capacity_req_s = replica_capacity(scenario)
    probes: dict[int, Probe] = {}

    def holds(replicas: int) -> bool:
        if replicas not in probes:
            probes[replicas] = probe(replace(scenario, replicas=replicas), goal)
        return probes[replicas].holds

    needed = math.ceil(_load(replace(scenario, replicas=1), capacity_req_s) or 1.0)
    bound = min(most, _wider(needed))
    missed = 0
    while not holds(bound):
        missed = bound
        if bound == most or not holds(most):
            return FleetSize(replicas=None, bound=most, load=None, probes=probes)
        bound = min(most, _wider(bound))
    fewest = bound
    while fewest - 1 > missed and holds(fewest - 1):
        fewest -= 1
    load = _load(replace(scenario, replicas=fewest), capacity_req_s)
    return FleetSize(replicas=fewest, bound=bound, load=load, probes=probes)


def _wider(replicas: int) -> int:
    return replicas + max(2, math.ceil(replicas / 2))


def most_traffic(
    scenario: Scenario,
    goal: Goal,
    *,
    tolerance: float = 0.02,
    capacity_req_s: float | None = None,
) -> Traffic:
    """The largest rate factor that the scenario's replicas hold, to a relative ``tolerance``.

    The answer holds and ``misses_at``, at most ``1 + tolerance`` times as large, does not. Rates
    are doubled or halved from saturation until one holds and the next does not, then bisected in
    the logarithm. A looser objective never lowers the answer, since both searches try the same
    rates until the first that only the looser one holds.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance {tolerance:g} must lie in (0, 1); 0.02 is two per cent")
    if capacity_req_s is None:
        capacity_req_s = replica_capacity(scenario)
    probes: dict[float, Probe] = {}

    def holds(rate_factor: float) -> bool:
        probes[rate_factor] = probe(replace(scenario, rate_factor=rate_factor), goal)
        return probes[rate_factor].holds

    load = _load(replace(scenario, rate_factor=1.0), capacity_req_s)
    saturation = 1.0 / load if load else 1.0
    if not holds(saturation * LEAST_RATE):
        return Traffic(rate_factor=None, sustained=None, misses_at=None, probes=probes)
    bracket = _bracket(holds, saturation)
    low, high = bracket
    while high is not None and high > low * (1.0 + tolerance):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    sustained = min(low, saturation) if load else low
    return Traffic(rate_factor=low, sustained=sustained, misses_at=high, probes=probes)


def _bracket(holds: Callable[[float], bool], start: float) -> tuple[float, float | None]:
    """A rate that holds and twice it, which does not; None where nothing was too much."""
    if not holds(start):
        high = start
        while high / 2 > start * LEAST_RATE and not holds(high / 2):
            high /= 2
        return high / 2, high
    low = start
    while holds(low * 2):
        low *= 2
        if low >= start * 2**_MOST_DOUBLINGS:
            return low, None
    return low, low * 2
