"""SGLang's step-cost files: its lookup rules, ours made from them, and theirs made from ours."""

from __future__ import annotations

import bisect
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.costs.library import load_cost_model, shipped_cost_models
from sglang_dspark.core.costs.sglang_files import SpsAdditiveTable, SpsTable, load_sglang_table
from sglang_dspark.core.costs.sglang_tables import from_additive, from_sps, to_additive, to_sps
from sglang_dspark.core.costs.tables import RAGGED, UNIFORM, decode_step_seconds, verify_seconds

SPS = SpsTable(
    sample_batch_tokens=(4, 8, 16), sample_steps_per_sec=(100.0, 80.0, 50.0), max_batch_tokens=32
)
ADDITIVE = SpsAdditiveTable(
    bias_seconds=0.01,
    bs_probes=(1, 8),
    alpha_seconds=(0.0, 0.007),
    m_probes=(8, 64),
    theta_seconds=(0.001, 0.057),
)


@st.composite
def sps_tables(draw: st.DrawFn) -> SpsTable:
    sizes = sorted(draw(st.sets(st.integers(1, 300), min_size=1, max_size=20)))
    rate = st.floats(0.5, 2000.0)
    rates = draw(st.lists(rate, min_size=len(sizes), max_size=len(sizes)))
    return SpsTable(
        sample_batch_tokens=tuple(sizes),
        sample_steps_per_sec=tuple(rates),
        max_batch_tokens=sizes[-1] + draw(st.integers(0, 50)),
    )


