"""Sessions in a closed loop: a turn comes its delay after the answer before it, wherever it ran."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.engine.layout import COMPLETED, REJECTED, SHED
from simulator.fleet.config import FailureAt, FailureConfig, FleetConfig, ShedConfig
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Scenario
from simulator.slo import parse_slo
from tests.simulator.replay_scenes import scenario
from traces import Request, Trace, build_trace, load_trace
from traces.columns import trace_requests


def trace_of(requests: list[Request]) -> Trace:
    return build_trace(
        requests, name="turns", path="turns", sha256="0" * 64, block_tokens=None, where=str
    )


def one_session(turns: int, *, output_tokens: int, every_s: float, delay_s: float) -> Trace:
    return trace_of(
        [
            Request(
                request_id=str(turn),
                arrival_s=every_s * turn,
                prompt_tokens=100 + 50 * turn,
                output_tokens=output_tokens,
                session_id="s",
                delay_s=delay_s if turn else None,
            )
            for turn in range(turns)
        ]
    )


def many_sessions(seed: int, *, sessions: int = 40, alone: int = 60) -> Trace:
    """Sessions of one to six turns among requests of nobody, some at once, some much later."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[float, Request]] = []

    def add(at_s: float, session: str | None, delay_s: float | None) -> None:
        rows.append(
            (
                at_s,
                Request(
                    request_id=f"r{len(rows)}",
                    arrival_s=at_s,
                    prompt_tokens=int(rng.integers(1, 900)),
                    output_tokens=int(rng.integers(1, 120)),
                    session_id=session,
                    delay_s=delay_s,
                ),
            )
        )

    for number in range(sessions):
        at_s = float(rng.uniform(0, 20))
        for turn in range(int(rng.integers(1, 7))):
            delay_s = float(rng.choice([0.0, 0.01, 0.5, 3.0])) if turn else None
            at_s += delay_s or 0.0
            add(at_s, f"s{number}", delay_s)
    for _ in range(alone):
        add(float(rng.uniform(0, 25)), None, None)
    rows.sort(key=lambda row: row[0])
    return trace_of([request for _, request in rows])


def plain(trace: Trace, **changes: Any) -> Scenario:
    """Without speculation, so that nothing is drawn and a request's number does not matter."""
    return replace(scenario("none", trace), **changes)


@pytest.mark.example
def test_a_turn_starts_its_delay_after_the_answer_not_at_its_recorded_time() -> None:
    trace = one_session(6, output_tokens=400, every_s=1.0, delay_s=1.0)
    requests = simulate(plain(trace), check=True).requests
    assert (requests["status"] == COMPLETED).all()
    assert requests["finish_s"][0] > 2.0, "the second turn would be recorded before the answer"
    np.testing.assert_array_equal(requests["arrival_s"][1:], requests["finish_s"][:-1] + 1.0)


@pytest.mark.law
def test_a_slower_server_is_asked_for_less() -> None:
    trace = one_session(6, output_tokens=400, every_s=1.0, delay_s=1.0)
    recorded = replace(trace, delay_s=np.full(len(trace), np.nan))
    closed, opened = (simulate(plain(t), check=True).requests for t in (trace, recorded))
    in_flight = [
        max(((r["arrival_s"] <= t) & (t < r["finish_s"])).sum() for t in r["arrival_s"])
        for r in (closed, opened)
    ]
    assert in_flight[0] == 1
    assert in_flight[1] > 1


