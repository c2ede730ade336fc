"""A planner that corrects its prices and confidences by the outcomes of completed steps.

Owns when a correction takes effect: in the first plan after ``learn``. What is learned is in
``correction.py``, how a step is planned in ``planner.py``.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.correction import (
    Correction,
    Evidence,
    Outcome,
    corrected_costs,
    explored_row,
    factors,
    learn,
    nothing_learned,
)
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.tables import decode_step_seconds
from sglang_dspark.core.decide import step_shape
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import Policy
from sglang_dspark.core.state import BatchState, Floats, VerifyPlan


class CorrectedPlanner(Planner):
    """``plan`` is a pure function of the state and of ``evidence``, which ``learn`` replaces."""

    def __init__(
        self,
        *,
        policy: Policy,
        cost_model: CostModel,
        gamma: int,
        max_requests: int,
        correction: Correction,
        calibration: Calibration | None = None,
    ) -> None:
        if policy.as_sglang and correction.on:
            raise ValueError(
                f"policy {policy.name} decides as SGLang does, which corrects nothing; choose "
                "another policy or leave the correction out"
            )
        super().__init__(
            policy=policy,
            cost_model=cost_model,
            gamma=gamma,
            max_requests=max_requests,
            calibration=calibration,
        )
        self.correction = correction
        self.steps_planned = 0
        self._file_costs, self._file_bias = self.costs, self.bias
        self.evidence = nothing_learned(gamma)
        self._compile()

    def _compile(self) -> None:
        """Learn nothing from nothing, so that no step waits for a compiler."""
        zeros = np.zeros(1, dtype=np.int64)
        self.learn(
            Outcome(
                logits=np.full((1, self.gamma), -np.inf),
                lengths=zeros,
                accepted=zeros,
                context_tokens=0,
                computed_tokens=1,
                seconds=(0.0, 0.0, 0.0),
            )
        )
        self.adopt(nothing_learned(self.gamma))

    def learn(self, outcome: Outcome) -> None:
        """Take in a completed step, its tokens committed."""
        self.adopt(
            learn(
                self.evidence,
                outcome,
                correction=self.correction,
                costs=self._file_costs,
                inverse_temperature=self.inverse_temperature,
                bias=self._file_bias,
            )
        )

    def adopt(self, evidence: Evidence) -> None:
        """Plan by this evidence from now on."""
        self.evidence = evidence
        self.bias = self._file_bias + evidence.bias
        if self.correction.cost:
            found = factors(evidence, self.correction)
            self.costs = corrected_costs(self._file_costs, found)

    def in_force(self) -> tuple[Floats, Floats]:
        """Factors on the seconds of ``PARTS`` [3] and on the odds of each position [K]."""
        evidence = self.evidence
        return factors(evidence, self.correction), np.exp(evidence.bias)

    def plan(self, state: BatchState) -> VerifyPlan:
        """As ``Planner.plan``; at fixed steps one request is verified whole.

        Only where everything drafted has room: a look at what the others take would be a look at
        confidences.
        """
        plan = super().plan(state)
        self.steps_planned += 1
        row = explored_row(self.correction, self.steps_planned, state.requests)
        if row < 0 or not self.policy.drafts or state.logits[row, 0] == -np.inf:
            return plan
        rows = state.requests
        if rows * (self.gamma + 1) > state.kv_room_tokens:
            return plan
        lengths = plan.lengths.copy()
        more = self.survival(state.logits[row : row + 1])[0, lengths[row] :].sum()
        lengths[row] = self.gamma
        tokens, context = rows + int(lengths.sum()), rows * self.costs.context_reference_tokens
        shape = step_shape(self.policy_tables, lengths, rows, self.gamma, rows)
        price_s = decode_step_seconds(self.costs, tokens, rows, rows, context, shape)
        return dataclasses.replace(
            plan,
            lengths=lengths,
            predicted_step_s=price_s,
            expected_tokens=plan.expected_tokens + float(more),
        )
