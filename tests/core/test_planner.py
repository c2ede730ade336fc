"""The planner: state in, plan out, with the same functions and prices as everywhere else."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.sglang_tables import to_additive, to_sps
from sglang_dspark.core.costs.tables import UNIFORM, decode_step_seconds
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import (
    POLICIES,
    ConfidenceThreshold,
    FixedLength,
    GlobalBudget,
    Policy,
    SGLangPlanner,
)
from sglang_dspark.core.state import STOP_REASONS, BatchState, Floats

GAMMA = 4
MODEL = load_cost_model("b300x4-dsv4-flash-vllm")
EVERY: list[Policy] = [
    *(kind() for kind in POLICIES.values()),
    SGLangPlanner(table="additive"),
    SGLangPlanner(table="flat"),
    FixedLength(length=2),
]
LABELS = [f"{i}-{policy.name}" for i, policy in enumerate(EVERY)]


def planner_of(policy: Policy, **fields: Any) -> Planner:
    values: dict[str, Any] = {"cost_model": MODEL, "gamma": GAMMA, "max_requests": 32}
    return Planner(policy=policy, **{**values, **fields})


PLANNERS = [planner_of(policy) for policy in EVERY]


def state_of(logits: Floats, stale: Floats | None = None, **fields: Any) -> BatchState:
    rows = logits.shape[0]
    return BatchState(
        logits=logits,
        stale_logits=logits if stale is None else stale,
        stale_age=np.full(rows, 2),
        context_tokens=np.full(rows, 1000),
        **fields,
    )


def survival_of(logits: Floats) -> Floats:
    confidence: Floats = 1 / (1 + np.exp(-logits))
    return confidence.cumprod(axis=1)


@st.composite
def states(draw: st.DrawFn) -> BatchState:
    """Some requests without history, some without a draft, KV room short now and then."""
    rows = draw(st.integers(1, 32))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits, stale = rng.normal(1.5, 2.0, (2, rows, GAMMA))
    stale[rng.random(rows) < 0.2] = np.nan
    logits[rng.random(rows) < 0.1] = -np.inf
    room = draw(st.sampled_from([0, rows, rows + 3, rows * 2, 2**40]))
    return state_of(logits, stale, kv_room_tokens=room)


@pytest.mark.law
@pytest.mark.parametrize("planner", PLANNERS, ids=LABELS)
@given(states())
@settings(max_examples=40)
def test_every_plan_is_consistent(planner: Planner, state: BatchState) -> None:
    plan = planner.plan(state)
    rows, speculative = state.requests, planner.policy.drafts
    assert plan.lengths.shape == plan.draft_next.shape == (rows,)
    assert ((plan.lengths >= 0) & (plan.lengths <= GAMMA)).all()
    assert plan.lengths.sum() <= max(state.kv_room_tokens - rows, 0)
    assert (plan.lengths[np.isneginf(state.logits[:, 0])] == 0).all()
    if not planner.policy.chooses_drafts:
        assert (plan.draft_next == speculative).all()
    assert plan.stop_reason in STOP_REASONS
    survival = survival_of(state.logits)
    expected = rows + sum(survival[r, :n].sum() for r, n in enumerate(plan.lengths))
    # SGLang multiplies float32 confidences, and its policy does as it does.
    digits = 1e-6 if planner.policy.as_sglang else 1e-12
    assert plan.expected_tokens == pytest.approx(expected, rel=digits)


@pytest.mark.law
@pytest.mark.parametrize("planner", PLANNERS, ids=LABELS)
@given(states(), states())
@settings(max_examples=15)
def test_a_plan_depends_on_its_state_alone(
    planner: Planner, state: BatchState, other: BatchState
) -> None:
    first = planner.plan(state)
    planner.plan(other)
    again = planner.plan(state)
    assert first.lengths.tolist() == again.lengths.tolist()
    assert first.predicted_step_s == again.predicted_step_s
    assert (first.expected_tokens, first.stop_reason) == (again.expected_tokens, again.stop_reason)


@pytest.mark.law
@pytest.mark.parametrize("planner", [p for p in PLANNERS if not p.policy.as_sglang])
@given(states())
@settings(max_examples=20)
def test_the_predicted_step_is_priced_like_any_step(planner: Planner, state: BatchState) -> None:
    plan = planner.plan(state)
    costs, rows = planner.costs, state.requests
    drafted = rows if planner.policy.drafts else 0
    context = rows * costs.context_reference_tokens
    if planner.policy.chooses_drafts:  # it prices what is really there
        drafted = int((state.logits[:, 0] > -np.inf).sum())
        context = float(state.context_tokens.sum())
    price = decode_step_seconds(costs, plan.step_tokens, rows, drafted, context, UNIFORM)
    assert plan.predicted_step_s == price


@pytest.mark.example
def test_calibration_applies_to_both_the_current_and_the_stale_logits() -> None:
    calibration = Calibration(temperatures=(2.0,) * GAMMA, biases=(0.5,) * GAMMA)
    rng = np.random.default_rng(3)
    logits, stale = rng.normal(1.0, 3.0, (2, 16, GAMMA))
    calibrated = planner_of(GlobalBudget(), calibration=calibration).plan(state_of(logits, stale))
    by_hand = planner_of(GlobalBudget()).plan(state_of(logits / 2 + 0.5, stale / 2 + 0.5))
    raw = planner_of(GlobalBudget()).plan(state_of(logits, stale))
    assert calibrated.lengths.tolist() == by_hand.lengths.tolist()
    assert calibrated.expected_tokens == by_hand.expected_tokens != raw.expected_tokens


@pytest.mark.example
def test_threshold_compares_calibrated_confidences() -> None:
    """sigmoid(3) passes 0.9, sigmoid(3 / 2) does not."""
    policy, state = ConfidenceThreshold(threshold=0.9), state_of(np.full((1, GAMMA), 3.0))
    calibration = Calibration(temperatures=(1.0, 1.0, 2.0, 1.0))
    assert planner_of(policy).plan(state).lengths.tolist() == [4]
    assert planner_of(policy, calibration=calibration).plan(state).lengths.tolist() == [2]


@pytest.mark.example
def test_requests_without_history_are_planned_as_if_sure() -> None:
    logits = np.full((8, GAMMA), -1.0)
    nothing = planner_of(GlobalBudget()).plan(state_of(logits, np.full((8, GAMMA), np.nan)))
    sure = planner_of(GlobalBudget()).plan(state_of(logits, np.full((8, GAMMA), 40.0)))
    stale = planner_of(GlobalBudget()).plan(state_of(logits, np.full((8, GAMMA), -9.0)))
    assert nothing.lengths.sum() == sure.lengths.sum() > stale.lengths.sum()


@pytest.mark.law
@given(states())
@settings(max_examples=20)
def test_sglangs_prediction_comes_from_its_own_tables(state: BatchState) -> None:
    rows = state.requests
    room = dataclasses.replace(state, kv_room_tokens=2**40)
    sps, additive = to_sps(MODEL, GAMMA), to_additive(MODEL)
    plan = planner_of(SGLangPlanner(table="sps")).plan(room)
    budget = predicted_budget(plan.predicted_step_s, 1 / sps.dense(200)[rows:])
    assert plan.lengths.sum() <= budget
    plan = planner_of(SGLangPlanner(table="additive")).plan(room)
    fixed_s = additive.bias_seconds + additive.dense_alpha(rows)[rows]
    budget = predicted_budget(plan.predicted_step_s, fixed_s + additive.dense_theta(200)[rows:])
    assert plan.lengths.sum() <= budget


def predicted_budget(step_s: float, seconds: Floats) -> int:
    """The largest budget whose price, by SGLang's table, is exactly the predicted one."""
    return int(np.flatnonzero(seconds == step_s)[-1])


