"""The calibration error: each sum against a count by hand, what is censored, what it costs."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
import pytest

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.runtime import drift
from sglang_dspark.runtime.drift import HALF_LIFE_ROWS, LEAST_ROWS, Drift, outcome_of
from tests.logs.step_records import GAMMA, MODEL, random_record

CALIBRATION = Calibration(temperatures=(1.5, 0.7, 1.0, 2.0), biases=(0.1, 0.0, -0.4, 0.2))


def record_of(
    logits: Any, lengths: Any, accepted: Any, *, degraded: str = "", seed: int = 0
) -> StepRecord:
    logits = np.asarray(logits, dtype=np.float64)
    record = random_record(seed, rows=len(logits))
    plan = dataclasses.replace(record.plan, lengths=np.asarray(lengths, dtype=np.int64))
    accepted = np.asarray(accepted, dtype=np.int64)
    state = dataclasses.replace(record.state, logits=logits)
    fields = {"state": state, "plan": plan, "accepted": accepted, "degraded": degraded}
    return dataclasses.replace(record, **fields)


def drawn(rng: np.random.Generator, rows: int, lengths: Any, shift: float = 0.0) -> StepRecord:
    """Acceptance is drawn from sigmoid(z + shift) at every position."""
    logits = rng.normal(1.0, 1.5, (rows, GAMMA))
    passed = rng.random((rows, GAMMA)) < 1 / (1 + np.exp(-logits - shift))
    run = np.cumprod(passed, axis=1).sum(axis=1)
    lengths = np.broadcast_to(lengths, rows)
    return record_of(logits, lengths, np.minimum(run, lengths))


@pytest.mark.example
def test_two_requests_by_hand() -> None:
    """The first is cut after 2 of its 4 and both pass; the second fails at its second token."""
    judge = Drift(GAMMA)
    judge.observe(record_of([[0, math.log(3), 9, 9], [0, 0, 9, 9]], [2, 4], [2, 1]))
    found = judge.read()
    assert found.rows.tolist() == [2, 2, 0, 0]
    assert found.confidence.tolist() == pytest.approx([1.0, 0.75 + 0.5, 0.0, 0.0])
    assert found.accepted.tolist() == [2, 1, 0, 0]
    assert np.isnan(found.error).all()


@pytest.mark.law
def test_sums_equal_a_loop_over_the_rows() -> None:
    judge = Drift(GAMMA, CALIBRATION)
    records = [random_record(seed, rows=1 + seed % 9) for seed in range(60)]
    records = [
        dataclasses.replace(r, degraded="confidences were NaN") if i % 7 == 0 else r
        for i, r in enumerate(records)
    ]
    scale, bias = CALIBRATION.arrays(GAMMA)
    rows, confidence, accepted = np.zeros((3, GAMMA))
    for i, record in enumerate(records):
        judge.observe(record)
        if i % 11 == 0:
            judge.read()
        for r in range(record.requests if not record.degraded else 0):
            for k in range(min(record.plan.lengths[r], record.accepted[r] + 1)):
                z = record.state.logits[r, k] * scale[k] + bias[k]
                rows[k] += 1
                confidence[k] += 0.0 if z == -math.inf else 1 / (1 + math.exp(-z))
                accepted[k] += record.accepted[r] > k
    found = judge.read()
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.accepted, accepted)
    np.testing.assert_allclose(found.confidence, confidence, rtol=1e-12)
    assert (rows > 20).all()


@pytest.mark.law
def test_honest_confidences_have_little_error_whatever_is_cut_by_them() -> None:
    """Lengths go by the confidences themselves, as policies' do, and the error stays at noise."""
    rng = np.random.default_rng(1)
    judge = Drift(GAMMA)
    for _ in range(40):
        whole = drawn(rng, 400, GAMMA)
        survival = np.cumprod(1 / (1 + np.exp(-whole.state.logits)), axis=1)
        lengths = (survival > 0.4).sum(axis=1)
        accepted = np.minimum(whole.accepted, lengths)
        judge.observe(record_of(whole.state.logits, lengths, accepted))
    found = judge.read()
    assert (found.rows > LEAST_ROWS).all()
    assert (found.error < 0.025).all(), found.error
    np.testing.assert_allclose(
        found.confidence / found.rows, found.accepted / found.rows, atol=0.02
    )


@pytest.mark.law
def test_a_drift_shows_and_what_is_over_is_forgotten() -> None:
    rng = np.random.default_rng(2)
    judge = Drift(GAMMA)
    for _ in range(20):
        judge.observe(drawn(rng, 500, GAMMA))
    assert (judge.read().error < 0.03).all()
    for _ in range(80):
        judge.observe(drawn(rng, 500, GAMMA, shift=-1.5))
        judge.read()
    drifted = judge.read()
    assert drifted.rows[0] > 8 * HALF_LIFE_ROWS
    assert (drifted.error[:2] > 0.2).all(), drifted.error
    for _ in range(80):
        judge.observe(drawn(rng, 500, GAMMA))
        judge.read()
    assert judge.read().error[0] < 0.03


@pytest.mark.law
def test_positions_that_nobody_verifies_stand_still() -> None:
    rng = np.random.default_rng(3)
    judge = Drift(GAMMA)
    for _ in range(10):
        judge.observe(drawn(rng, 500, GAMMA))
    before = judge.read()
    for _ in range(10):
        judge.observe(drawn(rng, 500, 2, shift=-2.0))
    after = judge.read()
    assert (after.rows[:2] > before.rows[:2]).all()
    assert (after.error[:2] > before.error[:2] + 0.1).all()
    np.testing.assert_array_equal(after.rows[2:], before.rows[2:])
    np.testing.assert_array_equal(after.error[2:], before.error[2:])


