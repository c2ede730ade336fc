"""What ``python -m benchmarks.validation`` measured, as a page reads it.

Owns the format of ``benchmarks/results/validation.json`` and the errors that follow from it. Knows
no simulation and no axes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

TOLERANCE = 0.10
"""Of throughput and speed: what lies further off is named on the page."""
SPEED_GAIN_PCT = (40.0, 110.0)
"""Where a speed gain at matched throughput has to lie; the paper has 57 to 85."""
CALIBRATION, PREDICTED, SHAPE_ONLY = "calibration", "predicted", "cost shape only"


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One arm of the vLLM frontier at one concurrency."""

    arm: str
    """As the page calls it: ``none``, ``fixed 7``, ``adaptive``."""
    policy: str
    """As ``--policy`` takes it."""
    concurrency: int
    role: str
    """``calibration``: the replay was made to show its speed; ``cost shape only``: its published
    output is incorrect; else ``predicted``."""
    published_tok_s: float
    """Output tokens per second over all GPUs."""
    predicted_tok_s: float
    """Mean over the seeds."""
    published_user_tok_s: float
    predicted_user_tok_s: float
    accepted_length: float
    """Tokens emitted per request and step."""
    verified_tokens: float
    """Per request and step, anchor included."""

    @property
    def error(self) -> float:
        """Relative error of the throughput."""
        return self.predicted_tok_s / self.published_tok_s - 1.0

    @property
    def user_error(self) -> float:
        """Relative error of the speed per user."""
        return self.predicted_user_tok_s / self.published_user_tok_s - 1.0


@dataclass(frozen=True, kw_only=True)
class OrderRow:
    """Throughput of none < fixed 7 < adaptive at one concurrency, as published?"""

    concurrency: int
    published: bool
    """Whether the published points are in that order."""
    seeds_right: int
    """Seeds whose simulated points are in the published order."""
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The same study with one assumption changed, and calibrated again."""

    change: str
    median_error: float
    """Of the throughput, over all points that are not calibrated on."""
    max_error: float
    median_user_error: float
    """Of the speed per user."""
    max_user_error: float
    orders_right: int
    """Concurrencies at which none, fixed 7 and adaptive are in the published order."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Step seconds = base + experts x (share of experts that m tokens touch) + token x m."""

    base_s: float
    experts_s: float
    token_s: float
    flash_base_s: float
    """The same form fitted to the published curve of V4-Flash."""
    flash_experts_s: float
    flash_token_s: float
    flash_fit_median_error: float
    token_factor: float
    """V4-Pro's seconds per token over V4-Flash's."""
    draft_factor: float


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """vLLM's Figure 3: throughput against concurrency on 8 B300."""

    calibrated_on: list[str]
    transfer: Transfer
    survival: list[float]
    """Share of drafts accepted up to each position, [gamma]."""
    seeds: int
    points: list[FrontierPoint]
    orders: list[OrderRow]
    variants: list[Variant]

    @property
    def predicted(self) -> list[FrontierPoint]:
        """The points that set no number."""
        return [point for point in self.points if point.role != CALIBRATION]


@dataclass(frozen=True, kw_only=True)
class LoadPoint:
    """One method of the paper's Figures 7 and 8 at one load, per GPU."""

    method: str
    """``MTP-1`` or ``DSpark-5``."""
    concurrency: int
    predicted_tok_s: float
    predicted_user_tok_s: float
    predicted_budget: float
    """Tokens verified per request and step, anchor included."""
    published_tok_s: float | None
    """Figure 8's line there; None beyond its ends."""
    published_budget: float | None


@dataclass(frozen=True, kw_only=True)
class Gain:
    """DSpark-5 over MTP-1 at one of the paper's anchors, percent."""

    kind: str
    """``throughput at the same speed`` or ``speed at the same throughput``."""
    at: str
    published_pct: float
    predicted_pct: float


@dataclass(frozen=True, kw_only=True)
class PaperModel:
    """The paper's production figures for one model."""

    model: str
    calibrated_on: list[str]
    base_s: float
    """Of an MTP-1 step."""
    token_s: float
    """Per verified token."""
    mtp1_accepted_length: float
    figure_8_over_7: list[float]
    """At the two calibration points: MTP-1's speed in Figure 8 over that in Figure 7."""
    frontier: dict[str, list[list[float]]]
    """Figure 7 as published: [tok/s/user, tok/s per GPU] by method."""
    points: list[LoadPoint]
    gains: list[Gain]


@dataclass(frozen=True, kw_only=True)
class QueueRow:
    """Mean wait of a single server."""

    service: str
    load: float
    theory_s: float
    simulated_s: float
    low_s: float
    """Of the 95 % confidence interval."""
    high_s: float
    lindley_gap_s: float
    """Largest difference of any request's wait from Lindley's recursion on the same arrivals."""

    @property
    def covered(self) -> bool:
        """Whether theory lies inside the interval."""
        return self.low_s <= self.theory_s <= self.high_s


@dataclass(frozen=True, kw_only=True)
class TwinRow:
    """One figure of the digital twin: a real server beside its replay."""

    load: str
    policy: str
    figure: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative."""
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True, kw_only=True)
class AcceptanceRow:
    """One figure of an acceptance profile, replayed, beside the one it was fitted to."""

    profile: str
    domain: str
    position: int | None
    """Of a conditional acceptance; None for an accepted length."""
    published: float
    simulated: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Everything the page shows."""

    schema_version: int
    command: str
    commit: str
    hardware: str
    """Of the machine that simulated; the publications' is in their records."""
    python: str
    frontier: Frontier
    paper: list[PaperModel]
    queues: list[QueueRow]
    twin_source: str
    twin: list[TwinRow]
    acceptance: list[AcceptanceRow]

    def __post_init__(self) -> None:
        if self.schema_version != 1:
            raise ValueError(
                f"schema_version {self.schema_version} is unknown; this release reads 1"
            )
        for points in (self.frontier.calibrated_on, *(m.calibrated_on for m in self.paper)):
            if len(points) > 2:
                raise ValueError(f"{len(points)} calibration points; a study may use 2: {points}")


def median_abs(errors: Iterable[float]) -> float:
    """Median size of some errors."""
    return statistics.median(abs(error) for error in errors)


def largest(points: Iterable[FrontierPoint], *, of_user: bool = False) -> FrontierPoint:
    """The point that is furthest off in throughput, or in speed per user."""
    return max(points, key=lambda p: abs(p.user_error if of_user else p.error))
