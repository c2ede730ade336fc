"""The simulated half of the digital twin: what was recorded, replayed, and measured the same way.

Owns the way from what was seen to a trace in memory, and the same figures of a simulated server.
Starts no server and reads no file.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import PolicyFile
from simulator.acceptance.load import AcceptanceProfile
from simulator.engine.config import EngineConfig
from simulator.engine.layout import DECODE_STEP
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Scenario
from simulator.study.metrics import is_finished, request_times
from simulator.study.study import saturated_rate
from simulator.twin.outside import Outside
from simulator.twin.timings import Segment, Timings, pooled
from traces import Request, Trace, build_trace


def trace_of(segment: Segment) -> Trace:
    """The segment as a request trace."""
    start_s = segment.seen[0].sent_s
    name = f"{segment.policy}-{segment.load}"
    return build_trace(
        [
            Request(
                request_id=one.rid,
                arrival_s=one.sent_s - start_s,
                prompt_tokens=one.prompt_tokens,
                output_tokens=one.output_tokens,
                domain=one.domain or None,
                prefix_hashes=list(one.prefix) or None,
                max_new_tokens=one.max_new_tokens,
            )
            for one in segment.seen
        ],
        name=name,
        path=name,
        sha256="",
        block_tokens=segment.block_tokens,
        where=lambda row: f"{name}: request {segment.seen[row].rid}",
    )


def offered_req_s(trace: Trace) -> float:
    """Requests a second from the first arrival to the last."""
    return (len(trace) - 1) / float(trace.arrival_s[-1] - trace.arrival_s[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Twin:
    """What was fitted, and the settings that the server ran with."""

    cost_model: CostModel
    acceptance: AcceptanceProfile
    belief: CostModel
    """What the server's policy planned with."""
    engine: EngineConfig
    outside: Outside

    def predict(self, trace: Trace, policy: PolicyFile, *, seeds: int, first: int = 0) -> Timings:
        """What the simulated server does with the trace, over several seeds; told are the requests
        from ``first`` on, as ``timings.measured`` does."""
        return pooled([self._once(trace, policy, seed, first) for seed in range(seeds)])

    def capacity_req_s(self, trace: Trace, policy: PolicyFile) -> float | None:
        """What the simulated server finishes when it is always full; None for a trace too short to
        tell."""
        return saturated_rate(self._scenario(trace, policy, 0))

    def load(self, trace: Trace, policy: PolicyFile) -> float | None:
        """Offered requests over that."""
        capacity = self.capacity_req_s(trace, policy)
        return offered_req_s(trace) / capacity if capacity else None

    def _scenario(self, trace: Trace, policy: PolicyFile, seed: int) -> Scenario:
        return Scenario(
            trace=trace,
            cost_model=self.cost_model,
            acceptance=self.acceptance,
            policy=policy,
            engine=self.engine,
            belief=self.belief,
            seed=seed,
        )

    def _once(self, trace: Trace, policy: PolicyFile, seed: int, first: int) -> Timings:
        scenario = dataclasses.replace(self._scenario(trace, policy, seed), step_capacity=4096)
        logged: list[npt.NDArray[Any]] = []
        outcome = simulate(scenario, on_steps=lambda _, log: logged.append(log.copy()))
        log = np.concatenate(logged)
        requests = outcome.requests[first:]
        times = request_times(requests)
        done = is_finished(requests)
        tpot_s = times["tpot"]
        before = np.searchsorted(log["start_s"], requests["arrival_s"]) - 1
        ends_s = log["start_s"][before] + log["duration_s"][before]
        idle = (before < 0) | (ends_s <= requests["arrival_s"])
        outside_s = self.outside.draw(idle[done], seed)
        since_s = float(requests["arrival_s"][0]) if first else -math.inf
        steps = log[(log["kind"] == DECODE_STEP) & (log["start_s"] >= since_s)]
        start_s = float(requests["arrival_s"][0])
        return Timings(
            span_s=float(requests["finish_s"][done].max() + self.outside.busy_s) - start_s,
            tokens=float(requests["generated"].sum()),
            ttft_s=times["ttft"][done] + outside_s,
            tpot_s=tpot_s[~np.isnan(tpot_s)],
            computed_tokens=float(steps["computed_tokens"].sum()),
            committed_tokens=float((requests["generated"][done] - 1).sum()),
            request_steps=float(steps["requests"].sum()),
            steps=float(len(steps)),
        )
