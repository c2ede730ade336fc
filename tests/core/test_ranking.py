"""Ordering by survival in linear time: equal to a plain sort on every input, ties included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.ranking import (
    MOST_BINS,
    SURVIVAL_FLOOR,
    assign_slots,
    nth_least,
    sort_candidates,
)
from sglang_dspark.core.state import Floats
from tests.core.plain_policies import best_first, in_order, survivals


def ordered(survival: Floats) -> Floats:
    out = np.full(survival.size, np.nan)
    total = sort_candidates(survival, out, np.empty(MOST_BINS + 1, dtype=np.int64))
    return out[:total]


def assigned(survival: Floats, slots: int) -> list[int]:
    lengths = np.full(survival.shape[0] + 1, -7)
    given = assign_slots(
        survival,
        slots,
        lengths,
        np.empty(survival.size),
        np.empty(MOST_BINS, dtype=np.int64),
    )
    assert lengths[-1] == -7, "wrote beyond the batch"
    assert given == lengths[:-1].sum()
    return list(lengths[:-1])


def by_numpy(survival: Floats) -> Floats:
    flat = survival[survival >= SURVIVAL_FLOOR]
    return -np.sort(-flat)


@pytest.mark.law
@given(survivals(most_requests=12, most_positions=8))
def test_sorting_equals_numpys(survival: Floats) -> None:
    assert ordered(survival).tobytes() == by_numpy(survival).tobytes()


@pytest.mark.law
@given(survivals(most_requests=12, most_positions=8, levels=3))
def test_sorting_equals_numpys_with_ties(survival: Floats) -> None:
    assert ordered(survival).tobytes() == by_numpy(survival).tobytes()


@pytest.mark.law
@given(
    st.lists(st.sampled_from([-1.5, -0.25, 0.0, 0.5]) | st.floats(-9, 9), min_size=1, max_size=60),
    st.data(),
)
def test_the_nth_least_is_where_a_sort_would_put_it(
    values: list[float], data: st.DataObject
) -> None:
    n = data.draw(st.integers(0, len(values) - 1))
    shuffled = np.array(values)
    assert nth_least(shuffled, n) == sorted(values)[n]
    assert sorted(shuffled) == sorted(values)


def hard_cases() -> dict[str, Floats]:
    """Matrices that crowd the bins, fill the workspace or sit on an edge."""
    rng = np.random.default_rng(7)
    largest = np.cumprod(rng.uniform(0.5, 1.0, (1024, 7)), axis=1)
    floor = np.full((4, 3), SURVIVAL_FLOOR)
    floor[1] = np.nextafter(SURVIVAL_FLOOR, 0)
    floor[2, 2] = 0.0
    return {
        "largest": largest,
        "largest, all equal": np.full((1024, 7), 0.25),
        "largest, all sure": np.ones((1024, 7)),
        "largest, in one bin": 0.5 + -np.sort(-rng.uniform(0, 1e-5, (1024, 7)), axis=1),
        "largest, hopeless": np.full((1024, 7), 1e-9),
        "largest, half hopeless": np.where(largest > 0.3, largest, 0.0),
        "two values": np.where(rng.integers(0, 2, (200, 1)) == 1, 0.9, 0.4) * np.ones((200, 7)),
        "one token": np.array([[0.3]]),
        "at the floor": floor,
        "nothing": np.zeros((3, 4)),
    }


@pytest.mark.example
@pytest.mark.parametrize("name", hard_cases())
def test_sorting_survives_crowded_bins_and_edges(name: str) -> None:
    survival = hard_cases()[name]
    assert ordered(survival).tobytes() == by_numpy(survival).tobytes()


@pytest.mark.example
@pytest.mark.parametrize("name", hard_cases())
def test_assignment_survives_crowded_bins_and_edges(name: str) -> None:
    survival = hard_cases()[name]
    order = in_order(survival)
    for slots in {0, 1, 2, 3, len(order) // 3, len(order) - 1, len(order), survival.size + 5}:
        lengths = [0] * survival.shape[0]
        for r, _ in order[: max(slots, 0)]:
            lengths[r] += 1
        assert assigned(survival, slots) == lengths


@pytest.mark.law
@given(survivals(most_requests=9, most_positions=6, levels=4), st.integers(-1, 60))
def test_slots_go_by_survival_then_position_then_request(survival: Floats, slots: int) -> None:
    assert assigned(survival, slots) == best_first(survival, max(slots, 0))


@pytest.mark.law
@given(survivals(most_requests=9, most_positions=6), st.integers(0, 60))
def test_slots_are_conserved_and_only_lost_to_the_floor(survival: Floats, slots: int) -> None:
    worthwhile = int((survival >= SURVIVAL_FLOOR).sum())
    assert sum(assigned(survival, slots)) == min(slots, worthwhile)


@pytest.mark.law
@given(survivals(most_requests=8, most_positions=5, levels=3), st.integers(0, 40))
def test_one_more_slot_lengthens_one_request_by_one_token(survival: Floats, slots: int) -> None:
    fewer, more = assigned(survival, slots), assigned(survival, slots + 1)
    grown = [b - a for a, b in zip(fewer, more, strict=True)]
    assert sorted(grown)[:-1] == [0] * (len(grown) - 1)
    assert grown[grown.index(max(grown))] in (0, 1)


@pytest.mark.law
@given(survivals(most_requests=8, most_positions=5), st.integers(0, 40), st.data())
def test_permuting_the_requests_permutes_the_plan_where_nothing_ties(
    survival: Floats, slots: int, data: st.DataObject
) -> None:
    values = survival[survival >= SURVIVAL_FLOOR]
    # Distinct by construction: shift each row by its own tiny amount, order within rows kept.
    survival = survival * (1.0 - 1e-9 * np.arange(1, survival.shape[0] + 1))[:, None]
    values = survival[survival >= SURVIVAL_FLOOR]
    if np.unique(values).size < values.size:
        survival = survival * np.linspace(1.0, 0.9, survival.size).reshape(survival.shape)
    order = data.draw(st.permutations(range(survival.shape[0])))
    values = survival[survival >= SURVIVAL_FLOOR]
    if np.unique(values).size == values.size:
        lengths = assigned(survival, slots)
        assert assigned(survival[list(order)], slots) == [lengths[r] for r in order]


@pytest.mark.law
@given(survivals(most_requests=8, most_positions=5, levels=2), st.integers(0, 40), st.data())
def test_ties_go_by_position_and_request_number_not_by_who_the_request_is(
    survival: Floats, slots: int, data: st.DataObject
) -> None:
    """Permuting moves slots only inside a tie: what each value level gets stays the same."""
    order = list(data.draw(st.permutations(range(survival.shape[0]))))
    before, after = assigned(survival, slots), assigned(survival[order], slots)

    def admitted(matrix: Floats, lengths: list[int]) -> list[tuple[float, int]]:
        return sorted((matrix[r, k], k) for r, n in enumerate(lengths) for k in range(n))

    assert admitted(survival, before) == admitted(survival[order], after)


@pytest.mark.example
def test_a_tie_prefers_the_earlier_position_of_a_later_request() -> None:
    survival = np.array([[0.9, 0.5], [0.5, 0.4]])
    assert assigned(survival, 2) == [1, 1]
