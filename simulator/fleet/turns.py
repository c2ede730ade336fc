"""Turns of sessions that wait: each comes its ``delay_s`` after the answer before it.

Owns who waits for whom and what has become due, so that a slower server is asked for less. A
refusal is an answer too: who is rejected, shed or given up lets the next turn go on. Knows no
replica and no event loop.
"""

from __future__ import annotations

import heapq
import math

import numpy as np

from simulator.engine.layout import REJECTED, Records
from traces import Trace


class Turns:
    """The turns of one replay that have yet to be sent."""

    def __init__(self, trace: Trace, requests: Records, *, waits: bool) -> None:
        """``waits`` false: every request comes at its recorded time."""
        follows = trace.follows if waits else np.full(len(trace), -1)
        self.waiting = follows >= 0
        """[N] the requests that wait for an answer, or did."""
        self._requests = requests
        self._delay_s = trace.delay_s
        self._next = np.full(len(trace), -1)
        self._next[follows[self.waiting]] = np.flatnonzero(self.waiting)
        requests["followed"] = self._next >= 0
        self.unsent = set(np.flatnonzero(self.waiting & (requests["status"] != REJECTED)).tolist())
        """Those that no router has been given yet."""
        self.least_s = float(np.min(self._delay_s[self.waiting], initial=math.inf))
        """The shortest delay: no answer calls for anything before."""
        self._due: list[tuple[float, int]] = []

    def answered(self, r: int, time_s: float) -> float:
        """Request ``r`` was answered or refused; when the turn after it comes, infinite for none.

        A turn too long for any replica is refused as it comes, and answered by that.
        """
        turn = int(self._next[r])
        while turn >= 0:
            time_s += float(self._delay_s[turn])
            self._requests["arrival_s"][turn] = time_s
            self._requests["ready_s"][turn] = time_s
            if self._requests["status"][turn] != REJECTED:
                heapq.heappush(self._due, (time_s, turn))
                return time_s
            self._requests["finish_s"][turn] = time_s
            turn = int(self._next[turn])
        return math.inf

    @property
    def next_s(self) -> float:
        """When the next of those comes that are known by now; infinite for none."""
        return self._due[0][0] if self._due else math.inf

    def take(self, until_s: float) -> list[int]:
        """Those that come before ``until_s``, in this order; they are sent."""
        taken = []
        while self._due and self._due[0][0] < until_s:
            taken.append(heapq.heappop(self._due)[1])
        self.unsent.difference_update(taken)
        return taken
