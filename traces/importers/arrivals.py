"""Arrival times that a source lacks, rounds or counts from elsewhere.

Owns the three repairs: Poisson times for a source without any, a uniform spread inside the quantum
that a source rounded to, and the shift to a first arrival at 0. Knows no format.
"""

from __future__ import annotations

import numpy as np

from traces.columns import Floats
from traces.draws import arrival_times, stream
from traces.importers.imported import Imported
from traces.importers.turns import sessions_of
from traces.mixture import Poisson


def draw_arrivals(imported: Imported, *, rate_req_s: float, seed: int) -> None:
    """Give requests without a time Poisson arrivals in the order they have.

    Of a session only its first turn gets one: the others follow its answers. Where times count from
    the start of their session, the whole session moves to where its first turn is drawn.
    """
    requests = imported.requests
    groups: dict[str, list[int]] = {}
    for session, rows in sessions_of(imported).items():
        groups.setdefault(imported.together.get(session, session), []).extend(rows)
    later = {row for rows in groups.values() for row in sorted(rows)[1:]}
    first = [row for row in range(len(requests)) if row not in later]
    n = len(first)
    rng = stream(seed, "poisson")
    # Half again and 50 more than n requests at this rate: far beyond the largest count needed.
    times = arrival_times(
        Poisson(), rate_req_s=rate_req_s, span_s=(1.5 * n + 50) / rate_req_s, rng=rng
    )
    starts = dict(zip(first, (times[:n] - times[0]).tolist(), strict=True))
    if imported.per_session:
        for rows in groups.values():
            base_s = min(requests[row].arrival_s for row in rows)
            for row in rows:
                requests[row].arrival_s += starts[min(rows)] - base_s
    else:
        for row, start_s in starts.items():
            requests[row].arrival_s = start_s
    imported.drawn = True
    imported.notes[f"arrivals {'of sessions ' * bool(later)}drawn (Poisson)"] = n


def with_arrivals(imported: Imported, *, quantum_s: float | None, seed: int) -> None:
    """Start at 0 and undo rounding; the requests are in order of arrival.

    ``quantum_s`` None detects the quantum, 0 keeps the times as they are.
    """
    times = imported.times()
    times = times - times[0]
    if quantum_s is None:
        quantum_s = quantum(times)
    if quantum_s:
        times = spread(times, quantum_s, stream(seed, "quantum"))
        imported.drawn = True
        imported.notes[f"arrivals spread inside a quantum of {quantum_s:g} s"] = len(times)
    for request, time in zip(imported.requests, times.round(6).tolist(), strict=True):
        request.arrival_s = time


def sort_by_arrival(imported: Imported) -> int:
    """Put the requests into order of arrival, equal times as they come; how many were not."""
    times = imported.times()
    moved = int((np.diff(times) < 0).sum())
    if moved:
        imported.reorder(np.argsort(times, kind="stable").tolist())
    return moved


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
