"""The simulated fleet: SimPy owns arrivals, routing and replicas; the kernel owns the steps.

``simulate`` is a pure function of a ``Scenario``. Time passes in windows: what arrives within one
is routed when it begins, from what the router knows then; afterwards no replica depends on
another, and each runs its kernel to the window's end. Knows no files and prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import simpy

from simulator.decode import begin_requests
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
        self._arriving = np.flatnonzero(self.requests["status"] != REJECTED)
        """Requests in order of arrival."""
        self._arrival_s = self.requests["arrival_s"][self._arriving].copy()
        self._routed = 0
        """How many of them have been routed."""
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

    def serve_arrivals(self) -> Wait:
        """Window by window: report, route, run, until the last request has ended."""
        until_s = 0.0
        while until_s < math.inf:
            if self._router.uses_load:
                self._read_reports()
                until_s = self._next_report_s()
                self._route(int(np.searchsorted(self._arrival_s, until_s)))
            else:
                last = self._routed + _BUNDLE * len(self.replicas)
                until_s = float(self._arrival_s[last]) if last < self._arriving.size else math.inf
                self._route(last)
            for replica in self.replicas:
                replica.advance(until_s)
            self._report_progress()
            if until_s < math.inf:
                yield self.env.timeout(until_s - self.env.now)

    def _next_report_s(self) -> float:
        """The next report that anybody reads: the last one before the next arrival's window."""
        if self._routed == self._arriving.size:
            return math.inf
        interval_s = self.scenario.fleet.report_interval_s
        reports = math.floor(self.env.now / interval_s) + 1
        if reports * interval_s <= self.env.now:  # rounding
            reports += 1
        next_s = float(self._arrival_s[self._routed])
        return max(reports, math.floor(next_s / interval_s)) * interval_s

    def _read_reports(self) -> None:
        for replica in self.replicas:
            left = replica.left_by(self.env.now)
            self._view.in_flight[replica.number] = replica.sent - left

    def _route(self, last: int) -> None:
        """Send the arrivals up to the ``last``, exclusive."""
        first = self._routed
        self._routed = min(last, self._arriving.size)
        bags: list[list[int]] = [[] for _ in self.replicas]
        for r in self._arriving[first : self._routed].tolist():
            chosen = self._router.pick(r)
            self._view.in_flight[chosen] += 1
            bags[chosen].append(r)
        for replica, bag in zip(self.replicas, bags, strict=True):
            if bag:
                replica.send(bag)

    # Closed loop

    def serve_clients(self, clients: int) -> Wait:
        """Each client stays with one replica and sends its next request when its last one ended."""
        self.requests["arrival_s"] = np.nan  # until a client sends it
        yield self.env.timeout(0.0)
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
    fleet.env.process(fleet.serve_arrivals() if clients is None else fleet.serve_clients(clients))
    interrupted = False
    try:
        fleet.env.run()
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
