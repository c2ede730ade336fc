"""One policy, one cost model and one calibration, bound for a draft length: state in, plan out.

The server calls ``Planner.plan``; the simulator's kernel calls the same compiled functions on the
same tables (``policy_tables``, ``costs``, ``inverse_temperature``, ``bias``). Knows no clock.
"""

from __future__ import annotations

import math

import numpy as np

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.costs import sglang_tables
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.decide import (
    TABLE_ADDITIVE,
    TABLE_FLAT,
    TABLE_SPS,
    PolicyTables,
    decide,
    goodput_budget,
    make_workspace,
    stale_budget,
)
from sglang_dspark.core.goodput import Circumstances, fill_weights, step_seconds
from sglang_dspark.core.policy import (
    ConfidenceThreshold,
    FixedLength,
    GlobalBudget,
    Goodput,
    NoSpeculation,
    Policy,
    SGLangPlanner,
)
from sglang_dspark.core.ranking import assign_slots
from sglang_dspark.core.state import STOP_REASONS, BatchState, Floats, Ints, VerifyPlan
from sglang_dspark.core.survival import fill_survival_rows, fill_survival_rows_float32


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
    priced = policy if isinstance(policy, Goodput) else Goodput()
    return PolicyTables(
        code=policy.code,
        length=length,
        threshold=threshold,
        table=table,
        steps_per_s=steps_per_s,
        alpha_s=alpha_s,
        theta_s=theta_s,
        min_gain=priced.min_gain,
        probe_rounds=priced.probe_rounds,
        ttft_s=np.inf if priced.ttft_ms is None else priced.ttft_ms / 1e3,
        tpot_s=np.inf if priced.tpot_ms is None else priced.tpot_ms / 1e3,
        slack_weight=priced.slack_weight,
        priority_weight=priced.priority_weight,
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
        as_sglang = isinstance(policy, SGLangPlanner)
        self._fill = fill_survival_rows_float32 if as_sglang else fill_survival_rows

    def survival(self, logits: Floats) -> Floats:
        """[R, K] the survivals that ``plan`` ranks by; for ``sglang`` in SGLang's arithmetic."""
        found = np.empty(logits.shape)
        self._fill(logits, self.inverse_temperature, self.bias, found)
        return found

    @property
    def decides_early(self) -> bool:
        """Whether the number of tokens is known before they are drafted: see ``budget``."""
        early = (NoSpeculation, FixedLength, GlobalBudget, SGLangPlanner, Goodput)
        return isinstance(self.policy, early)

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
        if isinstance(self.policy, NoSpeculation):
            return 0, np.nan
        if isinstance(self.policy, FixedLength):
            return rows * self.policy_tables.length, np.nan
        if not self.decides_early:
            raise ValueError(f"policy {self.policy.name} has no budget before the draft; call plan")
        stale = self.survival(stale_logits)
        if isinstance(self.policy, Goodput):
            around = Circumstances(
                stale_age=np.where(np.isnan(stale_logits[:, 0]), 0, 1),
                note=np.empty(0),
                weight=np.ones(rows),
                context_tokens=context_tokens,
                prefills_per_step=prefills_per_step,
            )
            budget, _, _, _ = goodput_budget(
                self.policy_tables, self.costs, np.ones(stale.shape), stale, around, 2**62,
                self._work,
            )  # fmt: skip
            return budget, step_seconds(self.costs, rows + budget, rows, rows, around)
        budget, step_s, _ = stale_budget(self.policy_tables, self.costs, stale, 2**62, self._work)
        return budget, step_s

    def assign(self, logits: Floats, budget: int) -> Ints:
        """[R] lengths: ``budget`` tokens to the best current survivals, as in ``plan``."""
        rows = logits.shape[0]
        self._check_fits(rows, logits.shape[1])
        work = self._work
        assign_slots(self.survival(logits), budget, work.lengths, work.values, work.counts)
        return work.lengths[:rows].copy()

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
        step_s, expected, reason = decide(
            self.policy_tables,
            self.costs,
            survival,
            stale,
            self._around(state),
            state.kv_room_tokens,
            self._work,
        )
        draft_next = np.full(rows, not isinstance(self.policy, NoSpeculation))
        note = np.full(rows, np.nan)
        if isinstance(self.policy, Goodput):
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
