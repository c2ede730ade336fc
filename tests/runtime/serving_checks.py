"""Checks that several serving tests make of a server's own records."""

from __future__ import annotations

import time
from pathlib import Path

from sglang_dspark.runtime.step_log import ReplayCounts, replay

_PART_S = 0.8
"""More than ``serving_patches.quick_step_log`` lets a part wait, and its writing."""


def settle(log: Path) -> None:
    """Wait until the step log has no more to say."""
    seen, deadline = -1, time.monotonic() + 20
    while time.monotonic() < deadline:
        parts = len(list(log.glob("*.parquet")))
        if parts and parts == seen:
            return
        seen = parts
        time.sleep(_PART_S)


def replayed(log: Path) -> ReplayCounts:
    """Every step the server has recorded, planned again by ``sglang_dspark.core``."""
    settle(log)
    counts = replay(log)
    assert counts.dropped == 0
    return counts
