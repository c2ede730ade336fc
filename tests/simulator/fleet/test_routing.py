"""Routers: what they may know, whom they choose, and that nobody is lost on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine.decode import begin_requests
from simulator.engine.layout import COMPLETED, Records
from simulator.fleet.config import ROUTERS, FleetConfig
from simulator.fleet.fleet import simulate
from simulator.fleet.replica import Replica, ReplicaTables
from simulator.fleet.routing import LeastLoaded, PowerOfTwo, RoundRobin, View
from simulator.fleet.scenario import Outcome, request_records
from simulator.study.metrics import request_times
from tests.simulator.replay_scenes import scenario, trace


def columns(records: Records) -> list[bytes]:
    """The records' bytes without the padding between fields."""
    return [records[name].tobytes() for name in records.dtype.names or ()]


def routed(router: str, requests: Any, replicas: int = 4, **changes: Any) -> Outcome:
    fleet = FleetConfig(router=router)
    case = scenario("none", requests, replicas=replicas, fleet=fleet, **changes)
    return simulate(case, check=True)


@pytest.mark.law
@pytest.mark.parametrize("router", ROUTERS)
def test_with_one_replica_every_router_is_the_plain_one(router: str) -> None:
    requests = trace(200, rate=20.0, block_tokens=64)
    plain = simulate(scenario("none", requests))
    assert columns(routed(router, requests, 1).requests) == columns(plain.requests)


@pytest.mark.law
@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_serves_everybody_and_does_so_again(router: str) -> None:
    requests = trace(300, rate=60.0, block_tokens=64)
    first, again = routed(router, requests), routed(router, requests)
    assert (first.requests["status"] == COMPLETED).all()
    assert sum(int(memory.state["done"][0]) for memory in first.memories) == 300
    assert all(memory.state["done"][0] > 0 for memory in first.memories), "somebody idles"
    assert columns(first.requests) == columns(again.requests)


VIEWS = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 100), min_size=n, max_size=n),
        st.sets(st.integers(0, n - 1), min_size=1),
    )
)


@pytest.mark.law
@given(VIEWS)
def test_least_loaded_never_chooses_more_in_flight_than_another_has(view: Any) -> None:
    loads, open_ = view
    chosen = LeastLoaded(View(open=sorted(open_), in_flight=loads)).pick(0)
    assert chosen in open_
    assert all(loads[chosen] <= loads[other] for other in open_)


@pytest.mark.law
@given(VIEWS, st.integers(0, 2**63 - 1), st.integers(0, 999))
def test_power_of_two_chooses_the_fuller_of_no_pair(view: Any, seed: int, r: int) -> None:
    loads, open_ = view
    records = np.zeros(1000, np.dtype([("retries", np.int32)]))
    router = PowerOfTwo(View(open=sorted(open_), in_flight=loads), records, seed)
    chosen = router.pick(r)
    assert chosen in open_
    assert chosen == router.pick(r), "a draw has an address"
    if len(open_) > 1:
        assert sum(loads[chosen] <= loads[other] for other in open_) >= 2, "worst of all chosen"


@pytest.mark.law
def test_power_of_two_spreads_evenly_and_draws_anew_for_a_retry() -> None:
    records = np.zeros(4000, np.dtype([("retries", np.int32)]))
    router = PowerOfTwo(View(open=[0, 1, 2, 3], in_flight=[0] * 4), records, 7)
    first = [router.pick(r) for r in range(4000)]
    assert np.bincount(first).min() > 900
    records["retries"] = 1
    again = [router.pick(r) for r in range(4000)]
    assert 0.2 < np.mean(np.equal(first, again)) < 0.3


@pytest.mark.law
@given(VIEWS)
def test_round_robin_gives_each_open_replica_its_turn(view: Any) -> None:
    loads, open_ = view
    router = RoundRobin(View(open=sorted(open_), in_flight=loads))
    assert [router.pick(r) for r in range(2 * len(open_))] == sorted(open_) * 2


