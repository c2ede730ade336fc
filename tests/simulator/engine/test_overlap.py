"""Overlap scheduling by hand, rule by rule: SGLang 0.5.21, managers/scheduler.py.

``event_loop_overlap`` receives, forms a batch and launches it, and only then waits for the results
of the batch before. So a batch knows what had arrived when the step before it began, and not what
that step ends. Here a prefill takes 20 ms and a decode step 10, whatever is in it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from sglang_dspark.core.planner import compile_policy
from sglang_dspark.core.policy import Goodput
from simulator.engine.ended import policy_beside, prices_beside
from simulator.engine.layout import DECODE_STEP, PREFILL_STEP, Records
from simulator.fleet.fleet import simulate
from tests.simulator.replay_scenes import cost_model, scenario, trace

ANALYTIC = {"origin": "analytic"}
PRICES = cost_model(
    table={"tokens": [1, 4096], "seconds": [0.01, 0.01], "between": "linear"} | ANALYTIC,
    draft={"gamma": 7, "requests": [1], "seconds": [1e-9], "between": "linear"} | ANALYTIC,
    prefill={"base_s": 0.02, "token_s": 1e-12, "pair_s": 0.0} | ANALYTIC,
    context={"token_s": 0.0, "reference_tokens": 0} | ANALYTIC,
    valid_range={"tokens": [1, 4096], "requests": [1, 1], "context_tokens": [0, 100000]},
)


def replayed(
    arrival_s: list[float], output: list[int], *, policy: str = "none", **fields: Any
) -> tuple[Records, Records]:
    """(requests, steps) with overlap, unless the engine is given."""
    n = len(arrival_s)
    requests = trace(
        n,
        arrival_s=np.array(arrival_s),
        prompt_tokens=np.full(n, 10),
        output_tokens=np.array(output),
    )
    case = scenario(policy, requests, cost_model=PRICES, **fields)
    steps: list[Records] = []
    case = dataclasses.replace(case, step_capacity=256)
    outcome = simulate(case, on_steps=lambda _, new: steps.append(new.copy()), check=True)
    return outcome.requests, np.concatenate(steps)


def kinds(steps: Records) -> str:
    return "".join("PD"[int(kind == DECODE_STEP)] for kind in steps["kind"])


@pytest.mark.law
def test_who_arrives_during_a_step_joins_one_step_later() -> None:
    """The second request comes at 35 ms. The step from 40 was formed at 30, that from 50 at 40."""
    requests, steps = replayed([0.0, 0.035], [8, 2])
    assert kinds(steps[:5]) == "PDDDP"
    assert requests["first_token_s"] == pytest.approx([0.02, 0.07])
    alone, _ = replayed([0.0, 0.035], [8, 2], engine={"disable_overlap_schedule": True})
    assert alone["first_token_s"] == pytest.approx([0.02, 0.06])


@pytest.mark.law
def test_who_arrives_before_the_step_began_joins_the_next() -> None:
    requests, steps = replayed([0.0, 0.03], [8, 2])
    assert kinds(steps[:4]) == "PDDP"
    assert requests["first_token_s"][1] == pytest.approx(0.06)


@pytest.mark.law
def test_who_ends_stays_one_step_longer() -> None:
    """It is computed once more and brings nothing; where nobody else is left, a step for nothing.

    A request that comes meanwhile begins when that step ends.
    """
    requests, steps = replayed([0.0, 0.052], [4, 1])
    assert requests["finish_s"][0] == pytest.approx(0.05)
    assert kinds(steps) == "PDDDDPD"
    assert steps["requests"].tolist() == [1, 1, 1, 1, 0, 1, 0]
    assert steps["computed_tokens"][steps["kind"] == DECODE_STEP].tolist() == [1] * 5
    assert steps["committed_tokens"].tolist() == [1, 1, 1, 1, 0, 1, 0]
    assert requests["first_token_s"][1] == pytest.approx(0.06 + 0.02)
    alone, steps = replayed([0.0, 0.052], [4, 1], engine={"disable_overlap_schedule": True})
    assert kinds(steps) == "PDDDP"
    assert alone["first_token_s"][1] == pytest.approx(0.052 + 0.02)


@pytest.mark.law
def test_a_prefill_between_is_enough_to_know_who_ended() -> None:
    """The second comes at 22 ms: the step from 40 ms, formed at 30, is its prefill."""
    requests, steps = replayed([0.0, 0.022], [3, 3])
    assert kinds(steps) == "PDDPDDD"
    # The first ends in the step before the prefill, and is in no decode step after it.
    assert requests["finish_s"][0] == pytest.approx(0.04)
    assert steps["computed_tokens"][steps["kind"] == DECODE_STEP].tolist() == [1, 1, 1, 1, 1]


@pytest.mark.law
def test_an_ended_request_is_computed_with_as_many_tokens_as_it_verified_last() -> None:
    _, steps = replayed([0.0], [30], policy="fixed:5")
    *_, before, last = steps
    assert last["committed_tokens"] == 0
    assert (before["computed_tokens"], last["computed_tokens"]) == (6, 6)
    assert (before["verify_tokens"], last["verify_tokens"]) == (5, 0)


@pytest.mark.law
def test_a_plan_leaves_room_for_who_ended_below_a_cliff() -> None:
    """64 tokens take 10 ms, 65 ten times as long: no step falls there by what it did not plan."""
    table = {"tokens": [1, 64, 65, 4096], "seconds": [0.01, 0.01, 0.1, 0.2], "between": "linear"}
    for policy in ("global", "goodput"):
        case = scenario(
            policy,
            trace(300, rate=500.0, output_mean=30.0),
            cost_model=cost_model(table=table | ANALYTIC),
            engine={"max_running_requests": 16},
            step_capacity=4096,
        )
        steps: list[Records] = []
        simulate(case, on_steps=lambda _, new, kept=steps: kept.append(new.copy()))  # type: ignore[misc]
        found = np.concatenate(steps)
        decode = found[found["kind"] == DECODE_STEP]
        beside = decode["computed_tokens"] - decode["requests"] - decode["verify_tokens"]
        assert (beside > 0).sum() > 50, "the case must have steps with who ended"
        assert decode["computed_tokens"].max() <= 64


@pytest.mark.law
def test_prices_and_policy_beside_others_are_otherwise_the_same() -> None:
    blocks: dict[str, Any] = {
        "ragged": {"floor_s": 0.01, "step_s": 0.001} | ANALYTIC,
        "adaptive": {"step_s": 0.002, "request_s": 0.003} | ANALYTIC,
        "overlapped": {"step_s": 0.004} | ANALYTIC,
        "prefill": {"base_s": 0.02, "token_s": 5e-5, "pair_s": 1e-10, "floor_s": 0.005} | ANALYTIC,
    }
    model = cost_model(schema_version=3, **blocks)
    tables = model.tables(64, 8)
    policy = compile_policy(Goodput(tpot_ms=20.0, slack_weight=0.5), model, 7, 8)
    for one, other in ((tables, prices_beside(tables, 0)), (policy, policy_beside(policy, 0))):
        for name, value in one._asdict().items():
            np.testing.assert_array_equal(getattr(other, name), value, err_msg=name)


@pytest.mark.law
def test_an_idle_engine_begins_at_once() -> None:
    requests, _ = replayed([0.0, 1.0, 2.0], [2, 2, 2])
    wait_s = requests["first_token_s"] - requests["arrival_s"]
    assert wait_s == pytest.approx([0.02] * 3)


@pytest.mark.law
def test_a_clients_next_request_joins_one_step_later() -> None:
    """Two clients: the first answer ends at 40 ms, as its client's next request comes; the step
    from 40 is a decode step that was formed at 30."""
    requests, steps = replayed([0.0, 0.0, 0.0], [3, 9, 2], concurrency=2)
    assert requests["finish_s"][0] == pytest.approx(0.04)
    assert requests["arrival_s"][2] == pytest.approx(0.04)
    assert kinds(steps[:5]) == "PDDDP"
    assert requests["first_token_s"][2] == pytest.approx(0.07)


@pytest.mark.law
def test_places_of_who_ended_are_free_once_that_is_known() -> None:
    """Two places: the first ends at 40 ms, is computed again until 50, and leaves when the step
    from 50 is formed, at 40: the third, there since 10 ms, is prefilled from 60 on."""
    engine = {"max_running_requests": 2}
    requests, steps = replayed([0.0, 0.0, 0.01], [3, 9, 2], engine=engine)
    assert kinds(steps[:6]) == "PDDDDP"
    assert steps["computed_tokens"][1:5].tolist() == [2, 2, 2, 1]
    assert requests["first_token_s"][2] == pytest.approx(0.08)


@pytest.mark.law
@pytest.mark.parametrize("overlap", [True, False])
def test_without_overlap_the_device_waits_for_all_of_the_host(overlap: bool) -> None:
    host = {"host": {"step_s": 0.001}, "overlapped": {"step_s": 0.012}}
    blocks = {name: value | ANALYTIC for name, value in host.items()}
    prices = dataclasses.replace(PRICES, schema_version=3, **_decoded(blocks))
    requests = trace(1, arrival_s=[0.0], prompt_tokens=np.array([10]), output_tokens=np.array([3]))
    engine = {"disable_overlap_schedule": not overlap}
    steps: list[Records] = []
    case = scenario("none", requests, cost_model=prices, engine=engine, step_capacity=64)
    simulate(case, on_steps=lambda _, new: steps.append(new.copy()))
    found = np.concatenate(steps)
    decode = found["duration_s"][found["kind"] == DECODE_STEP]
    prefill = found["duration_s"][found["kind"] == PREFILL_STEP]
    assert decode == pytest.approx(0.012 + 0.001 if overlap else 0.01 + 0.012 + 0.001)
    assert prefill == pytest.approx(0.02 + 0.001 if overlap else 0.02 + 0.012 + 0.001)


def _decoded(blocks: dict[str, Any]) -> dict[str, Any]:
    model = cost_model(schema_version=3, **blocks)
    return {name: getattr(model, name) for name in blocks}
