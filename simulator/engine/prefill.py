"""Admission and prefill as SGLang schedules them, compiled.

First come, first served; a running chunked prefill goes first; a request is admitted when its
prompt and a share (``new_token_ratio``) of the output it might still produce fit into free and
evictable KV; one whose KV was transferred here joins the decode batch without a step. Source:
SGLang 0.5.21, managers/schedule_policy.py (PrefillAdder) and scheduler.py. Knows no policy.
"""

from __future__ import annotations

from sglang_dspark.core.compiled import compiled, inlined
from sglang_dspark.core.costs.tables import CostTables, prefill_seconds
from sglang_dspark.core.tables import Workspace
from simulator.engine.decode import commit, make_room
from simulator.engine.kv_cache import (
    available_pages,
    evict_until,
    lock_prefix,
    pages_of,
    private_pages,
    share_computed_blocks,
    unlock_prefix,
)
from simulator.engine.latency import count_itl
from simulator.engine.layout import MIXED_STEP, PREFILL_STEP, PREFILLING, Engine, Memory, Step
from simulator.engine.lifecycle import (
    assumed_new_tokens,
    context_tokens,
    drop_finished,
    finish_request,
    hand_over,
    note_end,
    pop_waiting,
    start_running,
    take_ended,
)


@compiled
def _take(memory: Memory, engine: Engine, r: int, tokens: int, n: int) -> bool:
    """Reserve pages for the next ``tokens`` of request ``r`` as entry ``n`` of the batch."""
    request = memory.requests[r]
    before = private_pages(memory, engine, r)
    after = pages_of(engine, request.kv_len + tokens - request.locked_blocks * engine.block_tokens)
    if not evict_until(memory, engine, after - before):
        return False
    memory.state[0].free_pages -= after - before
    memory.batch[n] = r
    memory.batch_tokens[n] = tokens
    return True


@compiled
def _adopt(memory: Memory, engine: Engine, r: int, room_tokens: float) -> bool:
    """Admit the first in the queue with the KV that was transferred, if there is room for it.

    Its KV is private, and room for its output is reserved like for a prefilled one.
    """
    state = memory.state[0]
    request = memory.requests[r]
    kv_tokens = request.prompt_tokens + request.generated - 1
    new = assumed_new_tokens(memory, engine, r)
    if kv_tokens + new + engine.page_tokens >= room_tokens:
        return False
    pages = pages_of(engine, kv_tokens)
    if not evict_until(memory, engine, pages):
        return False
    pop_waiting(memory)
    state.free_pages -= pages
    state.waiting_tokens -= request.prompt_tokens + request.generated
    request.kv_len = kv_tokens
    request.kv_ready = 0
    start_running(memory, r)
    return True


@inlined
def form_prefill_batch(memory: Memory, engine: Engine) -> int:
    """Admit what fits into the next prefill step; return the number of requests in it.

    Fills ``memory.batch`` and ``memory.batch_tokens``. 0 means that the engine should decode.
    """
    state = memory.state[0]
    if state.running == 0:
        drop_finished(memory, engine)
    elif state.prefills_wait > 0:
        state.prefills_wait -= 1
        return 0
    held = state.running + state.leaving
    if state.chunked < 0 and (
        state.batch_full == 1
        or state.queued == 0
        or (held > 0 and engine.max_running - held < engine.min_free_slots)
    ):
        return 0
    page = engine.page_tokens
    mixed = state.running if engine.mixed_chunk else 0
    chunk_left = engine.chunk_tokens - mixed
    input_left = engine.max_prefill_tokens - mixed
    reserved = float(mixed)
    for i in range(state.running):
        reserved += state.new_token_ratio * assumed_new_tokens(memory, engine, memory.running[i])
    n = 0
    if state.chunked >= 0:
        r = state.chunked
        todo = memory.requests[r].prefill_end - memory.requests[r].kv_len
        tokens = min(todo, chunk_left, available_pages(memory, engine) * page)
        if tokens <= 0 or not _take(memory, engine, r, tokens, n):
            return 0
        n += 1
        state.waiting_tokens -= tokens
        chunk_left -= tokens
        input_left -= tokens
        if tokens == todo:
            state.chunked = -1
            reserved += assumed_new_tokens(memory, engine, r) + page
    while state.queued > 0 and chunk_left > 0 and input_left > 0:
        if held + n >= engine.max_running:
            state.batch_full = 1
            break
        r = memory.queue[state.queue_head]
        request = memory.requests[r]
        if request.kv_ready == 1:
            room = available_pages(memory, engine) * page - reserved
            if not _adopt(memory, engine, r, room):
                state.batch_full = 1 if state.running + n > 0 else 0
                break
            reserved += assumed_new_tokens(memory, engine, r) + page
            continue
        fill = request.prompt_tokens + request.generated
        cached = min(lock_prefix(memory, engine, r) * engine.block_tokens, fill - 1)
        extend = fill - cached
        new = assumed_new_tokens(memory, engine, r)
        room = available_pages(memory, engine) * page - reserved
        if extend + new + page >= room:
            unlock_prefix(memory, r)
            state.batch_full = 1 if state.running + n > 0 else 0
            break
        if extend > input_left and n > 0:
            unlock_prefix(memory, r)
            break
        tokens = min(extend, chunk_left)
        request.kv_len = cached
        if not _take(memory, engine, r, tokens, n):
            request.kv_len = 0
            unlock_prefix(memory, r)
            break
        pop_waiting(memory)
        n += 1
        request.prefill_end = fill
        request.status = PREFILLING
        if request.retractions == 0:
            request.cached_tokens = cached
        state.cached_tokens += cached
        state.waiting_tokens -= cached + tokens
        chunk_left -= tokens
        input_left -= tokens
        if tokens < extend:
            state.chunked = r
        else:
            reserved += new + page
    return n


