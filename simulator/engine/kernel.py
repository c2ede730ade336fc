"""The replica's clock, compiled: admit -> plan -> step -> record, up to the next outside event.

``advance`` runs whole engine steps that start before ``until_s`` and hands control back to SimPy.
It is a pure function of the replica's memory and the tables; the tests hold it against the same law
in plain Python.
"""

from __future__ import annotations

import math

from sglang_dspark.core.compiled import compiled, inlined
from sglang_dspark.core.costs.tables import CostTables
from sglang_dspark.core.state import Floats
from sglang_dspark.core.tables import PolicyTables, Workspace
from simulator.acceptance.tables import AcceptanceTables
from simulator.engine.decode import decode_step
from simulator.engine.layout import DECODE_STEP, Engine, Memory, Step
from simulator.engine.lifecycle import push_waiting
from simulator.engine.prefill import form_prefill_batch, prefill_step

IDLE, REACHED, ANSWERED, PAUSED, MARKED = range(5)
"""Why ``advance`` returned: nothing to do before the horizon; a step reaches beyond it; a request
ended that a turn waits for; a full step log or many steps: empty the log and call again;
``mark_at`` is reached: look, and call again."""

_STEPS_PER_CALL = 1 << 16


@compiled
def release(memory: Memory, count: int) -> None:
    """Closed loop: up to ``count`` clients send their next request now."""
    state = memory.state[0]
    last = min(state.clients_sent + count, state.inbox_tail)
    for i in range(state.clients_sent, last):
        request = memory.requests[memory.inbox[i]]
        request.arrival_s = state.now_s
        request.ready_s = state.now_s
    state.clients_sent = last


@inlined
def _receive(memory: Memory, engine: Engine) -> None:
    """Queue what had arrived when the next batch is formed."""
    state = memory.state[0]
    last = state.clients_sent if engine.closed_loop else state.inbox_tail
    while state.inbox_head < last:
        r = memory.inbox[state.inbox_head]
        if memory.requests[r].ready_s > state.formed_s:
            return
        push_waiting(memory, r)
        state.inbox_head += 1


@inlined
def _record(memory: Memory, engine: Engine, start_s: float, done: Step) -> None:
    """Count the step that has just ended, and log it where steps are."""
    state = memory.state[0]
    state.busy_s += state.now_s - start_s
    state.steps += 1
    state.computed_tokens += done.computed_tokens
    if done.kind == DECODE_STEP:
        state.least_tokens = min(state.least_tokens, done.computed_tokens)
        state.most_tokens = max(state.most_tokens, done.computed_tokens)
        state.most_requests = max(state.most_requests, done.requests)
    if memory.steps.size == 0:
        return
    step = memory.steps[state.logged]
    step.start_s = start_s
    step.duration_s = state.now_s - start_s
    step.predicted_s = done.predicted_s
    step.expected_tokens = done.expected_tokens
    step.kind = done.kind
    step.stop_reason = done.stop_reason
    step.requests = done.requests
    step.computed_tokens = done.computed_tokens
    step.verify_tokens = done.verify_tokens
    step.committed_tokens = done.committed_tokens
    step.prefill_tokens = done.prefill_tokens
    step.running = state.running
    step.queued = state.queued
    step.context_tokens = done.context_tokens
    step.kv_free_tokens = state.free_pages * engine.page_tokens
    state.logged += 1


@inlined
def _next_ready_s(memory: Memory, engine: Engine) -> float:
    """When the next request of the inbox is ready; never, where clients wait for answers."""
    state = memory.state[0]
    if engine.closed_loop or state.inbox_head == state.inbox_tail:
        return math.inf
    return memory.requests[memory.inbox[state.inbox_head]].ready_s


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

    For each step: receive what is ready, form a prefill batch, run it, or else a decode step, and
    release in a closed loop one request for each that finished. With overlap a batch is formed when
    the step before it starts: without who arrives while that runs, and with who ends in it. A batch
    that would be empty is formed again once that step's results are known. ``truth`` prices the
    steps, ``belief`` is the cost model the policy was given: they differ when a stale or wrong one
    is studied. It ends early after a step in which a request ended that a turn of its session waits
    for. Source: SGLang 0.5.21, managers/scheduler.py (event_loop_overlap, _normal).
    """
    state = memory.state[0]
    for _ in range(_STEPS_PER_CALL):
        _receive(memory, engine)
        if state.now_s >= until_s:
            return REACHED
        if (state.clients_sent if engine.closed_loop else state.now_s) >= state.mark_at:
            return MARKED
        if memory.steps.size > 0 and state.logged == memory.steps.size:
            return PAUSED
        start_s = state.now_s
        state.left_before = state.done + state.handed
        admitted = form_prefill_batch(memory, engine)
        if admitted > 0:
            step = prefill_step(memory, engine, truth, work, admitted)
        elif state.running > 0 or (engine.overlap and state.ended > 0):
            step = decode_step(
                memory, engine, truth, belief, acceptance, policy, inverse_temperature, bias, work
            )
        elif state.formed_s < state.now_s:
            state.formed_s = state.now_s
            continue
        else:
            next_s = _next_ready_s(memory, engine)
            if next_s >= until_s:
                return IDLE
            state.now_s = next_s
            state.formed_s = next_s
            continue
        _record(memory, engine, start_s, step)
        state.formed_s = start_s if engine.overlap else state.now_s
        if engine.closed_loop:
            release(memory, step.finished)
        if state.answered > 0:
            return ANSWERED
    return PAUSED
