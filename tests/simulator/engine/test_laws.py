"""Laws that hold for every replay: queueing theory, conservation, causality, determinism."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from simulator.engine.layout import (
    COMPLETED,
    DECODE_STEP,
    PREFILL_STEP,
    REJECTED,
    TRUNCATED,
    Records,
)
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Outcome
from simulator.study.metrics import request_times
from tests.simulator.replay_scenes import NO_OVERLAP, cost_model, scenario, trace

SERVICE_S = 0.1


def single_server(arrival_s: Any, service_tokens: Any) -> Outcome:
    """One request at a time, one token each: the prefill is the whole service, 10 us a token."""
    n = len(arrival_s)
    requests = trace(
        n, arrival_s=arrival_s, prompt_tokens=service_tokens, output_tokens=np.ones(n, np.int64)
    )
    model = cost_model(
        prefill={"base_s": 0.0, "token_s": 1e-5, "pair_s": 0.0, "origin": "analytic"}
    )
    engine = {
        "max_running_requests": 1, "chunked_prefill_size": 10**9, "max_prefill_tokens": 10**9,
        "kv_pool_tokens": 10**9, **NO_OVERLAP,
    }  # fmt: skip
    return simulate(scenario("none", requests, engine=engine, cost_model=model))


def waiting_interval_s(outcome: Outcome, service_s: np.ndarray[Any, Any]) -> tuple[float, float]:
    """99.9 % confidence interval of the mean wait, by 30 batch means after a warm-up."""
    wait = request_times(outcome.requests)["ttft"] - service_s
    assert wait.min() > -1e-9
    means = np.array([batch.mean() for batch in np.array_split(wait[len(wait) // 20 :], 30)])
    half = stats.t.ppf(0.9995, 29) * means.std(ddof=1) / math.sqrt(30)
    return means.mean() - half, means.mean() + half


@pytest.mark.law
@pytest.mark.parametrize("load", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("service", ["M/D/1", "M/M/1"])
def test_a_single_server_waits_as_queueing_theory_says(load: float, service: str) -> None:
    n = 60_000
    rng = np.random.default_rng(int(load * 10))
    arrival_s = np.cumsum(rng.exponential(SERVICE_S / load, n))
    constant = service == "M/D/1"
    drawn = np.full(n, 10_000.0) if constant else rng.exponential(10_000.0, n)
    tokens = np.maximum(1, np.rint(drawn)).astype(np.int64)
    low, high = waiting_interval_s(single_server(arrival_s, tokens), tokens * 1e-5)
    expected = load * SERVICE_S / (1 - load) * (0.5 if constant else 1.0)
    assert low <= expected <= high
    assert high - low < expected, "the interval is too wide to tell"


def logged(case: Any) -> tuple[Outcome, Records]:
    steps: list[Records] = []
    case = dataclasses.replace(case, step_capacity=4096)
    outcome = simulate(case, on_steps=lambda _, records: steps.append(records.copy()), check=True)
    return outcome, np.concatenate(steps)


def columns(records: Records) -> list[bytes]:
    """The records' bytes without the padding between fields."""
    return [records[name].tobytes() for name in records.dtype.names or ()]


@pytest.mark.law
@pytest.mark.parametrize("policy", ["none", "fixed", "global"])
def test_requests_tokens_and_steps_are_conserved(policy: str) -> None:
    requests = trace(400, rate=20.0, block_tokens=64)
    outcome, steps = logged(scenario(policy, requests, engine={"kv_pool_tokens": 30_000}))
    rows, state = outcome.requests, outcome.memories[0].state[0]
    served = rows["status"] == COMPLETED
    assert served.sum() + (rows["status"] == REJECTED).sum() == 400
    assert state["done"] == served.sum()
    np.testing.assert_array_equal(rows["generated"][served], rows["output_limit"][served])
    assert steps["committed_tokens"].sum() == rows["generated"].sum() == state["committed_tokens"]
    assert steps["verify_tokens"].sum() == rows["verified"].sum()
    decode = steps["kind"] == DECODE_STEP
    extra = steps["committed_tokens"][decode].sum() - steps["requests"][decode].sum()
    assert extra == rows["accepted"].sum()
    assert (rows["accepted"] <= rows["verified"]).all()
    cached = rows["cached_tokens"][served] + 0
    assert steps["prefill_tokens"].sum() >= (rows["prompt_tokens"][served] - cached).sum()
    assert state["free_pages"] + state["resident_blocks"] * 64 == 30_000, "KV leaked"


