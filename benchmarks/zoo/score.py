"""Errors, coverage and order of what was predicted, over points and over pairs.

Owns the acceptance of the page: which number is the headline. Predicts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sglang_dspark.core.costs.doubt import NINETY

Row = dict[str, Any]


_WANTED = 0.9
_GRID = np.arange(0.02, 0.5, 0.01)


def half_width(point: Row, unexplained: float) -> float:
    """Of the 90 % interval of the logarithm of a predicted point."""
    return float(NINETY * np.hypot(point["prices_sd"], unexplained * point["spread"]))


def unexplained_by(records: Mapping[str, Row]) -> float:
    """Deviation of a published logarithm from a right replay, of what no price explains.

    The least on a grid with which intervals hold 90 % of the points, records counting alike.
    """
    for value in _GRID:
        shares = [
            np.mean(
                [
                    abs(np.log(point["predicted"] / point["published"])) <= half_width(point, value)
                    for point in row["points"]
                ]
            )
            for row in records.values()
        ]
        if np.mean(shares) >= _WANTED:
            return round(float(value), 2)
    return round(float(_GRID[-1]), 2)


def widen(records: Mapping[str, Row]) -> None:
    """Give every point its interval, whose unexplained part is the other records'."""
    for name, row in records.items():
        others = {other: found for other, found in records.items() if other != name}
        row["unexplained"] = unexplained_by(others) if others else 0.1
        for point in row["points"]:
            point["half_width"] = round(half_width(point, row["unexplained"]), 5)
            error = abs(float(np.log(point["predicted"] / point["published"])))
            point["covered"] = error <= point["half_width"]


def score(points: Sequence[Row], pairs: Sequence[Row]) -> Row:
    """Over the points and pairs of one record, or of all."""
    apart = [pair for pair in pairs if pair["published_apart"]]
    told = [pair for pair in pairs if pair["told_apart"]]
    told_published = [pair for pair in told if pair["published_apart"]]
    return {
        "points": len(points),
        "median_error": _median([abs(point["error"]) for point in points]),
        "worst_error": max((point["error"] for point in points), key=abs, default=None),
        "covered": _share([point["covered"] for point in points]),
        "median_half_width": _median([point["half_width"] for point in points]),
        "pairs": len(pairs),
        "published_apart": len(apart),
        "told_apart": len(told),
        "told_right": sum(pair["right"] for pair in told_published),
        "told_and_published_apart": len(told_published),
        "right_share": _share([pair["right"] for pair in told_published]),
        "told_share": _share([pair["told_apart"] for pair in apart]),
    }


def _median(values: Sequence[float]) -> float | None:
    return round(float(np.median(values)), 4) if values else None


def _share(values: Sequence[bool]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
