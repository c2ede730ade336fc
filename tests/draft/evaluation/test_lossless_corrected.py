"""Losslessness of plans that are corrected by what earlier steps of the same batch accepted.

By exact enumeration in ``tests/core/test_correction.py``; here over sampled tokens of a taught
pair, 3,400 requests sharing one jumpy correction, with seconds that follow the outcomes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sglang_dspark.core import BatchState, VerifyPlan, parse_policy
from sglang_dspark.core.corrected_planner import CorrectedPlanner
from sglang_dspark.core.correction import Correction, Outcome, factors
from sglang_dspark.core.costs.sglang_files import SpsTable
from sglang_dspark.core.costs.sglang_tables import from_sps
from sglang_dspark.draft.evaluation import rejection
from sglang_dspark.draft.evaluation.sampling import Sampling
from tests.draft.evaluation.lossless_checks import LEAST, pair_law, pairs_p, place_counts, uniform_p
from tests.draft.evaluation.test_lossless import REQUESTS, decode, pair
from tests.draft.tiny_pairs import GAMMA, PROMPT

JUMPY = Correction(cost=True, calibration=True, bound=3.0, half_life_steps=1.0, explore_every=1)


class Learning:
    """A corrected planner that is told each round's outcome, as a server would."""

    gamma = GAMMA

    def __init__(self, policy: str, correction: Correction) -> None:
        sizes = range(1, REQUESTS * (GAMMA + 1) + 1)
        costs = SpsTable(
            sample_batch_tokens=tuple(sizes),
            sample_steps_per_sec=tuple(100 / (2 + m / REQUESTS) for m in sizes),
            max_batch_tokens=sizes[-1],
        )
        self.planner = CorrectedPlanner(
            policy=parse_policy(policy).policy,
            cost_model=from_sps(costs),
            gamma=GAMMA,
            max_requests=REQUESTS,
            correction=correction,
        )
        self.lengths: list[float] = []
        self.biases: list[Any] = []
        self._step: tuple[BatchState, VerifyPlan] | None = None

    def plan(self, state: BatchState) -> VerifyPlan:
        """As ``Planner.plan``."""
        plan = self.planner.plan(state)
        self._step = (state, plan)
        return plan

    def accepted(self, accepted_R: torch.Tensor) -> None:
        """The outcome of the round planned last."""
        assert self._step is not None
        state, plan = self._step
        accepted = accepted_R.cpu().numpy().astype(np.int64)
        step_s = plan.predicted_step_s * np.exp(accepted.mean() - 1.0)
        self.lengths.append(float(plan.lengths.mean()))
        self.planner.learn(
            Outcome(
                logits=state.logits,
                lengths=plan.lengths,
                accepted=accepted,
                context_tokens=int(state.context_tokens.sum()),
                computed_tokens=plan.step_tokens,
                seconds=(0.0, float(step_s), 0.0),
            )
        )
        self.biases.append(self.planner.evidence.bias)


@pytest.mark.law
@pytest.mark.parametrize("policy", ["early_stop", "global", "threshold:0.6"])
def test_corrected_plans_sample_as_the_target_does(
    monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    plans = Learning(policy, JUMPY)
    run = rejection.accepted_run

    def told(**tensors: torch.Tensor) -> torch.Tensor:
        accepted_R = run(**tensors)
        plans.accepted(accepted_R)
        return accepted_R

    monkeypatch.setattr(rejection, "accepted_run", told)
    sampling = Sampling()
    decoded, tokens = decode(plans, sampling, torch.float32, seed=21)
    target, _ = pair()
    found = {
        "places": uniform_p(place_counts(target, sampling, PROMPT, tokens)),
        "pairs": pairs_p(pair_law(target, sampling, PROMPT), tokens),
    }
    print(policy, found, factors(plans.planner.evidence, JUMPY), plans.biases[-1])
    assert min(found.values()) > LEAST, found
    assert 0 < decoded.log.lengths.mean() < GAMMA
    assert np.ptp(np.array(plans.biases), axis=0).max() > 0.3
