"""One decode step as the server ran it: what the policy saw, what it answered, what came of it.

The noun that the step log and the metrics share. Knows neither SGLang nor torch, so that a log
can be read on a machine that has neither; holds no text and no token ids.

Symbols: R requests in the step, K draft positions (gamma), M tokens the target computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_dspark.core.state import BatchState, Ints, VerifyPlan

SHAPES = ("uniform", "ragged")


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRecord:
    """State, plan and outcome of one step. Row r of every array is the request ``request_ids[r]``.

    The observer keeps references: the worker hands over arrays that it does not write again.
    """

    step: int
    """Decode steps since the worker started."""
    end_s: float
    """``time.time()`` when the step's results were known."""
    request_ids: tuple[str, ...]
    """[R] SGLang's request ids."""
    state: BatchState
    """What the policy saw before the step."""
    plan: VerifyPlan
    """What was verified; the policy's answer unless ``degraded`` says why not."""
    accepted: Ints
    """[R] draft tokens accepted, each in 0..lengths[r]."""
    computed_tokens: int
    """Rows the target really computed, from the forward batch, padding excluded."""
    shape: str
    """One of ``SHAPES``: full width for every request, or only the planned tokens."""
    draft_s: float
    """Seconds in the drafter's passes."""
    plan_s: float
    """Seconds in the policy."""
    verify_s: float
    """Seconds in the target's pass."""
    commit_s: float
    """Seconds in rejection sampling and in the hand-over to the drafter's context."""
    degraded: str = ""
    """Why this step was verified in full instead of by the policy, in one of a few fixed wordings
    (it labels a counter); empty when the policy decided."""

    @property
    def requests(self) -> int:
        """R."""
        return len(self.request_ids)

    @property
    def step_s(self) -> float:
        """Seconds of the whole round: draft, plan, verify and commit."""
        return self.draft_s + self.plan_s + self.verify_s + self.commit_s

    @property
    def committed_tokens(self) -> int:
        """Tokens that the step added to the outputs: the accepted ones and one bonus each."""
        return self.requests + int(self.accepted.sum())
