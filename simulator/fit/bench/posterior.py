"""The changes of the prices that benchmark points ask for, and the doubt that is left.

    y = g(x) + e,   x ~ N(0, P),   e ~ N(0, R)
with y the logarithms of what was measured, g those of the replay at prices off by x, R what no
price explains: the benchmark's own noise, and what the simulator leaves out. Solved by
Gauss-Newton: replay, take slopes, solve the linear problem, replay again. Knows no file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sglang_dspark.core.costs.doubt import NAMES, Doubt, Floats, changed, doubt_of
from sglang_dspark.core.costs.model import CostModel
from simulator.fit.bench.asked import Bench
from simulator.fit.bench.points import Point
from simulator.fit.bench.replays import FIGURES, Replayed, replay

LEVEL_SD = 0.35
"""Of the logarithm of accepted draft tokens, where no point says how many there were."""
NOISE = {"output_tok_s": 0.05, "tpot_ms": 0.06, "ttft_ms": 0.30}
"""Deviation of a measured figure from a right replay, in logarithms."""
ALONE_TTFT = 0.10
"""The same of TTFT with one client, where nobody queues."""
_ROUNDS = 6
_SETTLED = 0.01
"""Largest change of a predicted logarithm between two rounds that counts as none."""
FAR = 3.0
"""Prior deviations beyond which points contradict what was believed of the prices."""


class Observation(NamedTuple):
    """One measured figure."""

    point: int
    figure: str
    value: float
    noise: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Posterior:
    """What was found."""

    model: CostModel
    """At its new centre, with the doubt that is left as its block."""
    x: Floats
    """[names + 1] how far the centre moved; the last is the level of acceptance."""
    covariance: Floats
    """[names + 1, names + 1]"""
    before: list[Replayed]
    """Each point at the prices that were given."""
    after: list[Replayed]
    """At the new ones."""
    misfit: Floats
    """[observations] (measured - replayed) / noise, of logarithms."""
    moved: Floats
    """[names + 1] the moves in prior deviations."""
    converged: bool
    spread: float
    """By how much the points scatter more than their noise says, at least 1: all doubt that is left
    is that much wider."""

    @property
    def level(self) -> float:
        """Added to the logarithm of accepted draft tokens where no point said how many."""
        return float(self.x[-1])


def observations(points: Sequence[Point]) -> list[Observation]:
    """Every measured figure, with its noise."""
    found = []
    for i, point in enumerate(points):
        for figure in FIGURES:
            value = getattr(point, figure)
            if value is None:
                continue
            noise = NOISE[figure]
            if figure == "ttft_ms" and point.concurrency == 1:
                noise = ALONE_TTFT
            found.append(Observation(i, figure, value, noise))
    return found


def slopes_of(replays: Sequence[Replayed], seen: Sequence[Observation]) -> Floats:
    """[observations, names + 1]"""
    return np.array([replays[one.point].slopes[one.figure] for one in seen])


def logs_of(replays: Sequence[Replayed], seen: Sequence[Observation]) -> Floats:
    """[observations] of what the replays show."""
    return np.log([replays[one.point].figures[one.figure] for one in seen])


def prior_covariance(doubt: Doubt) -> Floats:
    """[names + 1, names + 1] with the level of acceptance, of which prices say nothing."""
    root = doubt.root()
    full = np.zeros((len(NAMES) + 1, len(NAMES) + 1))
    full[:-1, :-1] = root @ root.T
    full[-1, -1] = LEVEL_SD**2
    return full


def fit(
    bench: Bench,
    model: CostModel,
    doubt: Doubt,
    points: Sequence[Point],
    *,
    note: str = "",
    tick: Callable[[], None] = lambda: None,
) -> Posterior:
    """The posterior of ``model``, whose doubt before any point is ``doubt``; ``tick`` hears of
    every replay, of which there are at most ``rounds`` times the points."""
    seen = observations(points)
    prior = prior_covariance(doubt)
    y = np.log([one.value for one in seen])
    noise = np.diag([one.noise**2 for one in seen])
    x = np.zeros(len(NAMES) + 1)

    def replayed(x: Floats) -> list[Replayed]:
        truth = changed(model, x[:-1])
        found = []
        for point in points:
            found.append(replay(bench, point, truth, level=float(x[-1])))
            tick()
        return found

    before = after = replayed(x)
    shown = logs_of(after, seen)
    converged = False
    for _ in range(_ROUNDS):
        slopes = slopes_of(after, seen)
        gain = prior @ slopes.T @ np.linalg.inv(slopes @ prior @ slopes.T + noise)
        x = gain @ (y - shown + slopes @ x)
        after = replayed(x)
        last, shown = shown, logs_of(after, seen)
        # What the slopes promised against what came of it, and whether anything still moves.
        if float(np.abs(shown - last).max()) < _SETTLED:
            converged = True
            break
    slopes = slopes_of(after, seen)
    gain = prior @ slopes.T @ np.linalg.inv(slopes @ prior @ slopes.T + noise)
    covariance = prior - gain @ slopes @ prior
    misfit = (y - shown) / np.sqrt(np.diag(noise))
    spread = max(1.0, float(np.sqrt(np.mean(misfit**2))))
    covariance = 0.5 * spread**2 * (covariance + covariance.T)
    centre = changed(model, x[:-1])
    left = doubt_of(covariance[:-1, :-1], basis="posterior", note=note)
    centre = dataclasses.replace(centre, schema_version=3, doubt=left)
    return Posterior(
        model=centre,
        x=x,
        covariance=covariance,
        before=before,
        after=after,
        misfit=misfit,
        moved=x / np.sqrt(np.maximum(np.diag(prior), 1e-12)),
        converged=converged,
        spread=spread,
    )


def most_replays(points: Sequence[Point]) -> int:
    """How often ``tick`` is heard at most."""
    return len(points) * (1 + _ROUNDS)
