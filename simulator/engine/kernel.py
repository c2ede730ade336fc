"""The replica's clock, compiled: admit -> plan -> step -> record, up to the next outside event.

``advance`` runs whole engine steps that start before ``until_s`` and hands control back to SimPy.
It is a pure function of the replica's memory and the tables; the tests hold it against the same law
in plain Python.
"""

from __future__ import annotations

from sglang_dspark.core.compiled import compiled, inlined
from sglang_dspark.core.costs.tables import CostTables
from sglang_dspark.core.state import Floats
from sglang_dspark.core.tables import PolicyTables, Workspace
from simulator.acceptance.tables import AcceptanceTables
from simulator.engine.decode import commit, draft, make_room, plan_and_time
from simulator.engine.layout import DECODE_STEP, MIXED_STEP, PREFILL_STEP, Engine, Memory
from simulator.engine.prefill import (
    drop_finished,
    finish_prefill_step,
    form_prefill_batch,
    prefill_step_seconds,
    push_waiting,
)

IDLE, REACHED, PAUSED = range(3)
"""Why ``advance`` returned: nothing to do before the horizon, a step reaches beyond it, or a full
step log or many steps: empty the log and call again."""

_STEPS_PER_CALL = 1 << 16


@compiled
def release(memory: Memory, count: int) -> None:
    """Closed loop: up to ``count`` clients send their next request now."""
    state = memory.state[0]
    last = min(state.inbox_head + count, state.inbox_tail)
    for i in range(state.inbox_head, last):
        memory.requests[memory.inbox[i]].arrival_s = state.now_s
        push_waiting(memory, memory.inbox[i])
    state.inbox_head = last


@inlined
def _receive(memory: Memory) -> None:
    """Open loop: queue what has arrived by now."""
    state = memory.state[0]
    while state.inbox_head < state.inbox_tail:
        r = memory.inbox[state.inbox_head]
        if memory.requests[r].ready_s > state.now_s:
            return
        push_waiting(memory, r)
        state.inbox_head += 1


@inlined
def _context_tokens(memory: Memory) -> int:
    total = 0
    for i in range(memory.state[0].running):
        total += memory.requests[memory.running[i]].kv_len
    return total


@inlined
def _record(
    memory: Memory,
    engine: Engine,
    kind: int,
    requests: int,
    start_s: float,
    predicted_s: float,
    expected: float,
    reason: int,
    computed: int,
    verify: int,
    committed: int,
    prefill: int,
    context: int,
) -> None:
    state = memory.state[0]
    state.busy_s += state.now_s - start_s
    state.steps += 1
    state.computed_tokens += computed
    if kind == DECODE_STEP:
        state.least_tokens = min(state.least_tokens, computed)
        state.most_tokens = max(state.most_tokens, computed)
        state.most_requests = max(state.most_requests, requests)
    if memory.steps.size == 0:
        return
    step = memory.steps[state.logged]
    step.start_s = start_s
    step.duration_s = state.now_s - start_s
    step.predicted_s = predicted_s
    step.expected_tokens = expected
    step.kind = kind
    step.stop_reason = reason
    step.requests = requests
    step.computed_tokens = computed
    step.verify_tokens = verify
    step.committed_tokens = committed
    step.prefill_tokens = prefill
    step.running = state.running
    step.queued = state.queued
    step.context_tokens = context
    step.kv_free_tokens = state.free_pages * engine.page_tokens
    state.logged += 1


@compiled
def advance(
    memory: Memory,
    engine: Engine,
    truth: CostTables,
    belief: CostTables,
    acceptance: AcceptanceTables,
    policy: PolicyTables,
    inverse_temperature: Floats,
    bias: Floats,
    work: Workspace,
    until_s: float,
) -> int:
    """Run the steps that start before ``until_s``; return one of the codes above.

    Requests in the inbox join the queue at the first step boundary after they are ready; in a
    closed loop, one for each that finished.
    ``truth`` prices the steps, ``belief`` is the cost model the policy was given: they differ when
    a stale or wrong model is studied.
    """
    state = memory.state[0]
    speculative = policy.drafts
    step_tokens = acceptance.gamma + 1 if speculative else 1
    for _ in range(_STEPS_PER_CALL):
        if not engine.closed_loop:
            _receive(memory)
        if state.now_s >= until_s:
            return REACHED
        if memory.steps.size > 0 and state.logged == memory.steps.size:
            return PAUSED
        start_s = state.now_s
        state.left_before = state.done + state.handed
        admitted = form_prefill_batch(memory, engine)
        finished = 0
        if admitted > 0:
            if engine.mixed_chunk:
                make_room(memory, engine, 1)
            riding = state.running if engine.mixed_chunk else 0
            context = _context_tokens(memory)
            state.now_s += prefill_step_seconds(memory, engine, truth, admitted, context)
            new = 0
            for i in range(admitted):
                new += memory.batch_tokens[i]
            committed = state.committed_tokens
            if riding > 0:
                drop_finished(memory)
                _, finished = commit(memory, engine, work, False)
                state.batch_full = 0 if finished > 0 else state.batch_full
            finished += finish_prefill_step(memory, engine, admitted)
            committed = state.committed_tokens - committed
            kind = MIXED_STEP if riding > 0 else PREFILL_STEP
            state.prefills_since += 1
            state.prefills_wait = engine.prefill_decode_interval
            _record(
                memory, engine, kind, admitted + riding, start_s, state.now_s - start_s,
                float(committed), 0, new + riding, 0, committed, new, context,
            )  # fmt: skip
        elif state.running > 0:
            drop_finished(memory)
            make_room(memory, engine, step_tokens)
            if speculative:
                draft(memory, engine, acceptance, inverse_temperature, bias, policy.as_sglang)
            requests = state.running
            context = _context_tokens(memory)
            tokens, step_s, predicted_s, expected, reason = plan_and_time(
                memory, engine, truth, belief, policy, work, context
            )
            state.now_s += step_s
            committed, finished = commit(memory, engine, work, speculative)
            state.leaving += finished
            _record(
                memory, engine, DECODE_STEP, requests, start_s, predicted_s, expected, reason,
                tokens, tokens - requests, committed, 0, context,
            )  # fmt: skip
        else:
            if engine.closed_loop or state.inbox_head == state.inbox_tail:
                return IDLE
            next_s = memory.requests[memory.inbox[state.inbox_head]].ready_s
            if next_s >= until_s:
                return IDLE
            state.now_s = next_s
        if finished > 0 and engine.closed_loop:
            release(memory, finished)
    return PAUSED
