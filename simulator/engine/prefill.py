"""Admission and prefill as SGLang schedules them, compiled.

First come, first served; a running chunked prefill goes first; a request is admitted when its
prompt and a share (``new_token_ratio``) of the output it might still produce fit into free and
evictable KV; one whose KV was transferred here joins the decode batch without a step. Source:
SGLang 0.5.21, managers/schedule_policy.py (PrefillAdder) and scheduler.py. Knows no policy.
"""

from __future__ import annotations

import math

from sglang_dspark.core.compiled import compiled, inlined
from sglang_dspark.core.costs.tables import CostTables, prefill_seconds
from simulator.engine.kv_cache import (
    available_pages,
    evict_until,
    lock_prefix,
    pages_of,
    private_pages,
    release_kv,
    share_computed_blocks,
    unlock_prefix,
)
from simulator.engine.latency import count_itl
from simulator.engine.layout import COMPLETED, PREFILLING, RUNNING, WAITING, Engine, Memory


@compiled
def assumed_new_tokens(memory: Memory, engine: Engine, r: int) -> int:
    """Output tokens admission reserves for: what is left of the assumed max_new_tokens."""
    request = memory.requests[r]
    pool = engine.pool_pages * engine.page_tokens
    most = min(engine.admission_new_tokens, pool - 2 * engine.page_tokens - request.prompt_tokens)
    return max(0, most - request.generated)


@compiled
def push_waiting(memory: Memory, r: int) -> None:
    """Append request ``r`` to the waiting queue."""
    state = memory.state[0]
    request = memory.requests[r]
    memory.queue[(state.queue_head + state.queued) % memory.queue.size] = r
    state.queued += 1
    state.waiting_tokens += request.prompt_tokens + request.generated


@compiled
def _pop_waiting(memory: Memory) -> None:
    state = memory.state[0]
    state.queue_head = (state.queue_head + 1) % memory.queue.size
    state.queued -= 1


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
    _pop_waiting(memory)
    state.free_pages -= pages
    state.waiting_tokens -= request.prompt_tokens + request.generated
    request.kv_len = kv_tokens
    request.kv_ready = 0
    start_running(memory, r)
    return True


@compiled
def _hand_over(memory: Memory, engine: Engine, r: int) -> None:
    """The prompt is done and another replica decodes; its full blocks stay in the cache here."""
    state = memory.state[0]
    release_kv(memory, engine, r)
    memory.requests[r].status = WAITING
    memory.requests[r].kv_ready = 1
    memory.outbox[state.outgoing] = r
    state.outgoing += 1
    state.handed += 1
    state.batch_full = 0


@compiled
def drop_finished(memory: Memory) -> None:
    """Take the requests that finished out of the decode batch, as SGLang does when it decodes next:
    until then they hold their places, and nobody is admitted into a full batch."""
    state = memory.state[0]
    if state.leaving > 0:
        state.leaving = 0
        state.batch_full = 0


@inlined
def form_prefill_batch(memory: Memory, engine: Engine) -> int:
    """Admit what fits into the next prefill step; return the number of requests in it.

    Fills ``memory.batch`` and ``memory.batch_tokens``. 0 means that the engine should decode.
    """
    state = memory.state[0]
    if state.running == 0:
        drop_finished(memory)
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
        _pop_waiting(memory)
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
def prefill_step_seconds(
    memory: Memory, engine: Engine, truth: CostTables, n: int, context_tokens: int
) -> float:
    """Seconds of the formed batch; with mixed chunks the running requests ride along."""
    new = 0
    pairs = 0.0
    for i in range(n):
        tokens = memory.batch_tokens[i]
        new += tokens
        pairs += tokens * (memory.requests[memory.batch[i]].kv_len + 0.5 * tokens)
    if engine.mixed_chunk:
        new += memory.state[0].running
        pairs += float(context_tokens)
    return prefill_seconds(truth, new, pairs) + truth.host_s


@compiled
def start_running(memory: Memory, r: int) -> None:
    """Move a prefilled request into the decode batch, with no history of confidences."""
    state = memory.state[0]
    request = memory.requests[r]
    request.status = RUNNING
    request.history = 0
    request.drafts = state.drafts_new
    request.note = math.nan
    free = memory.running.size - state.running
    request.slot = memory.free_slots[free - 1]
    memory.running[state.running] = r
    state.running += 1


@inlined
def finish_prefill_step(memory: Memory, engine: Engine, n: int) -> int:
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
            finish_request(memory, engine, r)
            finished += 1
            state.batch_full = 0
        elif engine.prefill_only:
            _hand_over(memory, engine, r)
        else:
            start_running(memory, r)
    return finished


@compiled
def finish_request(memory: Memory, engine: Engine, r: int) -> None:
    """The request has all its tokens: note the time, free its memory."""
    state = memory.state[0]
    request = memory.requests[r]
    request.finish_s = state.now_s
    request.status = COMPLETED
    state.free_pages += private_pages(memory, engine, r)
    unlock_prefix(memory, r)
    state.done += 1