def _curve(draw: st.DrawFn, least: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    sizes = sorted(draw(st.sets(st.integers(1, 300), min_size=1, max_size=12)))
    steps = draw(st.lists(st.floats(0.0, 0.1), min_size=len(sizes), max_size=len(sizes)))
    return tuple(sizes), tuple((least + np.cumsum(steps)).tolist())


@st.composite
def additive_tables(draw: st.DrawFn) -> SpsAdditiveTable:
    requests, alpha = _curve(draw, 0.0)
    tokens, theta = _curve(draw, 0.0)
    return SpsAdditiveTable(
        bias_seconds=draw(st.floats(1e-4, 0.1)),
        bs_probes=requests,
        alpha_seconds=alpha,
        m_probes=tokens,
        theta_seconds=theta,
    )


@pytest.mark.example
def test_sglang_reads_the_probe_at_or_below_and_stays_flat_at_the_ends() -> None:
    assert SPS.dense(20)[[0, 3, 4, 7, 8, 15, 16, 20]].tolist() == [
        100.0, 100.0, 100.0, 100.0, 80.0, 80.0, 50.0, 50.0
    ]  # fmt: skip


@pytest.mark.law
@given(table=sps_tables(), most=st.integers(1, 400))
def test_the_dense_view_is_sglangs_floor_lookup(table: SpsTable, most: int) -> None:
    dense = table.dense(most)
    edges = list(table.sample_batch_tokens)
    for m in range(most + 1):
        # dspark_sps.floor_probe_index of SGLang 0.5.21, spelled out.
        index = max(0, min(bisect.bisect_right(edges, m) - 1, len(edges) - 1))
        assert dense[m] == table.sample_steps_per_sec[index]


@pytest.mark.law
@given(table=additive_tables(), requests=st.integers(0, 400), tokens=st.integers(0, 400))
def test_the_dense_parts_are_sglangs_clamped_lines(
    table: SpsAdditiveTable, requests: int, tokens: int
) -> None:
    def line(sizes: tuple[int, ...], values: tuple[float, ...], x: int) -> float:
        if x <= sizes[0]:
            return values[0]
        if x >= sizes[-1]:
            return values[-1]
        high = bisect.bisect_right(sizes, x)
        share = (x - sizes[high - 1]) / (sizes[high] - sizes[high - 1])
        return values[high - 1] + share * (values[high] - values[high - 1])

    alpha, theta = table.dense_alpha(400)[requests], table.dense_theta(400)[tokens]
    assert alpha == pytest.approx(line(table.bs_probes, table.alpha_seconds, requests), abs=1e-15)
    assert theta == pytest.approx(line(table.m_probes, table.theta_seconds, tokens), abs=1e-15)


@pytest.mark.law
@given(table=sps_tables())
def test_a_model_from_an_sps_table_is_never_faster_than_sglangs_reading(table: SpsTable) -> None:
    model = from_sps(table)
    tables = model.tables(400, 1)
    np.testing.assert_array_less(1.0 / table.dense(400)[1:], tables.verify_s[1:] * (1 + 1e-12))
    last = table.sample_batch_tokens[-1]
    assert verify_seconds(tables, 10 * last, 1, 0.0, UNIFORM) >= 10 * tables.verify_s[last] * (
        1 - 1e-12
    )


@pytest.mark.law
@given(table=sps_tables())
def test_a_decreasing_sps_table_survives_the_round_trip(table: SpsTable) -> None:
    rates = tuple(sorted(table.sample_steps_per_sec, reverse=True))
    falling = dataclasses.replace(
        table, sample_steps_per_sec=rates, max_batch_tokens=table.sample_batch_tokens[-1]
    )
    back = to_sps(from_sps(falling), gamma=7)
    assert back.sample_batch_tokens == falling.sample_batch_tokens
    assert back.sample_steps_per_sec == pytest.approx(falling.sample_steps_per_sec, rel=1e-14)


@pytest.mark.law
@given(table=additive_tables(), requests=st.integers(1, 300), tokens=st.integers(1, 300))
def test_a_model_from_an_additive_table_is_sglangs_within_and_dearer_beyond(
    table: SpsAdditiveTable, requests: int, tokens: int
) -> None:
    tables = from_additive(table).tables(300, 300)
    price = verify_seconds(tables, tokens, requests, 0.0, UNIFORM)
    alpha, theta = table.dense_alpha(300)[requests], table.dense_theta(300)[tokens]
    sglangs = table.bias_seconds + alpha + theta
    if tokens <= table.m_probes[-1] and requests <= table.bs_probes[-1]:
        assert price == pytest.approx(sglangs, rel=1e-12)
    assert price >= sglangs * (1 - 1e-12)
    if tokens > table.m_probes[-1]:
        assert price > sglangs


@pytest.mark.law
@given(table=additive_tables())
def test_an_additive_table_survives_the_round_trip(table: SpsAdditiveTable) -> None:
    back = to_additive(from_additive(table))
    assert back.m_probes == table.m_probes
    assert back.bs_probes == table.bs_probes
    for r, m in ((1, 1), (300, 300), (table.bs_probes[0], table.m_probes[-1])):
        ours = back.bias_seconds + back.dense_alpha(300)[r] + back.dense_theta(300)[m]
        theirs = table.bias_seconds + table.dense_alpha(300)[r] + table.dense_theta(300)[m]
        assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.law
@pytest.mark.parametrize("name", shipped_cost_models())
def test_every_shipped_model_exports_both_tables(name: str, tmp_path: Path) -> None:
    model = load_cost_model(name)
    sps, additive = to_sps(model, 7), to_additive(model)
    tables = model.tables(2048, 256)
    reference = tables.context_reference_tokens
    assert 30 <= len(sps.sample_batch_tokens) <= 64
    assert sps.sample_batch_tokens[-1] == model.graph_tiers[-1]
    for m, rate in zip(sps.sample_batch_tokens, sps.sample_steps_per_sec, strict=True):
        full = -(-m // 8)
        assert rate * decode_step_seconds(
            tables, m, full, full, full * reference, RAGGED
        ) == pytest.approx(1)
    assert additive.bias_seconds > 0
    assert len(additive.m_probes) <= 64
    for m in additive.m_probes:
        for r in additive.bs_probes:
            step_s = additive.bias_seconds + additive.dense_alpha(r)[r] + additive.dense_theta(m)[m]
            exact = decode_step_seconds(tables, m, r, r, r * reference, RAGGED)
            assert step_s == pytest.approx(exact, rel=1e-9)
    for table in (sps, additive):
        table.save(tmp_path / "table.json")
        assert load_sglang_table(tmp_path / "table.json") == table


@pytest.mark.example
def test_the_files_are_sglangs_own(tmp_path: Path) -> None:
    SPS.save(tmp_path / "sps.json")
    assert json.loads((tmp_path / "sps.json").read_text()) == {
        "sample_batch_tokens": [4, 8, 16],
        "sample_steps_per_sec": [100.0, 80.0, 50.0],
        "max_batch_tokens": 32,
    }
    ADDITIVE.save(tmp_path / "additive.json")
    assert set(json.loads((tmp_path / "additive.json").read_text())) == {
        "bias_seconds", "bs_probes", "alpha_seconds", "m_probes", "theta_seconds"
    }  # fmt: skip


@pytest.mark.example
def test_noise_in_an_sps_table_is_raised_and_counted() -> None:
    noisy = dataclasses.replace(SPS, sample_steps_per_sec=(100.0, 120.0, 50.0))
    table = from_sps(noisy).table
    assert table is not None
    assert table.seconds == (0.01, 0.01, 0.02)
    assert "1 of 3 raised to the running maximum" in table.note


@pytest.mark.example
def test_negative_parts_of_an_additive_table_move_into_the_bias() -> None:
    shifted = dataclasses.replace(ADDITIVE, theta_seconds=(-0.002, 0.054))
    model = from_additive(shifted)
    assert model.additive is not None
    assert model.additive.bias_s == pytest.approx(0.008)
    assert model.additive.theta_s[0] == 0.0
    with pytest.raises(ValueError, match="gives steps that take no time"):
        from_additive(dataclasses.replace(ADDITIVE, theta_seconds=(-0.02, 0.01)))


@pytest.mark.example
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sample_batch_tokens": [4, 4]}, "sample_batch_tokens [4, 4] must increase strictly"),
        ({"sample_batch_tokens": [4]}, "has 1 probes for 2 values"),
        ({"sample_batch_tokens": [], "sample_steps_per_sec": []}, "sample_batch_tokens is empty"),
        ({"sample_steps_per_sec": [1.0, 0.0]}, "sample_steps_per_sec 0 must be above 0"),
        ({"max_batch_tokens": 7}, "max_batch_tokens 7 is below the last probe 8; raise it"),
        ({"max_batch": 7}, "unknown key 'max_batch'; did you mean 'max_batch_tokens'?"),
        ({"bias_seconds": 0.1}, "unknown key 'sample_batch_tokens'"),
    ],
)
def test_a_wrong_sglang_file_is_refused_in_one_sentence(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    value = {"sample_batch_tokens": [4, 8], "sample_steps_per_sec": [9.0, 8.0]}
    path = tmp_path / "sps.json"
    path.write_text(json.dumps(value | {"max_batch_tokens": 8} | change))
    with pytest.raises(ValueError, match=r"sps\.json: ") as raised:
        load_sglang_table(path)
    assert sentence in str(raised.value)


@pytest.mark.example
def test_a_bias_of_nothing_is_refused_as_sglang_does() -> None:
    with pytest.raises(ValueError, match=r"bias_seconds 0\.0 must be above 0"):
        dataclasses.replace(ADDITIVE, bias_seconds=0.0)


@pytest.mark.golden
def test_floor_lookup_hides_the_cliff_that_the_cost_model_shows() -> None:
    model = load_cost_model("b300x4-dsv4-flash-vllm")
    sps = to_sps(model, 7).dense(1100)
    assert sps[1100] == sps[1024]
    assert model.tables(1100, 1).verify_s[1100] > 5 * model.tables(1100, 1).verify_s[1024]
