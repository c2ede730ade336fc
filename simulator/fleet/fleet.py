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

from simulator.engine.decode import begin_requests
from simulator.engine.laws import check_accounts
from simulator.engine.layout import COMPLETED, REJECTED, TRUNCATED
from simulator.fleet.autoscale import keep_scaled
from simulator.fleet.config import FailureConfig
from simulator.fleet.disaggregation import begin_transfers, collect_prefilled
from simulator.fleet.failures import failure_gaps_s, start_again
from simulator.fleet.judged import open_window_s
from simulator.fleet.pools import Pool
from simulator.fleet.replica import AWAY, DRAINING, UP, Replica, ReplicaTables, StepSink
from simulator.fleet.scenario import Outcome, Scenario, request_records
from simulator.fleet.shedding import Shedder
from simulator.fleet.stage import Stage
from simulator.fleet.turns import Turns

Progress = Callable[[int], None]
Wait = Generator[simpy.Event, Any, None]

_BUNDLE = 256
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
        self._check = check
        self.replicas: list[Replica] = []
        self._pools: list[tuple[Pool, list[Replica]]] = []
        for pool in scenario.pools:
            tables = ReplicaTables(scenario, pool)
            members = [
                Replica(
                    scenario, tables, self.requests, len(self.replicas) + i,
                    on_steps=on_steps, on_pause=self._report_progress, check=check,
                )
                for i in range(pool.most)
            ]  # fmt: skip
            self.replicas += members
            self._pools.append((pool, members))
        self._acceptance = tables.acceptance
        begin_requests(self.requests, tables.engine.seed, self._acceptance)
        self._turns = Turns(scenario.trace, self.requests, waits=scenario.turns_wait)
        sent = self.requests["status"] != REJECTED
        self._total = int(sent.sum())
        """Requests that have to end."""
        self._arriving = np.flatnonzero(sent & ~self._turns.waiting)
        """Requests that wait for no answer, in order of arrival."""
        self._arrival_s = self.requests["arrival_s"][self._arriving].copy()
        self._arrived = 0
        """How many of them have reached the router."""
        self._given_up: list[int] = []
        self._seen_shed = 0
        """How many of the shed requests are known to have been refused."""
        self._next_report_s = 0.0
        decoding = [r for r in self.replicas if r.pool.role == "decode"]
        self._entry = self._stage(
            [r for r in self.replicas if r.pool.role != "decode"], scenario.fleet.router
        )
        self._decode = self._stage(decoding, scenario.fleet.decode_router) if decoding else None
        self._stages = [stage for stage in (self._entry, self._decode) if stage]
        if scenario.fleet.shed:
            self._entry.shedder = Shedder(
                scenario.fleet.shed,
                replicas=self._entry.replicas,
                trace=scenario.trace,
                requests=self.requests,
                slo=scenario.slo,
            )
        for pool, members in self._pools:
            for replica in members[: pool.replicas]:
                self._stage_of(replica).open(replica, 0.0)
        for r in np.flatnonzero(~sent & ~self._turns.waiting).tolist():
            self._turns.answered(r, float(self.requests["arrival_s"][r]))

    def _stage(self, replicas: list[Replica], router: str) -> Stage:
        return Stage(
            replicas,
            router=router,
            trace=self.scenario.trace,
            requests=self.requests,
            seed=self.scenario.seed,
        )

    def _stage_of(self, replica: Replica) -> Stage:
        return self._decode if self._decode and replica.pool.role == "decode" else self._entry

    @property
    def unsent(self) -> set[int]:
        """Requests whose turn has not come."""
        return self._turns.unsent

    def _report_progress(self) -> None:
        self._on_progress(sum(replica.done for replica in self.replicas))

    # Open loop

    def begin(self) -> simpy.Process:
        """Start everything that happens by itself; the process ends with the last request."""
        window_s = open_window_s(self.scenario.judged_requests, self.scenario.recorded_s)
        for replica in self.replicas:
            replica.mark_at(*window_s)
        if failures := self.scenario.fleet.failures:
            for replica in self.replicas:
                self.env.process(self._break_down(replica, failures))
            for listed in failures.at:
                replica = self.replicas[listed.replica]
                self.env.process(self._break_down_at(replica, failures, listed.at_s))
        for pool, members in self._pools:
            if pool.autoscale:
                self.env.process(
                    keep_scaled(self.env, self._stage_of(members[0]), members, pool.autoscale)
                )
        return self.env.process(self._serve_arrivals())

    def _serve_arrivals(self) -> Wait:
        """Window by window: report, route, run, until the last request has ended.

        Prefill replicas go first: what they hand over within the window, decode replicas may
        receive in it.
        """
        now_s = 0.0
        while self._ended() < self._total:
            if self._reads_reports and now_s >= self._next_report_s:
                self._read_reports(now_s)
            until_s, arrived = self._window(now_s)
            self._entry.waiting += self._coming(until_s, arrived)
            self._entry.route(now_s)
            until_s = self._advance(until_s)
            if self._decode:
                self._hand_over(self._decode, now_s)
                self._decode.route(now_s)
                self._decode.advance(until_s)
            self._report_progress()
            if self._check:
                check_accounts(self.requests, self._places())
            if until_s == math.inf:
                return
            yield self.env.timeout(max(0.0, until_s - self.env.now))
            now_s = until_s

    def _coming(self, until_s: float, arrived: int) -> list[int]:
        """Who reaches the router in the window, in order of arrival."""
        coming: list[int] = self._arriving[self._arrived : arrived].tolist()
        self._arrived = max(self._arrived, min(arrived, self._arriving.size))
        turns = self._turns.take(until_s)
        if turns:
            coming = sorted(coming + turns, key=self.requests["arrival_s"].__getitem__)
        return coming

    def _advance(self, until_s: float) -> float:
        """Run the entry's replicas to the window's end, which the first new turn brings nearer."""
        if not self._turns.waiting.any():
            self._entry.advance(until_s)
            return until_s
        shed = self._entry.shedder.shed if self._entry.shedder else []
        for r in shed[self._seen_shed :]:
            self._turns.answered(r, float(self.requests["finish_s"][r]))
        self._seen_shed = len(shed)
        return self._entry.advance_to_turn(min(until_s, self._turns.next_s), self._turns)

    def _ended(self) -> int:
        shed = self._entry.shedder.shed if self._entry.shedder else ()
        return sum(replica.done for replica in self.replicas) + len(self._given_up) + len(shed)

    def _hand_over(self, decode: Stage, now_s: float) -> None:
        transfer = self.scenario.fleet.transfer
        assert transfer is not None
        decode.waiting += collect_prefilled(self._entry.replicas, self.requests, transfer)
        begin_transfers(decode.waiting, self.requests, now_s)

    @property
    def _reads_reports(self) -> bool:
        return any(stage.reads_reports for stage in self._stages)

    def _window(self, now_s: float) -> tuple[float, int]:
        """(end, arrivals by then): nothing but these arrivals may touch a replica before the end.

        It ends with the next event of the fleet (a failure, a restart), at the next report where
        the router reads it, and else after a bundle of arrivals.
        """
        until_s = min(self.env.peek(), self._next_coming_s(now_s))
        last = self._arrived + _BUNDLE * len(self.replicas)
        if self._reads_reports:
            until_s = min(until_s, self._next_report_s)
        elif last < self._arriving.size and self._arrival_s[last] <= until_s:
            return float(self._arrival_s[last]), last
        return until_s, int(np.searchsorted(self._arrival_s, until_s))

    def _next_coming_s(self, now_s: float) -> float:
        """When the next request comes, while answers may still call for one that comes earlier:
        nobody is routed before that is known. Just after ``now_s`` for who comes then. Never, where
        the order of routing makes no difference."""
        if not self._turns.unsent or len(self.replicas) == 1:
            return math.inf
        next_s = self._turns.next_s
        if self._arrived < self._arriving.size:
            next_s = min(next_s, float(self._arrival_s[self._arrived]))
        return next_s if next_s > now_s else math.nextafter(now_s, math.inf)

    def _read_reports(self, now_s: float) -> None:
        """Note every replica's load, and when to do so again."""
        for stage in self._stages:
            stage.read_reports(now_s)
        # Reports that nobody would read before the next one are not waited for. Prefill replicas
        # hand over at any time.
        next_s = now_s if self._decode or self._turns.unsent else self.env.peek()
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

    def _places(self) -> dict[str, list[int]]:
        """Where every request is that has not ended."""
        places = {f"replica {replica.number}": replica.holdings() for replica in self.replicas}
        for stage, name in zip(self._stages, ("router", "decode router"), strict=False):
            places[name] = stage.waiting
        places["to come"] = self._arriving[self._arrived :].tolist()
        places["waiting for an answer"] = list(self._turns.unsent)
        places["given up"] = self._given_up
        return places

    # Failures

    def _break_down(self, replica: Replica, failures: FailureConfig) -> Wait:
        # Exponential gaps have no memory: those that strike an absent replica change nothing.
        for gap_s in failure_gaps_s(failures, self.scenario.seed, replica.number):
            yield from self._break_down_at(replica, failures, gap_s)

    def _break_down_at(self, replica: Replica, failures: FailureConfig, after_s: float) -> Wait:
        """The replica loses all it holds and is away until its restart.

        The step that runs at the time of the failure still counts: the replica dies at its end.
        """
        yield self.env.timeout(after_s)
        if replica.phase not in (UP, DRAINING):
            return
        stage = self._stage_of(replica)
        lost = stage.fail(replica, self.env.now)
        change = replica.changes
        ready_s = max(self.env.now, replica.now_s)
        for r in sorted(lost):
            if self.requests["retries"][r] == failures.most_retries:
                self._given_up.append(r)
                self._turns.answered(r, ready_s)
                continue
            start_again(self.requests, r, self._acceptance, self.scenario.seed, ready_s=ready_s)
            self._entry.waiting.append(r)
        yield self.env.timeout(failures.restart_s)
        if replica.phase == AWAY and replica.changes == change:  # else it was let go
            stage.open(replica, self.env.now)

    # Closed loop

    def serve_clients(self, clients: int) -> None:
        """Each client stays with one replica and sends its next request when its last one ended."""
        self.requests["arrival_s"] = np.nan  # until a client sends it
        judged = self.scenario.judged_requests
        for i, replica in enumerate(self.replicas):
            to_send = self._arriving[i :: len(self.replicas)]
            replica.mark_at(*np.searchsorted(to_send, (judged.start, judged.stop)).tolist())
            replica.send(to_send.tolist())
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
    requests["arrival_s"][list(fleet.unsent)] = np.nan
    cut = requests["output_limit"] < scenario.trace.output_tokens
    requests["status"][cut & (requests["status"] == COMPLETED)] = TRUNCATED
    return Outcome(
        scenario=scenario,
        requests=requests,
        memories=tuple(replica.memory for replica in fleet.replicas),
        marks=tuple(replica.marks() for replica in fleet.replicas),
        spans=tuple(tuple(replica.spans) for replica in fleet.replicas),
        interrupted=interrupted,
    )
