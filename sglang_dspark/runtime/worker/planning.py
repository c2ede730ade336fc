"""The policy's side of a step: confidence history in, ``VerifyPlan`` out.

Owns what a policy may remember of each request. Knows neither SGLang nor tensors on a device; the
decision is ``sglang_dspark.core``'s, the one that the simulator runs.

Shapes: R requests in the step, K draft positions, P rows of SGLang's request pool.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.history import ConfidenceMemory, PrefillRate
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.state import BatchState, Bools, Floats, Ints, VerifyPlan
from sglang_dspark.runtime.worker.urgency import NOTHING_URGENT, Urgency


class StepPlanner:
    """A planner with its requests' memory, one row for each slot of SGLang's request pool."""

    def __init__(self, planner: Planner, pool_size: int) -> None:
        self.planner = planner
        self._memory = ConfidenceMemory(pool_size, planner.gamma)
        self._note_P = np.full(pool_size, np.nan)
        self._drafts_P = np.ones(pool_size, dtype=np.bool_)
        self._drafts_new = planner.policy.drafts
        self._prefills = PrefillRate()
        self.forced_length: int | None = None
        """Verify this many drafts of each request, whatever the policy says; set by ``control``."""

    def begin(self, pool_R: npt.NDArray[np.int64]) -> None:
        """A prefill step starts requests, or goes on with them, in these slots: forget the rest."""
        self._memory.forget(pool_R)
        self._note_P[pool_R] = np.nan
        self._drafts_P[pool_R] = self._drafts_new
        self._prefills.prefill()

    def drafts(self, pool_R: npt.NDArray[np.int64]) -> Bools:
        """Which of these requests the last plan wants a draft for."""
        return self._drafts_P[pool_R]

    def plan(
        self,
        *,
        pool_R: npt.NDArray[np.int64],
        logits_RK: Floats,
        context_tokens_R: Ints,
        urgency: Urgency = NOTHING_URGENT,
    ) -> tuple[BatchState, VerifyPlan, str]:
        """(what the policy saw, its plan, why it was overruled or "") of one step.

        ``logits_RK``: raw confidences, a row of -inf where nothing was drafted. A NaN among them
        breaks no request: everything drafted is verified this step, and the NaNs are forgotten.
        """
        broken: Bools = np.asarray(np.isnan(logits_RK).any(axis=1))
        drafted: Bools = np.asarray(logits_RK[:, 0] != -np.inf)
        stale_RK, stale_age_R = self._memory.advance(pool_R, logits_RK, drafted & ~broken)
        state = BatchState(
            logits=np.where(broken[:, None], 0.0, logits_RK),
            stale_logits=stale_RK,
            stale_age=stale_age_R,
            context_tokens=context_tokens_R,
            slo_slack_s=urgency.slo_slack_s,
            priority=urgency.priority,
            note=self._note_P[pool_R],
            prefills_per_step=self._prefills.step(),
        )
        plan, degraded = self.planner.plan(state), ""
        if self.forced_length is not None:
            plan = verify_everything(plan, drafted, self.forced_length)
            degraded = "length was forced"
        if broken.any():
            plan = verify_everything(plan, drafted, self.planner.gamma)
            plan = dataclasses.replace(plan, note=np.where(broken, state.note, plan.note))
            degraded = "confidences were NaN"
        return state, plan, degraded

    def remember(self, pool_R: npt.NDArray[np.int64], plan: VerifyPlan) -> None:
        """The plan that is carried out: it says who is drafted for next, newcomers included."""
        self._drafts_P[pool_R] = plan.draft_next
        self._drafts_new = bool(plan.draft_next.any())
        self._note_P[pool_R] = plan.note if plan.note.size else np.nan


def verify_everything(plan: VerifyPlan, drafted: Bools, gamma: int) -> VerifyPlan:
    """The plan with every drafted token in it; predictions are the policy's no more."""
    return dataclasses.replace(
        plan,
        lengths=np.where(drafted, gamma, 0).astype(np.int64),
        draft_next=np.ones_like(plan.draft_next),
        stop_reason="fixed",
    )
