"""How far prices may be off: the law of a changed model, and the block of the file."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.core.costs.doubt import KNOTS, NAMES, Doubt, changed, doubt_of, knot_weights
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import CostModel, as_json, decode_cost_model

MODELS = ("b300x4-dsv4-flash-vllm", "h200-qwen3-14b-composed", "h200-qwen3-8b-analytic")
"""One of each kind: a table, an additive one, a roofline."""
TOKENS = np.array([1.0, 5.0, 64.0, 300.0, 1024.0])


def off(**by: float) -> np.ndarray:
    x = np.zeros(len(NAMES))
    for name, value in by.items():
        x[NAMES.index(name)] = value
    return x


def level(value: float) -> np.ndarray:
    return off(**{f"forward@{m}": value for m in KNOTS})


@pytest.mark.law
@pytest.mark.parametrize("name", MODELS)
def test_nothing_off_changes_no_price(name: str) -> None:
    model = load_cost_model(name)
    same = changed(model, np.zeros(len(NAMES)))
    assert same.verify_curve.at(TOKENS) == pytest.approx(model.verify_curve.at(TOKENS), rel=1e-5)
    assert same.draft is not None
    assert model.draft is not None
    assert same.draft.seconds == pytest.approx(model.draft.seconds, rel=1e-5)
    assert same.prefill == model.prefill
    assert same.adaptive is None


@pytest.mark.law
@pytest.mark.parametrize("name", MODELS)
@given(st.floats(-1.0, 1.0))
@settings(max_examples=10)
def test_a_level_is_a_factor_on_every_forward_and_on_nothing_else(name: str, by: float) -> None:
    model = load_cost_model(name)
    other = changed(model, level(by))
    expected = np.exp(by) * model.verify_curve.at(TOKENS)
    assert other.verify_curve.at(TOKENS) == pytest.approx(expected, rel=1e-4)
    assert other.draft is not None
    assert model.draft is not None
    assert other.draft.seconds == pytest.approx(model.draft.seconds, rel=1e-5)
    assert other.prefill == model.prefill


@pytest.mark.law
def test_between_knots_the_logarithm_is_a_line_and_outside_it_is_level() -> None:
    x = np.zeros(len(KNOTS))
    x[2], x[3] = 0.2, 0.6  # at 16 and 64 tokens
    at = knot_weights(np.array([1.0, 16.0, 32.0, 64.0, 4096.0, 1e6])) @ x
    assert at.tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.0, 0.0])


@pytest.mark.law
@pytest.mark.parametrize("name", MODELS)
def test_steps_that_speculate_or_decide_take_shares_of_the_smallest_forward(name: str) -> None:
    model = load_cost_model(name)
    smallest_s = float(model.verify_curve.at(np.ones(1))[0])
    other = changed(model, off(speculating=0.1, deciding=0.05) + _root(0.02))
    assert model.draft is not None
    assert other.draft is not None
    more = np.array(other.draft.seconds) - np.array(model.draft.seconds)
    expected = smallest_s * (0.1 + 0.02 * np.sqrt(model.draft.requests))
    assert more == pytest.approx(expected, rel=1e-3)
    assert other.adaptive is not None
    assert other.adaptive.step_s == pytest.approx(0.05 * smallest_s, rel=1e-4)
    cheaper = changed(other, off(deciding=-1.0, speculating=-50.0))
    assert cheaper.adaptive is not None
    assert cheaper.adaptive.step_s == 0.0
    assert cheaper.draft is not None
    assert min(cheaper.draft.seconds) > 0


def _root(value: float) -> np.ndarray:
    return off(**{"speculating/root": value})


@pytest.mark.law
@pytest.mark.parametrize("name", MODELS)
@given(st.integers(0, 2**32))
@settings(max_examples=15)
def test_however_far_off_it_is_a_cost_model_whose_steps_never_fall(name: str, seed: int) -> None:
    x = 2.0 * np.random.default_rng(seed).standard_normal(len(NAMES))
    model = changed(load_cost_model(name), x)
    tables = model.tables(2048, 64)
    for seconds in (tables.verify_s, tables.ragged_s, tables.plain_s, tables.draft_s):
        assert (np.diff(seconds) >= 0).all()
        assert (seconds >= 0).all()
    again = decode_cost_model(as_json(model), where="again")
    assert again.tables(512, 8).verify_s.tolist() == model.tables(512, 8).verify_s.tolist()


def covariance() -> np.ndarray:
    root = np.tril(np.random.default_rng(1).normal(0.0, 0.1, (len(NAMES), len(NAMES))))
    return root @ root.T


@pytest.mark.law
def test_draws_have_the_covariance_and_are_always_the_same() -> None:
    wanted = covariance()
    doubt = doubt_of(wanted, basis="prior", note="")
    draws = doubt.draws(20_000)
    assert np.abs(np.cov(draws.T) - wanted).max() < 0.03 * np.abs(wanted).max()
    assert np.abs(draws.mean(axis=0)).max() < 0.01
    assert doubt.draws(5).tolist() == draws[:5].tolist()


def with_doubt(**change: object) -> CostModel:
    model = load_cost_model(MODELS[1])
    doubt = doubt_of(covariance(), basis="posterior", note="test")
    value = as_json(dataclasses.replace(model, doubt=doubt))
    value["doubt"] |= change
    return decode_cost_model(value, where="mine.json")


def test_the_block_goes_through_a_file() -> None:
    model = with_doubt()
    assert isinstance(model.doubt, Doubt)
    assert model.doubt.basis == "posterior"
    assert model.doubt.root() @ model.doubt.root().T == pytest.approx(covariance(), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"basis": "hearsay"}, "basis"),
        ({"names": ["forward@1"]}, "calibrate the model again"),
        ({"factor": [[1.0], [1.0]]}, "rows of 1, 2"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_block_that_cannot_be_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        with_doubt(**change)
