"""What of a record is known under each protocol, and what is predicted from it.

Decided before any record was predicted, the same for all:

- ``cold``: the base cost model with the doubt of its origin; nothing of the record but its
  workload, its policies and the accepted length where it states one.
- ``two points``: cold, and its plain runs at the lowest and the highest load (its fixed runs where
  it has no plain ones; of the shortest prompts where it has several).
- ``what a user has``: its plain and fixed runs; the adaptive ones are predicted.

No form of price is chosen by record, and no point counts as predicted that was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.zoo.records import ADAPTIVE, FIXED, NONE, Record, kind_of
from sglang_dspark.core.costs.doubt import NAMES, NINETY, Floats
from simulator.fit.bench.points import Point
from simulator.fit.bench.posterior import fit, prior_covariance
from simulator.fit.bench.prior import doubted
from simulator.fit.bench.replays import Replayed, replay

COLD, TWO_POINTS, USER = "cold", "two points", "what a user has"
PROTOCOLS = (COLD, TWO_POINTS, USER)
PAIR = 0.03
"""Deviation of the published ratio of two runs at one load from a right replay."""
APART = 0.05
"""Published rates that differ by less are not told apart by their own noise."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """One point under one protocol."""

    policy: str
    kind: str
    concurrency: int
    prompt_tokens: int
    figure: str
    """``output_tok_s``, or ``tpot_ms`` where the record states no rate."""
    published: float
    predicted: float
    prices_sd: float
    """Deviation of the logarithm by the doubt of prices; what no price explains comes to it."""
    spread: float
    """By how much the known points scatter more than their noise."""

    @property
    def error(self) -> float:
        """Predicted rate over published rate - 1."""
        ratio = self.predicted / self.published
        return (ratio if self.figure == "output_tok_s" else 1.0 / ratio) - 1.0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two policies of different kinds at one load."""

    first: str
    second: str
    concurrency: int
    published: float
    """Logarithm of first rate over second."""
    predicted: float
    half_width: float

    @property
    def published_apart(self) -> bool:
        """Whether their difference is more than noise."""
        return abs(self.published) > APART

    @property
    def told_apart(self) -> bool:
        """Whether the interval excludes no difference."""
        return abs(self.predicted) > self.half_width

    @property
    def right(self) -> bool:
        """Whether the order is the published one."""
        return self.published * self.predicted > 0


def known_points(protocol: str, points: list[Point]) -> list[int]:
    """Places of the points that the protocol knows."""
    kinds = [kind_of(point.policy) for point in points]
    if protocol == COLD:
        return []
    if protocol == USER:
        return [i for i, kind in enumerate(kinds) if kind in (NONE, FIXED)]
    first = NONE if NONE in kinds else FIXED
    policy = next(p.policy for p, kind in zip(points, kinds, strict=True) if kind == first)
    shortest = min(point.prompt_tokens for point in points)
    arm = [
        i
        for i, point in enumerate(points)
        if point.policy == policy and point.prompt_tokens == shortest
    ]
    by_load = sorted(arm, key=lambda i: points[i].concurrency or 0)
    return [by_load[0], by_load[-1]]


def predict(
    record: Record, protocol: str, tick: Callable[[], None] = lambda: None
) -> tuple[list[Predicted], list[Pair], dict[str, Any]]:
    """What is predicted of the record, its pairs, and how far its prices were moved."""
    points, bench = record.points(), record.bench()
    known = known_points(protocol, points)
    model, doubt = doubted(record.cost_model(), stands_in=record.stands_in)
    covariance, level, moved, spread = prior_covariance(doubt), 0.0, {}, 1.0
    if known:
        found = fit(bench, model, doubt, [points[i] for i in known], tick=tick)
        model, covariance = found.model, found.covariance
        level, spread = found.level, found.spread
        moved = {
            "x": dict(zip((*NAMES, "accepted"), np.round(found.x, 3).tolist(), strict=True)),
            "misfit": np.round(found.misfit, 2).tolist(),
            "spread": round(spread, 2),
            "converged": found.converged,
        }
    rest = [i for i in range(len(points)) if i not in known]
    if protocol == USER:
        rest = [i for i in rest if kind_of(points[i].policy) == ADAPTIVE]
    replays = dict(zip(known, found.after, strict=True)) if protocol == USER else {}
    for i in rest:
        replays[i] = replay(bench, points[i], model, level=level)
        tick()
    predicted = [_predicted(points[i], replays[i], covariance, spread) for i in rest]
    return predicted, _pairs(points, replays, rest, covariance), moved


def _figure(point: Point) -> str:
    return "output_tok_s" if point.output_tok_s is not None else "tpot_ms"


def _slopes(point: Point, replayed: Replayed) -> Floats:
    """Of the rate's logarithm."""
    figure = _figure(point)
    slopes = replayed.slopes[figure]
    return slopes if figure == "output_tok_s" else -slopes


def _predicted(point: Point, replayed: Replayed, covariance: Floats, spread: float) -> Predicted:
    slopes, figure = _slopes(point, replayed), _figure(point)
    assert point.concurrency is not None
    return Predicted(
        policy=point.policy,
        kind=kind_of(point.policy),
        concurrency=point.concurrency,
        prompt_tokens=point.prompt_tokens,
        figure=figure,
        published=float(getattr(point, figure)),
        predicted=replayed.figures[figure],
        prices_sd=float(np.sqrt(slopes @ covariance @ slopes)),
        spread=spread,
    )


def _log_rate(point: Point, value: float) -> float:
    return float(np.log(value)) * (1.0 if _figure(point) == "output_tok_s" else -1.0)


def _pairs(
    points: list[Point], replays: dict[int, Replayed], rest: list[int], covariance: Floats
) -> list[Pair]:
    """Of two kinds at one load and prompt, one of them predicted at least."""
    found = []
    places = sorted(replays)
    for n, i in enumerate(places):
        for j in places[n + 1 :]:
            one, other = points[i], points[j]
            same = one.concurrency == other.concurrency and (
                one.prompt_tokens == other.prompt_tokens
            )
            if not same or kind_of(one.policy) == kind_of(other.policy):
                continue
            if i not in rest and j not in rest:
                continue
            slopes = _slopes(one, replays[i]) - _slopes(other, replays[j])
            deviation = np.sqrt(slopes @ covariance @ slopes + PAIR**2)
            shown = [
                _log_rate(p, replays[k].figures[_figure(p)]) for p, k in ((one, i), (other, j))
            ]
            said = [_log_rate(p, float(getattr(p, _figure(p)))) for p in (one, other)]
            assert one.concurrency is not None
            found.append(
                Pair(
                    first=one.policy,
                    second=other.policy,
                    concurrency=one.concurrency,
                    published=said[0] - said[1],
                    predicted=shown[0] - shown[1],
                    half_width=NINETY * float(deviation),
                )
            )
    return found


def as_rows(values: list[Any]) -> list[dict[str, Any]]:
    """Plain values with what follows from them, for the results file."""
    rows = []
    for value in values:
        row = asdict(value)
        for name in ("error", "published_apart", "told_apart", "right"):
            if hasattr(value, name):
                row[name] = getattr(value, name)
        rows.append({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
    return rows
