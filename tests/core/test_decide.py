"""Every policy's decision against its definition in plain Python, and the laws they share."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sglang_dspark.core.costs.tables import UNIFORM, CostTables, decode_step_seconds
from sglang_dspark.core.decide import best_budget, decide
from sglang_dspark.core.ranking import SURVIVAL_FLOOR
from sglang_dspark.core.state import Floats
from sglang_dspark.core.tables import (
    EARLY_STOP,
    FIXED,
    GLOBAL,
    GOODPUT,
    NONE,
    SGLANG,
    THRESHOLD,
    PolicyTables,
    make_workspace,
)
from tests.core.plain_policies import (
    PLENTY,
    around_of,
    best_first,
    costs_of,
    curves,
    decided,
    in_order,
    lengths_of,
    policy_of,
    rising,
    survivals,
    throughput,
)

PRICES = st.fixed_dictionaries(
    {
        "host_s": st.floats(0.0, 1.0),
        "context_s": st.just(1e-4),
        "context_reference_tokens": st.just(50.0),
    }
)


def every_policy() -> list[PolicyTables]:
    return [
        policy_of(NONE),
        policy_of(FIXED, length=3),
        policy_of(THRESHOLD, threshold=0.5),
        policy_of(EARLY_STOP),
        policy_of(GLOBAL),
        policy_of(SGLANG),
        policy_of(GOODPUT),
    ]


@pytest.mark.law
@given(survivals())
def test_none_verifies_nothing_and_prices_no_drafting(survival: Floats) -> None:
    rows = survival.shape[0]
    costs = costs_of(np.arange(50.0), draft_s=np.arange(65.0))
    assert decided(policy_of(NONE), costs, survival) == ([0] * rows, float(rows), rows, "no-draft")


@pytest.mark.law
@given(survivals(), st.integers(0, 8))
def test_fixed_verifies_that_many_of_what_was_drafted(survival: Floats, length: int) -> None:
    survival = np.maximum(survival, 1e-300)
    survival[-1] = 0.0
    expected = [min(length, survival.shape[1])] * survival.shape[0]
    expected[-1] = 0
    assert lengths_of(policy_of(FIXED, length=length), costs_of(np.ones(9)), survival) == expected


@pytest.mark.law
@given(
    st.lists(
        st.lists(st.sampled_from([1.0, 0.75, 0.5, 0.25, 0.125]), min_size=4, max_size=4),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_threshold_stops_at_the_first_confidence_below_it(
    confidences: list[list[float]], threshold: float
) -> None:
    expected = []
    for row in confidences:
        low = [k for k, c in enumerate(row) if c < threshold]
        expected.append(low[0] if low else len(row))
    survival = np.cumprod(np.array(confidences), axis=1)
    policy = policy_of(THRESHOLD, threshold=threshold)
    assert lengths_of(policy, costs_of(np.ones(9)), survival) == expected


def algorithm_1(costs: CostTables, survival: Floats, room: int) -> list[int]:
    """The paper's Algorithm 1, admitting one token at a time."""
    budget, rate = 0, throughput(costs, survival, 0)
    limit = min(len(in_order(survival)), room)
    while budget < limit:
        better = throughput(costs, survival, budget + 1)
        if better <= rate:
            break
        budget, rate = budget + 1, better
    return best_first(survival, budget)


@pytest.mark.law
@given(survivals(levels=5), curves(), PRICES, st.integers(0, 40))
def test_early_stop_is_algorithm_1(
    survival: Floats, verify_s: Floats, prices: dict[str, float], room: int
) -> None:
    costs = costs_of(verify_s, **prices)
    rows = survival.shape[0]
    found = lengths_of(policy_of(EARLY_STOP), costs, survival, room=rows + room)
    assert found == algorithm_1(costs, survival, room)


@pytest.mark.law
@given(survivals(), survivals(), curves(), PRICES, st.integers(0, 40))
def test_global_spends_the_best_budget_of_all_on_the_best_current_tokens(
    survival: Floats, other: Floats, verify_s: Floats, prices: dict[str, float], room: int
) -> None:
    stale = np.resize(other, survival.shape)
    stale = np.minimum.accumulate(stale, axis=1)
    costs = costs_of(verify_s, **prices)
    most = min(len(in_order(stale)), room)
    rates = [throughput(costs, stale, b) for b in range(most + 1)]
    found = lengths_of(policy_of(GLOBAL), costs, survival, stale, survival.shape[0] + room)
    # Any budget whose rate is the best up to rounding will do, the least of them in exact ties.
    best = [b for b, rate in enumerate(rates) if rate >= max(rates) * (1 - 1e-12)]
    assert found in [best_first(survival, b) for b in best]


