"""The simulated fleet: SimPy owns arrivals, routing and replicas; the kernel owns the steps.

``simulate`` is a pure function of a ``Scenario``. Time passes in windows: what arrives within one
is routed when it begins, from what the router knows then; afterwards no replica depends on
another, and each runs its kernel to the window's end. Knows no files and prints nothing.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import simpy

from simulator.decode import begin_requests
from simulator.failures import failure_gaps_s, start_again
from simulator.fleet_config import FailureConfig
from simulator.laws import check_accounts
from simulator.layout import COMPLETED, REJECTED, TRUNCATED
from simulator.replica import Replica, ReplicaTables, StepSink
from simulator.routing import View, make_router
from simulator.scenario import Outcome, Scenario, request_records

Progress = Callable[[int], None]
Wait = Generator[simpy.Event, Any, None]

_BUNDLE = 64
"""Arrivals per replica in a window of a router that looks at no replica; only the number of windows
depends on it."""


class Fleet:
    """The replicas, the router before them and the clock they share."""

    def __init__(
        self, scenario: Scenario, *, on_steps: StepSink | None, on_progress: Progress, check: bool
    ) -> None:
        self.scenario = scenario
        self.env = simpy.Environment()
        self.requests = request_records(scenario)
        self._on_progress = on_progress
        tables = ReplicaTables(scenario)
        self.replicas = [
            Replica(
                scenario, tables, self.requests, number,
                on_steps=on_steps, on_pause=self._report_progress, check=check,
            )
            for number in range(scenario.replicas)
        ]  # fmt: skip
        begin_requests(self.replicas[0].memory, tables.engine, tables.acceptance)
        self._acceptance = tables.acceptance
        self._check = check
        self._arriving = np.flatnonzero(self.requests["status"] != REJECTED)
        """Requests in order of arrival."""
        self._arrival_s = self.requests["arrival_s"][self._arriving].copy()
        self._arrived = 0
        """How many of them have reached the router."""
        self._waiting: list[int] = []
        """At the router: sent again, or without an open replica when they arrived."""
        self._given_up: list[int] = []
        self._next_report_s = 0.0
        self._view = View(open=list(range(scenario.replicas)), in_flight=[0] * scenario.replicas)
        self._router = make_router(
            scenario.fleet.router,
            self._view,
            trace=scenario.trace,
            requests=self.requests,
            seed=scenario.seed,
        )

    def _report_progress(self) -> None:
        self._on_progress(sum(replica.done for replica in self.replicas))

    # Open loop

    def begin(self) -> simpy.Process:
        """Start everything that happens by itself; the process ends with the last request."""
        if failures := self.scenario.fleet.failures:
            for replica in self.replicas:
                self.env.process(self._break_down(replica, failures))
            for listed in failures.at:
                replica = self.replicas[listed.replica]
                self.env.process(self._break_down_at(replica, failures, listed.at_s))
        return self.env.process(self._serve_arrivals())

    def _serve_arrivals(self) -> Wait:
        """Window by window: report, route, run, until the last request has ended."""
        now_s = 0.0
        while sum(replica.done for replica in self.replicas) + len(self._given_up) < (
            self._arriving.size
        ):
            if self._router.uses_load and now_s >= self._next_report_s:
                self._read_reports(now_s)
            until_s, arrived = self._window()
            self._route(now_s, arrived)
            for replica in self.replicas:
                replica.advance(until_s)
            self._report_progress()
            if self._check:
                check_accounts(self.requests, self._places())
            if until_s == math.inf:
                return
            yield self.env.timeout(max(0.0, until_s - self.env.now))
            now_s = until_s

    def _window(self) -> tuple[float, int]:
        """(end, arrivals by then): nothing but these arrivals may touch a replica before the end.

        It ends with the next event of the fleet (a failure, a restart), at the next report where
        the router reads it, and else after a bundle of arrivals.
        """
        until_s = self.env.peek()
        last = self._arrived + _BUNDLE * len(self.replicas)
        if self._router.uses_load:
            until_s = min(until_s, self._next_report_s)
        elif last < self._arriving.size and self._arrival_s[last] <= until_s:
            return float(self._arrival_s[last]), last
        return until_s, int(np.searchsorted(self._arrival_s, until_s))

    def _read_reports(self, now_s: float) -> None:
        """Note every replica's load, and when to do so again."""
        for replica in self.replicas:
            self._view.in_flight[replica.number] = replica.sent - replica.left_by(now_s)
        # Reports that nobody would read before the next one are not waited for.
        next_s = self.env.peek()
        if self._arrived < self._arriving.size:
            next_s = min(next_s, float(self._arrival_s[self._arrived]))
        if next_s == math.inf:
            self._next_report_s = math.inf
            return
        interval_s = self.scenario.fleet.report_interval_s
        reports = math.floor(now_s / interval_s) + 1
        if reports * interval_s <= now_s:  # rounding
            reports += 1
        self._next_report_s = max(reports, math.floor(next_s / interval_s)) * interval_s

    def _route(self, now_s: float, arrived: int) -> None:
        """Send who waits at the router, and the arrivals up to number ``arrived``, exclusive."""
        due = self._waiting + self._arriving[self._arrived : arrived].tolist()
        self._arrived = max(self._arrived, min(arrived, self._arriving.size))
        self._waiting = [] if self._view.open else due
        if not self._view.open or not due:
            return
        ready_s = self.requests["ready_s"]
        bags: dict[int, list[int]] = {}
        for r in due:
            if ready_s[r] < now_s:
                ready_s[r] = now_s
            chosen = self._router.pick(r)
            self._view.in_flight[chosen] += 1
            bags.setdefault(chosen, []).append(r)
        for number, bag in bags.items():
            self.replicas[number].send(bag)

    def _places(self) -> dict[str, list[int]]:
        """Where every request is that has not ended."""
        places = {f"replica {replica.number}": replica.holdings() for replica in self.replicas}
        places["router"] = self._waiting
        places["to come"] = self._arriving[self._arrived :].tolist()
        places["given up"] = self._given_up
        return places

    # Failures

    def _break_down(self, replica: Replica, failures: FailureConfig) -> Wait:
        for gap_s in failure_gaps_s(failures, self.scenario.seed, replica.number):
            yield self.env.timeout(gap_s)
            yield from self._fail(replica, failures)

    def _break_down_at(self, replica: Replica, failures: FailureConfig, at_s: float) -> Wait:
        yield self.env.timeout(at_s)
        if replica.number in self._view.open:
            yield from self._fail(replica, failures)

    def _fail(self, replica: Replica, failures: FailureConfig) -> Wait:
        """The replica loses all it holds and is away until its restart.

        The step that runs at the time of the failure still counts: the replica dies at its end.
        """
        lost = replica.fail()
        ready_s = max(self.env.now, replica.now_s)
        for r in sorted(lost):
            if self.requests["retries"][r] == failures.most_retries:
                self._given_up.append(r)
                continue
            start_again(self.requests, r, self._acceptance, self.scenario.seed, ready_s=ready_s)
            self._waiting.append(r)
        self._router.forget(replica.number)
        self._view.open.remove(replica.number)
        yield self.env.timeout(failures.restart_s)
        self._view.in_flight[replica.number] = 0
        bisect.insort(self._view.open, replica.number)

    # Closed loop

    def serve_clients(self, clients: int) -> None:
        """Each client stays with one replica and sends its next request when its last one ended."""
        self.requests["arrival_s"] = np.nan  # until a client sends it
        for i, replica in enumerate(self.replicas):
            replica.send(self._arriving[i :: len(self.replicas)].tolist())
            replica.release(len(range(i, clients, len(self.replicas))))
            replica.advance(math.inf)
            self._report_progress()


def simulate(
    scenario: Scenario,
    *,
    on_steps: StepSink | None = None,
    on_progress: Progress | None = None,
    check: bool = False,
) -> Outcome:
    """Replay the scenario; ``on_progress`` hears how many requests have finished so far.

    ``on_steps`` is handed the step records of a replica whenever its buffer is full, and at the
    end. ``check`` verifies the conservation laws after every macro-step and raises
    ``AssertionError`` where one fails. Ctrl-C returns the outcome so far, marked as interrupted.
    """
    fleet = Fleet(
        scenario, on_steps=on_steps, on_progress=on_progress or (lambda done: None), check=check
    )
    clients = scenario.concurrency
    interrupted = False
    try:
        if clients is None:
            fleet.env.run(until=fleet.begin())
        else:
            fleet.serve_clients(clients)
    except KeyboardInterrupt:
        interrupted = True
    for replica in fleet.replicas:
        replica.flush()
    requests = fleet.requests
    cut = requests["output_limit"] < scenario.trace.output_tokens
    requests["status"][cut & (requests["status"] == COMPLETED)] = TRUNCATED
    return Outcome(
        scenario=scenario,
        requests=requests,
        memories=tuple(replica.memory for replica in fleet.replicas),
        interrupted=interrupted,
    )