@pytest.mark.law
def test_nothing_happens_before_its_cause() -> None:
    outcome, steps = logged(scenario("global", trace(400, rate=20.0)))
    rows = outcome.requests
    assert (rows["first_token_s"] > rows["arrival_s"]).all()
    assert (rows["finish_s"] >= rows["first_token_s"]).all()
    ends = steps["start_s"] + steps["duration_s"]
    assert (steps["duration_s"] > 0).all()
    assert (steps["start_s"][1:] >= ends[:-1] - 1e-9).all(), "two steps at once on one replica"


@pytest.mark.law
def test_the_engine_never_idles_while_a_request_waits() -> None:
    outcome, steps = logged(scenario("fixed", trace(400, rate=3.0, output_mean=20.0)))
    rows = outcome.requests
    ends = steps["start_s"] + steps["duration_s"]
    gaps = np.flatnonzero(steps["start_s"][1:] > ends[:-1] + 1e-9)
    assert gaps.size > 20, "the case must have idle times"
    for gap in gaps:
        present = (rows["arrival_s"] < steps["start_s"][gap + 1] - 1e-9) & (
            rows["finish_s"] > ends[gap] + 1e-9
        )
        assert not present.any()


@pytest.mark.law
def test_an_interval_between_prefills_feeds_who_decodes() -> None:
    """--prefill-decode-interval: so many decode steps, or nobody left to decode."""
    longest_s = []
    for interval in (0, 2, 5):
        engine = {"chunked_prefill_size": 64, "prefill_decode_interval": interval}
        outcome, steps = logged(scenario("fixed", trace(300, rate=12.0), engine=engine))
        prefill = np.flatnonzero(steps["kind"] == PREFILL_STEP)
        assert (np.diff(prefill) > 1).any()
        for before, after in itertools.pairwise(prefill.tolist()):
            assert after - before > interval or steps["running"][after - 1] == 0
        longest_s.append(outcome.requests["longest_itl_s"].mean())
    assert longest_s[0] > 1.5 * max(longest_s[1:])


@pytest.mark.law
@pytest.mark.parametrize(
    ("policy", "running", "given", "free"),
    [("fixed", 16, None, 3), ("fixed", 48, None, 4), ("fixed", 7, None, 1), ("none", 16, None, 1),
     ("fixed", 16, 1, 1), ("none", 16, 5, 5)],
)  # fmt: skip
def test_a_full_batch_waits_for_places_and_for_who_finished_to_go(
    policy: str, running: int, given: int | None, free: int
) -> None:
    """--min-free-slots-delay, and that SGLang takes a finished request out when it decodes next."""
    engine = {"max_running_requests": running, "min_free_slots_delay": given}
    outcome, steps = logged(scenario(policy, trace(600, rate=500.0), engine=engine))
    crowd = steps[: np.flatnonzero(steps["queued"])[-1]]  # somebody waited all the time
    before, after = crowd[:-1], crowd[1:]
    starts = (after["kind"] == PREFILL_STEP) & (before["kind"] == DECODE_STEP)
    # What the step before the prefill left behind, the finished ones still counted.
    held = before["requests"][starts]
    assert starts.sum() > 20
    assert (running - held >= free).all()
    assert (running - held == free).any()
    full = (before["kind"] == DECODE_STEP) & (running - before["requests"] < free)
    assert (after["kind"][full] == DECODE_STEP).all()
    assert (outcome.requests["status"] == COMPLETED).all()


@pytest.mark.law
def test_littles_law_links_the_batch_in_the_step_log_to_request_latencies() -> None:
    outcome, steps = logged(scenario("fixed", trace(4000, rate=40.0), engine=NO_OVERLAP))
    ends = steps["start_s"] + steps["duration_s"]
    # The population that each step leaves behind lasts as long as the next step. A request that
    # arrives within a step is queued after it: it is added from then to the end of the next one.
    present = ((steps["running"] + steps["queued"])[:-1] * np.diff(ends)).sum()
    arrival_s = outcome.requests["arrival_s"]
    step = np.searchsorted(ends, arrival_s)
    step += arrival_s > steps["start_s"][step] + 1e-9
    mean_present = (present + (ends[step] - arrival_s).sum()) / ends[-1]
    arrival_rate = 4000 / ends[-1]
    mean_latency_s = request_times(outcome.requests)["e2e"].mean()
    assert mean_present == pytest.approx(arrival_rate * mean_latency_s, rel=0.005)
    assert mean_present > 50, "the case must have a crowd"


@pytest.mark.law
def test_a_run_is_a_pure_function_of_its_inputs() -> None:
    def replay(seed: int) -> list[bytes]:
        outcome, steps = logged(scenario("global", trace(200, block_tokens=64), seed=seed))
        return columns(outcome.requests) + columns(steps)

    assert replay(1) == replay(1)
    assert replay(1) != replay(2)


