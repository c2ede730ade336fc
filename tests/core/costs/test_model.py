"""Step times: what the tables say at, between and beyond the probes, and how a step is priced."""

from __future__ import annotations

import bisect
import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import CostModel, decode_cost_model
from sglang_dspark.core.costs.tables import (
    UNIFORM,
    decode_step_seconds,
    draft_seconds,
    prefill_seconds,
    verify_seconds,
)

PROVENANCE = {
    "origin": "measured",
    "source": "a stopwatch",
    "hardware": "1x H100",
    "model": "toy",
    "dtype": "bfloat16",
    "tp": 1,
    "engine": "SGLang 0.5.21",
    "date": "2026-11-01",
    "command": "by hand",
}


def model_of(**blocks: Any) -> CostModel:
    """The least file a person would write by hand, with the given blocks put in."""
    value: dict[str, Any] = {
        "schema_version": 1,
        "name": "toy",
        "kind": "table",
        "provenance": PROVENANCE,
        "valid_range": {"tokens": [1, 4], "requests": [1, 4], "context_tokens": [0, 1000]},
        "fit_error": None,
        "table": {
            "tokens": [1, 2, 4],
            "seconds": [0.01, 0.02, 0.05],
            "between": "staircase",
            "origin": "measured",
        },
        "prefill": {"base_s": 0.001, "token_s": 1e-5, "pair_s": 1e-9, "origin": "measured"},
        "host": {"step_s": 0.0005, "origin": "measured"},
        "graphs": {"tiers_tokens": [], "beyond_last_s": 0.0, "origin": "measured"},
    }
    value.update(blocks)
    return decode_cost_model({k: v for k, v in value.items() if v != "absent"}, where="toy.json")


def table_block(tokens: list[int], seconds: list[float], between: str) -> dict[str, Any]:
    return {"tokens": tokens, "seconds": seconds, "between": between, "origin": "measured"}


def valid(tokens: int, requests: int) -> dict[str, Any]:
    return {"tokens": [1, tokens], "requests": [1, requests], "context_tokens": [0, 1000]}


