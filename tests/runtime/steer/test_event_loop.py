"""SGLang's own event loops over a device of the test's make, beside the simulator's kernel.

The loops are the release's; what they call is a clock: receiving takes what has arrived, a launched
batch begins when the device is free, and waiting for a result lasts until its batch ends. A CPU
cannot show this: there a launch returns when the forward is done.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from simulator.engine.layout import DECODE_STEP, Records
from simulator.fleet.fleet import simulate
from tests.simulator.replay_scenes import cost_model, scenario, trace

PREFILL_S, DECODE_S = 0.02, 0.01
ANALYTIC = {"origin": "analytic"}
PRICES = cost_model(
    table={"tokens": [1, 4096], "seconds": [DECODE_S, DECODE_S], "between": "linear"} | ANALYTIC,
    draft={"gamma": 7, "requests": [1], "seconds": [1e-9], "between": "linear"} | ANALYTIC,
    prefill={"base_s": PREFILL_S, "token_s": 1e-15, "pair_s": 0.0} | ANALYTIC,
    context={"token_s": 0.0, "reference_tokens": 0} | ANALYTIC,
    valid_range={"tokens": [1, 4096], "requests": [1, 1], "context_tokens": [0, 100000]},
)


@dataclasses.dataclass(eq=False)
class Request:
    """One request, as far as its results are known."""

    arrival_s: float
    output: int
    emitted: list[float] = dataclasses.field(default_factory=list)

    @property
    def finished(self) -> bool:
        return len(self.emitted) >= self.output


class Batch(SimpleNamespace):
    """What the loop asks of a batch."""

    def __init__(self, requests: list[Request], *, extend: bool) -> None:
        super().__init__(
            requests=requests,
            extend=extend,
            forward_mode=SimpleNamespace(is_extend=lambda: extend, is_decode=lambda: not extend),
            spec_algorithm=SimpleNamespace(is_none=lambda: True),
        )

    def copy(self) -> Batch:
        return self


class Clock(SimpleNamespace):
    """The scheduler that the loops are called with."""

    def __init__(self, requests: list[Request]) -> None:
        super().__init__(
            gracefully_exit=False, _engine_paused=False, running_batch=[], last_batch=None,
            require_mlp_sync=False, enable_unified_memory=False, is_generation=False,
            result_queue=[],
        )  # fmt: skip
        self.arriving = list(requests)
        self.waiting: list[Request] = []
        self.now_s = self.device_free_s = 0.0
        self.steps: list[tuple[str, float, int]] = []

    def __getattr__(self, name: str) -> Any:
        if name in ("_apply_war_barrier", "launch_batch_sample_if_needed"):
            return lambda *_: None
        raise AttributeError(name)

    def ingest_requests(self) -> None:
        while self.arriving and self.arriving[0].arrival_s <= self.now_s:
            self.waiting.append(self.arriving.pop(0))

    def get_next_batch_to_run(self, *, running_batch: Any, last_batch: Any) -> Any:
        running = [
            *running_batch,
            *(last_batch.requests if last_batch and last_batch.extend else []),
        ]
        running = [request for request in running if not request.finished]
        batch = None
        if self.waiting:
            batch, self.waiting = Batch(self.waiting, extend=True), []
        elif running:
            batch = Batch(list(running), extend=False)
        return SimpleNamespace(running_batch=running, batch_to_run=batch)

    def run_batch(self, batch: Batch) -> float:
        start_s = max(self.now_s, self.device_free_s)
        self.steps.append(("P" if batch.extend else "D", start_s, len(batch.requests)))
        self.device_free_s = start_s + (PREFILL_S if batch.extend else DECODE_S)
        return self.device_free_s

    def process_batch_result(self, batch: Batch, end_s: float) -> None:
        self.now_s = max(self.now_s, end_s)
        for request in batch.requests:
            if not request.finished:
                request.emitted.append(self.now_s)

    def on_idle(self) -> None:
        if self.arriving:
            self.now_s = max(self.now_s, self.arriving[0].arrival_s)
        else:
            self.gracefully_exit = True


def simulated(arrival_s: Any, output: Any, *, overlap: bool) -> tuple[Records, Records]:
    requests = trace(
        len(arrival_s),
        arrival_s=arrival_s,
        prompt_tokens=np.full(len(arrival_s), 10),
        output_tokens=output,
    )
    case = scenario(
        "none",
        requests,
        cost_model=PRICES,
        engine={"disable_overlap_schedule": not overlap},
        step_capacity=4096,
    )
    steps: list[Records] = []
    outcome = simulate(case, on_steps=lambda _, new: steps.append(new.copy()))
    return outcome.requests, np.concatenate(steps)


@pytest.mark.law
@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "normal"])
@pytest.mark.parametrize("seed", range(12))
def test_the_simulator_steps_as_the_release_s_event_loop_does(
    scheduler: Any, overlap: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    gaps_s = rng.exponential(0.05 if seed % 2 else 0.4, 60)
    arrival_s = np.cumsum(gaps_s) - gaps_s[0]
    output = rng.integers(1, 12, 60)
    clock = Clock([Request(float(a), int(n)) for a, n in zip(arrival_s, output, strict=True)])
    requests = list(clock.arriving)
    loop = scheduler.event_loop_overlap if overlap else scheduler.event_loop_normal
    clock.is_disable_overlap_for_batch = scheduler.is_disable_overlap_for_batch.__get__(clock)
    loop(clock)
    ours, steps = simulated(arrival_s, output, overlap=overlap)
    kinds = ["D" if kind == DECODE_STEP else "P" for kind in steps["kind"]]
    assert kinds == [kind for kind, _, _ in clock.steps]
    assert steps["start_s"] == pytest.approx([start_s for _, start_s, _ in clock.steps])
    rows = np.where(steps["kind"] == DECODE_STEP, steps["computed_tokens"], steps["requests"])
    assert rows.tolist() == [count for _, _, count in clock.steps]
    assert ours["first_token_s"] == pytest.approx([r.emitted[0] for r in requests])
    assert ours["finish_s"] == pytest.approx([r.emitted[-1] for r in requests])
