"""What becomes of a request on a replica, compiled: waiting, running, finished or handed over.

Owns the queue, the places in the decode batch and the counts of both. Who is admitted when is
``prefill``'s to say, who gives up its place ``decode``'s. Knows no policy. Source: SGLang 0.5.21,
managers/scheduler.py.
"""

from __future__ import annotations

import math

from sglang_dspark.core.compiled import compiled, inlined
from simulator.engine.kv_cache import private_pages, release_kv, unlock_prefix
from simulator.engine.layout import COMPLETED, RUNNING, WAITING, Engine, Memory


@compiled
def push_waiting(memory: Memory, r: int) -> None:
    """Append request ``r`` to the waiting queue."""
    state = memory.state[0]
    request = memory.requests[r]
    memory.queue[(state.queue_head + state.queued) % memory.queue.size] = r
    state.queued += 1
    state.waiting_tokens += request.prompt_tokens + request.generated


@compiled
def pop_waiting(memory: Memory) -> None:
    """Take the first request out of the waiting queue."""
    state = memory.state[0]
    state.queue_head = (state.queue_head + 1) % memory.queue.size
    state.queued -= 1


@compiled
def assumed_new_tokens(memory: Memory, engine: Engine, r: int) -> int:
    """Output tokens admission reserves for: what is left of its max_new_tokens, or of those that
    are assumed of a request that does not say; never more than the assumed ones."""
    request = memory.requests[r]
    pool = engine.pool_pages * engine.page_tokens
    most = min(engine.admission_new_tokens, pool - 2 * engine.page_tokens - request.prompt_tokens)
    if request.max_new_tokens > 0:
        most = min(most, request.max_new_tokens)
    return max(0, most - request.generated)


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


@compiled
def drop_finished(memory: Memory, engine: Engine) -> None:
    """Take the requests that are known to have finished out of the decode batch, as SGLang does
    when it decodes next: until then they hold their places, and nobody is admitted into a full
    batch. With overlap nobody knows yet of those that finished in the last step."""
    state = memory.state[0]
    staying = state.ended if engine.overlap else 0
    if state.leaving > staying:
        state.leaving = staying
        state.batch_full = 0


@compiled
def note_end(memory: Memory, r: int, verified: int) -> None:
    """The request ended in this step, in which ``verified`` of its tokens were computed."""
    state = memory.state[0]
    state.ended += 1
    state.ended_tokens += verified
    state.ended_context += memory.requests[r].kv_len


@compiled
def take_ended(memory: Memory, engine: Engine) -> tuple[int, int, int]:
    """(requests, tokens, context tokens) of those that ended in the last step and that a decode
    step formed before computes once more; none without overlap. Starts counting anew."""
    state = memory.state[0]
    found = (state.ended, state.ended_tokens, state.ended_context)
    state.ended = 0
    state.ended_tokens = 0
    state.ended_context = 0
    return found if engine.overlap else (0, 0, 0)


@compiled
def finish_request(memory: Memory, engine: Engine, r: int) -> None:
    """The request has all its tokens: note the time, who waits for it, and free its memory."""
    state = memory.state[0]
    request = memory.requests[r]
    request.finish_s = state.now_s
    request.status = COMPLETED
    state.free_pages += private_pages(memory, engine, r)
    unlock_prefix(memory, r)
    state.done += 1
    if request.followed:
        memory.answers[state.answered] = r
        state.answered += 1


@compiled
def hand_over(memory: Memory, engine: Engine, r: int) -> None:
    """The prompt is done and another replica decodes; its full blocks stay in the cache here."""
    state = memory.state[0]
    release_kv(memory, engine, r)
    memory.requests[r].status = WAITING
    memory.requests[r].kv_ready = 1
    memory.outbox[state.outgoing] = r
    state.outgoing += 1
    state.handed += 1
    state.batch_full = 0


@inlined
def context_tokens(memory: Memory) -> int:
    """Tokens in the KV cache of the running requests, summed."""
    total = 0
    for i in range(memory.state[0].running):
        total += memory.requests[memory.running[i]].kv_len
    return total
