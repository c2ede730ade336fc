"""Wrong beliefs: what they change, and that what is true stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_scenes import PROFILE, cost_model, scenario, trace

from sglang_dspark.core.cost import CostModel, load_cost_model
from simulator.fleet import simulate
from simulator.sensitivity import DriftedProfile, verify_scaled

ADDITIVE = cost_model(
    kind="additive",
    table=None,
    additive={
        "bias_s": 0.008, "requests": [1, 512], "alpha_s": [0.0, 0.003], "tokens": [1, 4096],
        "theta_s": [0.0, 0.1], "origin": "analytic",
    },
)  # fmt: skip
KINDS = [
    load_cost_model("b300x4-dsv4-flash-vllm"),
    load_cost_model("h200-qwen3-14b-analytic"),
    ADDITIVE,
]


@pytest.mark.law
@pytest.mark.parametrize("model", KINDS, ids=lambda model: model.kind)
@settings(max_examples=5, deadline=None)
@given(factor=st.floats(0.5, 2.0))
def test_only_the_target_s_forward_is_scaled(model: CostModel, factor: float) -> None:
    tokens = min(2048, model.valid_range.tokens[1])
    true, stale = model.tables(tokens, 256), verify_scaled(model, factor).tables(tokens, 256)
    np.testing.assert_allclose(stale.verify_s, true.verify_s * factor, rtol=1e-12)
    np.testing.assert_allclose(stale.request_s, true.request_s * factor, rtol=1e-12)
    np.testing.assert_array_equal(stale.draft_s, true.draft_s)
    assert stale.prefill_token_s == true.prefill_token_s
    assert stale.host_s == true.host_s


@pytest.mark.law
def test_a_stale_table_changes_plans_but_not_what_a_step_costs() -> None:
    requests = trace(80, rate=30)
    stale = verify_scaled(cost_model(), 1.5)
    fixed = [simulate(scenario("fixed", requests, belief=b)).requests for b in (None, stale)]
    assert fixed[0].tobytes() == fixed[1].tobytes()
    planned = [simulate(scenario("global", requests, belief=b)).requests for b in (None, stale)]
    assert planned[1]["verified"].sum() < planned[0]["verified"].sum()


@pytest.mark.law
@pytest.mark.parametrize(("shift", "factor"), [(0.5, 1.0), (-0.5, 1.0), (0.0, 0.8), (0.2, 1.25)])
def test_a_drift_moves_confidences_and_nothing_that_is_accepted(
    shift: float, factor: float
) -> None:
    requests = trace(80, rate=30)
    drifted = DriftedProfile(base=PROFILE, shift=shift, factor=factor)
    fixed = [
        simulate(scenario("fixed", requests, acceptance=p)).requests for p in (PROFILE, drifted)
    ]
    assert fixed[0].tobytes() == fixed[1].tobytes()
    seen = [
        simulate(scenario("threshold:0.7", requests, acceptance=p)).requests["verified"].sum()
        for p in (PROFILE, drifted)
    ]
    # sigmoid(f z + s) < 0.7 where z < (logit 0.7 - s) / f.
    cut = np.log(0.7 / 0.3)
    assert (seen[1] > seen[0]) == ((cut - shift) / factor < cut)


@pytest.mark.example
def test_impossible_factors_are_refused() -> None:
    with pytest.raises(ValueError, match="factor 0 must be above 0"):
        verify_scaled(cost_model(), 0)
    with pytest.raises(ValueError, match="factor -1 must be above 0"):
        DriftedProfile(base=PROFILE, factor=-1)