@pytest.mark.law
def test_policies_see_common_random_numbers() -> None:
    rows = [simulate(scenario(p, trace(50))).requests for p in ("fixed", "fixed:1", "global")]
    for other in rows[1:]:
        np.testing.assert_array_equal(rows[0]["difficulty"], other["difficulty"])


@pytest.mark.law
def test_the_step_log_buffer_does_not_change_the_run() -> None:
    cases = [scenario("global", trace(100), step_capacity=c) for c in (0, 7, 4096)]
    first, *others = [columns(simulate(case).requests) for case in cases]
    assert all(other == first for other in others)


@pytest.mark.law
def test_a_closed_loop_holds_its_concurrency() -> None:
    outcome, steps = logged(scenario("fixed", trace(600), concurrency=16))
    decode = steps[steps["kind"] == DECODE_STEP]
    assert decode["requests"].max() <= 16
    middle = decode[len(decode) // 4 : len(decode) // 2]
    held = np.average(middle["requests"] + middle["queued"], weights=middle["duration_s"])
    assert held == pytest.approx(16, abs=0.7)
    assert (outcome.requests["status"] == COMPLETED).all()


@pytest.mark.law
def test_two_replicas_halve_the_load_and_lose_nobody() -> None:
    one = simulate(scenario("fixed", trace(800, rate=60.0)))
    two = simulate(scenario("fixed", trace(800, rate=60.0), replicas=2), check=True)
    assert (two.requests["status"] == COMPLETED).all()
    done = [int(memory.state["done"][0]) for memory in two.memories]
    assert done == [400, 400]
    assert request_times(two.requests)["e2e"].mean() < request_times(one.requests)["e2e"].mean()


@pytest.mark.law
def test_a_dearer_engine_is_never_faster() -> None:
    slow = cost_model(host={"step_s": 0.005, "origin": "analytic"})
    quick = simulate(scenario("fixed", trace(300)))
    slower = simulate(scenario("fixed", trace(300), cost_model=slow))
    assert slower.memories[0].state["now_s"][0] >= quick.memories[0].state["now_s"][0]
    assert (
        request_times(slower.requests)["e2e"].mean() > request_times(quick.requests)["e2e"].mean()
    )


@pytest.mark.example
def test_shared_prefixes_are_prefilled_once() -> None:
    plain = simulate(scenario("none", trace(200, block_tokens=64), engine={
        "enable_prefix_cache": False}))  # fmt: skip
    cached = simulate(scenario("none", trace(200, block_tokens=64)))
    saved = cached.memories[0].state["cached_tokens"][0]
    assert saved > 0
    computed = [int(o.memories[0].state["prefill_tokens"][0]) for o in (plain, cached)]
    assert computed[0] == computed[1] + saved


@pytest.mark.example
def test_a_request_beyond_the_memory_is_rejected_and_one_that_outgrows_it_is_cut() -> None:
    requests = trace(
        3,
        prompt_tokens=np.array([5000, 900, 100]),
        output_tokens=np.array([10, 500, 10]),
    )
    outcome = simulate(scenario("fixed", requests, engine={"kv_pool_tokens": 1000}), check=True)
    assert outcome.requests["status"].tolist() == [REJECTED, TRUNCATED, COMPLETED]
    assert outcome.requests["generated"].tolist() == [0, 1000 - 64 - 2 - 900, 10]


@pytest.mark.example
def test_a_trace_of_which_nothing_fits_is_refused() -> None:
    requests = trace(2, prompt_tokens=np.array([5000, 6000]), output_tokens=np.array([1, 1]))
    with pytest.raises(ValueError, match=r"no request fits the KV memory of 1000 tokens"):
        simulate(scenario("fixed", requests, engine={"kv_pool_tokens": 1000}))


@pytest.mark.law
def test_the_plan_follows_what_the_policy_believes_and_the_clock_what_is_true() -> None:
    dear = cost_model(
        table={
            "tokens": [1, 4096], "seconds": [0.001, 4.0], "between": "linear",
            "origin": "analytic",
        }
    )  # fmt: skip
    honest = simulate(scenario("global", trace(200, rate=40.0), engine=NO_OVERLAP))
    misled = simulate(scenario("global", trace(200, rate=40.0), engine=NO_OVERLAP, belief=dear))
    assert misled.requests["verified"].sum() < 0.5 * honest.requests["verified"].sum()
    lone = [simulate(scenario("none", trace(200), belief=belief)) for belief in (None, dear)]
    assert columns(lone[0].requests) == columns(lone[1].requests), "belief must not move the clock"
