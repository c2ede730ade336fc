"""The capacity searches against every fleet simulated, and the laws that their answers obey."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.capacity.search import (
    LEAST_RATE,
    FleetSize,
    Goal,
    fewest_replicas,
    most_traffic,
    offered_rate,
    probe,
    replica_capacity,
)
from simulator.fleet.scenario import Scenario
from simulator.slo import Slo
from tests.simulator.replay_scenes import scenario, trace

MOST = 7


def _goal(ttft_ms: float = 500.0, tpot_ms: float = 30.0, attainment: float = 0.9) -> Goal:
    return Goal(slo=Slo(name="test", ttft_ms=ttft_ms, tpot_ms=tpot_ms), attainment=attainment)


def _case(number: int) -> tuple[Scenario, Goal]:
    """A random trace, policy and objective; the rates need 1 to more than ``MOST`` replicas."""
    rng = np.random.default_rng(number)
    requests = trace(
        300,
        rate=float(np.exp(rng.uniform(np.log(8.0), np.log(400.0)))),
        seed=number,
        prompt_mean=float(rng.uniform(100, 600)),
        output_mean=float(rng.uniform(20, 80)),
        block_tokens=int(rng.choice([0, 32])),
    )
    policy = ("none", "fixed", "fixed:3", "threshold:0.6", "global", "sglang")[number % 6]
    asked = scenario(policy, requests, engine={"max_running_requests": 64}, seed=number)
    ttft_ms, tpot_ms = float(rng.uniform(150, 900)), float(rng.uniform(5, 40))
    return asked, _goal(ttft_ms, tpot_ms, float(rng.choice([0.8, 0.9, 0.99])))


def _brute_force(asked: Scenario, goal: Goal) -> int | None:
    """Every count simulated: one more than the largest that misses."""
    misses = [
        n for n in range(1, MOST + 1) if not probe(replace(asked, replicas=n), goal).holds
    ]  # fmt: skip
    return None if MOST in misses else 1 + max(misses, default=0)


def _size(found: FleetSize) -> float:
    return np.inf if found.replicas is None else found.replicas


@pytest.mark.law
def test_the_search_agrees_with_every_count_simulated_on_20_random_cases() -> None:
    answers = []
    for number in range(20):
        asked, goal = _case(number)
        found = fewest_replicas(asked, goal, most=MOST)
        assert found.replicas == _brute_force(asked, goal), number
        answers.append(found.replicas)
    assert None in answers  # the cases are no trivial ones
    assert len(set(answers)) >= 5


@pytest.mark.law
@pytest.mark.parametrize("number", range(8))
def test_a_stricter_objective_never_needs_less_nor_holds_more(number: int) -> None:
    asked, goal = _case(number)
    strictness = [(4.0, 0.8), (2.0, 0.8), (1.0, 0.8), (1.0, 0.9), (0.7, 0.9), (0.7, 0.97)]
    goals = [
        _goal(goal.slo.ttft_ms * scale, goal.slo.tpot_ms * scale, share)
        for scale, share in strictness
    ]
    sizes = [_size(fewest_replicas(asked, one, most=MOST)) for one in goals]
    assert sizes == sorted(sizes)
    traffics = [most_traffic(asked, one, tolerance=0.2).rate_factor or 0.0 for one in goals]
    assert traffics == sorted(traffics, reverse=True)


@pytest.mark.law
@pytest.mark.parametrize("number", range(12))
def test_more_traffic_never_needs_fewer_replicas(number: int) -> None:
    asked, goal = _case(number)
    sizes = [
        _size(fewest_replicas(replace(asked, rate_factor=rate), goal, most=MOST))
        for rate in (0.25, 0.5, 1.0, 2.0)
    ]
    assert sizes == sorted(sizes)


@pytest.mark.law
@pytest.mark.parametrize("number", range(6))
def test_the_traffic_holds_and_a_little_more_does_not(number: int) -> None:
    asked, _ = _case(number)
    goal = _goal(tpot_ms=60.0)
    found = most_traffic(asked, goal, tolerance=0.05)
    assert found.rate_factor is not None
    assert found.misses_at is not None
    assert 1.0 < found.misses_at / found.rate_factor <= 1.05
    assert probe(replace(asked, rate_factor=found.rate_factor), goal).holds
    assert not probe(replace(asked, rate_factor=found.misses_at), goal).holds
    # Every eighth of an octave simulated: only noise, as each interval states it, tells otherwise.
    for step in range(-16, 9):
        tried = probe(replace(asked, rate_factor=found.rate_factor * 2 ** ((step + 0.5) / 8)), goal)
        assert tried.interval is not None
        low, high = tried.interval
        assert high >= goal.attainment if step < 0 else low < goal.attainment, step
    assert not probe(replace(asked, rate_factor=4 * found.rate_factor), goal).holds


@pytest.mark.law
@pytest.mark.parametrize("number", range(4))
def test_a_fleet_of_the_size_found_holds_and_one_less_does_not(number: int) -> None:
    asked, _ = _case(number)
    goal = _goal(tpot_ms=60.0)
    found = fewest_replicas(asked, goal, most=MOST)
    assert found.replicas is not None
    assert found.probes[found.replicas].holds
    assert found.replicas == 1 or not found.probes[found.replicas - 1].holds
    assert all(found.probes[n].holds for n in range(found.replicas, found.bound + 1))


@pytest.mark.example
def test_a_count_below_a_larger_one_that_misses_is_no_answer() -> None:
    """Long and short prompts alternate: four replicas give two of them all the long ones."""
    n = 480
    requests = trace(
        n,
        arrival_s=np.arange(n) / 24.0,
        prompt_tokens=np.where(np.arange(n) % 2, 10, 4000),
        output_tokens=np.full(n, 2),
    )
    asked, goal = scenario("none", requests), _goal(ttft_ms=1000.0, tpot_ms=1e6)
    held = [n for n in range(1, 9) if probe(replace(asked, replicas=n), goal).holds]
    assert held == [3, 5, 6, 7, 8]
    assert fewest_replicas(asked, goal, most=8).replicas == 5


@pytest.mark.example
def test_a_bound_that_no_fleet_meets_is_said_after_few_simulations() -> None:
    asked, _ = _case(0)
    goal = _goal(tpot_ms=0.001)
    found = fewest_replicas(asked, goal, most=MOST)
    assert (found.replicas, found.bound, found.load) == (None, MOST, None)
    assert len(found.probes) == 2
    traffic = most_traffic(asked, goal)
    assert (traffic.rate_factor, traffic.misses_at) == (None, None)
    assert len(traffic.probes) == 1


@pytest.mark.example
def test_a_trace_too_short_to_be_too_much_is_said_so() -> None:
    asked = scenario("none", trace(5))
    found = most_traffic(asked, _goal(ttft_ms=1e5, tpot_ms=1e5))
    assert found.rate_factor == pytest.approx(64.0)
    assert found.misses_at is None
    assert fewest_replicas(asked, _goal(ttft_ms=1e5, tpot_ms=1e5)).load is None


@pytest.mark.example
def test_the_load_is_what_is_offered_over_what_so_many_replicas_finish() -> None:
    asked, _ = _case(1)
    asked = replace(asked, rate_factor=2.0)
    found = fewest_replicas(asked, _goal(tpot_ms=60.0))
    assert found.replicas is not None
    arrival_s = asked.trace.arrival_s
    offered = 2.0 * (len(arrival_s) - 1) / (arrival_s[-1] - arrival_s[0])
    assert offered_rate(asked) == pytest.approx(offered)
    capacity = replica_capacity(asked)
    assert capacity is not None
    assert found.load == pytest.approx(offered / (capacity * found.replicas))
    assert 0.0 < found.load < 1.0


@pytest.mark.law
def test_attainment_lies_in_its_interval_and_the_interval_in_0_to_1() -> None:
    for number in range(6):
        asked, goal = _case(number)
        found = probe(asked, goal)
        assert found.interval is not None
        low, high = found.interval
        assert 0.0 <= low <= found.attainment <= high <= 1.0


@pytest.mark.example
@pytest.mark.parametrize("attainment", [0.0, -0.1, 1.01, float("nan")])
def test_an_attainment_outside_0_to_1_is_refused(attainment: float) -> None:
    with pytest.raises(ValueError, match=r"attainment .* must lie in \(0, 1\]"):
        _goal(attainment=attainment)


@pytest.mark.example
def test_wrong_bounds_of_a_search_are_refused() -> None:
    asked, goal = _case(0)
    with pytest.raises(ValueError, match="most 0 must be at least 1"):
        fewest_replicas(asked, goal, most=0)
    with pytest.raises(ValueError, match="tolerance 0 must lie in"):
        most_traffic(asked, goal, tolerance=0.0)
    assert 0 < LEAST_RATE < 1
