"""Order draft tokens by survival and hand slots to the best of them, in linear time.

Owns the tie rule: position first, then request, never the values (architecture: asynchronous
policy). A survival matrix is [R, K], each row non-increasing. Knows no cost.
"""

from __future__ import annotations

import numpy as np

from sglang_dspark.core.compiled import compiled
from sglang_dspark.core.state import Floats, Ints

SURVIVAL_FLOOR = float(np.float32(1e-6))
"""Tokens less likely than this are never verified (SGLang's survival_eps, as float32 as there)."""

MOST_BINS = 8192
"""More than these leave the L1 cache and cost more than the disorder they save."""

_INSERTION_LIMIT = 24
_FEW = 256
"""Up to so many candidates, passing over empty bins costs more than the disorder they save."""


@compiled
def _bins_for(candidates: int) -> int:
    bins = 16
    while bins < candidates and bins < MOST_BINS:
        bins *= 2
    return bins


@compiled
def _bin_of(survival: float, bins: int) -> int:
    return min(int((1.0 - survival) * bins), bins - 1)


@compiled
def _place(index: int) -> np.uint64:
    """An index that is not negative: a signed one may count from the end, which costs a test."""
    return np.uint64(index)


@compiled
def _insertion_sort(values: Floats, start: int, stop: int) -> None:
    """Sort values[start:stop] descending, in place; linear where few are out of order."""
    for i in range(start + 1, stop):
        value = values[i]
        j = i
        while j > start and values[j - 1] < value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value


@compiled
def _sift(values: Floats, start: int, node: int, size: int) -> None:
    """Let a value sink in the heap values[start : start + size], whose root is the least."""
    value = values[start + node]
    child = 2 * node + 1
    while child < size:
        if child + 1 < size and values[start + child + 1] < values[start + child]:
            child += 1
        if values[start + child] >= value:
            break
        values[start + node] = values[start + child]
        node = child
        child = 2 * node + 1
    values[start + node] = value


@compiled
def _sort(values: Floats, start: int, stop: int) -> None:
    """Sort values[start:stop] descending, in place; many of them as a heap."""
    size = stop - start
    if size <= _INSERTION_LIMIT:
        _insertion_sort(values, start, stop)
        return
    for node in range(size // 2 - 1, -1, -1):
        _sift(values, start, node, size)
    for last in range(size - 1, 0, -1):
        values[start], values[start + last] = values[start + last], values[start]
        _sift(values, start, 0, last)


@compiled
def nth_least(values: Floats, n: int) -> float:
    """What values[n] is once they ascend, n from 0; shuffles them. Linear on average.

    Hoare's FIND (1961). As all sorting here it is written out: numba takes seconds to compile its
    own ``np.sort`` and ``np.partition``.
    """
    low, high = 0, values.size - 1
    while low < high:
        pivot = values[n]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while pivot < values[j]:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if j < n:
            low = i
        if n < i:
            high = j
    return values[n]


@compiled
def sort_candidates(survival: Floats, out: Floats, counts: Ints) -> int:
    """Write the survivals >= ``SURVIVAL_FLOOR`` into ``out``, descending; return how many.

    A counting sort over equal-width bins and an insertion sort over the whole, in which a value
    moves within its bin only; crowded bins are sorted before. Linear in practice, n log n at
    worst. ``out`` holds R * K values, ``counts`` at least ``MOST_BINS + 1``.
    """
    rows, columns = survival.shape
    candidates = rows * columns
    bins = _bins_for(candidates if candidates <= _FEW else 2 * candidates)
    counts[: bins + 1] = 0
    # No branch on a value: a wrongly predicted one costs more than the work it saves.
    for r in range(rows):
        for k in range(columns):
            above = _place(_bin_of(survival[r, k], bins) + 1)
            counts[above] += survival[r, k] >= SURVIVAL_FLOOR
    crowd = total = 0
    for b in range(1, bins + 1):
        crowd = max(crowd, counts[b])
        total += counts[b]
        counts[b] = total
    for r in range(rows):
        for k in range(columns):
            bin_at = _place(_bin_of(survival[r, k], bins))
            # A value below the floor lands in a place that is filled later or lies beyond the end.
            out[_place(counts[bin_at])] = survival[r, k]
            counts[bin_at] += survival[r, k] >= SURVIVAL_FLOOR
    if crowd > _INSERTION_LIMIT:
        start = 0
        for b in range(bins):  # counts[b] is now the end of bin b
            if counts[b] - start > _INSERTION_LIMIT:
                _sort(out, start, counts[b])
            start = counts[b]
    _insertion_sort(out, 0, total)
    return total


@compiled
def assign_slots(survival: Floats, slots: int, lengths: Ints, values: Floats, counts: Ints) -> int:
    """Give ``slots`` verification slots to the best candidates; return how many were given.

    Writes ``lengths[r]`` so that the chosen set is the top of the descending order of survival,
    ties broken by position, then request. Rows are non-increasing, so each chosen set is a prefix.
    ``values`` holds R * K values, ``counts`` at least ``MOST_BINS``.
    """
    rows, columns = survival.shape
    lengths[:rows] = 0
    if slots <= 0:
        return 0
    bins = _bins_for(rows * columns // 4)
    counts[:bins] = 0
    total = 0
    for r in range(rows):
        valid = 0
        for k in range(columns):
            bin_at = _place(_bin_of(survival[r, k], bins))
            counts[bin_at] += survival[r, k] >= SURVIVAL_FLOOR
            valid += survival[r, k] >= SURVIVAL_FLOOR
        lengths[r] = valid
        total += valid
    if total <= slots:
        return total
    # The last slot falls into bin ``edge``: all above it are in, within it the values decide.
    above = 0
    edge = 0
    while above + counts[edge] < slots:
        above += counts[edge]
        edge += 1
    inside = 0
    for r in range(rows):
        k = 0
        for j in range(columns):
            k += (1.0 - survival[r, j]) * bins < edge
        lengths[r] = k
        while k < columns and _bin_of(survival[r, k], bins) == edge:
            values[inside] = survival[r, k]
            inside += survival[r, k] >= SURVIVAL_FLOOR
            k += 1
    _sort(values, 0, inside)
    last = slots - above - 1
    least = values[last]
    if last + 1 == inside or values[last + 1] < least:
        for r in range(rows):
            while lengths[r] < columns and survival[r, lengths[r]] >= least:
                lengths[r] += 1
        return slots
    # Tokens tie for the last slots: position first, then request.
    for r in range(rows):
        while lengths[r] < columns and survival[r, lengths[r]] > least:
            lengths[r] += 1
    left = 1
    while left <= last and values[last - left] == least:
        left += 1
    for k in range(columns):
        for r in range(rows):
            if lengths[r] == k and survival[r, k] == least:
                lengths[r] += 1
                left -= 1
                if left == 0:
                    return slots
    return slots
