"""Replicas that fail: nobody is lost, nothing happens while one is away, and luck repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulator.fleet.fleet
from simulator.engine.layout import COMPLETED, Records
from simulator.fleet.config import ROUTERS, FailureAt, FailureConfig, FleetConfig
from simulator.fleet.failures import failure_gaps_s
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Outcome
from simulator.slo import PRESETS
from simulator.study.metrics import measure
from tests.simulator.replay_scenes import scenario, trace


def columns(records: Records) -> list[bytes]:
    """The records' bytes without the padding between fields."""
    return [records[name].tobytes() for name in records.dtype.names or ()]


def accounts(outcome: Outcome) -> dict[str, Any]:
    """The row, whose requests add up."""
    row = measure(outcome, PRESETS["standard"])
    parts = ("completed", "truncated", "rejected", "unfinished")
    assert sum(row[name] for name in parts) == row["requests"] == len(outcome.scenario.trace)
    return row


def failing(requests: Any, replicas: int, router: str = "round-robin", **failures: Any) -> Outcome:
    fleet = FleetConfig(router=router, failures=FailureConfig(**failures))
    return simulate(scenario("fixed", requests, replicas=replicas, fleet=fleet), check=True)


@pytest.mark.law
@pytest.mark.parametrize("router", ROUTERS)
def test_a_replica_failing_every_minute_loses_no_request(router: str) -> None:
    requests = trace(900, rate=1.5, output_mean=1500.0, block_tokens=64)
    outcome = failing(requests, 2, router, mean_time_between_s=60.0, restart_s=20.0)
    row = accounts(outcome)
    assert row["completed"] == 900
    assert row["retried"] > 20, "the case must fail under load"
    again = failing(requests, 2, router, mean_time_between_s=60.0, restart_s=20.0)
    assert columns(outcome.requests) == columns(again.requests)


@pytest.mark.law
@settings(max_examples=25, deadline=None)
@given(
    router=st.sampled_from(ROUTERS),
    replicas=st.integers(1, 4),
    times=st.lists(st.tuples(st.integers(0, 3), st.floats(0.0, 8.0)), min_size=1, max_size=8),
    restart_s=st.floats(0.0, 3.0),
    most_retries=st.integers(0, 3),
    block_tokens=st.sampled_from([0, 64]),
    short=st.booleans(),
)
def test_whatever_fails_whenever_every_request_is_accounted_for(
    router: str, replicas: int, times: list[tuple[int, float]], restart_s: float,
    most_retries: int, block_tokens: int, short: bool,
) -> None:  # fmt: skip
    requests = trace(60, rate=20.0, block_tokens=block_tokens)
    failures = FailureConfig(
        restart_s=restart_s,
        at=tuple(FailureAt(replica=i % replicas, at_s=at_s) for i, at_s in times),
        most_retries=most_retries,
    )
    fleet = FleetConfig(router=router, failures=failures)
    engine = {"page_size": 16, "kv_pool_tokens": 6000} if short else {}
    case = scenario("fixed", requests, replicas=replicas, fleet=fleet, engine=engine)
    outcome = simulate(case, check=True)
    rows = outcome.requests
    row = accounts(outcome)
    assert (
        row["unfinished"] == (rows["retries"] == most_retries)[rows["status"] < COMPLETED].sum()
    ), "only retries without success may leave a request unfinished"
    served = rows["status"] == COMPLETED
    assert (rows["generated"][served] == rows["output_limit"][served]).all()
    assert (rows["first_token_s"][served] > rows["ready_s"][served]).all()
    assert (rows["retries"] <= most_retries).all()


@pytest.mark.law
def test_a_replica_that_is_away_takes_no_step_and_nobody_is_served_before_it_is_back() -> None:
    steps: list[Records] = []
    fleet = FleetConfig(failures=FailureConfig(restart_s=5.0, at=(FailureAt(replica=0, at_s=2.0),)))
    case = scenario("fixed", trace(120, rate=20.0), fleet=fleet, step_capacity=64)
    outcome = simulate(case, on_steps=lambda _, s: steps.append(s.copy()), check=True)
    start_s = np.concatenate(steps)["start_s"]
    assert (start_s < 2.0).any()
    assert not ((start_s >= 2.0) & (start_s < 7.0)).any()
    late = outcome.requests["retries"] > 0
    assert late.any()
    assert (outcome.requests["first_token_s"][late] > 7.0).all()
    assert (outcome.requests["status"] == COMPLETED).all()


