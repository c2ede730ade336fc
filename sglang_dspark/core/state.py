"""The two nouns that the server's clock and the simulator's clock share.

``BatchState`` is what a budget policy may see before a step; ``VerifyPlan`` is what it answers.
The oracle boundary runs here: no field of ``BatchState`` tells the true acceptance or the true
output length. Knows no policy and no clock.

Symbols: R requests in the step, K draft positions (gamma), M tokens the target computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def _no_ints() -> Ints:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchState:
    """One decode step as a policy sees it, before verification.

    Row r of every array is the same request. Raises ``ValueError`` on shapes that disagree and on
    NaN in ``logits``; NaN rows in ``stale_logits`` mean "no confidences that old exist yet".
    """

    logits: Floats
    """[R, K] raw confidence logits of the tokens drafted for this step; -inf: none drafted."""
    stale_logits: Floats
    """[R, K] raw confidence logits of an earlier step; a NaN row where there are none yet."""
    stale_age: Ints
    """[R] how many steps old the row of ``stale_logits`` is; 0 where the row is NaN."""
    context_tokens: Ints
    """[R] tokens in the KV cache before the step."""
    slo_slack_s: Floats = field(default_factory=lambda: np.empty(0))
    """[R] seconds until the request falls behind its SLO's pace, +inf for none or one that is
    missed (``goodput.slack_seconds``); empty when no one has an SLO."""
    note: Floats = field(default_factory=lambda: np.empty(0))
    """[R] what the request's last plan noted of it (``VerifyPlan.note``), NaN for none; empty: no
    notes of any."""
    priority: Ints = field(default_factory=_no_ints)
    """[R] larger is more urgent; empty when all are equal."""
    prefills_per_step: float = 0.0
    """Prefill steps for each decode step, an average over some 32 (``goodput.PREFILL_MEMORY``)."""
    kv_room_tokens: int = 2**62
    """KV tokens that this step may allocate at most."""

    def __post_init__(self) -> None:
        if self.logits.ndim != 2:
            raise ValueError(f"logits have shape {self.logits.shape}; give [requests, positions]")
        requests = self.logits.shape[0]
        if self.stale_logits.shape != self.logits.shape:
            raise ValueError(
                f"stale_logits have shape {self.stale_logits.shape}, logits {self.logits.shape}; "
                "give the same shape, with NaN rows where there is no history"
            )
        for name in ("stale_age", "context_tokens"):
            if getattr(self, name).shape != (requests,):
                raise ValueError(f"{name} must have one entry for each of {requests} requests")
        for name in ("slo_slack_s", "note", "priority"):
            if getattr(self, name).shape not in ((requests,), (0,)):
                raise ValueError(f"{name} must be empty or have {requests} entries")
        missing = np.isnan(self.stale_logits)
        if (missing.any(axis=1) != missing.all(axis=1)).any():
            row = int((missing.any(axis=1) != missing.all(axis=1)).argmax())
            raise ValueError(f"stale_logits of request {row} are NaN in part; make the row NaN")
        if np.isnan(self.logits).any():
            row = int(np.isnan(self.logits).any(axis=1).argmax())
            raise ValueError(
                f"logits of request {row} are NaN; verify everything this step instead"
            )

    @property
    def requests(self) -> int:
        """R."""
        return int(self.logits.shape[0])

    @property
    def gamma(self) -> int:
        """K, the number of drafted positions."""
        return int(self.logits.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class VerifyPlan:
    """What the target computes this step: 1 + ``lengths[r]`` tokens for request r."""

    lengths: Ints
    """[R] draft tokens to verify, each in 0..K."""
    draft_next: Bools
    """[R] whether to draft for the request's next step. A request that starts to decode is drafted
    for if the last plan drafts for any, or there was none."""
    predicted_step_s: float
    """Seconds the policy's cost model expects for the step."""
    expected_tokens: float
    """Tokens the policy expects the step to commit, bonus tokens included."""
    stop_reason: str
    """Why the plan verifies no more: one of ``STOP_REASONS``."""
    note: Floats = field(default_factory=lambda: np.empty(0))
    """[R] to be handed back in each request's next ``BatchState``; NaN, or empty: nothing."""

    @property
    def step_tokens(self) -> int:
        """M: tokens the target computes, before padding to a graph tier."""
        return int(self.lengths.size + self.lengths.sum())


STOP_REASONS = ("no-draft", "fixed", "threshold", "no-gain", "exhausted", "kv-room")
"""Indexed by the code that ``sglang_dspark.core.decide`` returns."""

NO_DRAFT, AS_FIXED, BELOW_THRESHOLD, NO_GAIN, EXHAUSTED, KV_ROOM = range(len(STOP_REASONS))
"""Those codes."""
