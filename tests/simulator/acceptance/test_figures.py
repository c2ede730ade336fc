"""Every shipped profile, simulated with the real draw, shows the figures it was fitted to.

Requests of 400 output tokens, every draft token verified; 30,000 of them, because requests differ
so much that fewer would scatter by more than the tolerance.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pytest
from numba import njit

from simulator.acceptance.load import load_acceptance
from simulator.acceptance.profile import FittedProfile
from simulator.acceptance.published.belief import threshold_round
from simulator.acceptance.published.fit import stored_belief, stored_truth
from simulator.acceptance.published.targets import read_targets
from simulator.acceptance.tables import AcceptanceTables, begin_request, draw_round

Floats = npt.NDArray[np.float64]

DOMAINS = ("chat", "code", "math")
PAPER = {
    "dspark-qwen3-4b": "DSpark",
    "dflash-qwen3-4b": "DFlash",
    "eagle3-qwen3-4b": "Eagle3",
}
REQUESTS = 30_000
OUTPUT_TOKENS = 400
CELLS = 4000  # of a_k, for AUC; a multiple of the 20 bins of ECE


@njit
def simulate(
    tables: AcceptanceTables, domain: int, requests: int, output_tokens: int, temperature: Floats
) -> tuple[Floats, Floats, Floats]:
    """[K, CELLS] rounds by predicted survival, those that survived, and the sum of predictions."""
    gamma = tables.gamma
    rounds = np.zeros((gamma, CELLS))
    survivors = np.zeros((gamma, CELLS))
    predicted = np.zeros((gamma, CELLS))
    logits = np.empty(gamma)
    for request in range(requests):
        difficulty, state = begin_request(tables, 1, request, domain, 100)
        tokens = 0
        step = 0
        while tokens < output_tokens:
            accepted, state = draw_round(
                tables, 1, request, step, domain, difficulty, state, 0, logits
            )
            survival = 1.0
            for k in range(gamma):
                survival /= 1.0 + np.exp(-logits[k] / temperature[k])
                cell = min(int(survival * CELLS), CELLS - 1)
                rounds[k, cell] += 1
                predicted[k, cell] += survival
                if accepted > k:
                    survivors[k, cell] += 1
            tokens += accepted + 1
            step += 1
    return rounds, survivors, predicted


@njit
def simulate_threshold(
    tables: AcceptanceTables, domain: int, requests: int, output_tokens: int, least_logit: float
) -> tuple[float, float]:
    """(committed, verified) tokens per round when verification stops at the first lower logit."""
    committed = verified = rounds = 0
    logits = np.empty(tables.gamma)
    for request in range(requests):
        difficulty, state = begin_request(tables, 1, request, domain, 100)
        tokens = 0
        step = 0
        while tokens < output_tokens:
            accepted, state = draw_round(
                tables, 1, request, step, domain, difficulty, state, 0, logits
            )
            length = 0
            while length < tables.gamma and logits[length] >= least_logit:
                length += 1
            tokens += min(accepted, length) + 1
            verified += length + 1
            step += 1
        committed += tokens
        rounds += step
    return committed / rounds, verified / rounds


def fitted(name: str) -> FittedProfile:
    profile = load_acceptance(name)
    assert isinstance(profile, FittedProfile)
    return profile


@functools.cache
def figures(name: str, domain: str, scaled: bool = False) -> dict[str, Floats]:
    profile = fitted(name)
    tables = profile.tables(DOMAINS)
    stored = profile.achieved[domain]["sts_temperature"]
    temperature = np.array(stored if scaled else [1.0] * profile.gamma)
    rounds, survivors, predicted = simulate(
        tables,
        DOMAINS.index(domain),
        REQUESTS // 3 if scaled else REQUESTS,
        OUTPUT_TOKENS,
        temperature,
    )
    reached = np.concatenate((rounds[:1].sum(axis=1), survivors.sum(axis=1)))
    lost = rounds - survivors
    below = np.cumsum(lost, axis=1) - 0.5 * lost
    gap = (survivors - predicted).reshape(profile.gamma, 20, -1).sum(axis=2)
    return {
        "conditional_acceptance": reached[1:] / reached[:-1],
        "accepted_length": reached.sum(keepdims=True) / reached[0],
        "auc": (survivors * below).sum(axis=1) / (survivors.sum(axis=1) * lost.sum(axis=1)),
        "ece_pct": 100 * np.abs(gap).sum(axis=1) / reached[0],
    }


@pytest.mark.golden
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("name", PAPER)
def test_conditional_acceptance_is_that_of_figure_2_within_half_a_percent(
    name: str, domain: str
) -> None:
    published = read_targets().conditional_acceptance.values[PAPER[name]][domain]
    found = figures(name, domain)["conditional_acceptance"]
    assert np.abs(found - published).max() < 0.005


@pytest.mark.golden
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("name", PAPER)
def test_accepted_length_is_that_of_table_1_within_one_percent(name: str, domain: str) -> None:
    published = np.mean(read_targets().accepted_length.values[PAPER[name]][domain])
    assert figures(name, domain)["accepted_length"][0] == pytest.approx(published, rel=0.01)


@pytest.mark.golden
def test_confidences_rank_survival_as_well_as_figure_6_within_one_percent() -> None:
    published = read_targets().calibration
    at = np.array(published.positions) - 1
    found = figures("dspark-qwen3-4b", "chat")["auc"][at]
    assert np.abs(found - published.auc).max() < 0.01


@pytest.mark.golden
def test_raw_confidences_are_as_far_off_as_figure_6_within_one_point() -> None:
    published = read_targets().calibration
    at = np.array(published.positions) - 1
    found = figures("dspark-qwen3-4b", "chat")["ece_pct"][at]
    assert np.abs(found - published.ece_raw_pct).max() < 1.0


@pytest.mark.golden
def test_temperatures_repair_what_figure_6_says_within_one_and_a_half_points() -> None:
    published = read_targets().calibration
    at = np.array(published.positions) - 1
    found = figures("dspark-qwen3-4b", "chat", scaled=True)["ece_pct"][at]
    assert np.abs(found - published.ece_sts_pct).max() < 1.5


@pytest.mark.golden
def test_baselines_have_the_published_accepted_length_on_code() -> None:
    golden = read_targets().golden_lengths
    assert figures("mtp1", "code")["accepted_length"][0] == pytest.approx(
        golden.mtp_v4_pro[0], rel=0.01
    )
    assert figures("dspark5-v4", "code")["accepted_length"][0] == pytest.approx(
        golden.dspark_v4_pro[4], rel=0.01
    )


@pytest.mark.law
@pytest.mark.parametrize("name", [*PAPER, "dspark5-v4", "mtp1"])
def test_quadrature_and_simulation_agree(name: str) -> None:
    """The figures a profile claims are those its own draw shows, whoever published what."""
    for domain in DOMAINS:
        claimed = fitted(name).achieved[domain]
        raw = figures(name, domain)
        assert np.abs(raw["conditional_acceptance"] - claimed["conditional_acceptance"]).max() < (
            0.004
        )
        assert raw["accepted_length"][0] == pytest.approx(claimed["accepted_length"][0], rel=0.006)
        assert np.abs(raw["auc"] - claimed["auc"]).max() < 0.004
        assert np.abs(raw["ece_pct"] - claimed["ece_raw_pct"]).max() < 0.4
        scaled = figures(name, domain, scaled=True)
        assert np.abs(scaled["ece_pct"] - claimed["ece_sts_pct"]).max() < 0.4


@pytest.mark.law
@pytest.mark.parametrize("threshold", [0.3, 0.9])
@pytest.mark.parametrize("domain", DOMAINS)
def test_quadrature_and_simulation_agree_on_a_threshold(domain: str, threshold: float) -> None:
    profile = fitted("dspark-qwen3-4b")
    least_logit = float(np.log(threshold / (1 - threshold)))
    found = simulate_threshold(
        profile.tables(DOMAINS), DOMAINS.index(domain), REQUESTS, OUTPUT_TOKENS, least_logit
    )
    stored = profile.domains[domain]
    claimed = threshold_round(stored_truth(stored), stored_belief(stored), threshold)
    assert found == pytest.approx(claimed, rel=0.006)
