"""Rounds cut short by a policy give the acceptance of whole rounds again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sglang_dspark.core.policy import FixedLength
from simulator.fit.acceptance import LEAST_ROUNDS, CensoredRounds, fit_censored
from simulator.fit.logged_steps import logged
from tests.simulator.fit.logged_scenes import GAMMA, Log, planned_log
from tests.simulator.replay_scenes import cost_model

POSITIONS = np.arange(1, GAMMA + 1)


def dear_tokens(dearness: float) -> Any:
    """A step of 1 second and ``dearness`` for every token."""
    return cost_model(
        table={
            "tokens": [1, 4096],
            "seconds": [1.0 + dearness, 1.0 + 4096 * dearness],
            "between": "linear",
            "origin": "analytic",
        },
        draft=None,
    )


@pytest.fixture(scope="module")
def trimmed() -> Log:
    return planned_log(dear_tokens(0.1), cost_model(), steps=2000, requests=20)


def conditional(runs: Any) -> Any:
    return np.array([(runs >= k).sum() / (runs >= k - 1).sum() for k in POSITIONS])


@pytest.mark.law
def test_the_corrected_acceptance_is_right_where_plain_ratios_are_far_off(trimmed: Log) -> None:
    """Every position within 3 standard errors; uncorrected, nearly all more than 10 too high."""
    rounds = logged(trimmed.records, {}).rounds
    fit = fit_censored(rounds)
    truth = conditional(np.array(trimmed.whole_runs))
    off = (fit.conditional - truth) / fit.standard_error
    plain = (fit.plain - truth) / fit.standard_error
    assert np.abs(off).max() < 3.0, off
    assert (plain[:-1] > 10.0).all(), plain
    assert fit.identified.all()


@pytest.mark.law
def test_hidden_tails_are_drawn_from_the_fit_and_shown_ones_kept(trimmed: Log) -> None:
    rounds = logged(trimmed.records, {}).rounds
    fit = fit_censored(rounds, resamples=2)
    runs = fit.runs(rounds, seed=1)
    ended = rounds.accepted < rounds.verified
    assert (runs[ended] == rounds.accepted[ended]).all()
    assert (runs >= rounds.accepted).all()
    whole = np.array(trimmed.whole_runs)
    assert runs.mean() == pytest.approx(whole.mean(), rel=0.02)
    assert np.array_equal(runs, fit.runs(rounds, seed=1))
    assert not np.array_equal(runs, fit.runs(rounds, seed=2))


@pytest.mark.law
def test_whole_rounds_need_no_correction() -> None:
    log = planned_log(cost_model(), cost_model(), policy=FixedLength(), steps=100)
    rounds = logged(log.records, {}).rounds
    fit = fit_censored(rounds, resamples=2)
    assert np.allclose(fit.conditional, fit.plain)
    assert np.allclose(fit.conditional, conditional(np.array(log.whole_runs)))
    assert np.array_equal(fit.runs(rounds, seed=0), rounds.accepted)


@pytest.mark.example
def test_a_position_that_no_round_shows_is_not_identified() -> None:
    log = planned_log(cost_model(), cost_model(), policy=FixedLength(length=3), steps=100)
    fit = fit_censored(logged(log.records, {}).rounds, resamples=2)
    assert fit.identified.tolist() == [True] * 3 + [False] * 4
    assert (fit.shown[:3] >= LEAST_ROUNDS).all()
    assert (fit.shown[3:] == 0).all()
    assert np.isnan(fit.plain[3:]).all()
    assert (fit.extrapolated[3:] > 0.9).all()
    assert np.isfinite(fit.conditional).all()


@pytest.mark.example
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accepted": np.array([3])}, "more tokens accepted than verified"),
        ({"verified": np.array([9]), "accepted": np.array([9])}, "beyond its 3 drafted"),
        ({"logits": np.array([[1.0, np.inf, 0.0]])}, "not finite"),
        ({"step": np.array([1, 2])}, "step must have one entry"),
    ],
)
def test_rounds_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    one = np.array([1])
    good: dict[str, Any] = {
        "request": one,
        "step": one,
        "domain": one,
        "logits": np.array([[1.0, 0.0, 0.0]]),
        "verified": np.array([2]),
        "accepted": one,
    }
    CensoredRounds(**good)
    with pytest.raises(ValueError, match=words):
        CensoredRounds(**good | changes)


@pytest.mark.example
def test_nothing_verified_says_nothing() -> None:
    log = planned_log(cost_model(), cost_model(), policy=FixedLength(length=0), steps=5)
    with pytest.raises(ValueError, match="no round was verified at all"):
        fit_censored(logged(log.records, {}).rounds)
