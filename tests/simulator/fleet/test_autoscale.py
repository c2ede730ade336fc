"""Autoscaling: within bounds, no replica before its time, no request lost, every second paid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine.layout import COMPLETED, Records
from simulator.fleet.autoscale import Scaler
from simulator.fleet.config import (
    ROUTERS,
    AutoscaleConfig,
    FailureConfig,
    FleetConfig,
    PoolConfig,
)
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Outcome
from simulator.slo import PRESETS
from simulator.study.metrics import measure
from tests.simulator.replay_scenes import scenario, trace
from traces import Trace


def scaled(
    requests: Trace,
    router: str = "least-loaded",
    *,
    start: int = 1,
    failures: FailureConfig | None = None,
    **settings_: Any,
) -> tuple[Outcome, list[tuple[int, Records]]]:
    """The outcome and every replica's steps."""
    given_ = {
        "target_in_flight": 8.0, "most": 6, "startup_s": 5.0, "interval_s": 2.0,
        "stabilisation_s": 20.0,
    }  # fmt: skip
    pool = PoolConfig(replicas=start, autoscale=AutoscaleConfig(**(given_ | settings_)))
    fleet = FleetConfig(router=router, pools=(pool,), failures=failures)
    steps: list[tuple[int, Records]] = []
    case = scenario("fixed", requests, fleet=fleet, step_capacity=1024)
    outcome = simulate(case, on_steps=lambda i, s: steps.append((i, s.copy())), check=True)
    return outcome, steps


def paid_at(outcome: Outcome, time_s: float) -> int:
    return sum(since <= time_s < to for spans in outcome.spans for since, to in spans)


@pytest.mark.law
@given(
    st.lists(st.tuples(st.floats(0.1, 50.0), st.integers(0, 300)), min_size=1, max_size=30),
    st.integers(1, 4),
    st.integers(0, 8),
)
def test_the_decision_is_the_most_wanted_lately_and_within_bounds(
    history: list[tuple[float, int]], least: int, more: int
) -> None:
    config = AutoscaleConfig(
        target_in_flight=8.0, least=least, most=least + more, startup_s=1.0, stabilisation_s=60.0
    )
    scaler = Scaler(config)
    times = np.cumsum([gap for gap, _ in history])
    for i, (now_s, (_, in_flight)) in enumerate(zip(times, history, strict=True)):
        decided = scaler.decide(float(now_s), in_flight)
        recent = [n for t, (_, n) in zip(times, history[: i + 1], strict=False) if t >= now_s - 60]
        assert decided == min(max(math.ceil(max(recent) / 8), least), least + more)


@pytest.mark.law
def test_a_burst_brings_replicas_after_their_delay_and_the_lull_takes_them_back() -> None:
    burst = np.sort(np.random.default_rng(1).uniform(0.0, 60.0, 1200))
    calm = np.linspace(61.0, 160.0, 100)
    requests = trace(1300, arrival_s=np.concatenate((burst, calm)), output_mean=200.0)
    outcome, steps = scaled(requests)
    assert (outcome.requests["status"] == COMPLETED).all()
    counts = [paid_at(outcome, t) for t in np.arange(0.0, 160.0, 0.5)]
    assert counts[0] == 1
    assert 3 <= max(counts) <= 6
    assert counts[-1] == 1, "the lull must let them go"
    for number, records in steps:
        for start_s in records["start_s"]:
            spans = outcome.spans[number]
            held = [span for span in spans if span[0] <= start_s <= span[1]]
            assert held, "a step of a replica that nobody pays for"
            assert start_s == 0.0 or number == 0 or start_s >= held[0][0] + 5.0


@pytest.mark.law
def test_a_constant_load_settles() -> None:
    n = 3000
    requests = trace(
        n, arrival_s=np.arange(n) / 15.0, prompt_tokens=np.full(n, 300),
        output_tokens=np.full(n, 150),
    )  # fmt: skip
    outcome, _ = scaled(requests, target_in_flight=6.0)
    counts = {paid_at(outcome, t) for t in np.arange(100.0, 199.0, 1.0)}
    assert len(counts) == 1
    assert 1 < counts.pop() < 6


@pytest.mark.law
@settings(max_examples=15, deadline=None)
@given(
    router=st.sampled_from(ROUTERS),
    start=st.integers(1, 3),
    target=st.floats(0.5, 20.0),
    interval_s=st.floats(0.2, 3.0),
    startup_s=st.floats(0.0, 4.0),
    stabilisation_s=st.floats(0.0, 4.0),
    seed=st.integers(0, 99),
    failing=st.booleans(),
)
def test_replicas_come_go_and_fail_without_losing_a_request(
    router: str, start: int, target: float, interval_s: float, startup_s: float,
    stabilisation_s: float, seed: int, failing: bool,
) -> None:  # fmt: skip
    failures = FailureConfig(mean_time_between_s=4.0, restart_s=1.0) if failing else None
    outcome, _ = scaled(
        trace(150, rate=25.0, seed=seed, block_tokens=64), router, start=start, failures=failures,
        target_in_flight=target, most=4, interval_s=interval_s, startup_s=startup_s,
        stabilisation_s=stabilisation_s,
    )  # fmt: skip
    row = measure(outcome, PRESETS["standard"])
    assert row["completed"] == 150
    end_s = row["duration_s"]
    times = np.linspace(0.0, end_s, 200)
    counts = [paid_at(outcome, t) for t in times]
    assert 1 <= min(counts) <= max(counts) <= row["replicas_most"] <= 4
    assert row["gpu_hours"] * 3600 == pytest.approx(row["replicas_mean"] * end_s, abs=0.01)
    assert row["utilisation"] <= 1.0 + 1e-6


@pytest.mark.law
def test_a_pool_that_may_not_scale_is_the_plain_fleet() -> None:
    requests = trace(300, rate=40.0)
    plain = simulate(scenario("fixed", requests, replicas=2))
    outcome, _ = scaled(requests, "round-robin", start=2, least=2, most=2)
    for name in plain.requests.dtype.names or ():
        np.testing.assert_array_equal(outcome.requests[name], plain.requests[name])
    ours, theirs = (measure(o, PRESETS["standard"]) for o in (outcome, plain))
    assert ours == theirs
    assert ours["gpu_hours"] * 3600 == pytest.approx(2 * ours["duration_s"], abs=0.01)


@pytest.mark.example
@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"least": 3, "most": 2}, "autoscale between 3 and 2 replicas"),
        ({"target_in_flight": 0.0}, "target_in_flight 0.0 must be"),
        ({"interval_s": 0.0}, "interval_s 0.0 must be"),
        ({"least": 2}, "a pool starts with 1 replicas but scales between 2 and 6"),
    ],
)
def test_wrong_scaling_is_refused_in_one_sentence(settings_: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scaled(trace(2), **settings_)