@pytest.mark.example
def test_extreme_confidences_are_no_trouble() -> None:
    judge = Drift(GAMMA)
    edge = [[-math.inf] * GAMMA, [math.inf] * GAMMA, [-1e4] * GAMMA, [1e4] * GAMMA]
    judge.observe(record_of(edge, [GAMMA] * 4, [0, GAMMA, 0, GAMMA]))
    found = judge.read()
    assert found.confidence.tolist() == [2.0, 2.0, 2.0, 2.0]
    assert found.rows.tolist() == [4, 2, 2, 2]


@pytest.mark.example
def test_with_nobody_reading_it_keeps_the_latest_steps_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drift, "MOST_PENDING", 5)
    judge = Drift(GAMMA)
    for length in (1, 1, 1, 4, 4, 4, 4, 4):
        judge.observe(record_of([[0.0] * GAMMA], [length], [length]))
    assert judge.read().rows.tolist() == [5, 5, 5, 5]


@pytest.mark.law
def test_the_scheduler_pays_a_microsecond() -> None:
    judge = Drift(GAMMA)
    record = random_record(1, rows=256)
    times = []
    for _ in range(2000):
        start = time.perf_counter()
        judge.observe(record)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 10e-6


@pytest.mark.example
def test_metrics_tell_calibration_and_who_decides() -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    from sglang_dspark.runtime.metrics import WorkerMetrics

    registry = prometheus_client.CollectorRegistry()
    metrics = WorkerMetrics(
        gamma=GAMMA,
        policy="global",
        cost_model=None,
        labels={"tp_rank": 0},
        calibration=CALIBRATION,
        interval_s=0,
        registry=registry,
    )

    def read(name: str, **labels: str) -> Any:
        return registry.get_sample_value(f"sglang:dspark_{name}", {"tp_rank": "0", **labels})

    assert read("policy_changes_total", to="policy") == 0
    assert read("calibration_rows_total", position="1") == 0
    assert read("calibration_error", position="1") is None
    rng, judge = np.random.default_rng(4), Drift(GAMMA, CALIBRATION)
    nan = "confidences were NaN"
    for degraded in ("", "", nan, nan, "", "length was forced", ""):
        record = dataclasses.replace(drawn(rng, 600, [1, 2, 3] * 200), degraded=degraded)
        metrics.observe(record)
        judge.observe(record)
    metrics.flush()
    wanted = judge.read()
    assert read("policy_changes_total", to=nan) == 1
    assert read("policy_changes_total", to="length was forced") == 1
    assert read("policy_changes_total", to="policy") == 2
    for k in range(GAMMA):
        at_k = {"position": str(k + 1)}
        assert read("calibration_rows_total", **at_k) == wanted.rows[k]
        assert read("calibration_accepted_total", **at_k) == wanted.accepted[k]
        assert read("calibration_confidence_total", **at_k) == pytest.approx(wanted.confidence[k])
    assert read("calibration_error", position="1") == pytest.approx(wanted.error[0])
    assert read("calibration_error", position="4") is None
    summary = metrics.summary()
    assert summary["calibration"]["rows"] == wanted.rows.tolist()
    assert summary["calibration"]["error"][3] is None
    assert summary["calibration"]["confidence"][3] is None
    share = wanted.accepted[0] / wanted.rows[0]
    assert summary["calibration"]["acceptance"][0] == pytest.approx(share)
    assert summary["policy_changes"] == {nan: 1, "length was forced": 1, "policy": 2}


@pytest.mark.example
def test_a_steps_outcome_carries_what_a_correction_learns_from() -> None:
    record = random_record(7, rows=5)
    found = outcome_of(record)
    assert found.logits is record.state.logits
    assert found.lengths is record.plan.lengths
    assert found.accepted is record.accepted
    assert found.context_tokens == record.state.context_tokens.sum()
    assert found.computed_tokens == record.computed_tokens
    assert sum(found.seconds) == pytest.approx(record.step_s)
    assert found.seconds[:2] == (record.draft_s, record.verify_s)
    assert found.planned
    assert not outcome_of(dataclasses.replace(record, degraded="length was forced")).planned


@pytest.mark.example
def test_metrics_show_the_corrections_in_force() -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    from sglang_dspark.core.corrected_planner import CorrectedPlanner
    from sglang_dspark.core.correction import Correction
    from sglang_dspark.core.policy import GlobalBudget
    from sglang_dspark.runtime.metrics import WorkerMetrics

    planner = CorrectedPlanner(
        policy=GlobalBudget(),
        cost_model=MODEL,
        gamma=GAMMA,
        max_requests=16,
        correction=Correction(cost=True, calibration=True, half_life_steps=5.0),
    )
    registry = prometheus_client.CollectorRegistry()
    metrics = WorkerMetrics(
        gamma=GAMMA,
        policy="global",
        cost_model=MODEL.name,
        labels={"tp_rank": 0},
        corrected=planner,
        interval_s=0,
        registry=registry,
    )

    def read(name: str, **labels: str) -> Any:
        return registry.get_sample_value(f"sglang:dspark_{name}", {"tp_rank": "0", **labels})

    assert read("correction_seconds_factor", part="verify") is None
    for seed in range(9):
        planner.learn(outcome_of(random_record(seed, rows=8)))
    metrics.flush()
    seconds, odds = planner.in_force()
    assert read("correction_seconds_factor", part="verify") == seconds[1] != 1
    assert read("correction_odds_factor", position="2") == odds[1] != 1
    summary = metrics.summary()
    assert list(summary["correction_seconds_factor"].values()) == seconds.tolist()
    assert list(summary["correction_odds_factor"]) == ["1", "2", "3", "4"]
