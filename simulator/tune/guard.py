"""The guard: what is known of a tuned policy on held-out windows, and why not to roll it out.

Owns the comparisons and the reasons, each a sentence. Everything here is judged on windows and
random numbers that the search has not seen. Knows no search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sglang_dspark.core.policy import PolicyFile
from simulator.fleet.mistakes import MISTAKES, Mistake
from simulator.study.price_doubt import half_width, price_mistakes
from simulator.study.windows import Figures, Gain, gain, overall
from simulator.tune.bench import NO_MISTAKE, Bench, Load
from simulator.tune.search import ATTAINMENT_SLACK

REGRET_LIMIT = 0.02
"""Share of throughput that may be lost at low load to the best of the other policies."""
LOW_LOADS = (1, 2, 4)
"""Clients of one replica."""
LADDER = (1, 2, 4, 8, 16, 32)
"""The same, for where the tuned and the current policy change places."""
DRAWS = range(1, 4)
"""Random numbers of held-out windows; the search has draw 0."""
_FEW_DRAWS = range(1, 2)
_WAYS = 8
"""In how many ways prices are off."""
_FIGURES = ("throughput", "in_slo", "attainment", "speed")


@dataclass(frozen=True, kw_only=True)
class Examination:
    """A tuned policy beside others, on held-out windows."""

    objective: str
    windows: int
    """How many were held out."""
    gains: dict[str, Gain]
    """In the objective, over each incumbent, mean over loads."""
    rows: list[dict[str, Any]]
    """Per load and policy: the four figures."""
    attainment_lost: float
    """To the current policy, at the load where most is lost."""
    low_load: list[dict[str, Any]]
    """Per number of clients: throughput, the best other policy, regret."""
    ladder: list[dict[str, Any]]
    """Per number of clients: throughput over the current policy's, less 1."""
    mistakes: list[dict[str, Any]]
    """Per wrong belief: the gain over the current policy there."""
    prices: dict[str, float] | None = None
    """The gain over the current policy with the doubt about prices: mean, low and high of 90 %;
    None where the cost model states none."""

    @property
    def reasons(self) -> list[str]:
        """Why not to roll out, a sentence each; empty where nothing speaks against it."""
        (name, first), *others = self.gains.items()
        reasons = []
        if not first.proven:
            reasons.append(
                f"The gain in {self.objective} over {name} is within noise: {percent(first)} on "
                f"{self.windows} held-out windows."
            )
        elif self.prices is not None and self.prices["low"] <= 0:
            low, high = self.prices["low"], self.prices["high"]
            reasons.append(
                f"With the doubt about prices the gain over {name} is [{low:+.2%}, {high:+.2%}]; "
                "benchmark the server and give dspark prices calibrate what it measured."
            )
        for other, against in others:
            if against.high < 0:
                reasons.append(f"{other} is better on held-out windows: {percent(against)}.")
        if self.objective != "in_slo" and self.attainment_lost > ATTAINMENT_SLACK:
            reasons.append(
                f"SLO attainment falls {self.attainment_lost:.1%} behind {name}'s, more than "
                f"{ATTAINMENT_SLACK:.1%}."
            )
        worst = max(self.low_load, key=lambda row: float(row["regret"]))
        if worst["regret"] > REGRET_LIMIT:
            reasons.append(
                f"At concurrency {worst['concurrency']} it loses {worst['regret']:.1%} of the "
                f"throughput of {worst['best_other']}, more than {REGRET_LIMIT:.0%}."
            )
        if first.mean > 0:
            reasons += [
                f"With {row['mistake']} the gain turns into a loss: {row['mean']:+.2%}."
                for row in self.mistakes
                if row["mean"] < 0
            ]
        return reasons

    @property
    def no_difference(self) -> bool:
        """Whether no incumbent can be told from the tuned policy."""
        return all(g.low <= 0 <= g.high for g in self.gains.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class Guard:
    """What a tuned policy is examined against."""

    bench: Bench
    incumbents: Mapping[str, PolicyFile]
    """By name; the first is the current policy."""
    low_load_others: Mapping[str, PolicyFile]
    """Further policies that count at low load."""
    objective: str
    loads: Sequence[Load]
    windows: Sequence[int]
    """Places of the held-out windows."""

    def most_trials(self) -> int:
        """No more than so many simulations."""
        mistaken = 2 * (len(MISTAKES) + len(self._ways)) * len(_FEW_DRAWS)
        judged = (1 + len(self.incumbents)) * len(DRAWS)
        low = (1 + len(self.incumbents) + len(self.low_load_others)) * len(LOW_LOADS)
        low += 2 * (len(LADDER) - len(LOW_LOADS))
        return ((judged + mistaken) * len(self.loads) + low) * len(self.windows)

    def examine(self, tuned: PolicyFile) -> Examination:
        """Judge ``tuned`` on the held-out windows."""
        policies = {"tuned": tuned, **self.incumbents}
        figures = dict(zip(policies, self._figures(list(policies.values())), strict=True))
        ours = figures["tuned"]
        current = figures[next(iter(self.incumbents))]
        gains = {name: gain(ours, figures[name], self.objective) for name in self.incumbents}
        rows = [
            {"load": load.label, "policy": name}
            | {f: round(float(overall(figures[name], f)[i]), 6) for f in _FIGURES}
            for i, load in enumerate(self.loads)
            for name in policies
        ]
        lost = overall(current, "attainment") - overall(ours, "attainment")
        return Examination(
            objective=self.objective,
            windows=len(self.windows),
            gains=gains,
            rows=rows,
            attainment_lost=float(lost.max()),
            low_load=self._low_load(tuned),
            ladder=self._ladder(tuned),
            mistakes=self._mistakes(tuned),
            prices=self._prices(tuned, gains[next(iter(self.incumbents))]),
        )

    def _figures(
        self, policies: Sequence[PolicyFile], mistake: Mistake = NO_MISTAKE
    ) -> list[Figures]:
        draws = DRAWS if mistake == NO_MISTAKE else _FEW_DRAWS
        return self.bench.figures(policies, self.loads, self.windows, draws=draws, mistake=mistake)

    def _low_load(self, tuned: PolicyFile) -> list[dict[str, Any]]:
        others = {**self.incumbents, **self.low_load_others}
        loads = [Load(concurrency=clients, single=True) for clients in LOW_LOADS]
        found = self.bench.figures([tuned, *others.values()], loads, self.windows, draws=_FEW_DRAWS)
        tok_s = [overall(figures, "throughput") for figures in found]
        rows = []
        for i, clients in enumerate(LOW_LOADS):
            best, name = max((tok_s[j + 1][i], -j) for j in range(len(others)))
            rows.append(
                {
                    "concurrency": clients,
                    "output_tok_s": round(float(tok_s[0][i]), 6),
                    "best_other": list(others)[-int(name)],
                    "best_other_tok_s": round(float(best), 6),
                    "regret": round(max(0.0, 1.0 - float(tok_s[0][i] / best)), 6),
                }
            )
        return rows

    def _ladder(self, tuned: PolicyFile) -> list[dict[str, Any]]:
        current = next(iter(self.incumbents.values()))
        loads = [Load(concurrency=clients, single=True) for clients in LADDER]
        found = self.bench.figures([tuned, current], loads, self.windows, draws=_FEW_DRAWS)
        ours, theirs = (overall(figures, "throughput") for figures in found)
        return [
            {"concurrency": clients, "gain": round(float(gained), 6)}
            for clients, gained in zip(LADDER, ours / theirs - 1.0, strict=True)
        ]

    def _mistakes(self, tuned: PolicyFile) -> list[dict[str, Any]]:
        current = next(iter(self.incumbents.values()))
        rows = []
        for mistake in MISTAKES:
            ours, theirs = self._figures([tuned, current], mistake)
            found = gain(ours, theirs, self.objective)
            rows.append({"mistake": mistake.label} | rounded(found))
        return rows

    @property
    def _ways(self) -> list[Mistake]:
        base = self.bench.setting.base
        return price_mistakes(base.pools[0].cost_model, _WAYS)

    def _prices(self, tuned: PolicyFile, noise: Gain) -> dict[str, float] | None:
        """The gain with prices off, the noise of windows added in squares."""
        current = next(iter(self.incumbents.values()))
        found = []
        for way in (NO_MISTAKE, *self._ways):
            ours, theirs = self.bench.figures(
                [tuned, current], self.loads, self.windows, draws=_FEW_DRAWS, mistake=way
            )
            found.append(gain(ours, theirs, self.objective).mean)
        believed, *found = found
        if not found:
            return None
        half = math.hypot((noise.high - noise.low) / 2, half_width(np.array(found), believed))
        values = {"mean": noise.mean, "low": noise.mean - half, "high": noise.mean + half}
        return {name: round(value, 6) for name, value in values.items()}


def rounded(found: Gain) -> dict[str, float]:
    """The gain as ``summary.json`` holds it."""
    return {name: round(value, 6) for name, value in asdict(found).items()}


def percent(found: Gain) -> str:
    """The gain as people read it."""
    return f"{found.mean:+.2%} [{found.low:+.2%}, {found.high:+.2%}]"