@pytest.mark.law
def test_a_failure_that_never_comes_changes_nothing() -> None:
    requests = trace(200, rate=20.0, block_tokens=64)
    plain = simulate(scenario("fixed", requests, replicas=2))
    spared = failing(requests, 2, restart_s=1.0, at=(FailureAt(replica=1, at_s=1e6),))
    assert columns(spared.requests) == columns(plain.requests)


@pytest.mark.law
@pytest.mark.parametrize("bundle", [1, 7])
def test_how_time_is_cut_into_windows_changes_nothing(
    bundle: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = trace(300, rate=30.0, block_tokens=64)
    outcomes = []
    for size in (simulator.fleet.fleet._BUNDLE, bundle):
        monkeypatch.setattr(simulator.fleet.fleet, "_BUNDLE", size)
        outcomes.append(failing(requests, 3, mean_time_between_s=3.0, restart_s=1.0))
    assert (outcomes[0].requests["retries"] > 0).any()
    assert columns(outcomes[0].requests) == columns(outcomes[1].requests)


@pytest.mark.law
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_an_interruption_leaves_every_request_in_the_accounts(share: float) -> None:
    def stop(done: int) -> None:
        if done > share * 300:
            raise KeyboardInterrupt

    fleet = FleetConfig(
        router="least-loaded", failures=FailureConfig(mean_time_between_s=2.0, restart_s=1.0)
    )
    case = scenario("fixed", trace(300, rate=30.0), replicas=2, fleet=fleet)
    outcome = simulate(case, on_progress=stop)
    assert outcome.interrupted
    row = accounts(outcome)
    assert share * 300 < row["completed"] < 300
    assert row["unfinished"] == 300 - row["completed"]


@pytest.mark.law
def test_a_request_sent_again_has_the_same_luck_and_its_lost_work_stays_counted() -> None:
    requests = trace(1, output_tokens=np.array([600]), prompt_tokens=np.array([100]))
    calm = simulate(scenario("fixed", requests)).requests[0]
    broken = failing(requests, 1, restart_s=1.0, at=(FailureAt(replica=0, at_s=1.0),)).requests[0]
    assert broken["rounds"] == calm["rounds"]
    assert broken["accepted"] > calm["accepted"]
    second = broken["finish_s"] - broken["ready_s"]
    assert second == pytest.approx(calm["finish_s"], rel=1e-9)


@pytest.mark.law
def test_failure_times_have_their_mean_and_an_address() -> None:
    config = FailureConfig(restart_s=1.0, mean_time_between_s=60.0)
    drawn = [
        [gap for gap, _ in zip(failure_gaps_s(config, seed, replica), range(2000), strict=False)]
        for seed, replica in ((1, 0), (1, 1), (2, 0), (1, 0))
    ]
    assert drawn[0] == drawn[3]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]
    for gaps in drawn:
        assert np.mean(gaps) == pytest.approx(60.0, rel=0.1)
        assert np.std(gaps) == pytest.approx(60.0, rel=0.15)


@pytest.mark.example
@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"restart_s": 1.0}, "either mean_time_between_s or a list of times"),
        ({"restart_s": -1.0, "mean_time_between_s": 1.0}, "restart_s -1.0 must be"),
        ({"restart_s": 1.0, "mean_time_between_s": 0.0}, "mean_time_between_s 0.0 must be"),
        (
            {"restart_s": 1.0, "mean_time_between_s": 1.0, "most_retries": -1},
            "most_retries -1 must be at least 0",
        ),
    ],
)
def test_wrong_failures_are_refused_in_one_sentence(settings_: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FailureConfig(**settings_)


@pytest.mark.example
def test_failures_that_do_not_fit_the_scenario_are_refused() -> None:
    fleet = FleetConfig(failures=FailureConfig(restart_s=1.0, at=(FailureAt(replica=2, at_s=1.0),)))
    with pytest.raises(ValueError, match="failure of replica 2, but the last of 2 replicas is 1"):
        scenario("none", trace(2), replicas=2, fleet=fleet)
    with pytest.raises(ValueError, match=r"fleet.failures: the clients of a closed loop"):
        scenario("none", trace(2), replicas=3, fleet=fleet, concurrency=2)