@pytest.mark.law
@pytest.mark.parametrize("router", ["round-robin", "least-loaded"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_turns_that_wait_run_as_if_their_times_had_been_recorded(
    router: str, replicas: int
) -> None:
    # Causality: had a step begun after a turn came and run without it, its answer would differ.
    trace = many_sessions(replicas)
    fleet = FleetConfig(router=router)
    closed = simulate(plain(trace, replicas=replicas, fleet=fleet), check=True).requests
    follows = trace.follows
    waits = follows >= 0
    assert waits.sum() > 60
    due_s = closed["finish_s"][follows[waits]] + trace.delay_s[waits]
    np.testing.assert_array_equal(closed["arrival_s"][waits], due_s)

    order = np.argsort(closed["arrival_s"], kind="stable")
    rows = trace_requests(trace)
    recorded = []
    for r in order.tolist():
        rows[r].arrival_s = float(closed["arrival_s"][r])
        rows[r].delay_s = None
        recorded.append(rows[r])
    first_s = recorded[0].arrival_s
    again = simulate(plain(trace_of(recorded), replicas=replicas, fleet=fleet), check=True).requests
    for name in ("first_token_s", "finish_s"):
        np.testing.assert_allclose(closed[name][order] - first_s, again[name], rtol=0, atol=1e-9)


@pytest.mark.law
def test_with_failures_and_shedding_every_turn_still_comes_or_its_session_does_not_end() -> None:
    trace = many_sessions(9)
    fleet = FleetConfig(
        router="least-loaded",
        shed=ShedConfig(),
        failures=FailureConfig(
            at=(FailureAt(replica=0, at_s=2.0), FailureAt(replica=1, at_s=6.0)),
            restart_s=3.0, most_retries=0,
        ),
    )  # fmt: skip
    outcome = simulate(plain(trace, replicas=2, fleet=fleet, slo=parse_slo("20:30")), check=True)
    requests = outcome.requests
    refused = np.isin(requests["status"], (SHED, REJECTED))
    lost = ~refused & (requests["status"] != COMPLETED)
    assert refused.any()
    assert lost.any(), "given up after a failure"
    assert not np.isnan(requests["arrival_s"]).any()
    waits = np.flatnonzero((trace.follows >= 0) & ~lost[np.maximum(trace.follows, 0)])
    before = trace.follows[waits]
    due_s = requests["finish_s"][before] + trace.delay_s[waits]
    np.testing.assert_allclose(requests["arrival_s"][waits], due_s, rtol=0, atol=1e-12)


@pytest.mark.law
def test_a_turn_too_long_for_the_server_is_refused_and_the_next_one_goes_on() -> None:
    trace = one_session(4, output_tokens=10, every_s=1.0, delay_s=1.0)
    prompts = trace.prompt_tokens.copy()
    prompts[[0, 2]] = 10_000_000
    requests = simulate(plain(replace(trace, prompt_tokens=prompts)), check=True).requests
    assert requests["status"].tolist() == [REJECTED, COMPLETED, REJECTED, COMPLETED]
    assert requests["arrival_s"][1] == 1.0
    assert requests["arrival_s"][2] == requests["finish_s"][1] + 1.0
    assert requests["arrival_s"][3] == requests["arrival_s"][2] + 1.0


@pytest.mark.example
def test_clients_of_a_closed_loop_do_not_wait_for_sessions_and_that_is_said() -> None:
    trace = one_session(4, output_tokens=10, every_s=1.0, delay_s=1.0)
    with pytest.warns(UserWarning, match="3 turns of sessions do not wait for the answer"):
        plain(trace, concurrency=2).check()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain(trace).check()


@pytest.mark.law
def test_a_part_of_a_trace_waits_only_for_what_is_in_it(tmp_path: Path) -> None:
    trace = one_session(4, output_tokens=10, every_s=1.0, delay_s=1.0)
    assert trace.follows.tolist() == [-1, 0, 1, 2]
    assert trace.part(1, 4).follows.tolist() == [-1, 0, 1]
    lines = [
        {"request_id": "a", "arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1, "delay_s": 1.0}
    ]
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(ValueError, match=r"t.jsonl:1: delay_s 1.0 must be left out where there"):
        load_trace(path)
    path.write_text(json.dumps(lines[0] | {"session_id": "s", "delay_s": -1}) + "\n")
    with pytest.raises(ValueError, match=r"t.jsonl:1: delay_s -1.0 must be a finite number"):
        load_trace(path)
