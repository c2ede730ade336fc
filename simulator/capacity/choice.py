"""Which policy to run at one traffic: the tuner's windows, statistics and verdict.

Owns the comparison of whole policies at the load of a fleet's replica. What speaks against a
rollout is ``simulator.tune.guard``'s to say. Knows no page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sglang_dspark.core.policy import PolicyFile, parse_policy
from simulator.fleet.scenario import Scenario
from simulator.slo import Slo
from simulator.study.windows import Gain, cut_windows, gain, split
from simulator.tune.bench import Bench, Load, Setting
from simulator.tune.guard import DRAWS, Guard

OBJECTIVE = "in_slo"
"""What fleets are sized by: requests per second within their SLO."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which policy to run, and how sure that is."""

    replica_rate: float
    """Factor on the trace's rate at which one replica was examined."""
    policy: str
    """The current one, unless another has a proven gain that nothing speaks against."""
    gains: dict[str, Gain]
    """In requests/s within the SLO over the current policy, by label."""
    reasons: dict[str, list[str]]
    """Why one with a proven gain is not to be rolled out."""


def make_bench(
    scenario: Scenario,
    slo: Slo,
    *,
    jobs: int,
    ray: str | None,
    journal: Path | None,
    on_done: Callable[[int], None],
) -> Bench:
    """Of the scenario's trace and seed, as ``dspark tune`` has it. ``ValueError`` where the trace
    is too short for windows."""
    windows = cut_windows(scenario.trace)
    setting = Setting(base=scenario, windows=windows, slo=slo)
    return Bench(setting=setting, jobs=jobs, ray=ray, journal=journal, on_done=on_done)


def choose(
    bench: Bench, policies: Mapping[str, PolicyFile], current: str, replica_rate: float
) -> Choice:
    """Compare ``policies`` with the current one of them on held-out windows.

    ``KeyboardInterrupt`` when cut short.
    """
    _, held_out = split(len(bench.setting.windows))
    loads = [Load(rate=replica_rate)]
    figures = dict(
        zip(
            policies,
            bench.figures(list(policies.values()), loads, held_out, draws=DRAWS),
            strict=True,
        )
    )
    gains = {
        label: gain(found, figures[current], OBJECTIVE)
        for label, found in figures.items()
        if label != current
    }
    guard = Guard(
        bench=bench,
        incumbents={current: policies[current]},
        low_load_others={"none": parse_policy("none")},
        objective=OBJECTIVE,
        loads=loads,
        windows=held_out,
    )
    reasons: dict[str, list[str]] = {}
    for label in sorted(gains, key=lambda label: -gains[label].mean):
        if gains[label].proven:
            against = guard.examine(policies[label]).reasons
            if not against:
                return Choice(replica_rate=replica_rate, policy=label, gains=gains, reasons=reasons)
            reasons[label] = against
    return Choice(replica_rate=replica_rate, policy=current, gains=gains, reasons=reasons)
