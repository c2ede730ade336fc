"""One simulated replica on the host's side: its memory, its tables, what was sent to it.

Owns the inbox and queue, which grow with what the replica holds, and the calls of the compiled
kernel. Knows no router, no other replica and no event loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.compiled import bound
from sglang_dspark.core.costs.tables import without_overlap
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.tables import make_workspace
from simulator.engine.kernel import MARKED, PAUSED, advance, release
from simulator.engine.laws import check_memory
from simulator.engine.layout import (
    Counts,
    Engine,
    Memory,
    Records,
    clear_memory,
    counts,
    make_memory,
)
from simulator.fleet.pools import Pool
from simulator.fleet.scenario import Scenario

OFF, STARTING, UP, AWAY, DRAINING = range(5)
"""Phases of a replica: away after a failure; a draining one takes no new requests."""

StepSink = Callable[[int, Records], None]


class ReplicaTables:
    """What all replicas of one kind read and none writes; made once, however many there are."""

    def __init__(self, scenario: Scenario, pool: Pool) -> None:
        gamma = scenario.acceptance.gamma
        most = pool.engine.places(speculative=scenario.policy.policy.drafts)
        planner = Planner(
            policy=scenario.policy.policy,
            cost_model=scenario.belief or pool.cost_model,
            gamma=gamma,
            max_requests=most,
            calibration=scenario.policy.calibration,
        )
        self.pool = pool
        self.engine: Engine = scenario.compiled_engine(pool)
        self.truth = pool.cost_model.tables(most * (gamma + 1), most)
        believed = planner.costs
        if not self.engine.overlap:
            self.truth, believed = without_overlap(self.truth), without_overlap(believed)
        self.acceptance = scenario.acceptance.tables(scenario.trace.domain_names)
        self.arguments = (
            self.engine,
            self.truth,
            believed,
            self.acceptance,
            planner.policy_tables,
            planner.inverse_temperature,
            planner.bias,
        )
        """Of ``advance``, between the memory and the workspace."""


class Replica:
    """One engine and what it holds."""

    def __init__(
        self,
        scenario: Scenario,
        tables: ReplicaTables,
        requests: Records,
        number: int,
        *,
        on_steps: StepSink | None,
        on_pause: Callable[[], None],
        check: bool,
    ) -> None:
        trace, gamma = scenario.trace, scenario.acceptance.gamma
        self.number = number
        self.phase = OFF
        self.changes = 0
        """Times its phase changed, so that a delayed event can tell whether it still holds."""
        self.spans: list[tuple[float, float]] = []
        """(from, to) in seconds: when it was paid for; infinite while it is."""
        self.sent = 0
        """Requests ever sent to it."""
        self.lost = 0
        """Requests it held when it failed, over all its failures."""
        self.pool = tables.pool
        self.engine = tables.engine
        self.truth = tables.truth
        """Prices its steps."""
        self.memory: Memory = make_memory(
            requests=requests,
            prefix_offsets=trace.prefix_offsets,
            prefix_blocks=trace.prefix_blocks,
            n_blocks=trace.n_blocks,
            engine=self.engine,
            gamma=gamma,
            step_capacity=scenario.step_capacity,
        )
        workspace = make_workspace(self.engine.max_running, gamma)
        self._tables = (*tables.arguments, workspace)
        self._steps = bound(advance, self.memory, *self._tables, 0.0)
        self._state = self.memory.state[0]
        self._marks_at: list[float] = []
        self._marks: list[Counts] = []
        self._on_steps = on_steps
        self._on_pause = on_pause
        self._check = check

    def enter(self, phase: int) -> None:
        """Change its phase."""
        self.phase = phase
        self.changes += 1

    @property
    def done(self) -> int:
        """Requests it has finished."""
        return int(self._state["done"])

    @property
    def now_s(self) -> float:
        """The end of its last step, which may be beyond the time it was advanced to."""
        return float(self._state["now_s"])

    @property
    def _left(self) -> int:
        """Requests that finished, were handed over or lost."""
        return self.done + int(self._state["handed"]) + self.lost

    @property
    def held(self) -> int:
        """Requests sent to it that have not left it."""
        return self.sent - self._left

    def left_by(self, time_s: float) -> int:
        """Requests that had left it by ``time_s``, up to which it has been advanced.

        A step that still runs then has shown nothing yet.
        """
        if self.now_s <= time_s:
            return self._left
        return int(self._state["left_before"]) + self.lost

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens sent to it that are in no step yet, found in its cache or not."""
        return int(self._state["waiting_tokens"]) + int(
            self.memory.requests["prompt_tokens"][self._inbox()].sum()
        )

    @property
    def computed_share(self) -> float:
        """Part of the prompt tokens so far that it computed; the rest was in its prefix cache."""
        computed, cached = int(self._state["prefill_tokens"]), int(self._state["cached_tokens"])
        return computed / (computed + cached) if computed else 1.0

    def send(self, requests: Sequence[int]) -> None:
        """Put requests into the inbox, which stays in the order of ``ready_s``."""
        state, memory = self._state, self.memory
        self.sent += len(requests)
        new = np.asarray(requests, np.int64)
        waiting = np.concatenate((self._inbox(), new))
        ready_s = memory.requests["ready_s"][waiting]
        if (ready_s[1:] < ready_s[:-1]).any():
            waiting = waiting[np.argsort(ready_s, kind="stable")]
        inbox = _at_least(memory.inbox, waiting.size)
        inbox[: waiting.size] = waiting
        state["clients_sent"] = max(state["clients_sent"] - state["inbox_head"], 0)
        state["inbox_head"], state["inbox_tail"] = 0, waiting.size
        queue = memory.queue
        if self.held >= queue.size:
            waiting = self.queued()
            queue = _at_least(queue, self.held + 1)
            queue[: waiting.size] = waiting
            state["queue_head"] = 0
        outbox = memory.outbox
        if self.engine.prefill_only:
            outbox = _at_least(outbox, self.held)
        self.memory = memory._replace(inbox=inbox, queue=queue, outbox=outbox)

    def take_outgoing(self) -> list[int]:
        """The requests handed over since the last call."""
        outgoing = self.memory.outbox[: self._state["outgoing"]].tolist()
        self._state["outgoing"] = 0
        return outgoing

    def advance_to_answer(self, until_s: float) -> list[int]:
        """Run the steps that start before ``until_s``, up to the first that answers somebody's
        turn: the requests that ended in it."""
        self._run(until_s)
        answered = self._state["answered"]
        if not answered:
            return []
        self._state["answered"] = 0
        answers: list[int] = self.memory.answers[:answered].tolist()
        return answers

    @property
    def next_step_s(self) -> float:
        """When its next step begins, from what it holds now; never, where it holds nothing."""
        state = self._state
        if state["running"] or state["queued"] or state["ended"] or state["chunked"] >= 0:
            return self.now_s
        head = state["inbox_head"]
        if head == state["inbox_tail"]:
            return math.inf
        return max(self.now_s, float(self.memory.requests["ready_s"][self.memory.inbox[head]]))

    def _inbox(self) -> npt.NDArray[np.int64]:
        state = self._state
        return self.memory.inbox[state["inbox_head"] : state["inbox_tail"]]

    def queued(self) -> npt.NDArray[np.int64]:
        """The waiting requests, first come first."""
        places = int(self._state["queue_head"]) + np.arange(int(self._state["queued"]))
        return self.memory.queue[places % self.memory.queue.size]

    def holdings(self) -> list[int]:
        """The requests it holds: running, in a chunked prefill, waiting, not yet ready."""
        state, memory = self._state, self.memory
        chunked = [int(state["chunked"])] if state["chunked"] >= 0 else []
        running = memory.running[: state["running"]]
        return [*running.tolist(), *chunked, *self.queued().tolist(), *self._inbox().tolist()]

    def fail(self) -> list[int]:
        """Lose all requests and all KV; returns what it held."""
        lost = self.holdings()
        self.lost += len(lost)
        clear_memory(self.memory, self.engine)
        return lost

    def release(self, clients: int) -> None:
        """Closed loop: ``clients`` send their first request now."""
        release(self.memory, clients)

    def advance(self, until_s: float) -> None:
        """Run the steps that start before ``until_s``."""
        if self.held > 0 and self.now_s < until_s:
            self._run(until_s)

    def _run(self, until_s: float) -> None:
        while (why := self._steps(self.memory, *self._tables, until_s)) >= PAUSED:
            if why == MARKED:
                self._mark()
            else:
                self.flush()
                self._on_pause()
        if self._check:
            check_memory(self.memory, self.engine)

    def mark_at(self, first: float, second: float) -> None:
        """Keep the counters as they are when so many requests are sent; open loop: at these times.

        To be called before anything is sent.
        """
        self._marks_at = [first, second]
        self._state["mark_at"] = first

    def _mark(self) -> None:
        self._marks.append(counts(self.memory))
        self._state["mark_at"] = [*self._marks_at, np.inf][len(self._marks)]

    def marks(self) -> tuple[Counts, Counts]:
        """The counters at both places; as they are now where one was not reached."""
        first, second, *_ = [*self._marks, counts(self.memory), counts(self.memory)]
        return first, second

    def flush(self) -> None:
        """Hand on the step records that are in the buffer."""
        logged = int(self._state["logged"])
        if self._on_steps is not None and logged:
            self._on_steps(self.number, self.memory.steps[:logged])
        self._state["logged"] = 0


def _at_least(values: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """``values``, or a new array of at least twice ``size`` where it is shorter."""
    return values if values.size >= size else np.zeros(2 * size, np.int64)
