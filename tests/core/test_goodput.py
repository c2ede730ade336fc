"""The ``goodput`` policy: what it prices, for whom it drafts, and that nobody is given up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.tables import CostTables
from sglang_dspark.core.decide import decide
from sglang_dspark.core.goodput import LEAST_WEIGHT, fill_weights, slack_seconds
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import Goodput, parse_policy, save_policy
from sglang_dspark.core.ranking import SURVIVAL_FLOOR
from sglang_dspark.core.state import BatchState, Floats
from sglang_dspark.core.tables import GLOBAL, GOODPUT, PolicyTables, make_workspace
from tests.core.plain_policies import (
    PLENTY,
    around_of,
    costs_of,
    curves,
    lengths_of,
    policy_of,
    survivals,
)

PLAIN = policy_of(GOODPUT)


def plan(
    policy: PolicyTables, costs: CostTables, survival: Floats, **around: Any
) -> tuple[list[int], list[bool], list[float]]:
    """(lengths, whom to draft for, notes); what is stale is what is current."""
    rows = survival.shape[0]
    work = make_workspace(*survival.shape)
    decide(policy, costs, survival, survival, around_of(rows, **around), PLENTY, work)
    return work.lengths[:rows].tolist(), work.draft_next[:rows].tolist(), work.notes[:rows].tolist()


def drafted(survival: Floats) -> Floats:
    """Every request has a draft, however bad."""
    return np.maximum(survival, 1e-300)


@pytest.mark.law
@given(survivals(levels=6), survivals(levels=6), curves())
def test_where_everyone_is_equal_its_budget_is_globals(
    survival: Floats, other: Floats, verify_s: Floats
) -> None:
    stale = np.minimum.accumulate(np.resize(other, survival.shape), axis=1)
    costs, survival = costs_of(verify_s), drafted(survival)
    expected = lengths_of(policy_of(GLOBAL), costs, survival, stale)
    assert lengths_of(PLAIN, costs, survival, stale) == expected


@pytest.mark.law
@given(survivals(), curves(), st.floats(0.0, 0.5))
def test_it_trims_only_for_the_gain_it_was_asked_for(
    survival: Floats, verify_s: Floats, min_gain: float
) -> None:
    costs, survival = costs_of(verify_s), drafted(survival)
    rows = survival.shape[0]
    everything = sum(int((row >= SURVIVAL_FLOOR).sum()) for row in survival)

    def rate(lengths: list[int]) -> float:
        kept = sum(float(survival[r, :length].sum()) for r, length in enumerate(lengths))
        return (rows + kept) / float(verify_s[rows + sum(lengths)])

    best = rate(lengths_of(policy_of(GLOBAL), costs, survival))
    whole = rate([int((row >= SURVIVAL_FLOOR).sum()) for row in survival])
    assume(abs(best - (1 + min_gain) * whole) > 1e-9 * best)
    found = lengths_of(policy_of(GOODPUT, min_gain=min_gain), costs, survival)
    assert (sum(found) == everything) == (
        best < (1 + min_gain) * whole
        or sum(lengths_of(policy_of(GLOBAL), costs, survival)) == everything
    )


@pytest.mark.law
@given(survivals(), curves(), st.floats(0.0, 100.0), st.floats(0.0, 100.0))
def test_a_longer_context_never_makes_it_verify_less(
    survival: Floats, verify_s: Floats, above: float, more: float
) -> None:
    """A step that takes longer whatever it verifies has to bring more."""
    costs = costs_of(verify_s, context_s=0.01, context_reference_tokens=10.0)
    survival, reference = drafted(survival), survival.shape[0] * 10.0

    def verified(context: float) -> int:
        return sum(lengths_of(PLAIN, costs, survival, context_tokens=context))

    assert verified(reference + above + more) >= verified(reference + above)


@pytest.mark.example
def test_prefills_between_the_steps_make_drafting_cheaper() -> None:
    """A draft's seconds are a smaller part of a longer cycle."""
    survival = np.array([[0.9, 0.8], [0.9, 0.8], [0.1, 0.01]])
    costs = dear_drafts(0.0, 0.1)._replace(prefill_base_s=20.0)
    assert plan(PLAIN, costs, survival)[1] == [True, True, False]
    assert plan(PLAIN, costs, survival, prefills_per_step=1.0)[1] == [True, True, True]


