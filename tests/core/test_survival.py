"""Survival probabilities: the sigmoid, its product along the positions, and the two marks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.survival import (
    fill_survival,
    fill_survival_float32,
    fill_survival_rows,
    fill_survival_rows_float32,
    sigmoid,
)

LOGITS = st.floats(-50.0, 50.0)


@pytest.mark.law
@given(st.floats(-600.0, 600.0))
def test_the_sigmoid_is_right_to_the_last_digits(logit: float) -> None:
    exact = 1 / (1 + np.exp(-np.longdouble(logit)))
    assert abs(sigmoid(logit) - exact) <= 5e-16 * exact


@pytest.mark.example
def test_the_sigmoid_of_extreme_logits_stays_a_probability_above_zero() -> None:
    assert sigmoid(math.inf) == sigmoid(1e308) == 1.0
    assert 0.0 < sigmoid(-math.inf) < 1e-290
    assert sigmoid(0.0) == 0.5


@pytest.mark.law
@given(
    st.lists(LOGITS, min_size=1, max_size=8),
    st.floats(0.2, 5.0),
    st.floats(-3.0, 3.0),
)
def test_survival_is_the_running_product_of_calibrated_confidences(
    logits: list[float], temperature: float, bias: float
) -> None:
    z = np.array(logits)
    out = np.empty(z.size)
    fill_survival(z, np.full(z.size, 1 / temperature), np.full(z.size, bias), out)
    expected = np.cumprod([1 / (1 + math.exp(-(v / temperature + bias))) for v in logits])
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    assert (np.diff(out) <= 0).all()


@pytest.mark.law
@given(st.integers(1, 20), st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_batch_of_rows_gets_the_same_bits_as_each_row_alone(
    rows: int, columns: int, random: object
) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    z = rng.normal(1.0, 3.0, (rows, columns))
    inverse, bias = rng.uniform(0.3, 3.0, columns), rng.normal(0.0, 1.0, columns)
    together, alone = np.empty((rows, columns)), np.empty(columns)
    fill_survival_rows(z, inverse, bias, together)
    for r in range(rows):
        fill_survival(z[r], inverse, bias, alone)
        assert together[r].tobytes() == alone.tobytes()


@pytest.mark.example
def test_a_row_without_history_survives_surely_and_a_row_without_draft_not_at_all() -> None:
    z = np.array([[np.nan] * 3, [-np.inf] * 3, [0.0] * 3])
    out = np.empty((3, 3))
    fill_survival_rows(z, np.ones(3), np.full(3, 9.0), out)
    assert out[0].tolist() == [1.0] * 3
    assert out[1].tolist() == [0.0] * 3
    assert 0.99 < out[2, 2] < 1.0


@pytest.mark.law
@given(st.lists(LOGITS, min_size=1, max_size=8))
def test_sglangs_survival_rounds_confidences_and_products_to_float32(logits: list[float]) -> None:
    z = np.array(logits)
    out = np.empty(z.size)
    fill_survival_float32(z, np.ones(z.size), np.zeros(z.size), out)
    confidence = np.array([sigmoid(one) for one in logits]).astype(np.float32)
    expected = np.cumprod(confidence.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(out, expected.astype(np.float64))


@pytest.mark.example
def test_sglangs_survival_has_the_same_two_marks() -> None:
    z = np.array([[np.nan, np.nan], [-np.inf, -np.inf], [0.0, 0.0]])
    out = np.empty((3, 2))
    fill_survival_rows_float32(z, np.ones(2), np.zeros(2), out)
    assert out.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.5, 0.25]]
