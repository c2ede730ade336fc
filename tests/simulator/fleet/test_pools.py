"""Pools: unequal replicas side by side, each at its own price and within its own memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from simulator.engine.config import EngineConfig
from simulator.engine.layout import COMPLETED, REJECTED
from simulator.fleet.config import ROUTERS, FleetConfig, PoolConfig
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Outcome
from simulator.study.metrics import measure, request_times
from tests.simulator.replay_scenes import cost_model, scenario, trace

SLOW = cost_model(
    name="slow",
    table={"tokens": [1, 4096], "seconds": [0.034, 0.576], "between": "linear",
           "origin": "analytic"},
    prefill={"base_s": 0.008, "token_s": 2e-4, "pair_s": 4e-10, "origin": "analytic"},
    memory={"gpus": 2, "gpu_memory_bytes": 10**11, "weights_bytes": 10**10,
            "kv_bytes_per_token": 10**5, "kv_pool_tokens": 50_000, "origin": "analytic"},
)  # fmt: skip


def mixed(router: str, requests: Any, pools: tuple[PoolConfig, ...], **changes: Any) -> Outcome:
    fleet = FleetConfig(router=router, pools=pools)
    case = scenario("fixed", requests, fleet=fleet, pool_models={"slow": SLOW}, **changes)
    return simulate(case, check=True)


@pytest.mark.law
@pytest.mark.parametrize("router", ROUTERS)
def test_one_pool_spelt_out_is_the_plain_fleet(router: str) -> None:
    requests = trace(200, rate=40.0, block_tokens=64)
    plain = simulate(scenario("fixed", requests, replicas=3, fleet=FleetConfig(router=router)))
    for pools, count in (((PoolConfig(),), 3), ((PoolConfig(replicas=2), PoolConfig()), 1)):
        spelt = mixed(router, requests, pools, replicas=count)
        for name in plain.requests.dtype.names or ():
            np.testing.assert_array_equal(spelt.requests[name], plain.requests[name])


@pytest.mark.law
def test_every_replica_runs_at_its_own_price() -> None:
    fast, slow = PoolConfig(replicas=1), PoolConfig(replicas=1, cost_model="slow")
    requests = trace(400, rate=8.0)
    outcome = mixed("round-robin", requests, (fast, slow))
    e2e = request_times(outcome.requests)["e2e"]
    assert e2e[1::2].mean() > 3 * e2e[::2].mean()
    loads = [
        int(m.state["done"][0]) for m in mixed("least-loaded", requests, (fast, slow)).memories
    ]
    assert sum(loads) == 400
    assert loads[0] > 1.5 * loads[1], "a slow replica holds its requests longer, and gets fewer"


@pytest.mark.law
def test_gpus_are_counted_per_pool() -> None:
    pools = (PoolConfig(replicas=2), PoolConfig(replicas=3, cost_model="slow"))
    outcome = mixed("least-loaded", trace(200, rate=20.0), pools)
    assert outcome.scenario.gpus == 2 * 1 + 3 * 2
    row = measure(outcome, outcome.scenario.slo)
    assert row["gpu_hours"] * 3600 == pytest.approx(8 * row["duration_s"], abs=0.01)
    assert row["replicas_mean"] == row["replicas_most"] == 5


@pytest.mark.example
def test_a_request_must_fit_every_pool() -> None:
    small = PoolConfig(replicas=1, engine=EngineConfig(kv_pool_tokens=2000))
    requests = trace(2, prompt_tokens=np.array([3000, 100]), output_tokens=np.array([5, 5]))
    rows = mixed("round-robin", requests, (PoolConfig(replicas=1), small)).requests
    assert rows["status"].tolist() == [REJECTED, COMPLETED]


@pytest.mark.law
def test_replacing_the_plain_count_gives_as_many_replicas() -> None:
    case = scenario("none", trace(2))
    assert [p.replicas for p in dataclasses.replace(case, replicas=5).pools] == [5]
    fleet = FleetConfig(pools=(PoolConfig(), PoolConfig(replicas=2, cost_model="slow")))
    case = scenario("none", trace(2), fleet=fleet, pool_models={"slow": SLOW})
    assert [p.replicas for p in dataclasses.replace(case, replicas=5).pools] == [5, 2]


@pytest.mark.example
@pytest.mark.parametrize(
    ("pools", "replicas", "words"),
    [
        ((PoolConfig(replicas=1), PoolConfig(replicas=2)), 3, "every pool of the fleet says how"),
        ((PoolConfig(cost_model="fast"),), 1, "the pool's cost model 'fast' is not loaded"),
        ((PoolConfig(), PoolConfig()), 1, "several pools without 'replicas'"),
    ],
)
def test_pools_that_contradict_the_scenario_are_refused(
    pools: tuple[PoolConfig, ...], replicas: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        mixed("round-robin", trace(2), pools, replicas=replicas)
