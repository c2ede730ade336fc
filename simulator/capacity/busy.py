"""Busy time: a trace without its nights, whose rate is what its servers see while they work.

Owns what an idle stretch is. A mean rate over nights would size a fleet for a traffic that never
comes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from traces import Trace

IDLE_S = 300.0
"""An idle stretch is at least so long, and so many times as long as the median gap."""
_MEDIANS = 50.0


def without_idle(trace: Trace) -> tuple[Trace, float]:
    """(the trace with every idle stretch cut to the mean of its other gaps, seconds cut)."""
    gaps_s = np.diff(trace.arrival_s)
    if gaps_s.size == 0:
        return trace, 0.0
    idle = gaps_s > max(IDLE_S, _MEDIANS * float(np.median(gaps_s)))
    if not idle.any() or idle.all():
        return trace, 0.0
    kept_s = np.where(idle, gaps_s[~idle].mean(), gaps_s)
    arrival_s = trace.arrival_s[0] + np.concatenate([[0.0], np.cumsum(kept_s)])
    return replace(trace, arrival_s=arrival_s), float((gaps_s - kept_s).sum())
