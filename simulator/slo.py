"""Service-level objectives: named bounds on TTFT and TPOT, and who meets them.

A request meets its objective when both its TTFT and its TPOT are within bounds (DistServe's
attainment). The presets follow MLPerf Inference's server and interactive scenarios and the DSpark
paper's minimum speeds; ``docs/metrics.md`` lists the sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_dspark.files import did_you_mean
from traces import Trace


@dataclass(frozen=True, kw_only=True)
class Slo:
    """Bounds in milliseconds."""

    name: str
    ttft_ms: float
    tpot_ms: float

    def __post_init__(self) -> None:
        for field in ("ttft_ms", "tpot_ms"):
            value = getattr(self, field)
            if not 0 < value < float("inf"):
                raise ValueError(f"slo {self.name}: {field} {value} must be a number above 0")


PRESETS = {
    slo.name: slo
    for slo in (
        Slo(name="relaxed", ttft_ms=2000, tpot_ms=100),
        Slo(name="standard", ttft_ms=2000, tpot_ms=50),
        Slo(name="interactive", ttft_ms=500, tpot_ms=30),
        Slo(name="reasoning", ttft_ms=1500, tpot_ms=15),
        Slo(name="dspark-80", ttft_ms=2000, tpot_ms=12.5),
        Slo(name="dspark-120", ttft_ms=2000, tpot_ms=1000 / 120),
    )
}


def describe_presets() -> list[dict[str, Any]]:
    """A row on each preset, for ``dspark list``."""
    return [
        {"name": slo.name, "ttft_ms": slo.ttft_ms, "tpot_ms": round(slo.tpot_ms, 1)}
        for slo in PRESETS.values()
    ]


def parse_slo(text: str) -> Slo:
    """A preset's name, or ``TTFT_MS:TPOT_MS`` such as ``500:30``."""
    if text in PRESETS:
        return PRESETS[text]
    ttft, colon, tpot = text.partition(":")
    if colon:
        try:
            return Slo(name=text, ttft_ms=float(ttft), tpot_ms=float(tpot))
        except ValueError as error:
            raise ValueError(f"--slo {text}: {error}; write TTFT_MS:TPOT_MS, like 500:30") from None
    hint = did_you_mean(text, PRESETS, show=str)
    raise ValueError(f"--slo {text}: {hint}presets: {', '.join(PRESETS)}; or TTFT_MS:TPOT_MS")


def bounds_s(trace: Trace, default: Slo) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(TTFT, TPOT) bounds of each request in seconds: its own class where the trace names one."""
    slos = [default]
    for name in trace.slo_names:
        if name not in PRESETS:
            raise ValueError(
                f"{trace.path}: SLO class {name!r} is unknown; presets: {', '.join(PRESETS)}"
            )
        slos.append(PRESETS[name])
    rows = np.asarray(trace.slo) + 1
    ttft = np.array([slo.ttft_ms for slo in slos])[rows] / 1e3
    tpot = np.array([slo.tpot_ms for slo in slos])[rows] / 1e3
    return ttft, tpot