@st.composite
def curves(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    """Probes and non-decreasing times above zero."""
    sizes = sorted(draw(st.sets(st.integers(1, 200), min_size=1, max_size=12)))
    steps = draw(
        st.lists(st.floats(0.0, 0.05), min_size=len(sizes), max_size=len(sizes)).map(np.array)
    )
    return sizes, (1e-4 + np.cumsum(steps)).tolist()


@pytest.mark.example
def test_a_staircase_costs_what_the_next_probe_costs() -> None:
    verify_s = model_of().tables(4, 4).verify_s
    assert verify_s.tolist() == [0.0, 0.01, 0.02, 0.05, 0.05]


@pytest.mark.example
def test_beyond_the_last_captured_size_stands_the_cliff_and_then_the_line() -> None:
    model = model_of(
        table=table_block([1, 2, 4, 8], [0.01, 0.02, 0.2, 0.4], "staircase"),
        graphs={"tiers_tokens": [1, 2], "beyond_last_s": 0.0, "origin": "measured"},
    )
    verify_s = model.tables(8, 1).verify_s
    assert verify_s[1:].tolist() == pytest.approx([0.01, 0.02, 0.2, 0.2, 0.25, 0.3, 0.35, 0.4])


@pytest.mark.example
def test_leaving_the_graphs_costs_their_price_where_no_probe_shows_it() -> None:
    model = model_of(
        table=table_block([2, 4], [0.02, 0.04], "linear"),
        graphs={"tiers_tokens": [2, 4], "beyond_last_s": 0.1, "origin": "measured"},
    )
    verify_s = model.tables(5, 1).verify_s
    assert verify_s[1:].tolist() == pytest.approx([0.02, 0.02, 0.04, 0.04, 0.15])


@pytest.mark.example
def test_a_step_adds_up_its_parts() -> None:
    model = model_of(
        draft={
            "gamma": 3,
            "requests": [1, 2],
            "seconds": [0.001, 0.003],
            "between": "linear",
            "origin": "measured",
        },
        context={"token_s": 1e-6, "reference_tokens": 100, "origin": "measured"},
        valid_range=valid(4, 2),
    )
    tables = model.tables(4, 2)
    forward = 0.02 + 1e-6 * (350 - 200)
    assert verify_seconds(tables, 2, 2, 350.0, UNIFORM) == pytest.approx(forward)
    step = decode_step_seconds(tables, 2, 2, 1, 350.0, UNIFORM)
    assert step == pytest.approx(forward + 0.001 + 0.0005)


@pytest.mark.example
def test_a_short_context_leaves_at_least_a_quarter_of_the_forward() -> None:
    context = {"token_s": 1e-3, "reference_tokens": 1000, "origin": "measured"}
    tables = model_of(context=context).tables(4, 4)
    assert verify_seconds(tables, 4, 4, 0.0, UNIFORM) == 0.25 * 0.05


@pytest.mark.example
def test_prefill_is_linear_in_tokens_and_pairs_above_its_floor() -> None:
    prefill = {"base_s": 0.1, "token_s": 0.01, "pair_s": 0.001, "floor_s": 0.5}
    tables = model_of(prefill=prefill | {"origin": "measured"}).tables(4, 4)
    assert prefill_seconds(tables, 100, 50.0) == pytest.approx(0.1 + 1.0 + 0.05)
    assert prefill_seconds(tables, 1, 0.0) == 0.5
    assert prefill_seconds(tables, 0, 0.0) == 0.0


@pytest.mark.example
def test_nothing_drafted_and_nothing_verified_cost_nothing() -> None:
    tables = load_cost_model("h200-qwen3-14b-analytic").tables(64, 8)
    assert draft_seconds(tables, 0) == 0.0
    assert verify_seconds(tables, 0, 0, 0.0, UNIFORM) == 0.0


@pytest.mark.example
def test_a_model_warns_once_when_a_step_leaves_its_range() -> None:
    model = model_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.warn_outside(4, 4)
    with pytest.warns(UserWarning, match=r"'toy' is asked for 5 tokens, outside its range 1\.\.4"):
        model.warn_outside(5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.warn_outside(6, 9)
    with pytest.warns(UserWarning, match="9 requests"):
        model_of().warn_outside(4, 9)


@pytest.mark.law
@given(curve=curves(), most=st.integers(1, 300))
def test_a_staircase_equals_its_definition(curve: tuple[list[int], list[float]], most: int) -> None:
    sizes, seconds = curve
    model = model_of(
        table=table_block(sizes, seconds, "staircase"), valid_range=valid(sizes[-1], 1)
    )
    verify_s = model.tables(most, 1).verify_s
    for m in range(1, min(most, sizes[-1]) + 1):
        assert verify_s[m] == seconds[bisect.bisect_left(sizes, m)]


@pytest.mark.law
@given(curve=curves(), most=st.integers(1, 300))
def test_a_linear_table_equals_interpolation(
    curve: tuple[list[int], list[float]], most: int
) -> None:
    sizes, seconds = curve
    model = model_of(table=table_block(sizes, seconds, "linear"), valid_range=valid(sizes[-1], 1))
    tables = model.tables(most, 1)
    inside = np.arange(1, min(most, sizes[-1]) + 1)
    np.testing.assert_array_equal(tables.verify_s[inside], np.interp(inside, sizes, seconds))
    for m, value in zip(sizes, seconds, strict=True):
        if m <= most:
            assert tables.verify_s[m] == value


@pytest.mark.law
@given(alpha=curves(), theta=curves(), bias=st.floats(1e-4, 0.1))
def test_an_additive_model_equals_its_formula(
    alpha: tuple[list[int], list[float]], theta: tuple[list[int], list[float]], bias: float
) -> None:
    additive = {
        "bias_s": bias,
        "requests": alpha[0],
        "alpha_s": alpha[1],
        "tokens": theta[0],
        "theta_s": theta[1],
        "origin": "measured",
    }
    model = model_of(
        kind="additive",
        table="absent",
        additive=additive,
        valid_range=valid(theta[0][-1], alpha[0][-1]),
    )
    most, requests = theta[0][-1], alpha[0][-1]
    tables = model.tables(most, requests)
    for m, r in ((1, 1), (most, requests), ((most + 1) // 2, (requests + 1) // 2)):
        formula = bias + np.interp(r, *alpha) + np.interp(m, *theta)
        assert verify_seconds(tables, m, r, 0.0, UNIFORM) == pytest.approx(formula, rel=1e-12)


@st.composite
def models(draw: st.DrawFn) -> CostModel:
    """Tables of both sorts, with and without captured sizes and a price of leaving them."""
    sizes, seconds = draw(curves())
    between = draw(st.sampled_from(["staircase", "linear"]))
    tiers = sorted(draw(st.sets(st.integers(1, 250), max_size=6)))
    covers = not tiers or sizes[-1] <= tiers[-1]
    price = draw(st.floats(0.0, 0.1)) if covers else 0.0
    drafts, draft_seconds_ = draw(curves())
    return model_of(
        table=table_block(sizes, seconds, between),
        graphs={"tiers_tokens": tiers, "beyond_last_s": price, "origin": "measured"},
        draft={
            "gamma": 7,
            "requests": drafts,
            "seconds": draft_seconds_,
            "between": between,
            "origin": "measured",
        },
        valid_range=valid(sizes[-1], drafts[-1]),
    )


@pytest.mark.law
@settings(max_examples=200)
@given(model=models())
def test_times_never_decrease_with_tokens_or_requests(model: CostModel) -> None:
    tables = model.tables(400, 300)
    assert (np.diff(tables.verify_s) >= -1e-15).all()
    assert (np.diff(tables.draft_s) >= -1e-15).all()
    assert tables.verify_slope_s > 0


@pytest.mark.law
@settings(max_examples=200)
@given(model=models(), beyond=st.integers(1, 5000))
def test_beyond_the_last_probe_no_step_is_cheaper_per_token_than_on_average(
    model: CostModel, beyond: int
) -> None:
    assert model.table is not None
    last, last_s = model.table.tokens[-1], model.table.seconds[-1]
    padded = max(last, *model.graph_tiers, 1)
    for most in (last, 400):
        tables = model.tables(most, 1)
        for m in (last + beyond, padded + beyond):
            assert verify_seconds(tables, m, 1, 0.0, UNIFORM) >= last_s / last * m * (1 - 1e-12)
        after = verify_seconds(tables, padded + beyond + 1, 1, 0.0, UNIFORM)
        assert after > verify_seconds(tables, padded + beyond, 1, 0.0, UNIFORM)


@pytest.mark.law
@settings(max_examples=200)
@given(model=models(), short=st.integers(1, 300), beyond=st.integers(1, 200))
def test_a_shorter_table_never_prices_a_step_below_a_longer_one(
    model: CostModel, short: int, beyond: int
) -> None:
    long = model.tables(short + beyond, 1)
    price = verify_seconds(model.tables(short, 1), short + beyond, 1, 0.0, UNIFORM)
    assert price >= long.verify_s[short + beyond] * (1 - 1e-12)


@pytest.mark.law
@given(
    tokens=st.integers(1, 4000),
    requests=st.integers(1, 400),
    context=st.floats(0, 1e7),
    more=st.floats(0, 1e6),
)
def test_a_longer_context_never_makes_a_step_cheaper(
    tokens: int, requests: int, context: float, more: float
) -> None:
    tables = load_cost_model("b300x4-dsv4-flash-vllm").tables(2048, 256)
    price = verify_seconds(tables, tokens, requests, context, UNIFORM)
    assert verify_seconds(tables, tokens, requests, context + more, UNIFORM) >= price
    assert price >= 0.25 * tables.verify_s[min(tokens, 2048)]


@pytest.mark.law
@given(
    tokens=st.integers(1, 600),
    requests=st.integers(1, 80),
    drafted=st.integers(0, 80),
    context=st.floats(0.0, 1e6),
)
def test_compiled_prices_equal_the_documented_sum(
    tokens: int, requests: int, drafted: int, context: float
) -> None:
    tables = load_cost_model("b300x4-dsv4-flash-vllm").tables(300, 40)

    def read(values: Any, slope: float, size: int) -> float:
        last = len(values) - 1
        return float(values[min(size, last)]) + slope * max(size - last, 0)

    forward = read(tables.verify_s, tables.verify_slope_s, tokens)
    extra = tables.context_s * (context - requests * tables.context_reference_tokens)
    draft = read(tables.draft_s, tables.draft_slope_s, drafted)
    step_s = max(forward + extra, 0.25 * forward) + draft + tables.host_s
    assert decode_step_seconds(
        tables, tokens, requests, drafted, context, UNIFORM
    ) == pytest.approx(step_s, rel=1e-12)


@pytest.mark.example
@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_tables_of_no_size_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="0 must be at least 1"):
        model_of().tables(*sizes)


@pytest.mark.example
def test_the_range_for_warnings_is_the_models_not_the_tables() -> None:
    tables = load_cost_model("h200-qwen3-14b-sglang-pr35413").tables(16, 2)
    assert (tables.measured_tokens, tables.measured_requests) == (1024, 128)


@pytest.mark.example
def test_a_model_is_a_value() -> None:
    assert model_of() == model_of()
    assert dataclasses.replace(model_of(), name="other") != model_of()
