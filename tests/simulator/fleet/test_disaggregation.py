"""Prefill and decode on different replicas: the KV arrives first, and nobody gets lost between."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine.layout import COMPLETED, DECODE_STEP, PREFILL_STEP, Records
from simulator.fleet.config import (
    DECODE_ROUTERS,
    ROUTERS,
    AutoscaleConfig,
    FailureConfig,
    FleetConfig,
    PoolConfig,
    ShedConfig,
    TransferConfig,
)
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Outcome
from simulator.study.metrics import measure, request_times
from tests.simulator.replay_scenes import NO_OVERLAP, scenario, trace

KV_BYTES = 10**5  # per token, of the hand-made cost model
TRANSFER = TransferConfig(bytes_per_s=1e10, latency_s=0.005)


def apart(
    requests: Any,
    prefill: int = 1,
    decode: int = 1,
    *,
    transfer: TransferConfig = TRANSFER,
    policy: str = "fixed",
    engine: dict[str, Any] | None = None,
    **fleet: Any,
) -> tuple[Outcome, list[tuple[int, Records]]]:
    """The outcome and every replica's steps."""
    pools = (
        PoolConfig(role="prefill", replicas=prefill),
        PoolConfig(role="decode", replicas=decode),
    )
    config = FleetConfig(**({"pools": pools, "transfer": transfer} | fleet))
    case = scenario(policy, requests, fleet=config, engine=engine, step_capacity=1024)
    steps: list[tuple[int, Records]] = []
    outcome = simulate(case, on_steps=lambda i, s: steps.append((i, s.copy())), check=True)
    return outcome, steps


@pytest.mark.law
@pytest.mark.parametrize("decode_router", DECODE_ROUTERS)
def test_requests_and_kv_are_conserved_and_each_replica_does_its_part(decode_router: str) -> None:
    requests = trace(400, rate=20.0, block_tokens=64)
    outcome, steps = apart(requests, 2, 2, decode_router=decode_router)
    rows = outcome.requests
    assert (rows["status"] == COMPLETED).all()
    np.testing.assert_array_equal(rows["generated"], rows["output_limit"])
    for number, records in steps:
        assert set(records["kind"]) == {PREFILL_STEP if number < 2 else DECODE_STEP}
    states = [memory.state[0] for memory in outcome.memories]
    assert sum(int(state["handed"]) for state in states[:2]) == (rows["output_limit"] > 1).sum()
    committed = sum(int(state["committed_tokens"]) for state in states)
    assert committed == rows["generated"].sum()
    assert sum(int(state["committed_tokens"]) for state in states[:2]) == 400, "token 1"
    for state in states:
        assert state["free_pages"] + state["resident_blocks"] * 64 == 400_000, "KV leaked"
        assert state["waiting_tokens"] == state["queued"] == state["running"] == 0


