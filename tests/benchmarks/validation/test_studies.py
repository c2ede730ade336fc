"""The studies behind the validation page: their formulas as laws, and a few points run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from benchmarks.validation import basics, paper, transfer, vllm
from benchmarks.validation.record import Validation
from benchmarks.validation.scenes import experts_touched
from sglang_dspark.files import read_json, read_record
from simulator.acceptance.published.quadrature import accepted_length, conditional_acceptance

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


ROUNDED = 6e-6
"""The record keeps six digits."""


@pytest.fixture(scope="module")
def record() -> Validation:
    return read_record(BENCHMARKS / "results" / "validation.json", Validation)


@pytest.fixture(scope="module")
def records() -> dict[str, Any]:
    found: dict[str, Any] = read_json(BENCHMARKS / "published_serving.json")["records"]
    return found


@pytest.mark.law
@given(tokens=some.integers(1, 4096), experts=some.integers(8, 512), share=some.integers(1, 8))
def test_the_experts_that_tokens_touch_grow_from_one_tokens_to_all(
    tokens: int, experts: int, share: int
) -> None:
    touched = experts_touched([1, tokens, tokens + 1, 10**6], experts=experts, per_token=share)
    assert touched[0] == pytest.approx(share / experts)
    assert touched[0] <= touched[1] <= touched[2] <= touched[3]
    assert touched[3] == pytest.approx(1.0)


@pytest.mark.example
def test_the_expected_share_of_experts_is_what_random_choices_touch() -> None:
    rng = np.random.default_rng(0)
    seen = [
        len({int(e) for _ in range(20) for e in rng.choice(64, 6, replace=False)}) / 64
        for _ in range(400)
    ]
    expected = float(experts_touched(20, experts=64, per_token=6))
    assert np.mean(seen) == pytest.approx(expected, abs=0.01)


@pytest.mark.law
@given(
    slow=some.floats(20, 90), faster=some.floats(1.1, 2.0), load=some.floats(30, 200),
    length=some.floats(1.0, 2.0),
)  # fmt: skip
def test_the_fitted_step_gives_both_anchors_their_speed(
    slow: float, faster: float, load: float, length: float
) -> None:
    fast, few = slow * faster, load / 10
    step = paper.fitted_step([[slow, slow * load], [fast, fast * few]], length)
    for speed, requests in ((slow, load), (fast, few)):
        step_s = step.base_s + 2 * requests * step.token_s
        assert length / step_s == pytest.approx(speed)


@pytest.mark.law
@given(
    gaps=some.lists(some.floats(0.0, 10.0), min_size=1, max_size=30),
    seed=some.integers(0, 10**6),
)
def test_unrolled_waits_are_lindleys_recursion(gaps: list[float], seed: int) -> None:
    service_s = np.random.default_rng(seed).exponential(3.0, len(gaps))
    arrival_s = np.cumsum(gaps)
    wait_s = 0.0
    for i, found in enumerate(basics.lindley_s(arrival_s, service_s)):
        if i:
            wait_s = max(0.0, wait_s + service_s[i - 1] - gaps[i])
        assert found == pytest.approx(wait_s, abs=1e-9)


@pytest.mark.golden
def test_acceptance_keeps_what_was_published_of_it(
    record: Validation, records: dict[str, Any]
) -> None:
    truth = transfer.survival_process(records, transfer.Assumed())
    survival = np.cumprod(conditional_acceptance(truth))
    text = records["vllm-blog-text"]
    assert accepted_length(truth) == pytest.approx(text["accepted_length"])
    assert survival[0] > text["survival_first_least"]
    assert survival[-1] < text["survival_last_most"]
    np.testing.assert_allclose(record.frontier.survival, survival, rtol=ROUNDED)


@pytest.mark.golden
def test_calibrated_again_the_frontier_shows_the_committed_points(
    record: Validation, records: dict[str, Any]
) -> None:
    study = vllm.Study(records)
    costs = study.calibrated()
    kept = record.frontier.transfer
    assert costs.transfer.base_s == pytest.approx(kept.base_s, rel=ROUNDED)
    assert costs.transfer.experts_s == pytest.approx(kept.experts_s, rel=ROUNDED)
    for arm, load in (("none", 1), ("none", 256), ("adaptive", 256)):
        point = next(p for p in record.frontier.points if (p.arm, p.concurrency) == (arm, load))
        seeds = range(record.frontier.seeds if arm == "adaptive" else 1)
        speeds = [study.run(costs.model, point.policy, load, seed) for seed in seeds]
        found = np.mean(speeds, axis=0)
        kept_figures = (
            point.predicted_tok_s, point.predicted_user_tok_s, point.accepted_length,
            point.verified_tokens,
        )  # fmt: skip
        np.testing.assert_allclose(found, kept_figures, rtol=ROUNDED)
        if arm == "none":  # calibrated on: the replay shows the published speed
            assert found[1] == pytest.approx(study.published(arm, load)[0], rel=1e-4)


@pytest.mark.golden
def test_a_point_of_figure_8_comes_out_as_committed(
    record: Validation, records: dict[str, Any]
) -> None:
    kept = record.paper[0]
    _, dspark = paper.methods()
    share = records["sequential-head"]["round_share"][1]
    costs = paper.cost_model(paper.Step(kept.base_s, kept.token_s), head_share=share)
    rates = paper.run(dspark, costs, 96)
    point = next(p for p in kept.points if (p.method, p.concurrency) == ("DSpark-5", 96))
    # The step's own two numbers are rounded, and a budget may flip on the last digit.
    assert rates.tok_s == pytest.approx(point.predicted_tok_s, rel=2e-3)
    assert rates.verified_tokens == pytest.approx(point.predicted_budget, rel=2e-3)
