"""The compiled draw: keyed, stationary, truth apart from prediction, and as likely as it says."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from scipy.special import expit

from simulator.acceptance.load import DEFAULT_PROFILE, load_acceptance, shipped_profiles
from simulator.acceptance.tables import (
    AcceptanceTables,
    acceptance_probability,
    begin_request,
    draw_round,
    sigmoid_table,
)

Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def tables() -> AcceptanceTables:
    return load_acceptance(DEFAULT_PROFILE).tables(("chat", "code", "math"))


@njit
def rounds_of(
    tables: AcceptanceTables, seed: int, request: int, domain: int, rounds: int
) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    accepted = np.empty(rounds, np.int64)
    states = np.empty(rounds)
    logits = np.empty((rounds, tables.gamma))
    difficulty, state = begin_request(tables, seed, request, domain, 100)
    for s in range(rounds):
        accepted[s], state = draw_round(
            tables, seed, request, s, domain, difficulty, state, 0, logits[s]
        )
        states[s] = state
    return accepted, states, logits


@pytest.mark.law
@settings(deadline=None)  # the first example compiles
@given(
    seed=st.integers(-(2**40), 2**40),
    request=st.integers(0, 2**40),
    step=st.integers(0, 2**20),
    domain=st.integers(-1, 2),
    difficulty=st.floats(-4, 4),
    state=st.floats(-4, 4),
)
def test_accepted_lies_within_the_block_and_the_same_key_draws_the_same(
    tables: AcceptanceTables,
    seed: int,
    request: int,
    step: int,
    domain: int,
    difficulty: float,
    state: float,
) -> None:
    one, other = np.full(7, np.nan), np.full(9, np.nan)
    first = draw_round(tables, seed, request, step, domain, difficulty, state, 0, one)
    again = draw_round(tables, seed, request, step, domain, difficulty, state, 0, other)
    assert first == again
    assert 0 <= first[0] <= tables.gamma
    assert np.array_equal(one, other[:7])
    assert np.isfinite(one).all()
    assert np.isnan(other[7:]).all()


@pytest.mark.law
def test_a_round_does_not_depend_on_what_was_drawn_before_it(tables: AcceptanceTables) -> None:
    straight = [rounds_of(tables, 5, r, 0, 40) for r in range(20)]
    for r in reversed(range(20)):
        again = rounds_of(tables, 5, r, 0, 40)
        for one, other in zip(straight[r], again, strict=True):
            assert np.array_equal(one, other)
    difficulty, _ = begin_request(tables, 5, 7, 0, 100)
    logits = np.empty(7)
    accepted, state = draw_round(tables, 5, 7, 30, 0, difficulty, straight[7][1][29], 0, logits)
    assert accepted == straight[7][0][30]
    assert state == straight[7][1][30]
    assert np.array_equal(logits, straight[7][2][30])


@pytest.mark.law
def test_seeds_and_requests_are_independent_of_each_other(tables: AcceptanceTables) -> None:
    one = np.concatenate([rounds_of(tables, 1, r, 0, 50)[0] for r in range(2000)])
    other = np.concatenate([rounds_of(tables, 2, r, 0, 50)[0] for r in range(2000)])
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    by_request = one.reshape(2000, 50).mean(axis=1)
    assert abs(np.corrcoef(by_request[1:], by_request[:-1])[0, 1]) < 0.1


@pytest.mark.law
def test_difficulty_and_state_are_standard_normal_and_uncorrelated(
    tables: AcceptanceTables,
) -> None:
    begun = np.array([begin_request(tables, 3, r, 0, 100) for r in range(20_000)])
    assert np.abs(begun.mean(axis=0)).max() < 0.03
    assert np.abs(begun.std(axis=0) - 1.0).max() < 0.03
    assert abs(np.corrcoef(begun.T)[0, 1]) < 0.03


@pytest.mark.law
@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.7, 0.95])
def test_the_state_is_a_stationary_autoregression(tables: AcceptanceTables, rho: float) -> None:
    tuned = tables._replace(step_correlation=np.full(4, rho))
    states = np.array([rounds_of(tuned, 4, r, 0, 60)[1] for r in range(3000)])
    for moment in (states[:, 0], states[:, -1]):
        assert abs(moment.mean()) < 0.09
        assert abs(moment.std() - 1.0) < 0.07
    for lag in (1, 2, 5):
        found = (states[:, lag:] * states[:, :-lag]).mean()
        assert found == pytest.approx(rho**lag, abs=0.03)


@pytest.mark.law
@settings(max_examples=25, deadline=None)
@given(
    bias=st.floats(-3, 3), scale=st.floats(0.1, 3), noise=st.floats(0, 5), domain=st.integers(-1, 2)
)
def test_a_worse_head_changes_logits_but_no_outcome(
    tables: AcceptanceTables, bias: float, scale: float, noise: float, domain: int
) -> None:
    blurred = tables._replace(
        confidence_bias=np.full((4, 7), bias),
        confidence_scale=np.full((4, 7), scale),
        confidence_noise=np.full((4, 7), noise),
    )
    accepted, states, logits = rounds_of(tables, 6, 11, domain, 30)
    same, same_states, other_logits = rounds_of(blurred, 6, 11, domain, 30)
    assert np.array_equal(accepted, same)
    assert np.array_equal(states, same_states)
    assert not np.array_equal(logits, other_logits)


@pytest.mark.law
@settings(max_examples=25, deadline=None)
@given(rise=st.floats(0, 3), position=st.integers(0, 6), request=st.integers(0, 1000))
def test_a_higher_mean_never_accepts_less(
    tables: AcceptanceTables, rise: float, position: int, request: int
) -> None:
    mean = tables.mean_logit.copy()
    mean[:, position] += rise
    before = rounds_of(tables, 8, request, 1, 40)[0]
    after = rounds_of(tables._replace(mean_logit=mean), 8, request, 1, 40)[0]
    assert np.all(after >= before)
    assert np.array_equal(after[before < position], before[before < position])


@pytest.mark.law
def test_the_sigmoid_table_is_right_to_a_hundred_thousandth() -> None:
    logits = np.linspace(-25, 25, 100_001)
    table = sigmoid_table()
    read = np.array([acceptance_probability(table, x) for x in logits])
    assert np.abs(read - expit(logits)).max() < 1e-5
    assert np.all(np.diff(read) >= 0)


@pytest.mark.law
@pytest.mark.parametrize("logit", [-3.0, -0.4, 0.0, 1.7, 4.0])
def test_a_token_is_accepted_as_often_as_its_logit_says(
    tables: AcceptanceTables, logit: float
) -> None:
    plain = tables._replace(
        mean_logit=np.full((4, 7), logit),
        request_sd=np.zeros(4),
        step_sd=np.zeros(4),
        token_sd=np.zeros(4),
    )
    rounds = 1_000_000
    accepted = rounds_of(plain, 9, 0, 0, rounds)[0]
    chance = expit(logit)
    survival = chance ** np.arange(1, 8)
    found = (accepted[:, None] >= np.arange(1, 8)).mean(axis=0)
    error = np.sqrt(survival * (1 - survival) / rounds)
    assert np.all(np.abs(found - survival) < 4.5 * error + 1e-5)


@pytest.mark.example
def test_a_perfect_head_shows_the_true_logit(tables: AcceptanceTables) -> None:
    perfect = tables._replace(
        request_sd=np.ones(4),
        step_sd=np.ones(4),
        token_sd=np.zeros(4),
        confidence_bias=np.zeros((4, 7)),
        confidence_scale=np.ones((4, 7)),
        confidence_noise=np.zeros((4, 7)),
    )
    logits = np.empty(7)
    _, state = draw_round(perfect, 1, 2, 3, 1, 0.25, -0.5, 0, logits)
    assert logits == pytest.approx(tables.mean_logit[1] + 0.25 + state)


@pytest.mark.example
def test_rows_follow_the_traces_domains_and_the_last_row_serves_requests_without_one() -> None:
    profile = load_acceptance(DEFAULT_PROFILE)
    rows = profile.tables(("math", "chat")).mean_logit
    listed = profile.tables(("chat", "code", "math")).mean_logit
    assert np.array_equal(rows, listed[[2, 0, 0]])
    logits, default = np.empty(7), np.empty(7)
    tables = profile.tables(("math", "chat"))
    assert draw_round(tables, 1, 2, 3, -1, 0.1, 0.2, 0, logits) == draw_round(
        tables, 1, 2, 3, 1, 0.1, 0.2, 0, default
    )
    assert np.array_equal(logits, default)


@pytest.mark.example
def test_unlisted_domains_fall_back_with_one_warning_that_names_them() -> None:
    profile = load_acceptance("mtp1")
    with pytest.warns(
        UserWarning, match=r"mtp1 has no domain poetry, law .*drawing from chat"
    ) as seen:
        tables = profile.tables(("poetry", "code", "law"))
    assert len(seen) == 1
    assert np.array_equal(tables.mean_logit[0], tables.mean_logit[-1])
    assert not np.array_equal(tables.mean_logit[1], tables.mean_logit[-1])


@pytest.mark.example
def test_every_shipped_profile_loads_by_name_and_by_path_without_a_warning() -> None:
    names = shipped_profiles()
    assert set(names) == {
        "dspark-qwen3-4b",
        "dflash-qwen3-4b",
        "eagle3-qwen3-4b",
        "dspark5-v4",
        "mtp1",
    }
    folder = Path(str(load_acceptance.__globals__["_PROFILES"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in names:
            by_name = load_acceptance(name)
            by_path = load_acceptance(folder / f"{name}.json")
            assert by_name == by_path
            assert by_name.name == name
            assert by_name.tables(("chat",)).gamma == by_name.gamma
