"""The questions behind a capacity report, each answered by itself in any process.

Owns the plain numbers that an answer leaves. Knows no page, no file and no order of questions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from simulator.capacity.search import (
    Goal,
    Probe,
    fewest_replicas,
    most_traffic,
    probe,
    replica_capacity,
)
from simulator.engine.latency import itl_percentile_s
from simulator.fleet.fleet import simulate
from simulator.fleet.mistakes import Mistake, mistaken
from simulator.fleet.scenario import Outcome, Scenario
from simulator.study.metrics import (
    batch_interval,
    measure,
    met_slo,
    paired_difference,
    request_times,
)
from simulator.study.part import judged_part
from simulator.study.study import Run
from simulator.sweep.sweep import heed

Answer = dict[str, Any]

TOLERANCE = 0.02
"""Of the most traffic that a replica holds."""
QUANTILES = tuple(np.linspace(0.0, 1.0, 201).tolist())
MORE = 0.3
"""By how much traffic is let grow for a fleet that stands already."""


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
            "sustained": found.sustained,
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
class HeadroomQuestion:
    """What is left of the scenario's fleet at its rate, and with ``MORE`` traffic?"""

    scenario: Scenario
    goal: Goal
    capacity_req_s: float | None
    """Of one replica."""

    def answer(self) -> Answer:
        """``headroom``: the share by which traffic may grow, below 0 where it is too much already,
        None where it holds nothing; the probes now and with more."""
        found = most_traffic(
            self.scenario, self.goal, tolerance=TOLERANCE, capacity_req_s=self.capacity_req_s
        )
        now = probe(self.scenario, self.goal)
        grown = replace(self.scenario, rate_factor=self.scenario.rate_factor * (1.0 + MORE))
        held = found.sustained
        return {
            "replicas": self.scenario.replicas,
            "headroom": held / self.scenario.rate_factor - 1.0 if held else None,
            "now": _numbers(now) | {"holds": now.holds},
            "more": _numbers(after := probe(grown, self.goal)) | {"holds": after.holds},
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
    whole = found.row["whole_run"]
    row = found.row if found.row["judged"] else found.row | whole  # too short for a steady state
    names = (
        "ttft_ms", "tpot_ms", "e2e_ms", "tok_s_user_p50", "output_tok_s", "duration_s",
        "utilisation", "requests", "rejected", "truncated", "requests_in_system_mean",
    )  # fmt: skip
    return {
        "replicas": found.replicas,
        "attainment": found.attainment,
        "interval": found.interval,
        "generated_tokens": whole["output_tok_s"] * whole["duration_s"],
        "misses": found.misses,
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
