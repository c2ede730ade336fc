"""The compiled kernel and the plain-Python reference give the same bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.core.policy import Goodput, PolicyFile
from simulator.engine.layout import Records
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Scenario
from simulator.slo import Slo
from simulator.study.metrics import measure
from tests.simulator.engine.reference import ReferenceEngine
from tests.simulator.replay_scenes import cost_model, scenario, trace

POLICIES = ["none", "fixed", "fixed:3", "threshold", "early_stop", "global", "sglang", "goodput"]
REQUEST_FIELDS = (
    "first_token_s", "finish_s", "generated", "retractions", "verified", "accepted", "rounds",
    "undrafted", "status",
)  # fmt: skip
STEP_FIELDS = (
    "start_s", "duration_s", "requests", "computed_tokens", "verify_tokens", "committed_tokens",
    "prefill_tokens",
)  # fmt: skip


def assert_parity(case: Scenario) -> Records:
    logged: list[Records] = []
    outcome = simulate(case, on_steps=lambda _, steps: logged.append(steps.copy()), check=True)
    reference = ReferenceEngine(case)
    requests = reference.run()
    for name in REQUEST_FIELDS:
        np.testing.assert_array_equal(outcome.requests[name], requests[name], err_msg=name)
    steps = np.concatenate(logged)
    assert len(steps) == len(reference.steps)
    for name in STEP_FIELDS:
        expected = np.array([getattr(step, name) for step in reference.steps])
        np.testing.assert_array_equal(steps[name], expected, err_msg=name)
    return outcome.requests


@pytest.mark.golden
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "engine",
    [
        {},
        {"page_size": 16, "kv_pool_tokens": 6000, "admission_new_tokens": 16},
        {"enable_mixed_chunk": True, "chunked_prefill_size": 300, "max_running_requests": 8},
        {"chunked_prefill_size": 96, "max_running_requests": 4, "confidence_lag_steps": 1},
        {"chunked_prefill_size": 96, "prefill_decode_interval": 3},
        {"max_running_requests": 9},
        {"max_running_requests": 9, "disable_overlap_schedule": True},
    ],
    ids=[
        "default",
        "short of memory",
        "mixed chunks",
        "small chunks",
        "prefills that wait",
        "places that wait",
        "no overlap",
    ],
)
def test_kernel_and_reference_agree_to_the_byte(policy: str, engine: dict[str, int]) -> None:
    requests = trace(60, rate=30.0, block_tokens=64)
    assert_parity(scenario(policy, requests, engine=engine, step_capacity=64))


DEAR_DRAFTS = {
    "gamma": 7, "requests": [1, 512], "seconds": [0.004, 0.08], "between": "linear",
    "origin": "analytic",
}  # fmt: skip
PACED = Goodput(
    min_gain=0.0, probe_rounds=5, ttft_ms=400.0, tpot_ms=12.0, slack_weight=2.0,
    priority_weight=0.5,
)  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize("policy", [PACED, Goodput(min_gain=0.0)], ids=["paced", "plain"])
@pytest.mark.parametrize("lag", [1, 2, 3])
def test_they_agree_where_requests_are_left_out_and_paced(policy: Goodput, lag: int) -> None:
    requests = trace(80, rate=60.0)
    levels = np.random.default_rng(1).integers(0, 3, len(requests))
    case = scenario(
        "goodput",
        replace(requests, priority=levels),
        engine={"confidence_lag_steps": lag, "max_running_requests": 24},
        cost_model=cost_model(draft=DEAR_DRAFTS),
        step_capacity=64,
    )
    case = replace(case, policy=PolicyFile(policy=policy))
    done = assert_parity(case)
    undrafted = int(done["undrafted"].sum())
    assert 0 < undrafted < done["rounds"].sum() / 2
    row = measure(simulate(case), Slo(name="any", ttft_ms=400.0, tpot_ms=12.0))
    assert row["whole_run"]["drafted_share"] == pytest.approx(
        1 - undrafted / done["rounds"].sum(), abs=1e-5
    )


SHAPES = {
    "plain": {"tiers_tokens": [1, 4, 24], "origin": "analytic"},
    "ragged": {"tiers_tokens": [], "floor_s": 0.011, "step_s": 3e-4, "origin": "analytic"},
    "adaptive": {"step_s": 4e-4, "request_s": 1e-5, "origin": "analytic"},
    "overlapped": {"step_s": 0.0105, "origin": "analytic"},
    "graphs": {"tiers_tokens": [8, 32, 64], "beyond_last_s": 0.0, "origin": "analytic"},
}


@pytest.mark.golden
@pytest.mark.parametrize("policy", POLICIES)
def test_they_agree_where_a_step_is_priced_by_its_shape(policy: str) -> None:
    prices = cost_model(schema_version=3, **SHAPES)
    assert_parity(scenario(policy, trace(60, rate=30.0), cost_model=prices, step_capacity=64))


@pytest.mark.example
def test_the_short_memory_case_does_retract() -> None:
    engine = {"page_size": 16, "kv_pool_tokens": 6000, "admission_new_tokens": 16}
    case = scenario("fixed", trace(60, rate=30.0), engine=engine, step_capacity=64)
    assert assert_parity(case)["retractions"].sum() > 0


@pytest.mark.law
@settings(max_examples=25, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    seed=st.integers(0, 2**31),
    rate=st.floats(1.0, 200.0),
    block_tokens=st.sampled_from([0, 32, 64]),
    page_size=st.sampled_from([1, 16, 32]),
    pool=st.integers(5000, 50_000),
    admission=st.integers(1, 4096),
    chunk=st.integers(40, 2000),
    running=st.integers(1, 32),
    interval=st.integers(0, 5),
    free=st.one_of(st.none(), st.integers(1, 40)),
    mixed=st.booleans(),
    alone=st.booleans(),
    lag=st.integers(1, 4),
    limits=st.booleans(),
)
def test_any_engine_setting_keeps_parity_and_conservation(
    policy: str, seed: int, rate: float, block_tokens: int, page_size: int, pool: int,
    admission: int, chunk: int, running: int, interval: int,
    free: int | None, mixed: bool, alone: bool, lag: int, limits: bool,
) -> None:  # fmt: skip
    engine = {
        "page_size": page_size, "kv_pool_tokens": pool, "admission_new_tokens": admission,
        "chunked_prefill_size": chunk, "max_running_requests": running,
        "prefill_decode_interval": interval, "min_free_slots_delay": free,
        "enable_mixed_chunk": mixed and running < chunk, "confidence_lag_steps": lag,
        "disable_overlap_schedule": alone,
    }  # fmt: skip
    requests = trace(25, rate=rate, seed=seed, block_tokens=block_tokens)
    if limits:  # some say how many tokens they may generate
        most = requests.output_tokens + np.random.default_rng(seed).integers(0, 300, 25)
        requests = replace(requests, max_new_tokens=np.where(most % 3, most, 0))
    assert_parity(scenario(policy, requests, engine=engine, seed=seed, step_capacity=32))
