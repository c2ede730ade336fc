"""Routers: which replica a request is sent to, from what a router can know.

A router knows what each replica reported last and what it has sent since (``View``), never the
replica itself. Strategies follow SGLang's router (sgl-model-gateway, policies ``round_robin``,
``power_of_two`` and ``cache_aware`` with its default thresholds). Knows no time and no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.compiled import compiled
from simulator.engine.layout import Records
from simulator.rng import round_key, uniform, word
from traces import Trace

# Defaults of SGLang's router: cache_threshold, balance_abs_threshold, balance_rel_threshold.
_LEAST_MATCH = 0.3
_IMBALANCE_REQUESTS = 64
_IMBALANCE_RATIO = 1.5

_ROUTER_STEP = -(1 << 40)  # far from every decode round, whose draws share the seed


@dataclass(kw_only=True)
class View:
    """What a router knows of its replicas, which it calls 0, 1, ..."""

    open: list[int]
    """Replicas that take requests, ascending."""
    in_flight: list[int]
    """[replicas] requests each held at its last report, and those sent to it since."""

    def least_loaded(self) -> int:
        """The open replica with the fewest requests in flight; the first of equals."""
        return min(self.open, key=self.in_flight.__getitem__)


class Router(Protocol):
    """Chooses among ``view.open``, which the caller keeps from being empty."""

    uses_load: bool
    """Whether it reads ``view.in_flight``, so that reports matter."""

    def pick(self, r: int) -> int:
        """The replica for request ``r``."""

    def sent(self, r: int, replica: int) -> None:
        """Request ``r`` went there."""

    def forget(self, replica: int) -> None:
        """The replica lost its prefix cache."""


class RoundRobin:
    """The open replicas in turn."""

    uses_load = False

    def __init__(self, view: View) -> None:
        self._view = view
        self._turn = 0

    def pick(self, r: int) -> int:
        """See ``Router``."""
        self._turn += 1
        return self._view.open[(self._turn - 1) % len(self._view.open)]

    def sent(self, r: int, replica: int) -> None:
        """It remembers nothing."""

    def forget(self, replica: int) -> None:
        """It remembers nothing."""


class LeastLoaded:
    """The fewest requests in flight by the router's own view."""

    uses_load = True

    def __init__(self, view: View) -> None:
        self._view = view

    def pick(self, r: int) -> int:
        """See ``Router``."""
        return self._view.least_loaded()

    def sent(self, r: int, replica: int) -> None:
        """It remembers nothing."""

    def forget(self, replica: int) -> None:
        """It remembers nothing."""


@compiled
def _two_of(seed: int, request: int, attempt: int, n: int) -> tuple[int, int]:
    """Two different numbers below ``n`` >= 2, by the keys of (seed, request, attempt)."""
    key = round_key(seed, request, _ROUTER_STEP + attempt)
    first = int(uniform(word(key, 0)) * n)
    second = int(uniform(word(key, 1)) * (n - 1))
    return first, second + 1 if second >= first else second


class PowerOfTwo:
    """The less loaded of two replicas drawn at random."""

    uses_load = True

    def __init__(self, view: View, requests: Records, seed: int) -> None:
        self._view = view
        self._retries = requests["retries"]
        self._seed = seed

    def pick(self, r: int) -> int:
        """See ``Router``."""
        open_ = self._view.open
        if len(open_) == 1:
            return open_[0]
        first, second = _two_of(self._seed, r, int(self._retries[r]), len(open_))
        a, b = open_[first], open_[second]
        return b if self._view.in_flight[b] < self._view.in_flight[a] else a

    def sent(self, r: int, replica: int) -> None:
        """It remembers nothing."""

    def forget(self, replica: int) -> None:
        """It remembers nothing."""


class PrefixAffine:
    """Where the longest prefix of the prompt was sent last, unless that overloads the replica.

    Least loaded instead when under 30 % of the prompt is known, or when the fleet is out of
    balance: most in flight - fewest > 64 and most > 1.5 x fewest. It remembers what it sent; of
    what replicas have evicted since it knows nothing, as SGLang's.
    """

    uses_load = True

    def __init__(self, view: View, trace: Trace) -> None:
        self._view = view
        self._offsets = trace.prefix_offsets
        self._blocks = trace.prefix_blocks
        self._block_tokens = trace.block_tokens
        self._prompt = trace.prompt_tokens
        self._last = np.full(trace.n_blocks, -1, np.int32)

    def _imbalanced(self) -> bool:
        loads = [self._view.in_flight[i] for i in self._view.open]
        most, fewest = max(loads), min(loads)
        return most - fewest > _IMBALANCE_REQUESTS and most > _IMBALANCE_RATIO * fewest

    def _prefix(self, r: int) -> npt.NDArray[np.int64]:
        """The full blocks of the prompt."""
        if self._block_tokens == 0:
            return self._blocks[:0]
        start, end = int(self._offsets[r]), int(self._offsets[r + 1])
        return self._blocks[start : min(end, start + int(self._prompt[r]) // self._block_tokens)]

    def pick(self, r: int) -> int:
        """See ``Router``."""
        if not self._imbalanced():
            # A block stands for all before it: the deepest that is known has the longest match.
            owners = self._last[self._prefix(r)]
            known = np.flatnonzero(np.isin(owners, self._view.open))
            matched = (int(known[-1]) + 1) * self._block_tokens if known.size else 0
            if matched > _LEAST_MATCH * int(self._prompt[r]):
                return int(owners[known[-1]])
        return self._view.least_loaded()

    def sent(self, r: int, replica: int) -> None:
        """See ``Router``."""
        self._last[self._prefix(r)] = replica

    def forget(self, replica: int) -> None:
        """See ``Router``."""
        self._last[self._last == replica] = -1


def make_router(name: str, view: View, *, trace: Trace, requests: Records, seed: int) -> Router:
    """The router that ``FleetConfig`` calls ``name``."""
    if name == "round-robin":
        return RoundRobin(view)
    if name == "least-loaded":
        return LeastLoaded(view)
    if name == "power-of-two":
        return PowerOfTwo(view, requests, seed)
    return PrefixAffine(view, trace)
