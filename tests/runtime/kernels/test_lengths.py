"""Survival and lengths on tensors: the same bits and the same slots as the core's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.core.ranking import MOST_BINS, SURVIVAL_FLOOR, assign_slots
from sglang_dspark.core.survival import fill_survival_rows
from sglang_dspark.runtime.kernels.lengths import assign_lengths, survival
from tests.runtime.kernels.kernel_cases import logits_with_marks


def by_core(survivals: np.ndarray, budget: int) -> list[int]:
    lengths = np.zeros(len(survivals), dtype=np.int64)
    values, counts = np.empty(survivals.size), np.empty(MOST_BINS, dtype=np.int64)
    assign_slots(survivals, budget, lengths, values, counts)
    return list(lengths)


def by_tensors(survivals: np.ndarray, budget: int) -> list[int]:
    return assign_lengths(survival_RK=torch.from_numpy(survivals), budget=budget).tolist()


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    """Non-increasing rows; few levels, so that most survivals tie; sometimes at the floor."""
    requests = draw(st.sampled_from([1, 2, 7, 33, 200, 1024]))
    slots = draw(st.integers(1, 15))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    levels = draw(st.sampled_from([2, 3, 10, 10**9]))
    confidence = rng.integers(0, levels + 1, (requests, slots)) / levels
    survivals = np.cumprod(confidence, axis=1)
    if draw(st.booleans()):
        survivals = np.minimum.accumulate(
            rng.choice(
                [1.0, 0.5, SURVIVAL_FLOOR, np.nextafter(SURVIVAL_FLOOR, 0)], survivals.shape
            ),
            axis=1,
        )
    return survivals


@pytest.mark.law
@settings(deadline=None, max_examples=150)
@given(matrices(), st.floats(-0.1, 1.1))
def test_slots_are_the_cores_to_the_last_tie(survivals: np.ndarray, share: float) -> None:
    budget = round(share * survivals.size)
    assert by_tensors(survivals, budget) == by_core(survivals, budget)


@pytest.mark.example
def test_a_tie_goes_to_the_earlier_position_then_to_the_lower_request() -> None:
    survivals = np.array([[0.9, 0.5], [0.5, 0.4], [0.5, 0.5]])
    assert [by_tensors(survivals, n) for n in (1, 2, 3, 4)] == [
        [1, 0, 0],
        [1, 1, 0],
        [1, 1, 1],
        [2, 1, 1],
    ]


@pytest.mark.law
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 200), st.integers(1, 15), st.floats(0, 1))
def test_survival_has_the_cores_bits_and_ranks_as_they_do(
    seed: int, requests: int, slots: int, share: float
) -> None:
    inputs = logits_with_marks(np.random.default_rng(seed), requests, slots)
    expected = np.empty((requests, slots))
    fill_survival_rows(
        inputs["logits_RK"].double().numpy(),
        inputs["inverse_temperature_K"].numpy(),
        inputs["bias_K"].numpy(),
        expected,
    )
    found = survival(**inputs)
    assert found.numpy().tobytes() == expected.tobytes()
    budget = round(share * expected.size)
    assert assign_lengths(survival_RK=found, budget=budget).tolist() == by_core(expected, budget)


@pytest.mark.example
def test_survivals_of_less_precision_than_the_cores_are_refused() -> None:
    with pytest.raises(ValueError, match="give float64"):
        assign_lengths(survival_RK=torch.ones(2, 2), budget=1)
