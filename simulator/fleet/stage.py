"""A stage: replicas behind one router, and the phases they pass through.

Owns who is open to the router, who waits at it, and since when each replica is paid for. Knows no
event loop and no scenario: it is told what happens and when.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Sequence

import numpy as np

from simulator.engine.layout import Records
from simulator.fleet.replica import AWAY, DRAINING, OFF, STARTING, UP, Replica
from simulator.fleet.routing import View, make_router
from simulator.fleet.shedding import Shedder
from simulator.fleet.turns import Turns
from traces import Trace


class Stage:
    """Replicas behind one router. They are off until they are started or opened."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        router: str,
        trace: Trace,
        requests: Records,
        seed: int,
    ) -> None:
        self.replicas = replicas
        self.waiting: list[int] = []
        """Requests at the router, to be sent in this order."""
        self._place = {replica.number: place for place, replica in enumerate(replicas)}
        self._ready_s = requests["ready_s"]
        self.view = View(open=[], in_flight=[0] * len(replicas))
        self.shedder: Shedder | None = None
        self.router = make_router(router, self.view, trace=trace, requests=requests, seed=seed)

    @property
    def reads_reports(self) -> bool:
        """Whether what replicas report makes a difference."""
        return self.router.uses_load or self.shedder is not None

    def read_reports(self, now_s: float) -> None:
        """Note what each replica has in flight."""
        if self.shedder:
            self.shedder.read_reports(now_s)
        for place, replica in enumerate(self.replicas):
            self.view.in_flight[place] = replica.sent - replica.left_by(now_s)

    def route(self, now_s: float) -> None:
        """Send everybody who waits, if any replica is open, or shed them."""
        if not self.view.open:
            return
        due, self.waiting = self.waiting, []
        self._ready_s[due] = np.maximum(self._ready_s[due], now_s)
        bags: dict[int, list[int]] = {}
        for r in due:
            chosen = self.router.pick(r)
            if self.shedder:
                if self.shedder.refuses(r, chosen):
                    continue
                self.shedder.sent(r, chosen)
            self.router.sent(r, chosen)
            self.view.in_flight[chosen] += 1
            bags.setdefault(chosen, []).append(r)
        for place, bag in bags.items():
            self.replicas[place].send(bag)

    def advance(self, until_s: float) -> None:
        """Run every replica's steps that start before ``until_s``; let go who is drained."""
        for replica in self.replicas:
            replica.advance(until_s)
            self._let_go_drained(replica)

    def advance_to_turn(self, until_s: float, turns: Turns) -> float:
        """The same, up to the first turn that an answer within this time calls for; when that is.

        The replica whose next step begins first goes on, until another's could end with an answer
        that sends it something: so no step that began after a turn arrived was run without it.
        """
        steps = [(replica.next_step_s, place) for place, replica in enumerate(self.replicas)]
        heapq.heapify(steps)
        while steps and steps[0][0] < until_s:
            begin_s, place = heapq.heappop(steps)
            others_s = steps[0][0] if steps else math.inf
            replica = self.replicas[place]
            apart_s = max(others_s + turns.least_s, math.nextafter(begin_s, math.inf))
            answers = replica.advance_to_answer(min(until_s, apart_s))
            for r in answers:
                until_s = min(until_s, turns.answered(r, replica.now_s))
            next_s = replica.next_step_s
            if answers or next_s > begin_s:
                heapq.heappush(steps, (next_s, place))
        for replica in self.replicas:
            self._let_go_drained(replica)
        return until_s

    def _let_go_drained(self, replica: Replica) -> None:
        if replica.phase == DRAINING and replica.held == 0:
            self._let_go(replica, replica.now_s)

    # Phases: off -> starting -> up -> away -> up -> draining -> off

    def start(self, replica: Replica, now_s: float) -> None:
        """The replica is paid for from now on; it takes no requests yet."""
        replica.enter(STARTING)
        replica.spans.append((now_s, math.inf))

    def open(self, replica: Replica, now_s: float) -> None:
        """The replica takes requests."""
        if replica.phase == OFF:
            self.start(replica, now_s)
        replica.enter(UP)
        place = self._place[replica.number]
        self.view.in_flight[place] = replica.sent - replica.left_by(now_s)
        bisect.insort(self.view.open, place)

    def fail(self, replica: Replica, now_s: float) -> list[int]:
        """The replica loses all it holds, which is returned; a draining one does not come back."""
        self._close(replica)
        self.router.forget(self._place[replica.number])
        lost = replica.fail()
        if replica.phase == DRAINING:
            self._let_go(replica, now_s)
        else:
            replica.enter(AWAY)
        return lost

    def drain(self, replica: Replica, now_s: float) -> None:
        """The replica takes no more requests, and goes when it has none."""
        self._close(replica)
        replica.enter(DRAINING)
        if replica.held == 0:
            self._let_go(replica, now_s)

    def _close(self, replica: Replica) -> None:
        place = self._place[replica.number]
        if place in self.view.open:
            self.view.open.remove(place)

    def _let_go(self, replica: Replica, now_s: float) -> None:
        replica.fail()  # holds nothing but its cache
        self.router.forget(self._place[replica.number])
        replica.enter(OFF)
        replica.spans[-1] = (replica.spans[-1][0], now_s)
