"""From SGLang's confidences to ``core.Planner``, and back to a budget and lengths.

Owns the translation, and what is kept of a step's decision until its outcome is known. The policies
are core's. Knows torch, but neither SGLang's classes nor how a decision is carried out.

SGLang hands over confidences after its own calibration; core takes logits. A confidence of 1 or 0,
where float32 has no more digits, becomes the logit ``HIGHEST`` or ``LOWEST``.

Shapes: R requests in the step, K draft positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sglang_dspark.core.compiled import compiled
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.state import BatchState, Floats, Ints
from sglang_dspark.runtime.kernels import lengths as kernels

HIGHEST, LOWEST = 40.0, -690.0
"""Whose sigmoids are 1 and next to 0 in float64."""


class PolicyFailure(Exception):
    """The policy could not decide this step; everything has to be verified."""


@compiled
def fill_logits(
    confidence: npt.NDArray[np.float32], known: npt.NDArray[np.bool_], out: Floats
) -> None:
    """Logits of [R, K] confidences; NaN in rows that are not known or hold a NaN.

    sigmoid of a logit, rounded to float32, gives its confidence back.
    """
    for r in range(confidence.shape[0]):
        whole = known[r]
        for k in range(confidence.shape[1]):
            c = np.float64(confidence[r, k])
            if c >= 1.0:
                out[r, k] = HIGHEST
            elif c <= 0.0:
                out[r, k] = LOWEST
            else:
                out[r, k] = math.log(c / (1.0 - c))
            whole = whole and c == c
        if not whole:
            out[r, :] = np.nan


def logits_of(confidence_RK: Tensor) -> Tensor:
    """float64 [R, K] logits on the confidences' device; NaN stays NaN."""
    return torch.logit(confidence_RK.double()).clamp(LOWEST, HIGHEST)


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What a budget may be made from beside confidences: the same on every tensor-parallel rank.

    For ranks that decide differently wait for each other forever, and no clock is the same on two.
    """

    context_tokens: Ints | None = None
    """[R] in the KV cache; None where SGLang did not say: the cost model's reference."""
    prefills_per_step: float = 0.0
    """As in ``BatchState``."""


NOTHING_GIVEN = Given()


@dataclass(kw_only=True)
class StepDecision:
    """What was decided for one step, and why not by the policy if so."""

    stale_logits: Floats
    """[R, K] what the budget was made from; NaN rows without history."""
    given: Given = NOTHING_GIVEN
    """What else the budget was made from."""
    budget: int | None = None
    """Draft tokens to verify; None verifies all."""
    logits: Tensor | None = None
    """[R, K] current logits where they were needed, on SGLang's device."""
    lengths: Ints | None = None
    """[R] where the policy assigned them on the host."""
    predicted_step_s: float | None = None
    """Where the policy knows it with the budget."""
    degraded: str = ""


class Decider:
    """One planner on SGLang's tensors. ``PolicyFailure`` when the policy raises."""

    def __init__(self, planner: Planner, *, lag_steps: int) -> None:
        self.planner = planner
        self.lag_steps = lag_steps
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def is_sglang(self) -> bool:
        """Whether SGLang's own operator assigns the lengths."""
        return self.planner.policy.as_sglang

    def no_history(self, requests: int) -> Floats:
        """[R, K] of NaN."""
        return np.full((requests, self.planner.gamma), np.nan)

    def nothing_known(self, requests: int, given: Given = NOTHING_GIVEN) -> StepDecision:
        """A decision without confidences of an earlier step."""
        stale = self.no_history(requests)
        return self._budget(StepDecision(stale_logits=stale, given=given))

    def from_history(
        self, confidence_RK: Tensor, fresh_R: Tensor, given: Given = NOTHING_GIVEN
    ) -> StepDecision:
        """A decision from host confidences of an earlier step; ``fresh_R``: of the same request."""
        try:
            stale = np.empty(tuple(confidence_RK.shape))
            fill_logits(confidence_RK.float().numpy(), fresh_R.numpy(), stale)
        except Exception as error:
            raise PolicyFailure(f"{type(error).__name__}: {error}") from error
        return self._budget(StepDecision(stale_logits=stale, given=given))

    def _budget(self, decision: StepDecision) -> StepDecision:
        if self.planner.decides_early:
            try:
                context = decision.given.context_tokens
                decision.budget, seconds = self.planner.budget(
                    decision.stale_logits,
                    context_tokens=math.nan if context is None else float(context.sum()),
                    prefills_per_step=decision.given.prefills_per_step,
                )
                decision.predicted_step_s = seconds if seconds == seconds else None
            except Exception as error:
                raise PolicyFailure(f"{type(error).__name__}: {error}") from error
        else:
            decision.budget = decision.stale_logits.size  # an upper bound until the draft is known
        return decision

    def plan_late(self, decision: StepDecision, confidence_RK: Tensor) -> None:
        """Fill in budget and lengths of a policy that reads the current confidences: this waits."""
        try:
            decision.logits = logits_of(confidence_RK)
            rows = len(confidence_RK)
            state = BatchState(
                logits=decision.logits.cpu().numpy(),
                stale_logits=decision.stale_logits,
                stale_age=np.zeros(rows, dtype=np.int64),
                context_tokens=np.zeros(rows, dtype=np.int64),
            )
            decision.lengths = self.planner.plan(state).lengths
            decision.budget = int(decision.lengths.sum())
        except Exception as error:
            raise PolicyFailure(f"{type(error).__name__}: {error}") from error

    def lengths(self, decision: StepDecision, confidence_RK: Tensor, budget: int) -> Tensor:
        """int64 [R] draft tokens of each request, on the confidences' device."""
        try:
            return self._lengths(decision, confidence_RK, budget)
        except Exception as error:
            raise PolicyFailure(f"{type(error).__name__}: {error}") from error

    def _lengths(self, decision: StepDecision, confidence_RK: Tensor, budget: int) -> Tensor:
        rows, device = len(confidence_RK), confidence_RK.device
        policy = self.planner.policy
        if decision.lengths is not None:
            return torch.from_numpy(decision.lengths).to(device, non_blocking=True)
        whole = self.planner.verifies_whole(budget, rows)
        if whole or not policy.reads_confidences:
            each = self.planner.gamma if whole else self.planner.policy_tables.length
            return torch.full((rows,), each, dtype=torch.int64, device=device)
        if not self.planner.decides_early:
            raise ValueError(f"policy {policy.name} has assigned no lengths; plan the step first")
        decision.logits = logits_of(confidence_RK)
        if device.type == "cpu":
            found = self.planner.assign(decision.logits.numpy(), budget)
            return torch.from_numpy(found)
        if device not in self._tables:
            self._tables[device] = (
                torch.from_numpy(self.planner.inverse_temperature).to(device),
                torch.from_numpy(self.planner.bias).to(device),
            )
        inverse_temperature_K, bias_K = self._tables[device]
        survival_RK = kernels.survival(
            logits_RK=decision.logits,
            inverse_temperature_K=inverse_temperature_K,
            bias_K=bias_K,
        )
        return kernels.assign_lengths(survival_RK=survival_RK, budget=budget)