@inlined
def _seconds(memory: Memory, engine: Engine, truth: CostTables, n: int, context: int) -> float:
    """Seconds of the formed batch; with mixed chunks the running requests ride along."""
    new = 0
    pairs = 0.0
    for i in range(n):
        tokens = memory.batch_tokens[i]
        new += tokens
        pairs += tokens * (memory.requests[memory.batch[i]].kv_len + 0.5 * tokens)
    if engine.mixed_chunk:
        new += memory.state[0].running
        pairs += float(context)
    return prefill_seconds(truth, new, pairs) + truth.host_s


@inlined
def _finish(memory: Memory, engine: Engine, n: int) -> int:
    """Account for the batch at the end of its step; return how many requests finished in it.

    A request whose prompt is complete emits its first token now, and joins the decode batch.
    """
    state = memory.state[0]
    now_s = state.now_s
    finished = 0
    for i in range(n):
        r = memory.batch[i]
        request = memory.requests[r]
        request.kv_len += memory.batch_tokens[i]
        state.prefill_tokens += memory.batch_tokens[i]
        share_computed_blocks(memory, engine, r)
        if request.kv_len < request.prefill_end:
            continue
        if request.generated == 0:
            request.first_token_s = now_s
        else:
            count_itl(memory, request, now_s)
        request.last_emit_s = now_s
        request.generated += 1
        state.committed_tokens += 1
        if request.generated >= request.output_limit:
            if not engine.prefill_only:  # else nobody decodes here
                note_end(memory, r, 1)
            finish_request(memory, engine, r)
            finished += 1
            state.batch_full = 0
        elif engine.prefill_only:
            hand_over(memory, engine, r)
        else:
            start_running(memory, r)
    return finished


@inlined
def prefill_step(
    memory: Memory, engine: Engine, truth: CostTables, work: Workspace, admitted: int
) -> Step:
    """Run the batch of ``admitted`` requests that was formed, and whom its chunk mixes in."""
    state = memory.state[0]
    start_s = state.now_s
    if engine.mixed_chunk:
        make_room(memory, engine, 1)
    riding = state.running if engine.mixed_chunk else 0
    context = context_tokens(memory)
    take_ended(memory, engine)
    state.now_s += _seconds(memory, engine, truth, admitted, context)
    new = 0
    for i in range(admitted):
        new += memory.batch_tokens[i]
    committed = state.committed_tokens
    finished = 0
    if riding > 0:
        drop_finished(memory, engine)
        _, finished = commit(memory, engine, work, False)
        state.batch_full = 0 if finished > 0 else state.batch_full
    ended = _finish(memory, engine, admitted)
    if engine.overlap and not engine.prefill_only:
        state.leaving += ended
    finished += ended
    committed = state.committed_tokens - committed
    state.prefills_since += 1
    state.prefills_wait = engine.prefill_decode_interval
    return Step(
        kind=MIXED_STEP if riding > 0 else PREFILL_STEP,
        requests=admitted + riding,
        predicted_s=state.now_s - start_s,
        expected_tokens=float(committed),
        stop_reason=0,
        computed_tokens=new + riding,
        verify_tokens=0,
        committed_tokens=committed,
        prefill_tokens=new,
        context_tokens=context,
        finished=finished,
    )
