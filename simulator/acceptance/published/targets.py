"""The published figures that the shipped acceptance profiles are fitted to and checked against.

Owns the format of ``targets.json``, which holds the figures with their sources. Knows
nothing of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sglang_dspark.files import read_record

TARGETS = Path(__file__).parent / "targets.json"


@dataclass(frozen=True, kw_only=True)
class ByMethod:
    """Figures by drafter and domain."""

    source: str
    """Where they are printed."""
    values: dict[str, dict[str, list[float]]]
    """Drafter, then domain, then the figures."""


@dataclass(frozen=True, kw_only=True)
class CalibrationTarget:
    """How good the confidences of prefix survival are, at some positions."""

    source: str
    """Where they are printed."""
    positions: list[int]
    """Positions, counted from 1."""
    auc: list[float]
    """Area under the ROC curve."""
    ece_raw_pct: list[float]
    """ECE of the raw confidences, percent."""
    ece_sts_pct: list[float]
    """ECE after sequential temperature scaling, percent."""


@dataclass(frozen=True, kw_only=True)
class SweepTarget:
    """Tokens per round when verification stops at the first confidence below a threshold."""

    source: str
    """Where they are printed."""
    thresholds: list[float]
    """The first is 0: everything verified."""
    tokens_committed: dict[str, list[float]]
    """By domain, bonus included."""
    tokens_verified: dict[str, list[float]]
    """By domain, anchor included."""


@dataclass(frozen=True, kw_only=True)
class GoldenLengths:
    """Accepted length by number of draft tokens, coding only."""

    source: str
    """Where they are printed."""
    dspark_v4_pro: list[float]
    """DSpark with 1..5 draft tokens."""
    mtp_v4_pro: list[float]
    """MTP with 1 draft token."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Everything published that the profiles are fitted to or checked against."""

    about: str
    """What the file is."""
    conditional_acceptance: ByMethod
    """[K] by drafter and domain."""
    accepted_length: ByMethod
    """Per benchmark of the domain."""
    calibration: CalibrationTarget
    """Chat."""
    threshold_sweep: SweepTarget
    """One benchmark per domain."""
    golden_lengths: GoldenLengths
    """Another model, for gamma 1 and 5."""


def read_targets(path: Path = TARGETS) -> Targets:
    """The published figures."""
    return read_record(path, Targets)
