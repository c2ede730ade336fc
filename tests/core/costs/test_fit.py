"""The parts of measured times: curves and slopes come back, pauses and skew do not bend them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.costs.fit import (
    fit_parts,
    from_zero,
    hinges,
    mean_rises,
    relative_errors,
    relative_rises,
)

KNOTS = np.array([1.0, 2.0, 8.0, 32.0])


@pytest.mark.law
@given(
    rises=st.lists(st.floats(0.0, 1e-3), min_size=3, max_size=3),
    slope=st.floats(0.0, 1e-6),
    seed=st.integers(0, 99),
)
def test_times_that_are_a_curve_and_a_slope_give_both_back(
    rises: list[float], slope: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.concatenate((KNOTS, rng.uniform(1.0, 40.0, 60)))
    context = rng.uniform(0.0, 1000.0, len(sizes))
    seconds = 0.002 + hinges(sizes, KNOTS) @ np.array(rises) + slope * context
    parts = fit_parts(seconds, curves=((sizes, KNOTS),), slopes=(context,), loss=relative_rises)
    assert parts.bias_s == pytest.approx(0.002, rel=1e-6)
    assert parts.rises_s[0] == pytest.approx(rises, abs=1e-8)
    assert parts.slopes_s == pytest.approx((slope,), abs=1e-11)
    assert relative_errors(parts.fitted_s, seconds).max() < 1e-6


@pytest.mark.law
@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3), st.floats(1.0, 32.0))
def test_hinges_interpolate_between_the_knots_and_go_on_beyond(
    rises: list[float], size: float
) -> None:
    values = from_zero(np.array(rises))
    at = hinges(np.array([size, 32.0, 56.0]), KNOTS) @ np.array(rises)
    assert at[0] == pytest.approx(np.interp(size, KNOTS, values))
    assert at[1:] == pytest.approx([values[-1], values[-1] + rises[-1]])


@pytest.mark.example
def test_a_curve_of_one_knot_is_the_bias_alone() -> None:
    parts = fit_parts(
        np.full(5, 0.01), curves=((np.ones(5), np.array([1.0])),), loss=relative_rises
    )
    assert parts.bias_s == pytest.approx(0.01)
    assert from_zero(parts.rises_s[0]).tolist() == [0.0]
    assert parts.slopes_s == ()


@pytest.mark.law
def test_pauses_of_the_machine_do_not_bend_the_curve() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 17, 4000).astype(float)
    clean_s = 0.01 + 0.002 * sizes
    paused_s = clean_s + np.where(rng.random(4000) < 0.003, 5.0, 0.0)
    design = np.stack((np.ones(4000), sizes), axis=1)
    assert mean_rises(design, paused_s) == pytest.approx([0.01, 0.002], rel=0.02)


@pytest.mark.law
def test_the_mean_of_skewed_times_is_kept() -> None:
    """A median would be 6 % short of what a replay adds up."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 17, 20000).astype(float)
    seconds = (0.01 + 0.002 * sizes) * (1.0 + 0.2 * rng.gamma(1.0, size=20000))
    found = mean_rises(np.stack((np.ones(20000), sizes), axis=1), seconds)
    assert found == pytest.approx([0.012, 0.0024], rel=0.02)
