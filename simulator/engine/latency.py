"""Inter-token latency per burst: counted by the kernel in narrow bins, read back as percentiles.

A burst is all tokens that one step emits for one request; its latency is the time since the
request's previous burst. Bins are 1 % wide, so a percentile is off by at most half a per cent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.compiled import compiled
from simulator.engine.layout import ITL_BINS, ITL_BINS_PER_E, ITL_FIRST_S, Memory


@compiled
def itl_bin(gap_s: float) -> int:
    """The bin of a latency; the first and the last also hold what lies beyond."""
    if gap_s <= ITL_FIRST_S:
        return 0
    return min(int(math.log(gap_s / ITL_FIRST_S) * ITL_BINS_PER_E), ITL_BINS - 1)


@compiled
def count_itl(memory: Memory, request: Any, now_s: float) -> None:
    """Count one burst of ``request`` (a REQUEST record) emitted now."""
    gap_s = now_s - request.last_emit_s
    memory.itl_counts[itl_bin(gap_s)] += 1
    request.longest_itl_s = max(request.longest_itl_s, gap_s)


def itl_percentile_s(counts: npt.NDArray[np.int64], percent: float) -> float:
    """The latency that ``percent`` of the counted bursts do not exceed; NaN for none."""
    total = int(counts.sum())
    if total == 0:
        return math.nan
    rank = max(1, math.ceil(total * percent / 100.0))
    place = int(np.searchsorted(np.cumsum(counts), rank))
    return ITL_FIRST_S * math.exp((place + 0.5) / ITL_BINS_PER_E)
