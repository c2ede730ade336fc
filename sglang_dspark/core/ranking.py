"""Order draft tokens by survival and hand slots to the best of them, in linear time.

Owns the tie rule: position first, then request, never the values (architecture: asynchronous
policy). A survival matrix is [R, K], each row non-increasing. Knows no cost.
"""

from __future__ import annotations

import numpy as np
from sglang_dspark.core.compiled import compiled

from sglang_dspark.core.state import Floats, Ints

SURVIVAL_FLOOR = 1e-6
"""Tokens less likely than this are never verified (SGLang's survival_eps)."""

_BINS = 1024
_INSERTION_LIMIT = 24


@compiled
def _bin_of(survival: float, bins: int) -> int:
    return min(int((1.0 - survival) * bins), bins - 1)


@compiled
def _sort_segment(values: Floats, start: int, stop: int) -> None:
    """Sort values[start:stop] descending, in place."""
    if stop - start > _INSERTION_LIMIT:
        values[start:stop] = -np.sort(-values[start:stop])
        return
    for i in range(start + 1, stop):
        value = values[i]
        j = i
        while j > start and values[j - 1] < value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value


@compiled
def sort_candidates(survival: Floats, out: Floats, counts: Ints) -> int:
    """Write the survivals >= ``SURVIVAL_FLOOR`` into ``out``, descending; return how many.

    A counting sort over equal-width bins, finished by a small sort within each bin: the rows of a
    batch spread over the bins, so the whole is linear in practice and n log n at worst.
    ``out`` holds R * K values, ``counts`` at least ``_BINS + 1``.
    """
    rows, columns = survival.shape
    bins = 16
    while bins < rows * columns and bins < _BINS:
        bins *= 2
    counts[: bins + 1] = 0
    total = 0
    for r in range(rows):
        for k in range(columns):
            if survival[r, k] < SURVIVAL_FLOOR:
                break
            counts[_bin_of(survival[r, k], bins) + 1] += 1
            total += 1
    for b in range(bins):
        counts[b + 1] += counts[b]
    for r in range(rows):
        for k in range(columns):
            value = survival[r, k]
            if value < SURVIVAL_FLOOR:
                break
            b = _bin_of(value, bins)
            out[counts[b]] = value
            counts[b] += 1
    # counts[b] is now the end of bin b.
    start = 0
    for b in range(bins):
        if counts[b] - start > 1:
            _sort_segment(out, start, counts[b])
        start = counts[b]
    return total


@compiled
def assign_slots(
    survival: Floats, slots: int, lengths: Ints, values: Floats, counts: Ints
) -> int:
    """Give ``slots`` verification slots to the best candidates; return how many were given.

    Writes ``lengths[r]`` so that the chosen set is the top of the descending order of survival,
    ties broken by position, then request. Rows are non-increasing, so each chosen set is a prefix.
    """
    rows, columns = survival.shape
    lengths[:rows] = 0
    if slots <= 0:
        return 0
    bins = 16
    while bins < rows * columns and bins < _BINS:
        bins *= 2
    counts[:bins] = 0
    total = 0
    for r in range(rows):
        for k in range(columns):
            if survival[r, k] < SURVIVAL_FLOOR:
                break
            counts[_bin_of(survival[r, k], bins)] += 1
            total += 1
    if total <= slots:
        for r in range(rows):
            for k in range(columns):
                if survival[r, k] < SURVIVAL_FLOOR:
                    break
                lengths[r] += 1
        return total
    # The bin in which the last slot falls, and the value there.
    above = 0
    edge = 0
    while above + counts[edge] < slots:
        above += counts[edge]
        edge += 1
    inside = 0
    for r in range(rows):
        for k in range(columns):
            if survival[r, k] < SURVIVAL_FLOOR:
                break
            b = _bin_of(survival[r, k], bins)
            if b > edge:
                break
            if b == edge:
                values[inside] = survival[r, k]
                inside += 1
    _sort_segment(values, 0, inside)
    least = values[slots - above - 1]
    left = slots
    for r in range(rows):
        for k in range(columns):
            if survival[r, k] <= least:
                break
            lengths[r] += 1
            left -= 1
    for k in range(columns):
        for r in range(rows):
            if left == 0:
                return slots
            if lengths[r] == k and survival[r, k] == least:
                lengths[r] = k + 1
                left -= 1
    return slots
