"""Arrival times that a source lacks, rounds or counts from elsewhere.

Owns the three repairs: Poisson times for a source without any, a uniform spread inside the quantum
that a source rounded to, and the shift to a first arrival at 0. Knows no format.
"""

from __future__ import annotations

import numpy as np

from traces.columns import Floats
from traces.draws import arrival_times, stream
from traces.importers.imported import Imported
from traces.mixture import Poisson


def without_arrivals(imported: Imported, *, rate_req_s: float, seed: int) -> None:
    """Give the requests Poisson arrivals in the order they have."""
    n = len(imported.requests)
    if n == 0:
        return
    rng = stream(seed, "poisson")
    # Half again and 50 more than n requests at this rate: far beyond the largest count needed.
    times = arrival_times(
        Poisson(), rate_req_s=rate_req_s, span_s=(1.5 * n + 50) / rate_req_s, rng=rng
    )
    _set_times(imported, times[:n] - times[0])
    imported.drawn = True
    imported.notes["arrivals drawn (Poisson)"] = n


def with_arrivals(imported: Imported, *, quantum_s: float | None, seed: int) -> None:
    """Sort by arrival, start at 0 and undo rounding.

    ``quantum_s`` None detects the quantum, 0 keeps the times as they are.
    """
    requests = imported.requests
    if not requests:
        return
    times = np.array([request.arrival_s for request in requests])
    moved = int((np.diff(times) < 0).sum())
    if moved:
        order = np.argsort(times, kind="stable")
        imported.requests = requests = [requests[row] for row in order]
        times = times[order]
        imported.notes["out of order, sorted by arrival"] = moved
    times = times - times[0]
    if quantum_s is None:
        quantum_s = quantum(times)
    if quantum_s:
        times = spread(times, quantum_s, stream(seed, "quantum"))
        imported.drawn = True
        imported.notes[f"arrivals spread inside a quantum of {quantum_s:g} s"] = len(times)
    _set_times(imported, times)


def quantum(times: Floats) -> float:
    """The step that sorted times were rounded to; 0 when they look exact.

    Rounded times share few values, and these lie whole steps apart: half the requests or more fall
    on a time already taken, and no two values are closer than half a second.
    """
    values = np.unique(times)
    if len(values) < 2 or len(values) > len(times) / 2:
        return 0.0
    gaps = np.diff(values)
    least = float(gaps.min())
    if least < 0.5:
        return 0.0
    return round(float(np.median(gaps[gaps < 1.5 * least])), 3)


def spread(times: Floats, quantum_s: float, rng: np.random.Generator) -> Floats:
    """Equal times spread uniformly over their quantum, order kept, never beyond the next value."""
    values, index = np.unique(times, return_inverse=True)
    room = np.minimum(np.diff(values, append=values[-1] + quantum_s), quantum_s)
    inside = rng.random(len(times))
    # Sorted inside each value: the source's order is real even where its times are not.
    inside = inside[np.lexsort((inside, index))]
    return values[index] + inside * room[index]


def _set_times(imported: Imported, times: Floats) -> None:
    for request, time in zip(imported.requests, times.round(6).tolist(), strict=True):
        request.arrival_s = time
