"""The price of a step's shape: uniform or ragged, decided or not, and the host beside the device.

The model by hand is 8.5 ms + (M - 1) 33 us a forward, between its first probe and its last.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.costs.model import as_json, decode_cost_model
from sglang_dspark.core.costs.sglang_tables import to_additive, to_sps
from sglang_dspark.core.costs.tables import (
    DECIDED,
    PLAIN,
    RAGGED,
    UNIFORM,
    CostTables,
    decode_step_seconds,
    verify_seconds,
)
from tests.simulator.replay_scenes import cost_model

SHAPES = (UNIFORM, DECIDED, RAGGED, PLAIN)
TIERS = [8, 16, 32, 64]


def tables_of(tiers: list[int], **blocks: dict[str, Any]) -> CostTables:
    """Of the model by hand with these graph tiers and these blocks of schema 3."""
    graphs = {"tiers_tokens": tiers, "beyond_last_s": 0.0, "origin": "measured"}
    made = {name: value | {"origin": "measured"} for name, value in blocks.items()}
    return cost_model(schema_version=3, graphs=graphs, **made).tables(128, 16)


def forward_s(tables: CostTables, tokens: int, shape: int) -> float:
    """At the reference context of one request."""
    return verify_seconds(tables, tokens, 1, tables.context_reference_tokens, shape)


@pytest.mark.law
@given(st.integers(1, 128))
def test_without_the_blocks_no_shape_is_dearer(tokens: int) -> None:
    tables = tables_of(TIERS)
    steps = {decode_step_seconds(tables, tokens, 1, 1, 0.0, shape) for shape in SHAPES}
    assert len(steps) == 1


@pytest.mark.law
@given(st.integers(1, 128))
def test_an_eager_ragged_step_pays_its_tokens_or_its_floor_and_no_padding(tokens: int) -> None:
    tables = tables_of(TIERS, ragged={"tiers_tokens": [], "floor_s": 0.0095, "step_s": 0.0004})
    unpadded_s = forward_s(tables_of([]), tokens, UNIFORM)
    assert forward_s(tables, tokens, RAGGED) == pytest.approx(max(0.0095, unpadded_s + 0.0004))
    padded_s = forward_s(tables_of(TIERS), tokens, UNIFORM)
    for shape in (UNIFORM, DECIDED):
        assert forward_s(tables, tokens, shape) == padded_s


@pytest.mark.law
@given(st.integers(1, 128))
def test_ragged_steps_have_tiers_of_their_own_or_those_of_uniform_ones(tokens: int) -> None:
    own = tables_of([8], ragged={"tiers_tokens": TIERS})
    assert forward_s(own, tokens, RAGGED) == forward_s(tables_of(TIERS), tokens, UNIFORM)
    shared = tables_of(TIERS, ragged={"step_s": 0.001})
    assert forward_s(shared, tokens, RAGGED) == pytest.approx(
        forward_s(shared, tokens, UNIFORM) + 0.001
    )


@pytest.mark.law
@given(st.integers(1, 128), st.integers(1, 16), st.floats(0.0, 20_000.0))
def test_deciding_costs_by_step_and_by_request_and_only_who_decides(
    tokens: int, requests: int, context: float
) -> None:
    tables = tables_of(TIERS, adaptive={"step_s": 0.001, "request_s": 2e-5})
    size = (tokens, requests, requests, context)
    plain_s = decode_step_seconds(tables, *size, UNIFORM)
    assert plain_s == decode_step_seconds(tables_of(TIERS), *size, UNIFORM)
    for shape in (DECIDED, RAGGED):
        found = decode_step_seconds(tables, *size, shape)
        assert found == pytest.approx(plain_s + 0.001 + 2e-5 * requests)


@pytest.mark.law
@given(st.integers(1, 128), st.sampled_from(SHAPES))
def test_the_host_beside_the_device_is_the_least_a_step_takes(tokens: int, shape: int) -> None:
    tables = tables_of(TIERS, overlapped={"step_s": 0.0125}, host={"step_s": 0.0005})
    device_s = decode_step_seconds(tables_of(TIERS), tokens, 1, 1, 0.0, shape)
    found = decode_step_seconds(tables, tokens, 1, 1, 0.0, shape)
    assert found == pytest.approx(max(device_s, 0.0125) + 0.0005)


@pytest.mark.law
def test_the_tables_for_sglang_are_those_of_the_steps_its_planner_chooses_among() -> None:
    blocks: dict[str, dict[str, Any]] = {
        "ragged": {"floor_s": 0.0095, "step_s": 0.0004},
        "adaptive": {"step_s": 0.001, "request_s": 2e-5},
    }
    made = {name: value | {"origin": "measured"} for name, value in blocks.items()}
    graphs = {"tiers_tokens": TIERS, "beyond_last_s": 0.0, "origin": "measured"}
    model = cost_model(schema_version=3, graphs=graphs, **made)
    tables, sps, additive = model.tables(128, 16), to_sps(model, 7), to_additive(model)
    context = tables.context_reference_tokens
    for m, rate in zip(sps.sample_batch_tokens, sps.sample_steps_per_sec, strict=True):
        full = -(-m // 8)
        step_s = decode_step_seconds(tables, m, full, full, full * context, RAGGED)
        assert 1 / rate == pytest.approx(step_s)
        read_s = additive.bias_seconds + additive.dense_alpha(full)[full]
        assert read_s + additive.dense_theta(m)[m] == pytest.approx(step_s)


@pytest.mark.example
@pytest.mark.parametrize("block", ["ragged", "adaptive", "overlapped"])
def test_older_schemas_have_no_such_block(block: str) -> None:
    value = {"step_s": 0.001, "origin": "measured"}
    with pytest.raises(ValueError, match=f"'{block}' block is one of schema 3; set schema_version"):
        cost_model(schema_version=2, **{block: value})
    model = cost_model(schema_version=3, **{block: value})
    assert decode_cost_model(json.loads(json.dumps(as_json(model))), where="again") == model
    with pytest.raises(ValueError, match=f"{block} step_s -1 must be a finite number of at least"):
        cost_model(schema_version=3, **{block: value | {"step_s": -1.0}})


@pytest.mark.law
@given(st.integers(1, 64))
def test_a_plain_step_is_padded_to_graphs_of_its_own(requests: int) -> None:
    tables = tables_of(TIERS, plain={"tiers_tokens": [1, 2, 4, 48, 64]})
    tier = next(tier for tier in (1, 2, 4, 48, 64) if tier >= requests)
    assert forward_s(tables, requests, PLAIN) == forward_s(tables_of([]), tier, UNIFORM)
    assert forward_s(tables, requests, UNIFORM) == forward_s(tables_of(TIERS), requests, UNIFORM)


def test_a_plain_part_without_graphs_is_refused() -> None:
    with pytest.raises(ValueError, match="plain tiers_tokens"):
        tables_of(TIERS, plain={"tiers_tokens": []})
