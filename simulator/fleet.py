"""The simulated fleet: SimPy owns arrivals, routing and replicas; the kernel owns the steps.

``simulate`` is a pure function of a ``Scenario``. A replica is one SimPy process. It is handed
arrivals in bundles and runs its kernel up to the first arrival of the next bundle; between two
bundles it costs SimPy nothing. Knows no files and prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import simpy

from sglang_dspark.core.decide import make_workspace
from sglang_dspark.core.planner import Planner
from simulator.decode import begin_requests
from simulator.kernel import PAUSED, advance, release
from simulator.laws import check_memory
from simulator.layout import COMPLETED, REJECTED, TRUNCATED, Records, make_memory
from simulator.scenario import Outcome, Scenario, request_records

StepSink = Callable[[int, Records], None]
Progress = Callable[[int], None]
Wait = Generator[simpy.Event, Any, None]

_BUNDLE = 64
"""Arrivals handed out together. The round-robin router looks at no replica's state, so that a
bundle's routes are known at its first arrival; only the number of SimPy events depends on this."""


class Replica:
    """One engine: a kernel, its tables, and the SimPy process that feeds it."""

    def __init__(
        self,
        scenario: Scenario,
        requests: Records,
        number: int,
        env: simpy.Environment,
        *,
        on_steps: StepSink | None,
        on_pause: Callable[[], None],
        check: bool,
    ) -> None:
        trace, cost_model = scenario.trace, scenario.cost_model
        gamma = scenario.acceptance.gamma
        most = scenario.engine.max_running_requests
        self.number = number
        self.env = env
        self.mail: simpy.Event = env.event()
        self._on_steps = on_steps
        self._on_pause = on_pause
        self._check = check
        self.engine = scenario.compiled_engine()
        self.memory = make_memory(
            requests=requests,
            prefix_offsets=trace.prefix_offsets,
            prefix_blocks=trace.prefix_blocks,
            n_blocks=trace.n_blocks,
            engine=self.engine,
            gamma=gamma,
            step_capacity=scenario.step_capacity,
        )
        planner = Planner(
            policy=scenario.policy.policy,
            cost_model=scenario.belief or cost_model,
            gamma=gamma,
            max_requests=most,
            calibration=scenario.policy.calibration,
        )
        self.acceptance = scenario.acceptance.tables(trace.domain_names)
        self._tables = (
            self.engine,
            cost_model.tables(most * (gamma + 1), most),
            planner.costs,
            self.acceptance,
            planner.policy_tables,
            planner.inverse_temperature,
            planner.bias,
            make_workspace(most, gamma),
        )

    def send(self, requests: list[int]) -> None:
        """Put requests into the inbox, in the order they will arrive."""
        state = self.memory.state[0]
        tail = int(state["inbox_tail"])
        self.memory.inbox[tail : tail + len(requests)] = requests
        state["inbox_tail"] = tail + len(requests)

    def advance(self, until_s: float) -> None:
        """Run the steps that start before ``until_s``."""
        while advance(self.memory, *self._tables, until_s) == PAUSED:
            self.flush()
            self._on_pause()
        if self._check:
            check_memory(self.memory, self.engine)
        self._on_pause()

    def flush(self) -> None:
        """Hand on the step records that are in the buffer."""
        logged = int(self.memory.state["logged"][0])
        if self._on_steps is not None and logged:
            self._on_steps(self.number, self.memory.steps[:logged])
        self.memory.state["logged"] = 0

    def serve_arrivals(self) -> Wait:
        """Open loop: take each bundle of arrivals and run up to the first of the next bundle."""
        until_s = 0.0
        while until_s < math.inf:
            requests, until_s = yield self.mail
            self.mail = self.env.event()
            self.send(requests)
            self.advance(until_s)

    def serve_clients(self, clients: int, requests: list[int]) -> Wait:
        """Closed loop: ``clients`` send ``requests`` in order, each when its last one ended."""
        yield self.env.timeout(0.0)
        self.send(requests)
        release(self.memory, clients)
        self.advance(math.inf)


def _send_arrivals(
    env: simpy.Environment, replicas: list[Replica], admitted: list[int], arrival_s: list[float]
) -> Wait:
    """The round-robin router: request i of those admitted goes to replica i modulo their number."""
    for first in range(0, len(admitted), _BUNDLE):
        bundle = admitted[first : first + _BUNDLE]
        yield env.timeout(max(0.0, arrival_s[bundle[0]] - env.now))
        rest = admitted[first + _BUNDLE :][:1]
        until_s = arrival_s[rest[0]] if rest else math.inf
        for i, replica in enumerate(replicas):
            offset = (i - first) % len(replicas)
            replica.mail.succeed((bundle[offset :: len(replicas)], until_s))


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
    requests = request_records(scenario)
    env = simpy.Environment()
    replicas: list[Replica] = []

    def on_pause() -> None:
        if on_progress is not None:
            on_progress(sum(int(replica.memory.state["done"][0]) for replica in replicas))

    for number in range(scenario.replicas):
        replicas.append(
            Replica(
                scenario, requests, number, env, on_steps=on_steps, on_pause=on_pause, check=check
            )
        )
    begin_requests(replicas[0].memory, replicas[0].engine, replicas[0].acceptance)
    admitted = np.flatnonzero(requests["status"] != REJECTED).tolist()
    if scenario.concurrency is None:
        env.process(_send_arrivals(env, replicas, admitted, requests["arrival_s"].tolist()))
        for replica in replicas:
            env.process(replica.serve_arrivals())
    else:
        requests["arrival_s"] = np.nan  # until a client sends it
        for i, replica in enumerate(replicas):
            clients = len(range(i, scenario.concurrency, len(replicas)))
            env.process(replica.serve_clients(clients, admitted[i :: len(replicas)]))
    interrupted = False
    try:
        env.run()
    except KeyboardInterrupt:
        interrupted = True
    for replica in replicas:
        replica.flush()
    cut = requests["output_limit"] < scenario.trace.output_tokens
    requests["status"][cut & (requests["status"] == COMPLETED)] = TRUNCATED
    return Outcome(
        scenario=scenario,
        requests=requests,
        memories=tuple(replica.memory for replica in replicas),
        interrupted=interrupted,
    )