@pytest.mark.law
@settings(max_examples=15, deadline=None)
@given(
    latency_s=st.floats(0.0, 0.5),
    bytes_per_s=st.floats(1e8, 1e12),
    rate=st.floats(1.0, 60.0),
    decode=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_decoding_never_starts_before_the_transfer_ended(
    latency_s: float, bytes_per_s: float, rate: float, decode: int, seed: int
) -> None:
    requests = trace(80, rate=rate, seed=seed, output_tokens=np.full(80, 2))
    transfer = TransferConfig(bytes_per_s=bytes_per_s, latency_s=latency_s)
    outcome, steps = apart(requests, 1, decode, transfer=transfer, policy="none")
    rows = outcome.requests
    expected = latency_s + rows["prompt_tokens"] * KV_BYTES / bytes_per_s
    np.testing.assert_allclose(rows["transfer_s"], expected, rtol=1e-12)
    np.testing.assert_array_equal(rows["ready_s"], rows["first_token_s"] + rows["transfer_s"])
    shortest_s = min(float(records["duration_s"].min()) for n, records in steps if n > 0)
    second_s = rows["finish_s"]  # of two tokens, one a step
    assert (second_s - rows["ready_s"] >= shortest_s * (1 - 1e-9)).all()


@pytest.mark.law
def test_the_first_token_comes_as_if_nobody_decoded() -> None:
    requests = trace(300, rate=12.0, block_tokens=64)
    outcome, _ = apart(requests, engine=NO_OVERLAP)
    alone = trace(300, rate=12.0, block_tokens=64)
    alone.output_tokens[:] = 1
    prefill = simulate(scenario("fixed", alone, engine={"admission_new_tokens": 1, **NO_OVERLAP}))
    np.testing.assert_array_equal(
        outcome.requests["first_token_s"], prefill.requests["first_token_s"]
    )


@pytest.mark.law
def test_decoding_apart_is_undisturbed_by_prefills() -> None:
    rng = np.random.default_rng(2)
    prompts = np.where(rng.random(300) < 0.2, 12_000, 200)
    requests = trace(300, rate=3.0, prompt_tokens=prompts, output_tokens=np.full(300, 100))
    outcome, _ = apart(requests, policy="none")
    together = simulate(scenario("none", requests, replicas=2))
    # The first burst after the transfer waited for it, so the transfer is part of its latency.
    longest_s = outcome.requests["longest_itl_s"] - outcome.requests["transfer_s"]
    assert np.percentile(longest_s, 90) < 0.1
    assert np.percentile(together.requests["longest_itl_s"], 90) > 0.3
    tpot = [request_times(o.requests)["tpot"].mean() for o in (outcome, together)]
    assert tpot[0] < tpot[1]


@pytest.mark.example
def test_a_decode_replica_short_of_memory_computes_a_retracted_prompt_again() -> None:
    requests = trace(60, rate=40.0, output_mean=150.0)
    engine = {"kv_pool_tokens": 6000, "admission_new_tokens": 16, "page_size": 16}
    outcome, steps = apart(requests, engine=engine)
    assert (outcome.requests["status"] == COMPLETED).all()
    again = sum((records["kind"] == PREFILL_STEP).sum() for n, records in steps if n == 1)
    assert outcome.requests["retractions"].sum() > 0
    assert 0 < again <= outcome.requests["retractions"].sum()
    assert outcome.memories[1].state["free_pages"][0] == 6000 // 16


@pytest.mark.law
@settings(max_examples=25, deadline=None)
@given(
    router=st.sampled_from(ROUTERS),
    decode_router=st.sampled_from(DECODE_ROUTERS),
    prefill=st.integers(1, 2),
    decode=st.integers(1, 2),
    seed=st.integers(0, 99),
    failing=st.booleans(),
    scaling=st.booleans(),
    shedding=st.booleans(),
    block_tokens=st.sampled_from([0, 64]),
)
def test_any_mixture_of_everything_accounts_for_every_request(
    router: str, decode_router: str, prefill: int, decode: int, seed: int, failing: bool,
    scaling: bool, shedding: bool, block_tokens: int,
) -> None:  # fmt: skip
    scale = AutoscaleConfig(
        target_in_flight=6.0, most=3, startup_s=0.5, interval_s=0.7, stabilisation_s=1.0
    )
    autoscale = scale if scaling else None
    outcome, _ = apart(
        trace(120, rate=40.0, seed=seed, block_tokens=block_tokens),
        router=router,
        decode_router=decode_router,
        pools=(
            PoolConfig(role="prefill", replicas=prefill, autoscale=autoscale),
            PoolConfig(role="decode", replicas=decode, autoscale=autoscale),
        ),
        failures=FailureConfig(mean_time_between_s=2.0, restart_s=0.5) if failing else None,
        shed=ShedConfig() if shedding else None,
    )
    row = measure(outcome, outcome.scenario.slo)
    assert row["completed"] + row["shed"] + row["unfinished"] == 120
    given_up = (outcome.requests["retries"] == 100).sum()
    assert row["unfinished"] <= given_up
    served = outcome.requests[outcome.requests["status"] == COMPLETED]
    apart_ = served[served["output_limit"] > 1]
    assert (apart_["finish_s"] > apart_["first_token_s"] + apart_["transfer_s"]).all()
    assert (served["kv_ready"] == 0).all()


@pytest.mark.law
def test_a_disaggregated_run_repeats_itself() -> None:
    requests = trace(200, rate=30.0, block_tokens=64)
    runs = [
        apart(requests, 2, 2, router="power-of-two", decode_router="power-of-two",
              failures=FailureConfig(mean_time_between_s=3.0, restart_s=1.0))[0]
        for _ in range(2)
    ]  # fmt: skip
    for name in runs[0].requests.dtype.names or ():
        np.testing.assert_array_equal(runs[0].requests[name], runs[1].requests[name])
    assert (runs[0].requests["retries"] > 0).any()


@pytest.mark.example
@pytest.mark.parametrize(
    ("fleet", "words"),
    [
        ({"pools": (PoolConfig(role="prefill"),)}, "pools of role prefill; a disaggregated fleet"),
        (
            {"pools": (PoolConfig(role="decode"), PoolConfig(role="serve", replicas=1))},
            "pools of role decode and serve",
        ),
        ({"transfer": None}, "prefill and decode pools need 'transfer'"),
        ({"pools": ()}, "prefill and decode pools need 'transfer', and only they"),
        ({"decode_router": "prefix-affine"}, "decode_router 'prefix-affine' is unknown"),
    ],
)
def test_half_a_disaggregation_is_refused(fleet: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        apart(trace(2), **fleet)


@pytest.mark.example
def test_a_wrong_transfer_or_role_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bytes_per_s 0.0 must be a finite number above 0"):
        TransferConfig(bytes_per_s=0.0)
    with pytest.raises(ValueError, match="role 'decoder' is unknown; did you mean decode"):
        PoolConfig(role="decoder")
