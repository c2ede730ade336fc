"""Errors, coverage and order of what was predicted, over points and over pairs.

Owns the acceptance of the page: which number is the headline. Predicts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]


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
