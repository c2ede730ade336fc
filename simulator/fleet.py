"""The simulated fleet: SimPy owns arrivals, routing and replicas; the kernel owns the steps.

``simulate`` is a pure function of a ``Scenario``. A replica is one SimPy process that advances its
kernel to each arrival it is given (open loop) or to each completion (closed loop); between two such
events it costs SimPy nothing. Knows no files and prints nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from sglang_dspark.core.cost import CostModel
from sglang_dspark.core.decide import make_workspace
from sglang_dspark.core.planner import Planner, compile_policy
from sglang_dspark.core.policy import PolicyFile
from simulator.acceptance import AcceptanceProfile
from simulator.config import REQUEST_MARGIN_TOKENS, EngineConfig
from simulator.decode import begin_requests
from simulator.kernel import IDLE, LOG_FULL, advance
from simulator.laws import check_memory
from simulator.layout import REJECTED, REQUEST, Engine, Memory, Records, make_memory
from simulator.prefill import push_waiting
from traces import Trace

StepSink = Callable[[int, Records], None]
Progress = Callable[[int], None]
Wait = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenario:
    """Everything a simulation depends on."""

    trace: Trace
    """Requests in arrival order."""
    cost_model: CostModel
    """Prices the simulated steps."""
    acceptance: AcceptanceProfile
    """Draws what the target accepts and what the drafter believed."""
    policy: PolicyFile
    """Decides how much to verify."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Settings of each replica."""
    belief: CostModel | None = None
    """Cost model the policy plans with; None means the true one."""
    replicas: int = 1
    """Replicas behind a round-robin router."""
    rate_factor: float = 1.0
    """Arrivals come this many times as fast as in the trace."""
    concurrency: int | None = None
    """Closed loop: this many clients, each sending its next request when one ends."""
    seed: int = 0
    """Of acceptance and confidences; the same seed gives policies common random numbers."""
    step_capacity: int = 0
    """Step records buffered between two calls of the sink; 0 records no steps."""

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"replicas {self.replicas} must be at least 1")
        if not (math.isfinite(self.rate_factor) and self.rate_factor > 0):
            raise ValueError(f"rate factor {self.rate_factor} must be a finite number above 0")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"concurrency {self.concurrency} must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} must be between 0 and 2^63 - 1")

    def check(self) -> None:
        """Raise ``ValueError`` on parts that do not fit each other, before anything runs."""
        request_records(self)
        bounds = self.engine.max_running_requests
        gamma = self.acceptance.gamma
        compile_policy(self.policy.policy, self.belief or self.cost_model, gamma, bounds)
        self.policy.calibration.arrays(gamma)
        self.compiled_engine()
        drafted = self.cost_model.draft.gamma if self.cost_model.draft else gamma
        if drafted != gamma:
            warnings.warn(
                f"cost model {self.cost_model.name!r} prices drafting {drafted} tokens, acceptance "
                f"profile {self.acceptance.name!r} drafts {gamma}; drafting is priced as {drafted}",
                stacklevel=2,
            )

    @property
    def kv_pool_tokens(self) -> int:
        """KV memory of one replica: the engine's setting, or the cost model's."""
        return self.engine.kv_pool_tokens or self.cost_model.kv_pool_tokens

    def compiled_engine(self) -> Engine:
        """The engine settings of each replica as the kernel reads them."""
        return self.engine.engine(
            kv_pool_tokens=self.kv_pool_tokens,
            block_tokens=self.trace.block_tokens,
            seed=self.seed,
            stop_on_finish=self.concurrency is not None,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a simulation leaves: the request records and each replica's memory."""

    scenario: Scenario
    requests: Records
    """[N] REQUEST, in trace order."""
    memories: tuple[Memory, ...]
    """One per replica."""
    interrupted: bool
    """True when Ctrl-C ended the run early; unfinished requests keep their status."""


class Replica:
    """One engine: a kernel, its tables, and the SimPy process that feeds it."""

    def __init__(
        self,
        scenario: Scenario,
        requests: Records,
        number: int,
        env: simpy.Environment,
        on_steps: StepSink | None,
        check: bool,
    ) -> None:
        trace, cost_model = scenario.trace, scenario.cost_model
        gamma = scenario.acceptance.gamma
        most = scenario.engine.max_running_requests
        self.number = number
        self.env = env
        self.check = check
        self.on_steps = on_steps
        self.inbox: simpy.Event = env.event()
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

    @property
    def now_s(self) -> float:
        """The end of the last step; runs ahead of SimPy's clock by at most that step."""
        return float(self.memory.state["now_s"][0])

    def advance(self, until_s: float) -> int:
        """Run the steps that start before ``until_s``; returns the kernel's code."""
        while True:
            code = int(advance(self.memory, *self._tables, until_s))
            if self.check:
                check_memory(self.memory, self.engine)
            if code != LOG_FULL:
                return code
            self.flush()

    def flush(self) -> None:
        """Hand the buffered step records on."""
        logged = int(self.memory.state["logged"][0])
        if self.on_steps is not None and logged:
            self.on_steps(self.number, self.memory.steps[:logged])
        self.memory.state["logged"] = 0

    def accept(self, r: int, arrival_s: float) -> None:
        """Queue request ``r``; an idle engine's clock moves to the arrival."""
        state = self.memory.state[0]
        if state["running"] == 0 and state["queued"] == 0 and state["chunked"] < 0:
            state["now_s"] = max(state["now_s"], arrival_s)
        push_waiting(self.memory, r)

    def serve_arrivals(self) -> Wait:
        """Open loop: run up to each arrival this replica is sent, queue it, wait for the next."""
        while (r := (yield self.inbox)) is not None:
            self.inbox = self.env.event()
            arrival_s = float(self.memory.requests["arrival_s"][r])
            self.advance(arrival_s)
            self.accept(r, arrival_s)
        self.advance(math.inf)
        self.flush()

    def serve_clients(self, clients: int, next_request: Callable[[float], int | None]) -> Wait:
        """Closed loop: each finished request lets one client of this replica send its next."""
        done = 0
        waiting_clients = clients
        while True:
            for _ in range(waiting_clients):
                r = next_request(self.now_s)
                if r is not None:
                    self.accept(r, self.now_s)
            if self.advance(math.inf) == IDLE:
                self.flush()
                return
            yield self.env.timeout(max(0.0, self.now_s - self.env.now))
            waiting_clients = int(self.memory.state["done"][0]) - done
            done += waiting_clients


def request_records(scenario: Scenario) -> Records:
    """REQUEST rows for the trace; those that cannot fit one replica's KV memory are rejected."""
    trace = scenario.trace
    pool = scenario.kv_pool_tokens
    most = pool - REQUEST_MARGIN_TOKENS - 2 * scenario.engine.page_size
    requests = np.zeros(len(trace), REQUEST)
    requests["arrival_s"] = (trace.arrival_s - trace.arrival_s[0]) / scenario.rate_factor
    for name in ("first_token_s", "finish_s", "last_emit_s"):
        requests[name] = np.nan
    requests["prompt_tokens"] = trace.prompt_tokens
    requests["output_limit"] = np.minimum(trace.output_tokens, most - trace.prompt_tokens)
    requests["domain"] = trace.domain
    rejected = requests["output_limit"] < 1
    if rejected.all():
        raise ValueError(
            f"{trace.path}: no request fits the KV memory of {pool} tokens (shortest prompt "
            f"{int(trace.prompt_tokens.min())}); choose a cost model with more memory"
        )
    requests["status"][rejected] = REJECTED
    requests["finish_s"][rejected] = requests["arrival_s"][rejected]
    return requests


def simulate(
    scenario: Scenario,
    *,
    on_steps: StepSink | None = None,
    on_progress: Progress | None = None,
    check: bool = False,
) -> Outcome:
    """Replay the scenario; ``on_progress`` hears how many requests were sent so far.

    ``check`` verifies the conservation laws after every macro-step and raises ``AssertionError``
    where one fails. Ctrl-C returns the outcome so far, marked as interrupted.
    """
    requests = request_records(scenario)
    env = simpy.Environment()
    replicas = [
        Replica(scenario, requests, i, env, on_steps, check) for i in range(scenario.replicas)
    ]
    begin_requests(replicas[0].memory, replicas[0].engine, replicas[0].acceptance)
    admitted = np.flatnonzero(requests["status"] != REJECTED).tolist()
    report_every = max(1, len(admitted) // 200)

    def report(sent: int) -> None:
        if on_progress is not None and (sent % report_every == 0 or sent == len(admitted)):
            on_progress(sent)

    def send_arrivals() -> Wait:
        arrival_s = requests["arrival_s"].tolist()
        for sent, r in enumerate(admitted):
            yield env.timeout(max(0.0, arrival_s[r] - env.now))
            replicas[sent % len(replicas)].inbox.succeed(r)
            report(sent + 1)
        yield env.timeout(0.0)
        for replica in replicas:
            replica.inbox.succeed(None)

    queue = iter(enumerate(admitted, start=1))

    def next_request(now_s: float) -> int | None:
        sent, r = next(queue, (0, None))
        if r is not None:
            requests["arrival_s"][r] = now_s
            report(sent)
        return r

    if scenario.concurrency is None:
        env.process(send_arrivals())
        for replica in replicas:
            env.process(replica.serve_arrivals())
    else:
        for i, replica in enumerate(replicas):
            clients = len(range(i, scenario.concurrency, len(replicas)))
            env.process(replica.serve_clients(clients, next_request))
    interrupted = False
    try:
        env.run()
    except KeyboardInterrupt:
        interrupted = True
        for replica in replicas:
            replica.flush()
    return Outcome(
        scenario=scenario,
        requests=requests,
        memories=tuple(replica.memory for replica in replicas),
        interrupted=interrupted,
    )


