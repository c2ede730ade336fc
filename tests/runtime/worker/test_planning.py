"""What a policy may remember of the requests in SGLang's pool."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sglang_dspark.core import Planner, load_cost_model, parse_policy
from sglang_dspark.runtime.worker.planning import StepPlanner

GAMMA, POOL = 7, 6
ROWS = np.array([4, 1])


def step_planner(policy: str) -> StepPlanner:
    planner = Planner(
        policy=parse_policy(policy).policy,
        cost_model=load_cost_model("h200-qwen3-8b-analytic"),
        gamma=GAMMA,
        max_requests=POOL,
    )
    memory = StepPlanner(planner, POOL)
    memory.begin(ROWS)
    return memory


def seen(memory: StepPlanner, value: float) -> list[float]:
    """First position of what the policy sees as old, after a step with this confidence."""
    state, plan, degraded = memory.plan(
        pool_R=ROWS,
        logits_RK=np.full((2, GAMMA), value),
        context_tokens_R=np.array([10, 20]),
    )
    assert not degraded
    memory.remember(ROWS, plan)
    return state.stale_logits[:, 0].tolist()


@pytest.mark.example
def test_budgets_are_made_from_confidences_two_steps_old() -> None:
    memory = step_planner("global")
    found = [seen(memory, float(step)) for step in range(4)]
    assert np.isnan(found[:2]).all()
    assert found[2:] == [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.example
def test_a_slot_that_starts_a_request_forgets_the_one_before() -> None:
    memory = step_planner("global")
    for step in range(3):
        seen(memory, float(step))
    memory.begin(ROWS[:1])
    found = seen(memory, 3.0)
    assert np.isnan(found[0])
    assert found[1] == 1.0


@pytest.mark.example
def test_a_request_that_is_not_drafted_for_is_judged_by_what_was_last_seen() -> None:
    memory = step_planner("global")
    logits = np.full((2, GAMMA), -3.0)
    seen_of_second = []
    for step in range(6):
        logits[1] = 1.5 if step == 0 else -np.inf
        state, _, _ = memory.plan(
            pool_R=ROWS, logits_RK=logits, context_tokens_R=np.array([10, 20])
        )
        seen_of_second.append((state.stale_logits[1, 0], state.stale_age.tolist()))
    assert np.isnan([value for value, _ in seen_of_second[:2]]).all()
    assert seen_of_second[2:] == [(1.5, [2, 2]), (1.5, [2, 3]), (1.5, [2, 4]), (1.5, [2, 5])]


@pytest.mark.example
def test_what_a_plan_notes_of_a_request_comes_back_with_its_next_state() -> None:
    memory = step_planner("goodput")
    noted: list[float] = []
    for step in range(4):
        logits = np.full((2, GAMMA), 1.0 + step)
        state, plan, _ = memory.plan(
            pool_R=ROWS, logits_RK=logits, context_tokens_R=np.array([10, 20])
        )
        assert state.note.tolist() == noted if noted else np.isnan(state.note).all()
        memory.remember(ROWS, plan)
        noted = plan.note.tolist()
    assert not np.isnan(noted).any()
    memory.begin(ROWS[:1])
    state, _, _ = memory.plan(pool_R=ROWS, logits_RK=logits, context_tokens_R=np.array([10, 20]))
    assert np.isnan(state.note[0])
    assert state.note[1] == noted[1]


@pytest.mark.example
@pytest.mark.parametrize("drafts", [[False, False], [False, True]])
def test_a_newcomer_is_drafted_for_if_anyone_is(drafts: list[bool]) -> None:
    memory = step_planner("goodput")
    newcomer = np.array([5])
    _, plan, _ = memory.plan(
        pool_R=ROWS, logits_RK=np.zeros((2, GAMMA)), context_tokens_R=np.array([10, 20])
    )
    memory.remember(ROWS, dataclasses.replace(plan, draft_next=np.array(drafts)))
    memory.begin(newcomer)
    assert memory.drafts(newcomer).tolist() == [any(drafts)]
    assert memory.drafts(ROWS).tolist() == drafts


@pytest.mark.example
def test_prefills_are_counted_until_the_next_step() -> None:
    memory = step_planner("goodput")
    memory.begin(ROWS[:1])
    logits, context = np.zeros((2, GAMMA)), np.array([10, 20])
    found = [
        memory.plan(pool_R=ROWS, logits_RK=logits, context_tokens_R=context)[0].prefills_per_step
        for _ in range(2)
    ]
    assert found == [2 / 32, 2 / 32 * 31 / 32]


@pytest.mark.example
@pytest.mark.parametrize(("policy", "drafts"), [("none", False), ("fixed", True), ("global", True)])
def test_nothing_is_drafted_for_plain_decoding_not_even_once(policy: str, drafts: bool) -> None:
    memory = step_planner(policy)
    assert memory.drafts(ROWS).tolist() == [drafts, drafts]
    seen(memory, 0.5)
    assert memory.drafts(ROWS).tolist() == [drafts, drafts]


@pytest.mark.law
@pytest.mark.parametrize(
    "policy", ["none", "fixed", "threshold:0.5", "early_stop", "global", "goodput"]
)
def test_what_was_not_drafted_is_not_verified(policy: str) -> None:
    memory = step_planner(policy)
    logits = np.full((2, GAMMA), 2.0)
    logits[1] = -np.inf
    _, plan, _ = memory.plan(pool_R=ROWS, logits_RK=logits, context_tokens_R=np.array([10, 20]))
    assert plan.lengths[1] == 0


@pytest.mark.example
def test_nan_confidences_verify_everything_and_are_forgotten() -> None:
    memory = step_planner("global")
    logits = np.full((2, GAMMA), -3.0)
    logits[0, 2] = np.nan
    state, plan, degraded = memory.plan(
        pool_R=ROWS, logits_RK=logits, context_tokens_R=np.array([10, 20])
    )
    assert plan.lengths.tolist() == [GAMMA, GAMMA]
    assert "NaN" in degraded
    assert np.isfinite(state.logits).all()
    found = [seen(memory, 1.0), seen(memory, 1.0)][1]
    assert np.isnan(found[0])
    assert found[1] == -3.0
