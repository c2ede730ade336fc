"""Shedding: who is refused could not have made it, and a low priority goes first."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine.layout import COMPLETED, SHED
from simulator.fleet.config import (
    ROUTERS,
    FailureConfig,
    FleetConfig,
    PoolConfig,
    ShedConfig,
)
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Outcome
from simulator.slo import Slo
from simulator.study.metrics import measure, request_times
from tests.simulator.replay_scenes import scenario, trace

BOUND_S = 1.0
TOKENS = 1000
STEP_S = 0.002 + TOKENS * 5e-5 + 1e-10 * TOKENS**2 / 2
"""One prompt is one chunk is one step of the hand-made cost model."""


def overloaded(load: float, priority: Any = None, *, shed: ShedConfig | None = None) -> Outcome:
    """One replica that only prefills equal prompts, arriving ``load`` times too fast."""
    n = 1500
    requests = trace(
        n, rate=load / STEP_S, prompt_tokens=np.full(n, TOKENS), output_tokens=np.ones(n, np.int64)
    )
    if priority is not None:
        requests = dataclasses.replace(requests, priority=np.asarray(priority))
    case = scenario(
        "none",
        requests,
        engine={"chunked_prefill_size": TOKENS},
        fleet=FleetConfig(shed=shed or ShedConfig()),
        slo=Slo(name="test", ttft_ms=BOUND_S * 1e3, tpot_ms=100.0),
    )
    return simulate(case, check=True)


@pytest.mark.law
@pytest.mark.parametrize("load", [1.1, 1.5, 3.0])
def test_who_is_shed_was_hopeless_and_who_is_served_makes_it(load: float) -> None:
    rows = overloaded(load).requests
    shed, served = rows["status"] == SHED, rows["status"] == COMPLETED
    assert (shed | served).all()
    assert shed.mean() == pytest.approx(1 - 1 / load, abs=0.05)
    finish_s = np.maximum.accumulate(np.where(served, rows["finish_s"], 0.0))
    could_s = np.maximum(finish_s, rows["arrival_s"]) + STEP_S - rows["arrival_s"]
    assert (could_s[shed] > BOUND_S).all(), "the queue before it leaves no time"
    ttft = request_times(rows)["ttft"][served]
    assert ttft.max() <= BOUND_S + STEP_S, "only the step in flight is unknown to the router"


@pytest.mark.law
def test_nobody_is_shed_below_saturation() -> None:
    assert (overloaded(0.7).requests["status"] == COMPLETED).all()


@pytest.mark.law
def test_low_priorities_are_shed_first() -> None:
    priority = np.random.default_rng(3).integers(0, 2, 1500)
    rows = overloaded(1.5, priority).requests
    shed = rows["status"] == SHED
    assert shed[priority == 1].mean() < 0.05
    assert shed[priority == 0].mean() > 0.5
    alike = overloaded(1.5, priority, shed=ShedConfig(low_priority_headroom=0.0)).requests
    shed = alike["status"] == SHED
    assert shed[priority == 1].mean() == pytest.approx(shed[priority == 0].mean(), abs=0.1)


@pytest.mark.law
def test_shedding_raises_goodput_under_overload_and_counts_against_attainment() -> None:
    outcome = overloaded(1.5)
    slo = outcome.scenario.slo
    kept = measure(outcome, slo)
    plain = dataclasses.replace(outcome.scenario, fleet=FleetConfig())
    queued = measure(simulate(plain), slo)
    assert kept["slo_goodput_req_s"] > 2 * queued["slo_goodput_req_s"]
    assert kept["slo_attainment"] <= 1 - kept["shed"] / kept["requests"]


@pytest.mark.law
@settings(max_examples=15, deadline=None)
@given(
    router=st.sampled_from(ROUTERS),
    pools=st.lists(st.integers(1, 2), min_size=1, max_size=2),
    seed=st.integers(0, 99),
    failing=st.booleans(),
    block_tokens=st.sampled_from([0, 64]),
)
def test_every_request_is_served_or_shed(
    router: str, pools: list[int], seed: int, failing: bool, block_tokens: int
) -> None:
    requests = trace(150, rate=150.0, seed=seed, prompt_mean=1500.0, block_tokens=block_tokens)
    fleet = FleetConfig(
        router=router,
        shed=ShedConfig(),
        pools=tuple(PoolConfig(replicas=n) for n in pools),
        failures=FailureConfig(mean_time_between_s=3.0, restart_s=1.0) if failing else None,
    )
    outcome = simulate(scenario("fixed", requests, fleet=fleet), check=True)
    row = measure(outcome, outcome.scenario.slo)
    assert row["completed"] + row["shed"] == 150
    shed = outcome.requests["status"] == SHED
    assert (outcome.requests["generated"][shed] == 0).all()
    assert (outcome.requests["finish_s"] >= outcome.requests["arrival_s"]).all()


@pytest.mark.example
def test_a_wrong_headroom_is_refused() -> None:
    with pytest.raises(ValueError, match=r"low_priority_headroom 1.0 must lie in \[0, 1\)"):
        ShedConfig(low_priority_headroom=1.0)
