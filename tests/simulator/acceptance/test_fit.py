"""The fit: quadrature against known cases, and the shipped files against their sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from simulator.acceptance.load import load_acceptance
from simulator.acceptance.profile import FittedProfile
from simulator.acceptance.published.belief import (
    Belief,
    raw_calibration,
    sequential_temperatures,
    threshold_round,
)
from simulator.acceptance.published.fit import DOMAINS, achieved, stored_belief, stored_truth
from simulator.acceptance.published.quadrature import (
    Truth,
    accepted_length,
    conditional_acceptance,
    shifted_to_length,
    solve_mean_logits,
)
from simulator.acceptance.published.solve import golden_truth, paper_truth, sweep, sweep_belief
from simulator.acceptance.published.targets import read_targets


def fitted(name: str) -> FittedProfile:
    profile = load_acceptance(name)
    assert isinstance(profile, FittedProfile)
    return profile


def belief(gamma: int, *, noise: float, scale: float = 1.0, bias: float = 0.0) -> Belief:
    return Belief(
        bias=np.full(gamma, bias), scale=np.full(gamma, scale), noise=np.full(gamma, noise)
    )


@pytest.mark.law
@settings(max_examples=20, deadline=None)
@given(
    target=st.lists(st.floats(0.2, 0.95), min_size=1, max_size=8),
    request_sd=st.floats(0, 1.2),
    step_sd=st.floats(0.1, 1.2),
    token_sd=st.floats(0, 1.5),
)
def test_the_solved_process_shows_the_conditional_acceptance_asked_for(
    target: list[float], request_sd: float, step_sd: float, token_sd: float
) -> None:
    truth = solve_mean_logits(
        np.array(target), request_sd=request_sd, step_sd=step_sd, token_sd=token_sd
    )
    assert conditional_acceptance(truth) == pytest.approx(target, abs=1e-8)
    survival = np.cumprod(target)
    assert accepted_length(truth) == pytest.approx(1 + survival.sum(), abs=1e-7)


@pytest.mark.example
def test_without_spread_conditional_acceptance_is_the_sigmoid_of_the_mean() -> None:
    mean = np.array([1.0, -0.5, 2.0])
    truth = Truth(mean_logit=mean, request_sd=0.0, step_sd=0.0, token_sd=0.0)
    assert conditional_acceptance(truth) == pytest.approx(expit(mean))


@pytest.mark.law
@settings(max_examples=10, deadline=None)
@given(length=st.floats(1.5, 6.5))
def test_a_shifted_process_has_the_length_asked_for_and_keeps_its_differences(
    length: float,
) -> None:
    truth = stored_truth(fitted("dspark-qwen3-4b").domains["code"])
    moved = shifted_to_length(truth, length)
    assert accepted_length(moved) == pytest.approx(length, abs=1e-6)
    assert np.diff(moved.mean_logit) == pytest.approx(np.diff(truth.mean_logit))


@pytest.mark.example
@pytest.mark.parametrize("length", [1.0, 8.0, float("nan")])
def test_a_length_that_no_block_can_have_is_refused(length: float) -> None:
    truth = stored_truth(fitted("dspark-qwen3-4b").domains["code"])
    with pytest.raises(ValueError, match=r"it must lie inside \(1, 8\)"):
        shifted_to_length(truth, length)


@pytest.mark.law
def test_a_head_that_sees_the_truth_is_calibrated_and_a_temperature_undoes_a_scale() -> None:
    truth = stored_truth(fitted("dspark-qwen3-4b").domains["chat"])
    perfect = raw_calibration(truth, belief(7, noise=0.0))
    assert perfect.ece.max() < 0.002
    doubled = belief(7, noise=0.0, scale=2.0)
    assert raw_calibration(truth, doubled).ece.min() > 0.02
    repaired = sequential_temperatures(truth, doubled)
    assert repaired.ece.max() < 0.003
    assert repaired.temperature == pytest.approx(2.0, rel=0.03)
    blurred = raw_calibration(truth, belief(7, noise=2.0))
    assert np.all(blurred.auc < perfect.auc)


@pytest.mark.example
def test_a_threshold_of_zero_verifies_everything_and_one_of_nearly_one_almost_nothing() -> None:
    truth = stored_truth(fitted("dspark-qwen3-4b").domains["code"])
    head = belief(7, noise=1.0)
    committed, verified = threshold_round(truth, head, 0.0)
    assert verified == pytest.approx(8.0)
    assert committed == pytest.approx(accepted_length(truth), abs=0.002)
    committed, verified = threshold_round(truth, head, 1 - 1e-9)
    assert 1.0 <= committed <= verified < 1.001


@pytest.mark.golden
@pytest.mark.parametrize("domain", DOMAINS)
def test_shipped_means_are_what_the_published_figures_give(domain: str) -> None:
    targets = read_targets()
    for name, drafter in (
        ("dspark-qwen3-4b", "DSpark"),
        ("dflash-qwen3-4b", "DFlash"),
        ("eagle3-qwen3-4b", "Eagle3"),
    ):
        stored = fitted(name).domains[domain].mean_logit
        assert stored == pytest.approx(paper_truth(targets, drafter, domain).mean_logit, abs=1e-4)
    golden = targets.golden_lengths
    for name, lengths in (("dspark5-v4", golden.dspark_v4_pro), ("mtp1", golden.mtp_v4_pro)):
        stored = fitted(name).domains[domain].mean_logit
        assert stored == pytest.approx(golden_truth(targets, lengths, domain).mean_logit, abs=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("domain", ["code", "math"])
def test_shipped_heads_of_code_and_math_are_what_the_threshold_sweep_gives(domain: str) -> None:
    targets = read_targets()
    stored = stored_belief(fitted("dspark-qwen3-4b").domains[domain])
    found = sweep_belief(targets, domain, paper_truth(targets, "DSpark", domain))
    assert stored.noise == pytest.approx(found.noise, abs=5e-3)
    assert stored.scale == pytest.approx(found.scale, abs=5e-3)
    assert stored.bias == pytest.approx(found.bias, abs=5e-3)


@pytest.mark.golden
@pytest.mark.parametrize(("domain", "within"), [("code", 0.1), ("math", 0.15), ("chat", 1.0)])
def test_the_threshold_sweep_of_figure_5_is_reproduced(domain: str, within: float) -> None:
    """In tokens per round. Chat's head is fitted to Figure 6 instead, and misses the low thresholds
    by most of a verified token (0.2 committed): the two figures come from different benchmarks."""
    targets = read_targets().threshold_sweep
    stored = fitted("dspark-qwen3-4b").domains[domain]
    committed, verified = sweep(targets, domain, stored_truth(stored), stored_belief(stored))
    assert np.abs(committed - targets.tokens_committed[domain]).max() < min(within, 0.2)
    assert np.abs(verified - targets.tokens_verified[domain]).max() < within


@pytest.mark.golden
def test_a_profile_claims_what_its_parameters_produce() -> None:
    profile = fitted("dspark-qwen3-4b")
    for figure, values in achieved(profile.domains["math"]).items():
        assert profile.achieved["math"][figure] == pytest.approx(values, abs=0.02)
