"""Wrong beliefs: what the policy is told changes by what was said, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.costs.library import load_cost_model, shipped_cost_models
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import parse_policy
from simulator.fleet.fleet import simulate
from simulator.fleet.mistakes import MISTAKES, Mistake, believes, miscalibrated, mispriced, mistaken
from tests.simulator.replay_scenes import scenario, trace


@pytest.mark.law
@pytest.mark.parametrize("name", shipped_cost_models())
@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2])
def test_the_growth_of_a_step_scales_and_its_smallest_size_does_not(
    name: str, factor: float
) -> None:
    model = load_cost_model(name)
    most = model.valid_range.tokens[1]
    right = model.tables(most, 8)
    wrong = mispriced(model, factor).tables(most, 8)
    base = right.verify_s[1]
    tiers = model.graph_tiers
    inside = slice(1, tiers[-1] + 1 if tiers else most + 1)
    expected = base + factor * (right.verify_s - base)
    np.testing.assert_allclose(wrong.verify_s[inside], expected[inside], rtol=1e-9)
    np.testing.assert_array_equal(wrong.draft_s, right.draft_s)
    assert mispriced(model, factor).graph_tiers == model.graph_tiers


@pytest.mark.law
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.label)
def test_a_wrong_calibration_reads_the_logits_scaled_and_shifted(mistake: Mistake) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(9, 7))
    file = replace(
        parse_policy("global"),
        calibration=Calibration(temperatures=(1.3,) * 7, biases=tuple(rng.normal(size=7))),
    )
    asked = scenario("global", trace(2))
    survivals = []
    for read, seen in (
        (file, mistake.logit_scale * logits + mistake.logit_shift),
        (miscalibrated(file, 7, mistake), logits),
    ):
        planner = Planner(
            policy=read.policy, cost_model=asked.cost_model, gamma=7, max_requests=16,
            calibration=read.calibration,
        )  # fmt: skip
        survivals.append(planner.survival(seen))
    np.testing.assert_allclose(survivals[0], survivals[1], rtol=1e-9)


@pytest.mark.law
def test_a_mistake_changes_decisions_and_not_the_truth() -> None:
    asked = scenario("global", trace(150, rate=200.0))
    right = simulate(asked)
    verified = {"right": int(right.requests["verified"].sum())}
    for mistake in MISTAKES:
        outcome = simulate(mistaken(asked, mistake))
        verified[mistake.label] = int(outcome.requests["verified"].sum())
        if not mistake.prices:
            assert outcome.scenario.cost_model is asked.cost_model
        assert outcome.scenario.acceptance is asked.acceptance
        np.testing.assert_array_equal(outcome.requests["generated"], right.requests["generated"])
    assert verified["confidence logits +0.5"] > verified["right"]
    assert verified["confidence logits −0.5"] < verified["right"]
    assert verified["growth of step cost −20 %"] >= verified["growth of step cost +20 %"]


@pytest.mark.example
def test_policies_that_look_at_nothing_believe_nothing() -> None:
    names = ("none", "fixed", "fixed:3", "threshold:0.6", "early_stop", "global", "sglang")
    assert [believes(parse_policy(name)) for name in names] == [False] * 3 + [True] * 4