@pytest.mark.law
@given(survivals(levels=6), curves(), st.data())
def test_slots_go_by_worth_and_the_budget_counts_worth(
    survival: Floats, verify_s: Floats, data: st.DataObject
) -> None:
    rows = survival.shape[0]
    weights = data.draw(
        st.lists(st.sampled_from([1.0, 0.5, 0.25]), min_size=rows, max_size=rows).map(np.array)
    )
    survival = drafted(survival)
    worth = weights[:, None] * survival
    tokens = [(r, k) for r, k in np.ndindex(worth.shape) if worth[r, k] >= SURVIVAL_FLOOR]
    tokens.sort(key=lambda t: (-worth[t], t[1], t[0]))
    total, best, best_rate = float(weights.sum()), 0, float(weights.sum()) / verify_s[rows]
    for b, token in enumerate(tokens, start=1):
        total += float(worth[token])
        if total / verify_s[rows + b] > best_rate:
            best, best_rate = b, total / verify_s[rows + b]
    expected = [0] * rows
    for r, _ in tokens[:best]:
        expected[r] += 1
    assert lengths_of(PLAIN, costs_of(verify_s), survival, weight=weights) == expected


@pytest.mark.example
def test_a_request_without_history_counts_as_the_average_of_the_others() -> None:
    survival = np.array([[0.9], [0.9], [0.9]])
    stale = np.array([[0.8], [0.2], [1.0]])
    costs = costs_of([0.0, 1.0, 1.0, 1.0, 1.2, 1.4, 1.6])
    known = {"stale_age": np.array([2, 2, 0])}
    # Beside the 0.8 a sure token pays (4.8 / 1.4 > 4 / 1.2), an average one of 0.5 does not.
    assert sum(lengths_of(PLAIN, costs, survival, stale, **known)) == 1
    assert sum(lengths_of(policy_of(GLOBAL), costs, survival, stale)) == 2
    nobody = {"stale_age": np.array([0, 0, 0])}
    assert sum(lengths_of(PLAIN, costs, survival, stale, **nobody)) == 3


def dear_drafts(fixed: float, each: float) -> CostTables:
    verify_s = np.concatenate([[0.0], 1.0 + 0.001 * np.arange(60)])
    return costs_of(verify_s, draft_s=np.concatenate([[0.0], fixed + each * np.arange(1, 65)]))


@pytest.mark.example
def test_a_hopeless_request_is_left_out_and_the_others_are_drafted_for() -> None:
    survival = np.array([[0.9, 0.8], [0.9, 0.8], [0.02, 0.0001]])
    lengths, draft_next, notes = plan(PLAIN, dear_drafts(0.0, 0.02), survival)
    assert draft_next == [True, True, False]
    assert lengths == [2, 2, 1]
    assert notes[0] > 1.0 > 0.05 > notes[2] > 0.0


@pytest.mark.law
@given(survivals(), curves(), st.integers(2, 40), st.floats(0.0, 0.3), st.data())
def test_nobody_is_written_off(
    survival: Floats, verify_s: Floats, probe_rounds: int, min_gain: float, data: st.DataObject
) -> None:
    """Who was drafted for ``probe_rounds`` steps ago is drafted for again, at any price; after four
    times as many where nobody is."""
    rows = survival.shape[0]
    ages = data.draw(st.lists(st.integers(2, 60), min_size=rows, max_size=rows).map(np.array))
    costs = costs_of(verify_s, draft_s=np.linspace(0.0, 65.0, 65))
    policy = policy_of(GOODPUT, min_gain=min_gain, probe_rounds=probe_rounds)
    some = survival * (np.arange(rows) % 2)[:, None]
    for shown in (some, np.zeros(survival.shape)):
        _, draft_next, _ = plan(policy, costs, shown, stale_age=ages, note=np.zeros(rows))
        if not draft_next.count(True):  # just found not to pay for anyone, or not yet due
            assert shown.any() or ages.max() < 4 * probe_rounds
            continue
        for row, age in enumerate(ages):
            assert draft_next[row] or shown[row, 0] > 0.0 or age < probe_rounds


@pytest.mark.example
def test_one_who_nearly_pays_is_asked_sooner_than_a_hopeless_one() -> None:
    costs = dear_drafts(0.0, 0.05)
    policy = policy_of(GOODPUT, probe_rounds=32)
    survival = np.array([[0.9, 0.8, 0.7]] * 4 + [[0.0, 0.0, 0.0]])

    def waits(note: float) -> int:
        for age in range(2, 40):
            ages = np.array([2, 2, 2, 2, age])
            notes = np.array([np.nan] * 4 + [note])
            if plan(policy, costs, survival, stale_age=ages, note=notes)[1][-1]:
                return age
        raise AssertionError("never asked again")

    assert waits(0.0) == 32 > waits(0.1) > waits(0.13) >= 2
    assert waits(1.0) == 2


@pytest.mark.example
def test_where_drafting_never_pays_everyone_stops_and_is_probed_together() -> None:
    survival = np.full((3, 2), [0.3, 0.05])
    policy = policy_of(GOODPUT, min_gain=0.01, probe_rounds=8)
    costs = dear_drafts(2.0, 0.0)
    assert plan(policy, costs, survival)[1] == [False] * 3
    undrafted, notes = np.zeros((3, 2)), np.full(3, 0.35)
    waiting = plan(policy, costs, undrafted, stale_age=np.array([3, 31, 2]), note=notes)
    probing = plan(policy, costs, undrafted, stale_age=np.array([3, 32, 2]), note=notes)
    assert (waiting[1], probing[1]) == ([False] * 3, [True] * 3)