@pytest.mark.example
def test_the_plan_is_not_overwritten_by_the_next() -> None:
    planner = planner_of(FixedLength(length=2))
    first = planner.plan(state_of(np.zeros((3, GAMMA))))
    planner.plan(state_of(np.full((3, GAMMA), -np.inf)))
    assert first.lengths.tolist() == [2, 2, 2]


@pytest.mark.example
def test_an_empty_batch_is_planned() -> None:
    for planner in PLANNERS:
        plan = planner.plan(state_of(np.empty((0, GAMMA))))
        assert (plan.step_tokens, plan.expected_tokens) == (0, 0.0)


@pytest.mark.example
def test_a_planner_refuses_what_does_not_fit_it() -> None:
    planner = planner_of(GlobalBudget())
    with pytest.raises(ValueError, match="33 requests x 4 positions does not fit a planner for 32"):
        planner.plan(state_of(np.zeros((33, GAMMA))))
    with pytest.raises(ValueError, match="1 requests x 5 positions does not fit"):
        planner.plan(state_of(np.zeros((1, 5))))
    with pytest.raises(ValueError, match="draft length 0 must be at least 1"):
        planner_of(GlobalBudget(), gamma=0)
    with pytest.raises(ValueError, match="fixed:5 exceeds the draft length 4; lower it"):
        planner_of(FixedLength(length=5))
    with pytest.raises(ValueError, match="calibration holds for draft length 2, not 4"):
        planner_of(GlobalBudget(), calibration=Calibration(temperatures=(1.0, 1.0)))


@pytest.mark.law
@pytest.mark.parametrize("planner", PLANNERS, ids=LABELS)
@given(states())
@settings(max_examples=30)
def test_budget_and_lengths_come_apart_as_an_engine_needs_them(
    planner: Planner, state: BatchState
) -> None:
    roomy = dataclasses.replace(state, kv_room_tokens=2**62)
    plan = planner.plan(roomy)
    if not planner.decides_early:
        with pytest.raises(ValueError, match="no budget before the draft; call plan"):
            planner.budget(roomy.stale_logits)
        return
    context = float(roomy.context_tokens.sum())
    budget, seconds = planner.budget(roomy.stale_logits, context_tokens=context)
    if planner.policy.chooses_drafts and np.isneginf(roomy.logits).any():
        return  # an engine that asks before the draft drafts for everyone
    assert budget >= plan.lengths.sum()
    if planner.policy.reads_confidences and not planner.policy.chooses_drafts:
        assert planner.assign(roomy.logits, budget).tolist() == plan.lengths.tolist()
        assert np.isnan(seconds) or seconds == plan.predicted_step_s
