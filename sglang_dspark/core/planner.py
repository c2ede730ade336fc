"""One policy, one cost model and one calibration, bound for a draft length: state in, plan out.

The server calls ``Planner.plan``; the simulator's kernel calls the same compiled functions on the
same tables (``policy_tables``, ``costs``, ``inverse_temperature``, ``bias``). Knows no clock.
"""

from __future__ import annotations

import numpy as np

from sglang_dspark.core import sglang_tables
from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.cost import CostModel
from sglang_dspark.core.decide import (
    TABLE_ADDITIVE,
    TABLE_FLAT,
    TABLE_SPS,
    PolicyTables,
    decide,
    make_workspace,
)
from sglang_dspark.core.policy import (
    ConfidenceThreshold,
    FixedLength,
    NoSpeculation,
    Policy,
    SGLangPlanner,
)
from sglang_dspark.core.state import STOP_REASONS, BatchState, VerifyPlan
from sglang_dspark.core.survival import fill_survival_rows


def compile_policy(
    policy: Policy, cost_model: CostModel, gamma: int, max_requests: int
) -> PolicyTables:
    """The policy's parameters as arrays. ``ValueError`` when they do not fit the draft length."""
    length, threshold, table = gamma, 0.0, TABLE_FLAT
    steps_per_s = alpha_s = theta_s = np.zeros(1)
    max_tokens = max_requests * (gamma + 1)
    if isinstance(policy, FixedLength) and policy.length is not None:
        length = policy.length
        if length > gamma:
            raise ValueError(f"policy fixed:{length} exceeds the draft length {gamma}; lower it")
    if isinstance(policy, ConfidenceThreshold):
        threshold = policy.threshold
    if isinstance(policy, SGLangPlanner) and policy.table == "sps":
        table = TABLE_SPS
        steps_per_s = sglang_tables.to_sps(cost_model, gamma).dense(max_tokens)
    if isinstance(policy, SGLangPlanner) and policy.table == "additive":
        table = TABLE_ADDITIVE
        additive = sglang_tables.to_additive(cost_model)
        alpha_s = additive.bias_seconds + additive.dense_alpha(max_requests)
        theta_s = additive.dense_theta(max_tokens)
    return PolicyTables(
        code=policy.code,
        length=length,
        threshold=threshold,
        table=table,
        steps_per_s=steps_per_s,
        alpha_s=alpha_s,
        theta_s=theta_s,
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

    def plan(self, state: BatchState) -> VerifyPlan:
        """The plan for one step; raises ``ValueError`` when the state does not fit the planner."""
        rows = state.requests
        if state.gamma != self.gamma or rows > self.max_requests:
            raise ValueError(
                f"state of {rows} requests x {state.gamma} positions does not fit a planner for "
                f"{self.max_requests} x {self.gamma}; build one of that size"
            )
        survival = np.empty((rows, self.gamma))
        stale = np.empty((rows, self.gamma))
        fill_survival_rows(state.logits, self.inverse_temperature, self.bias, survival)
        fill_survival_rows(state.stale_logits, self.inverse_temperature, self.bias, stale)
        step_s, expected, reason = decide(
            self.policy_tables, self.costs, survival, stale, state.kv_room_tokens, self._work
        )
        return VerifyPlan(
            lengths=self._work.lengths[:rows].copy(),
            draft_next=np.full(rows, not isinstance(self.policy, NoSpeculation)),
            predicted_step_s=step_s,
            expected_tokens=expected,
            stop_reason=STOP_REASONS[reason],
        )