@pytest.mark.law
def test_prefix_affine_finds_more_of_the_prompts_in_the_caches() -> None:
    requests = trace(800, rate=60.0, block_tokens=64, prompt_mean=600.0)
    computed = {
        router: sum(int(m.state["prefill_tokens"][0]) for m in routed(router, requests).memories)
        for router in ("round-robin", "least-loaded", "prefix-affine")
    }
    assert computed["prefix-affine"] < 0.95 * computed["round-robin"]
    assert computed["prefix-affine"] < 0.95 * computed["least-loaded"]


@pytest.mark.example
def test_prefix_affine_gives_way_when_a_replica_is_overloaded() -> None:
    same = np.full(400, 640)
    requests = trace(
        400, arrival_s=np.zeros(400), prompt_tokens=same, output_tokens=same, block_tokens=64
    )
    requests.prefix_blocks[:] = np.tile(np.arange(10), 400)
    outcome = routed("prefix-affine", requests, 2)
    sent = [int(memory.state["done"][0]) for memory in outcome.memories]
    assert sent[0] - sent[1] <= 64 or sent[0] <= 1.5 * sent[1], sent
    assert min(sent) > 100


@pytest.mark.law
def test_knowing_the_load_shortens_the_wait_behind_long_prompts() -> None:
    rng = np.random.default_rng(5)
    prompts = np.where(rng.random(600) < 0.1, 20_000, 100)
    requests = trace(600, rate=12.0, prompt_tokens=prompts, output_tokens=np.full(600, 20))
    wait_s = {
        router: float(request_times(routed(router, requests).requests)["ttft"].mean())
        for router in ("round-robin", "power-of-two", "least-loaded")
    }
    assert wait_s["least-loaded"] < wait_s["power-of-two"] < wait_s["round-robin"]


@pytest.mark.law
@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.0, 4.0), min_size=1, max_size=12))
def test_a_report_shows_nothing_of_the_step_that_still_runs(times: list[float]) -> None:
    case = scenario("fixed", trace(60, rate=30.0, output_mean=10.0))
    requests = request_records(case)
    tables = ReplicaTables(case, case.pools[0])
    replica = Replica(case, tables, requests, 0, on_steps=None, on_pause=lambda: None, check=True)
    begin_requests(replica.memory.requests, tables.engine.seed, tables.acceptance)
    replica.send(range(60))
    for time_s in sorted(times):
        replica.advance(time_s)
        assert replica.left_by(time_s) == (requests["finish_s"] <= time_s).sum()
    assert replica.held == 60 - replica.done


@pytest.mark.law
@settings(max_examples=20, deadline=None)
@given(
    bags=st.lists(st.lists(st.integers(0, 99), max_size=40), max_size=8),
    taken=st.integers(0, 3),
)
def test_the_inbox_keeps_everybody_in_the_order_of_readiness(
    bags: list[list[int]], taken: int
) -> None:
    case = scenario("none", trace(100))
    requests = request_records(case)
    requests["ready_s"] = np.random.default_rng(1).random(100)
    replica = Replica(
        case,
        ReplicaTables(case, case.pools[0]),
        requests,
        0,
        on_steps=None,
        on_pause=lambda: None,
        check=True,
    )
    gone = 0
    for bag in bags:
        replica.send(bag)
        state = replica.memory.state[0]
        head, tail = int(state["inbox_head"]), int(state["inbox_tail"])
        inbox = replica.memory.inbox[head:tail]
        assert len(inbox) + gone == replica.sent
        assert (np.diff(requests["ready_s"][inbox]) >= 0).all()
        state["inbox_head"] = min(head + taken, tail)
        gone += min(taken, tail - head)


@pytest.mark.example
@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"router": "least-load"}, "did you mean least-loaded"),
        ({"router": "random"}, "known: round-robin, least-loaded"),
        ({"report_interval_s": 0.0}, "report_interval_s 0.0 must be a finite number above 0"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(settings_: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FleetConfig(**settings_)


@pytest.mark.example
def test_a_closed_loop_has_no_use_for_another_router() -> None:
    with pytest.raises(ValueError, match=r"fleet.router: the clients of a closed loop"):
        scenario("none", trace(2), concurrency=2, fleet=FleetConfig(router="least-loaded"))