@pytest.mark.law
@given(survivals(), curves(), st.floats(0.0, 0.2))
def test_free_drafts_are_drafted_for_everyone(
    survival: Floats, verify_s: Floats, min_gain: float
) -> None:
    policy = policy_of(GOODPUT, min_gain=min_gain)
    assert all(plan(policy, costs_of(verify_s), drafted(survival))[1])


@pytest.mark.law
@given(st.lists(st.floats(-50.0, 50.0), min_size=1, max_size=6), st.floats(0.0, 16.0), st.data())
def test_weights_fall_with_the_distance_from_the_pace_and_rise_with_priority(
    slack: list[float], strength: float, data: st.DataObject
) -> None:
    slack_s = np.sort(np.array([*slack, math.inf]))
    rows = slack_s.size
    weight = np.empty(rows)
    same = np.zeros(rows, dtype=np.int64)
    fill_weights(slack_s, same, 0.03, strength, 0.0, weight)
    assert (np.diff(weight[slack_s >= 0]) <= 0).all()
    assert (np.diff(weight[slack_s <= 0]) >= 0).all()
    assert (weight[slack_s == 0] == 1.0).all()
    assert ((weight >= LEAST_WEIGHT) & (weight <= 1.0)).all()
    levels = data.draw(st.lists(st.integers(-3, 3), min_size=rows, max_size=rows).map(sorted))
    fill_weights(slack_s, np.array(levels), 0.03, 0.0, strength, weight)
    assert (np.diff(weight) >= 0).all()
    assert weight[-1] == 1.0


@pytest.mark.example
def test_slack_is_the_time_until_a_request_falls_behind_its_pace() -> None:
    assert slack_seconds(0.5, 0.03, 0.2, 0.0, 1) == 0.03
    assert slack_seconds(0.5, 0.03, 0.2, 0.30, 11) == pytest.approx(0.03)
    assert slack_seconds(0.5, 0.03, 0.2, 0.60, 11) == pytest.approx(-0.27)
    assert slack_seconds(0.5, 0.03, 0.6, 0.60, 11) == math.inf
    assert slack_seconds(math.inf, math.inf, 0.6, 0.60, 11) == math.inf


@pytest.mark.law
@given(st.integers(1, 32), st.integers(0, 2**32), st.floats(0.0, 4.0))
@settings(max_examples=30)
def test_the_budget_before_the_draft_is_what_the_plan_verifies(
    rows: int, seed: int, prefills: float
) -> None:
    planner = PLANNER
    rng = np.random.default_rng(seed)
    logits, stale = rng.normal(2.0, 2.0, (2, rows, 4))
    stale[rng.random(rows) < 0.3] = np.nan
    context = rng.integers(1, 30_000, rows)
    state = BatchState(
        logits=logits,
        stale_logits=stale,
        stale_age=np.where(np.isnan(stale[:, 0]), 0, 2),
        context_tokens=context,
        prefills_per_step=prefills,
    )
    found = planner.plan(state)
    budget, step_s = planner.budget(
        stale, context_tokens=float(context.sum()), prefills_per_step=prefills
    )
    assert found.lengths.sum() == budget
    assert found.predicted_step_s == step_s
    assert planner.assign(logits, budget).tolist() == found.lengths.tolist()


PLANNER = Planner(
    policy=Goodput(), cost_model=load_cost_model("b300x4-dsv4-flash-vllm"), gamma=4, max_requests=32
)


@pytest.mark.example
@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"min_gain": -0.1}, "min_gain -0.1 must be between 0 and 1"),
        ({"probe_rounds": 1}, "probe_rounds 1 must be 2 to 10000"),
        ({"tpot_ms": 0.0}, "tpot_ms 0.0 must be above 0"),
        ({"slack_weight": 17.0, "tpot_ms": 30.0}, "slack_weight 17.0 must be between 0 and 16"),
        ({"slack_weight": 1.0}, "slack_weight 1.0 needs tpot_ms"),
    ],
)
def test_parameters_that_cannot_be_are_refused(parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Goodput(**parameters)


@pytest.mark.example
def test_a_policy_file_carries_every_parameter(tmp_path: Any) -> None:
    policy = Goodput(
        min_gain=0.02, probe_rounds=8, ttft_ms=500.0, tpot_ms=30.0, slack_weight=0.5,
        priority_weight=1.0,
    )  # fmt: skip
    file = parse_policy("goodput")
    save_policy(tmp_path / "policy.json", type(file)(policy=policy))
    assert parse_policy(str(tmp_path / "policy.json")).policy == policy
