"""The draw on a GPU, shared by the sequential head and by rejection.

Owns how a running sum in float64 is inverted so that rounding never chooses a weight of 0. Knows
nothing of what the weights are.

Shapes: N tiles or tokens of a tile.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

TILE = 4096
"""Tokens of one tile: their sums are made in parallel, then one program draws from one of them."""


@triton.jit
def passing(weight_N, below, goal, SIZE: tl.constexpr):
    """The first place at which ``below`` plus the running sum passes ``goal``.

    Only weights above 0 count, since a running sum rounds otherwise than a sum; the last of them
    stands in where it misses the goal.
    """
    place_N = tl.arange(0, SIZE)
    passed_N = (below + tl.cumsum(weight_N, axis=0) > goal) & (weight_N > 0.0)
    first = tl.min(tl.where(passed_N, place_N, SIZE), axis=0)
    last = tl.max(tl.where(weight_N > 0.0, place_N, 0), axis=0)
    return tl.where(first == SIZE, last, first)


@triton.jit
def passing_tile(sum_N, uniform, SIZE: tl.constexpr):
    """(tile to draw from, sum before it, goal) from the sums of all tiles."""
    goal = uniform * tl.sum(sum_N, axis=0)
    tile = passing(sum_N, 0.0, goal, SIZE)
    below = tl.sum(tl.where(tl.arange(0, SIZE) < tile, sum_N, 0.0), axis=0)
    return tile, below, goal
