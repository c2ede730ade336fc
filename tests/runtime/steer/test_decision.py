"""Confidences become logits and come back; a decision is core's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.core import Planner, load_cost_model, parse_policy
from sglang_dspark.core.state import BatchState
from sglang_dspark.core.survival import sigmoid
from sglang_dspark.runtime.steer.decision import (
    Decider,
    Given,
    PolicyFailure,
    fill_logits,
    logits_of,
)

GAMMA = 7
EARLY, LATE = ("none", "fixed:3", "global", "sglang", "goodput"), ("threshold:0.7", "early_stop")


def decider(policy: str) -> Decider:
    file, costs = parse_policy(policy), load_cost_model("h200-qwen3-8b-analytic")
    planner = Planner(policy=file.policy, cost_model=costs, gamma=GAMMA, max_requests=32)
    return Decider(planner, lag_steps=2)


def sure(rows: int) -> np.ndarray:
    return np.ones(rows, dtype=np.bool_)


@pytest.mark.law
@settings(deadline=None)
@given(st.floats(0.0, 1.0, width=32))
def test_a_confidence_survives_the_round_trip(confidence: float) -> None:
    c = np.array([[confidence]], dtype=np.float32)
    logits = np.empty((1, 1))
    fill_logits(c, sure(1), logits)
    for logit in (logits[0, 0], float(logits_of(torch.from_numpy(c))[0, 0])):
        assert np.float32(sigmoid(logit)) == c[0, 0]
        assert np.isfinite(logit)


@pytest.mark.example
def test_unknown_and_broken_rows_have_no_history() -> None:
    c = np.array([[0.5, 0.5], [0.5, np.nan], [0.5, 0.5]], dtype=np.float32)
    logits = np.empty((3, 2))
    fill_logits(c, np.array([True, True, False]), logits)
    assert np.isnan(logits).all(axis=1).tolist() == [False, True, True]


@pytest.mark.law
@pytest.mark.parametrize("policy", [*EARLY, *LATE])
@settings(deadline=None, max_examples=40)
@given(st.integers(1, 32), st.integers(0, 2**32))
def test_budget_and_lengths_are_the_plans(policy: str, rows: int, seed: int) -> None:
    steered = decider(policy)
    rng = torch.Generator().manual_seed(seed)
    stale, now = torch.rand((2, rows, GAMMA), generator=rng) ** 0.2
    fresh = torch.rand(rows, generator=rng) < 0.8
    told = Given(
        context_tokens=torch.randint(0, 9000, (rows,), generator=rng).numpy(),
        prefills_per_step=float(torch.rand(1, generator=rng)),
    )
    step = steered.from_history(stale, fresh, told)
    if policy in LATE:
        steered.plan_late(step, now)
    assert step.budget is not None
    if steered.is_sglang:  # SGLang's own operator does it there
        lengths = torch.from_numpy(steered.planner.assign(logits_of(now).numpy(), step.budget))
    else:
        lengths = steered.lengths(step, now, step.budget)
    state = BatchState(
        logits=logits_of(now).numpy(),
        stale_logits=step.stale_logits,
        stale_age=np.where(fresh.numpy(), steered.lag_steps, 0),
        context_tokens=told.context_tokens,
        prefills_per_step=told.prefills_per_step,
    )
    plan = steered.planner.plan(state)
    assert lengths.tolist() == plan.lengths.tolist()
    assert step.budget >= plan.lengths.sum()


@pytest.mark.example
def test_what_goes_wrong_is_one_kind_of_failure() -> None:
    steered = decider("global")
    with pytest.raises(PolicyFailure, match="33 requests"):
        steered.nothing_known(33)
    steered = decider("early_stop")
    step = steered.nothing_known(2)
    with pytest.raises(PolicyFailure, match="NaN"):
        steered.plan_late(step, torch.full((2, GAMMA), torch.nan))