@pytest.mark.law
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(0, 400))
def test_a_large_batch_gets_the_first_best_budget_of_all(seed: int, rows: int, room: int) -> None:
    """Law: looking ahead ends the search where nothing better follows, stairs and cliffs or not."""
    rng = np.random.default_rng(seed)
    total = 7 * rows
    candidates = np.sort(rng.uniform(1e-6, 1.0, total) ** rng.uniform(0.2, 5.0))[::-1].copy()
    stairs = rng.choice(
        [0.0, 0.0, 1e-6, 1e-3, 0.3], total + rows + 1, p=[0.4, 0.3, 0.2, 0.09, 0.01]
    )
    verify_s = 0.01 + np.cumsum(stairs)
    most = min(total, room)
    expected = np.cumsum([float(rows), *candidates[:most]])
    rates = expected / verify_s[rows : rows + most + 1]
    assert best_budget(costs_of(verify_s), candidates, total, rows, 7, room) == int(
        np.argmax(rates)
    )


@pytest.mark.example
def test_global_crosses_a_stair_that_traps_early_stop() -> None:
    """The second token is dear, the four after it free."""
    survival = np.array([[0.9, 0.9, 0.9, 0.9, 0.9, 0.9]])
    costs = costs_of([0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    assert lengths_of(policy_of(EARLY_STOP), costs, survival) == [0]
    assert lengths_of(policy_of(GLOBAL), costs, survival) == [6]


@pytest.mark.example
def test_global_takes_the_least_budget_of_those_that_tie() -> None:
    """Rates 1/1, 2/2, 3/3: nothing gained, nothing spent."""
    survival = np.array([[1.0, 1.0]])
    costs = costs_of([0.0, 1.0, 2.0, 3.0])
    assert lengths_of(policy_of(GLOBAL), costs, survival) == [0]
    assert lengths_of(policy_of(EARLY_STOP), costs, survival) == [0]


@pytest.mark.law
@given(survivals(), st.lists(st.floats(0.001, 0.5), min_size=40, max_size=40))
def test_early_stop_is_optimal_where_throughput_has_one_peak(
    survival: Floats, steps: list[float]
) -> None:
    """Convex step times and falling survivals give one peak; so does this test's own check."""
    costs = costs_of(rising(sorted(steps)))
    rates = [throughput(costs, survival, b) for b in range(len(in_order(survival)) + 1)]
    peak = rates.index(max(rates))
    gaps = [abs(b - a) > 1e-12 * a for a, b in itertools.pairwise(rates)]
    assume(all(gaps))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert lengths_of(policy_of(EARLY_STOP), costs, survival) == best_first(survival, peak)


@pytest.mark.law
@given(survivals(), curves(), PRICES)
def test_without_lag_no_policy_predicts_more_than_global(
    survival: Floats, verify_s: Floats, prices: dict[str, float]
) -> None:
    # Free hopeless tokens would help a hair; the ranked policies leave them on purpose.
    survival = np.where(survival < SURVIVAL_FLOOR, 0.0, survival)
    costs = costs_of(verify_s, **prices)
    _, best_s, best_tokens, _ = decided(policy_of(GLOBAL), costs, survival)
    for policy in every_policy()[1:]:
        _, step_s, tokens, _ = decided(policy, costs, survival)
        assert tokens / step_s <= best_tokens / best_s * (1 + 1e-12)


@pytest.mark.law
@given(survivals(levels=6), survivals(levels=6), curves(), PRICES)
def test_predictions_are_the_price_and_the_survival_of_the_plan(
    survival: Floats, other: Floats, verify_s: Floats, prices: dict[str, float]
) -> None:
    stale = np.minimum.accumulate(np.resize(other, survival.shape), axis=1)
    costs = costs_of(verify_s, **prices, draft_s=np.linspace(0.0, 0.2, 65))
    rows = survival.shape[0]
    context = rows * costs.context_reference_tokens
    for policy in every_policy():
        lengths, step_s, expected, _ = decided(policy, costs, survival, stale)
        drafted = 0 if policy.code == NONE else rows
        if policy.code == GOODPUT:  # it prices drafting for those drafted for
            drafted = int((survival[:, 0] > 0.0).sum())
        tokens = rows + sum(lengths)
        assert step_s == decode_step_seconds(costs, tokens, rows, drafted, context, UNIFORM)
        sums = [survival[r, :length].sum() for r, length in enumerate(lengths)]
        assert expected == pytest.approx(rows + sum(sums), rel=1e-12)


@pytest.mark.law
@given(survivals(levels=4), curves(), st.integers(0, 40))
def test_no_plan_outgrows_the_kv_room_or_the_block(
    survival: Floats, verify_s: Floats, room: int
) -> None:
    rows, columns = survival.shape
    for policy in every_policy():
        lengths, _, _, reason = decided(policy, costs_of(verify_s), survival, room=room)
        assert sum(lengths) <= max(room - rows, 0)
        assert all(0 <= length <= columns for length in lengths)
        free = lengths_of(policy, costs_of(verify_s), survival)
        if sum(free) > sum(lengths) == max(room - rows, 0):
            assert reason == "kv-room"


@pytest.mark.law
@given(survivals(levels=4), st.integers(1, 8), st.integers(0, 30))
def test_cutting_a_fixed_plan_goes_by_position_and_request(
    survival: Floats, length: int, room: int
) -> None:
    survival = np.maximum(survival, 1e-300)
    rows, columns = survival.shape
    found = lengths_of(
        policy_of(FIXED, length=length), costs_of(np.ones(9)), survival, room=rows + room
    )
    expected = [0] * rows
    slots = [(k, r) for k in range(min(length, columns)) for r in range(rows)]
    for _, r in slots[:room]:
        expected[r] += 1
    assert found == expected


@pytest.mark.law
@given(survivals(levels=4), st.integers(0, 30), st.floats(0.0, 1.0))
def test_cutting_a_threshold_plan_ignores_the_survivals(
    survival: Floats, room: int, threshold: float
) -> None:
    """The cut is the one that the uncut lengths alone imply."""
    rows, columns = survival.shape
    policy = policy_of(THRESHOLD, threshold=threshold)
    whole = lengths_of(policy, costs_of(np.ones(9)), survival)
    expected = [0] * rows
    slots = [(k, r) for k in range(columns) for r in range(rows) if whole[r] > k]
    for _, r in slots[:room]:
        expected[r] += 1
    assert lengths_of(policy, costs_of(np.ones(9)), survival, room=rows + room) == expected


@pytest.mark.example
def test_a_request_without_history_counts_as_sure_for_the_budget() -> None:
    survival = np.array([[0.9, 0.8], [0.3, 0.2]])
    stale = np.array([[0.5, 0.25], [1.0, 1.0]])
    costs = costs_of([0.0, 1.0, 1.0, 1.3, 1.6, 2.0, 3.0])
    # Its two sure tokens pay (3 / 1.3, 4 / 1.6), the stale 0.5 does not (4.5 / 2.0).
    assert sum(lengths_of(policy_of(GLOBAL), costs, survival, stale)) == 2
    doubtful = np.array([[0.5, 0.25], [0.1, 0.1]])
    assert sum(lengths_of(policy_of(GLOBAL), costs, survival, doubtful)) == 0


@pytest.mark.law
@given(survivals(), curves(), st.data())
def test_a_request_without_draft_gets_no_slots(
    survival: Floats, verify_s: Floats, data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, survival.shape[0] - 1))
    survival[row] = 0.0
    for policy in every_policy():
        lengths = lengths_of(policy, costs_of(verify_s), survival, np.ones(survival.shape))
        assert lengths[row] == 0


@pytest.mark.law
@given(survivals(levels=4), curves())
def test_the_ranked_policies_verify_no_hopeless_token(survival: Floats, verify_s: Floats) -> None:
    for policy in (policy_of(code) for code in (EARLY_STOP, GLOBAL, SGLANG, GOODPUT)):
        lengths = lengths_of(policy, costs_of(verify_s), survival, np.ones(survival.shape))
        for r, length in enumerate(lengths):
            assert (survival[r, :length] >= SURVIVAL_FLOOR).all()


@pytest.mark.law
@given(survivals(), curves())
def test_the_same_state_gets_the_same_plan_from_a_used_workspace(
    survival: Floats, verify_s: Floats
) -> None:
    work = make_workspace(20, 9)
    costs = costs_of(verify_s)
    for policy in every_policy():
        lengths, *told = decided(policy, costs, survival)
        full = np.full((20, 9), 0.7)
        decide(policy, costs, full, full + 0.2, around_of(20), PLENTY, work)
        around = around_of(survival.shape[0])
        again = decide(policy, costs, survival, survival, around, PLENTY, work)
        assert list(work.lengths[: survival.shape[0]]) == lengths
        assert list(again[:2]) == told[:2]


@pytest.mark.example
def test_an_empty_batch_gets_an_empty_plan() -> None:
    survival = np.empty((0, 4))
    additive = policy_of(SGLANG, table=2, alpha_s=np.zeros(3), theta_s=np.zeros(3))
    for policy in [*every_policy(), additive]:
        lengths, step_s, expected, _ = decided(policy, costs_of(np.arange(9.0)), survival)
        assert (lengths, step_s, expected) == ([], 0.0, 0.0)


@pytest.mark.example
def test_each_plan_says_why_it_stopped() -> None:
    survival = np.array([[0.9, 0.5]])
    cheap, dear = costs_of([0.0, 1.0, 1.0, 1.0]), costs_of([0.0, 1.0, 5.0, 9.0])
    for code in (EARLY_STOP, GLOBAL):
        assert decided(policy_of(code), cheap, survival)[3] == "exhausted"
        assert decided(policy_of(code), dear, survival)[3] == "no-gain"
        assert decided(policy_of(code), cheap, survival, room=2)[3] == "kv-room"
    assert decided(policy_of(FIXED), cheap, survival)[3] == "fixed"
    assert decided(policy_of(THRESHOLD), cheap, survival)[3] == "threshold"
    assert decided(policy_of(THRESHOLD), cheap, survival, room=1)[3] == "kv-room"


def later_changed(survival: Floats, row: int, position: int, factor: float) -> Floats:
    """The same matrix with the confidences of ``row`` from ``position`` on scaled down."""
    changed = survival.copy()
    changed[row, position:] *= factor
    return changed


@pytest.mark.law
@given(survivals(), curves(), st.floats(0.0, 1.0), st.integers(0, 40), st.data())
def test_whether_a_token_is_verified_never_hangs_on_what_is_drafted_after_it(
    survival: Floats, verify_s: Floats, factor: float, room: int, data: st.DataObject
) -> None:
    """Causality: c_1..c_k of a request decide on its token k; the later ones cannot.

    They may change what *other* requests get, and their own later positions.
    """
    row = data.draw(st.integers(0, survival.shape[0] - 1))
    position = data.draw(st.integers(0, survival.shape[1] - 1))
    changed = later_changed(survival, row, position, factor)
    stale = survival[::-1]
    for policy in every_policy():
        before = lengths_of(policy, costs_of(verify_s), survival, stale, room)
        after = lengths_of(policy, costs_of(verify_s), changed, stale, room)
        assert min(before[row], position) == min(after[row], position)


@pytest.mark.law
@given(survivals(), curves(), st.floats(0.0, 0.999), st.data())
def test_early_stop_decides_on_a_token_from_the_better_tokens_alone(
    survival: Floats, verify_s: Floats, factor: float, data: st.DataObject
) -> None:
    """Scaling down everything that ranks after a token leaves the decision on it alone."""
    survival = np.maximum(survival, SURVIVAL_FLOOR)
    order = in_order(survival)
    rank = data.draw(st.integers(0, len(order) - 1))
    row, position = order[rank]
    changed = survival.copy()
    for worse in order[rank + 1 :]:
        changed[worse] *= factor
    costs = costs_of(verify_s)
    for policy in (policy_of(EARLY_STOP), policy_of(GLOBAL)):
        before = lengths_of(policy, costs, survival, survival[::-1])
        after = lengths_of(policy, costs, changed, survival[::-1])
        assert (before[row] > position) == (after[row] > position)


@pytest.mark.example
def test_a_retrospective_budget_does_hang_on_later_tokens() -> None:
    """What the law above would catch: current confidences passed off as the stale ones."""
    costs = costs_of([0.0, 1.0, 2.0, 1 / 0.45])
    hopeful, hopeless = np.array([[0.8, 0.72]]), np.array([[0.8, 0.0]])
    policy = policy_of(GLOBAL)
    assert min(lengths_of(policy, costs, hopeful)[0], 1) == 1
    assert min(lengths_of(policy, costs, hopeless)[0], 1) == 0
    fixed = np.array([[0.8, 0.72]])
    assert lengths_of(policy, costs, hopeless, fixed)[0] == 1


@pytest.mark.example
def test_a_budget_beyond_the_table_is_priced_along_its_slope() -> None:
    """Two tokens are tabled; the slope beyond makes a third and fourth dear."""
    survival = np.array([[0.99] * 4])
    costs = costs_of([0.0, 1.0, 1.01], verify_slope_s=5.0)
    assert lengths_of(policy_of(GLOBAL), costs, survival) == [1]
    cheap = costs_of([0.0, 1.0, 1.01], verify_slope_s=0.01)
    assert lengths_of(policy_of(GLOBAL), cheap, survival) == [4]
    assert math.isclose(decided(policy_of(GLOBAL), cheap, survival)[1], 1.04)
