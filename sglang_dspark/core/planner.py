"""One policy, one cost model and one calibration, bound for a draft length: state in, plan out.

The server calls ``Planner.plan``; the simulator's kernel calls the same compiled functions on the
same tables (``policy_tables``, ``costs``, ``inverse_temperature``, ``bias``). Knows no clock.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.decide import decide, early_budget
from sglang_dspark.core.goodput import Circumstances, fill_weights
from sglang_dspark.core.policy import Policy
from sglang_dspark.core.ranking import assign_slots
from sglang_dspark.core.state import STOP_REASONS, BatchState, Floats, Ints, VerifyPlan
from sglang_dspark.core.survival import fill_survival_rows, fill_survival_rows_float32
from sglang_dspark.core.tables import TABLE_FLAT, PolicyTables, make_workspace


def compile_policy(
    policy: Policy, cost_model: CostModel, gamma: int, max_requests: int
) -> PolicyTables:
    """The policy's parameters as arrays. ``ValueError`` when they do not fit the draft length."""
    nothing = np.zeros(1)
    fields: dict[str, Any] = {
        "length": gamma,
        "threshold": 0.0,
        "table": TABLE_FLAT,
        "steps_per_s": nothing,
        "alpha_s": nothing,
        "theta_s": nothing,
        **policy.table_fields(cost_model, gamma, max_requests),
    }
    return PolicyTables(
        code=policy.code,
        drafts=policy.drafts,
        chooses_drafts=policy.chooses_drafts,
        as_sglang=policy.as_sglang,
        reads_confidences=policy.reads_confidences,
        **fields,
    )


class Planner:
    """``plan`` is a pure function of the state; the object only holds compiled tables."""

    def __init__(
        self,
        *,
        policy: Policy,
        cost_model: CostModel,
        gamma: int,
        max_requests: int,
        calibration: Calibration | None = None,
    ) -> None:
        if gamma < 1:
            raise ValueError(f"draft length {gamma} must be at least 1")
        self.policy = policy
        self.gamma = gamma
        self.max_requests = max_requests
        self.costs = cost_model.tables(max_requests * (gamma + 1), max_requests)
        self.policy_tables = compile_policy(policy, cost_model, gamma, max_requests)
        self.inverse_temperature, self.bias = (calibration or Calibration()).arrays(gamma)
        self._work = make_workspace(max_requests, gamma)
        self._fill = fill_survival_rows_float32 if policy.as_sglang else fill_survival_rows

    def survival(self, logits: Floats) -> Floats:
        """[R, K] the survivals that ``plan`` ranks by; for ``sglang`` in SGLang's arithmetic."""
        found = np.empty(logits.shape)
        self._fill(logits, self.inverse_temperature, self.bias, found)
        return found

    @property
    def decides_early(self) -> bool:
        """Whether the number of tokens is known before they are drafted: see ``budget``."""
        return self.policy.decides_early

    def budget(
        self,
        stale_logits: Floats,
        *,
        context_tokens: float = math.nan,
        prefills_per_step: float = 0.0,
    ) -> tuple[int, float]:
        """(draft tokens that ``plan`` will verify, predicted seconds) from the old logits alone.

        The same number as in ``plan`` of any state with these ``stale_logits`` in which everyone is
        drafted for and equally dear, unless there is no room or fewer tokens are worth a slot; NaN
        seconds where the policy leaves them to ``plan``. ``context_tokens`` is the sum over the
        requests, NaN for the cost model's reference. ``ValueError`` for a policy that decides by
        the current logits.
        """
        rows = stale_logits.shape[0]
        self._check_fits(rows, stale_logits.shape[1])
        if not self.decides_early:
            raise ValueError(f"policy {self.policy.name} has no budget before the draft; call plan")
        if not self.policy.reads_confidences:
            return rows * self.policy_tables.length, np.nan
        around = Circumstances(
            stale_age=np.where(np.isnan(stale_logits[:, 0]), 0, 1),
            note=np.empty(0),
            weight=np.ones(rows),
            context_tokens=context_tokens,
            prefills_per_step=prefills_per_step,
        )
        stale = self.survival(stale_logits)
        return early_budget(self.policy_tables, self.costs, stale, around, self._work)

    def assign(self, logits: Floats, budget: int) -> Ints:
        """[R] lengths: ``budget`` tokens to the best current survivals, as in ``plan``."""
        rows = logits.shape[0]
        self._check_fits(rows, logits.shape[1])
        work = self._work
        if self.verifies_whole(budget, rows):
            return np.full(rows, self.gamma)
        assign_slots(self.survival(logits), budget, work.lengths, work.values, work.counts)
        return work.lengths[:rows].copy()

    def verifies_whole(self, budget: int, requests: int) -> bool:
        """Whether everyone verifies everything, the hopeless tokens too: ``goodput`` with prices
        that make a uniform step cheaper than leaving those out."""
        everything = requests * self.gamma
        return self.policy.chooses_drafts and self.costs.shaped and budget == everything

    def _check_fits(self, rows: int, gamma: int) -> None:
        if gamma != self.gamma or rows > self.max_requests:
            raise ValueError(
                f"state of {rows} requests x {gamma} positions does not fit a planner for "
                f"{self.max_requests} x {self.gamma}; build one of that size"
            )

    def plan(self, state: BatchState) -> VerifyPlan:
        """The plan for one step; raises ``ValueError`` when the state does not fit the planner."""
        rows = state.requests
        self._check_fits(rows, state.gamma)
        survival, stale = self.survival(state.logits), self.survival(state.stale_logits)
        step_s, expected, reason, _ = decide(
            self.policy_tables,
            self.costs,
            survival,
            stale,
            self._around(state),
            state.kv_room_tokens,
            self._work,
        )
        draft_next = np.full(rows, self.policy.drafts)
        note = np.full(rows, np.nan)
        if self.policy.chooses_drafts:
            draft_next[:], note[:] = self._work.draft_next[:rows], self._work.notes[:rows]
        return VerifyPlan(
            lengths=self._work.lengths[:rows].copy(),
            draft_next=draft_next,
            note=note,
            predicted_step_s=step_s,
            expected_tokens=expected,
            stop_reason=STOP_REASONS[reason],
        )

    def _around(self, state: BatchState) -> Circumstances:
        rows, tables = state.requests, self.policy_tables
        weight = np.empty(rows)
        fill_weights(
            state.slo_slack_s if state.slo_slack_s.size else np.full(rows, np.inf),
            state.priority if state.priority.size else np.zeros(rows, dtype=np.int64),
            tables.tpot_s,
            tables.slack_weight if state.slo_slack_s.size else 0.0,
            tables.priority_weight,
            weight,
        )
        return Circumstances(
            stale_age=np.where(np.isnan(state.stale_logits[:, 0]), 0, state.stale_age),
            note=state.note if state.note.size else np.full(rows, np.nan),
            weight=weight,
            context_tokens=float(state.context_tokens.sum()),
            prefills_per_step=state.prefills_per_step,
        )
