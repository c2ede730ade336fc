"""Shedding: a request whose TTFT bound is already hopeless is refused at the router.

Law: request r is shed at the replica its router chose when

    seconds since its arrival + max(0, share * waiting / rate - seconds since the report)
        + share * own / rate  >  bound * (1 - headroom)^level

``waiting``: prompt tokens that wait there by its last report, and those sent since; ``own``: its
prompt. ``rate``: tokens per second of a full prefill chunk by the cost model. ``share``: what part
of its prompt tokens the replica had to compute so far, the rest being in its prefix cache.
``level``: how many priorities of the trace are above its own, so that a growing queue sheds low
priorities first. Decoding and the step in flight are left out, so the estimate is too short rather
than too long. Knows no event loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang_dspark.core.costs.tables import prefill_seconds
from simulator.engine.layout import SHED, Records
from simulator.fleet.config import ShedConfig
from simulator.fleet.replica import Replica
from simulator.slo import Slo, bounds_s
from traces import Trace


class Shedder:
    """What one router knows of the queues behind it."""

    def __init__(
        self,
        config: ShedConfig,
        *,
        replicas: Sequence[Replica],
        trace: Trace,
        requests: Records,
        slo: Slo,
    ) -> None:
        self.shed: list[int] = []
        """Requests refused so far."""
        self._replicas = replicas
        self._requests = requests
        self._prompt = trace.prompt_tokens
        bound_s, _ = bounds_s(trace, slo)
        _, level = np.unique(-trace.priority, return_inverse=True)
        self._bound_s = bound_s * (1.0 - config.low_priority_headroom) ** level
        self._token_s = [_prefill_token_seconds(replica) for replica in replicas]
        self._reported_s = 0.0
        self._waiting = [0] * len(replicas)
        self._share = [1.0] * len(replicas)

    def read_reports(self, now_s: float) -> None:
        """Note what waits at each replica, and what part of its prompts it had to compute."""
        self._reported_s = now_s
        for place, replica in enumerate(self._replicas):
            self._waiting[place] = replica.waiting_tokens
            self._share[place] = replica.computed_share

    def wait_s(self, r: int, place: int, now_s: float) -> float:
        """Seconds from ``now_s`` to the first token of ``r``, were it sent to the replica."""
        token_s = self._share[place] * self._token_s[place]
        ahead_s = self._waiting[place] * token_s - (now_s - self._reported_s)
        return max(0.0, ahead_s) + int(self._prompt[r]) * token_s

    def refuses(self, r: int, place: int) -> bool:
        """Whether the bound is hopeless; if so, the request has been shed."""
        row = self._requests[r]
        now_s = float(row["ready_s"])
        if now_s - row["arrival_s"] + self.wait_s(r, place, now_s) <= self._bound_s[r]:
            return False
        row["status"] = SHED
        row["finish_s"] = now_s
        self.shed.append(r)
        return True

    def sent(self, r: int, place: int) -> None:
        """The request waits there now."""
        self._waiting[place] += int(self._prompt[r])


def _prefill_token_seconds(replica: Replica) -> float:
    """Seconds per prompt token while the replica prefills full chunks from empty."""
    tokens = replica.engine.chunk_tokens
    step_s = prefill_seconds(replica.truth, tokens, 0.5 * tokens * tokens) + replica.truth.host_s
    return step_s / tokens
