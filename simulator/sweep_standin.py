"""Stands in for ``simulator.sweep`` until that is merged: the same signature, one point at a time.

Owns nothing; replace the import of it by ``from simulator.sweep import sweep`` and delete it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

P = TypeVar("P")
R = TypeVar("R")


def sweep(
    points: Sequence[P],
    work: Callable[[P], R],
    *,
    jobs: int = 1,
    ray: str | None = None,
    journal: Path | None = None,
    on_done: Callable[[int], None] = lambda finished: None,
) -> tuple[list[R | None], bool]:
    """``[work(p) for p in points]``, and whether Ctrl-C cut it short."""
    results: list[R | None] = [None] * len(points)
    try:
        for i, point in enumerate(points):
            results[i] = work(point)
            on_done(i + 1)
    except KeyboardInterrupt:
        return results, True
    return results, False
