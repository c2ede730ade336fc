"""The tuner's bench: trials in, judged windows out, each trial simulated once.

Owns the common random numbers and what a trial is. Knows no search and no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from sglang_dspark.core.policy import PolicyFile
from simulator.fleet.fleet import simulate
from simulator.fleet.mistakes import Mistake, mistaken
from simulator.fleet.scenario import Scenario
from simulator.slo import Slo
from simulator.study.windows import Figures, Judged, Window, judge_window
from simulator.sweep.sweep import advance, sweep

_SEEDS_PER_WINDOW = 1000


@dataclass(frozen=True, kw_only=True)
class Load:
    """How requests come."""

    rate: float = 1.0
    """Arrivals this many times as fast as in the trace."""
    concurrency: int | None = None
    """Closed loop with so many clients instead."""
    single: bool = False
    """At one replica alone, whatever the fleet."""

    @property
    def label(self) -> str:
        """As the report calls it."""
        return (
            f"rate {self.rate:g}" if self.concurrency is None else f"concurrency {self.concurrency}"
        )


NO_MISTAKE = Mistake(label="right")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One policy in one window at one load."""

    policy: PolicyFile
    window: int
    load: Load
    draw: int = 0
    """Which random numbers: trials with the same window and draw share them."""
    mistake: Mistake = NO_MISTAKE
    """What the policy is told wrongly."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """What all trials share."""

    base: Scenario
    """The whole trace; a trial changes its window, policy, load and random numbers."""
    windows: tuple[Window, ...]
    slo: Slo

    def scenario(self, trial: Trial) -> Scenario:
        """The trial as a simulation."""
        base = self.base
        if trial.load.single:
            base = Scenario(
                trace=base.trace,
                cost_model=base.cost_model,
                acceptance=base.acceptance,
                policy=base.policy,
                engine=base.engine,
                seed=base.seed,
            )
        # Draws are addressed by a request's place in its window: windows must not share a seed.
        window = self.windows[trial.window]
        place = base.seed * len(self.windows) + trial.window
        changed = replace(
            base,
            trace=window.trace,
            judged=(window.first, window.end),
            policy=replace(trial.policy, note=""),
            rate_factor=trial.load.rate,
            concurrency=trial.load.concurrency,
            seed=place * _SEEDS_PER_WINDOW + trial.draw,
        )
        return changed if trial.mistake == NO_MISTAKE else mistaken(changed, trial.mistake)


def run_trial(setting: Setting, trial: Trial) -> Judged:
    """The judged window; ``KeyboardInterrupt`` when the sweep is to end."""
    before = 0

    def progress(done: int) -> None:
        nonlocal before
        more, before = done - before, done
        advance(more)

    outcome = simulate(setting.scenario(trial), on_progress=progress)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return judge_window(outcome, setting.slo)


@dataclass(kw_only=True, eq=False)
class Bench:
    """Performs trials on the executor and remembers them."""

    setting: Setting
    jobs: int = 1
    ray: str | None = None
    journal: Path | None = None
    on_done: Callable[[int], None] = lambda finished: None
    """Hears how many trials are known."""
    known: dict[Trial, Judged] = field(default_factory=dict)

    def judge(self, trials: Iterable[Trial]) -> list[Judged]:
        """The trials' windows, in order. ``KeyboardInterrupt`` when Ctrl-C cut them short."""
        asked = list(trials)
        new = [trial for trial in dict.fromkeys(asked) if trial not in self.known]
        before = len(self.known)
        if new:
            found, interrupted = sweep(
                new,
                partial(run_trial, self.setting),
                jobs=self.jobs,
                ray=self.ray,
                journal=self.journal,
                on_done=lambda done: self.on_done(before + done),
            )
            for trial, judged in zip(new, found, strict=True):
                if judged is not None:
                    self.known[trial] = judged
            if interrupted:
                raise KeyboardInterrupt
        return [self.known[trial] for trial in asked]

    @staticmethod
    def trials(
        policies: Sequence[PolicyFile],
        loads: Sequence[Load],
        windows: Sequence[int],
        *,
        draws: Sequence[int] = (0,),
        mistake: Mistake = NO_MISTAKE,
    ) -> list[Trial]:
        """All combinations, the last argument fastest."""
        return [
            Trial(policy=policy, window=window, load=load, draw=draw, mistake=mistake)
            for policy in policies
            for load in loads
            for window in windows
            for draw in draws
        ]

    def figures(
        self,
        policies: Sequence[PolicyFile],
        loads: Sequence[Load],
        windows: Sequence[int],
        *,
        draws: Sequence[int] = (0,),
        mistake: Mistake = NO_MISTAKE,
    ) -> list[Figures]:
        """Per policy the figures, their means over ``draws``; rates as all by all seconds."""
        rows = self.judge(self.trials(policies, loads, windows, draws=draws, mistake=mistake))
        shape = (len(policies), len(loads), len(windows), len(draws))
        columns = {
            name: np.array([getattr(row, name) for row in rows]).reshape(shape)
            for name in ("length_s", "throughput", "in_slo", "speed", "attainment")
        }
        weight = columns["length_s"] / columns["length_s"].mean(axis=3, keepdims=True)
        for name in ("throughput", "in_slo"):
            columns[name] = columns[name] * weight
        tables = {name: column.mean(axis=3) for name, column in columns.items()}
        return [{name: table[i] for name, table in tables.items()} for i in range(len(policies))]
