"""The simulated replica's memory: one record per request, per cached block, per step, one state.

Structured arrays, because the compiled kernel and the plain-Python host read the same bytes and a
run's output is these arrays. Owns no behaviour. All times in seconds, all lengths in tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[np.void]

WAITING, PREFILLING, RUNNING, COMPLETED, TRUNCATED, REJECTED, SHED = range(7)
STATUS_NAMES = ("waiting", "prefilling", "running", "completed", "truncated", "rejected", "shed")
"""A truncated request ended early because prompt and output exceed the KV memory; only the host
tells it from a completed one, when the run is over."""

PREFILL_STEP, DECODE_STEP, MIXED_STEP = range(3)
STEP_NAMES = ("prefill", "decode", "mixed")

_REQUEST_FIELDS: list[tuple[str, Any]] = [
    ("arrival_s", np.float64),
    ("ready_s", np.float64),
    ("first_token_s", np.float64),
    ("finish_s", np.float64),
    ("last_emit_s", np.float64),
    ("longest_itl_s", np.float64),
    ("transfer_s", np.float64),
    ("difficulty", np.float64),
    ("step_state", np.float64),
    ("note", np.float64),
    ("prompt_tokens", np.int64),
    ("output_limit", np.int64),
    ("max_new_tokens", np.int64),
    ("generated", np.int64),
    ("kv_len", np.int64),
    ("prefill_end", np.int64),
    ("cached_tokens", np.int64),
    ("rounds", np.int64),
    ("undrafted", np.int64),
    ("history", np.int64),
    ("verified", np.int64),
    ("accepted", np.int64),
    ("locked_blocks", np.int64),
    ("priority", np.int64),
    ("slot", np.int32),
    ("domain", np.int32),
    ("retractions", np.int32),
    ("retries", np.int32),
    ("status", np.int8),
    ("drafts", np.int8),
    ("kv_ready", np.int8),
    ("followed", np.int8),
]
REQUEST = np.dtype(_REQUEST_FIELDS, align=True)
"""``ready_s`` when its replica may queue it, ``arrival_s`` unless it was sent again;
``max_new_tokens`` what the client allowed, 0 where unknown; ``generated`` output tokens so far;
``kv_len`` tokens in the KV cache; ``prefill_end`` tokens to prefill before (again) decoding;
``history`` decode rounds since admission, ``undrafted`` those of all its rounds that nothing was
drafted for; ``verified`` draft tokens computed by the target and ``accepted`` of them committed;
``retries`` times it was sent again because its replica failed; ``drafts`` whether the last plan
wants a draft for its next step, ``note`` what it noted; ``kv_ready`` 1 while its prompt's KV waits
to be admitted after a transfer of ``transfer_s``; ``followed`` 1 where a turn of its session waits
for its answer."""

STATE = np.dtype(
    [
        ("now_s", np.float64),
        ("busy_s", np.float64),
        ("formed_s", np.float64),
        ("last_decode_s", np.float64),
        ("new_token_ratio", np.float64),
        ("free_pages", np.int64),
        ("resident_blocks", np.int64),
        ("evictable_blocks", np.int64),
        ("lru_head", np.int64),
        ("lru_tail", np.int64),
        ("inbox_head", np.int64),
        ("inbox_tail", np.int64),
        ("clients_sent", np.int64),
        ("queue_head", np.int64),
        ("queued", np.int64),
        ("waiting_tokens", np.int64),
        ("running", np.int64),
        ("chunked", np.int64),
        ("batch_full", np.int64),
        ("leaving", np.int64),
        ("ended", np.int64),
        ("ended_tokens", np.int64),
        ("ended_context", np.int64),
        ("done", np.int64),
        ("handed", np.int64),
        ("outgoing", np.int64),
        ("left_before", np.int64),
        ("answered", np.int64),
        ("logged", np.int64),
        ("steps", np.int64),
        ("decode_steps", np.int64),
        ("request_steps", np.int64),
        ("computed_tokens", np.int64),
        ("committed_tokens", np.int64),
        ("prefill_tokens", np.int64),
        ("cached_tokens", np.int64),
        ("verified_tokens", np.int64),
        ("accepted_tokens", np.int64),
        ("undrafted", np.int64),
        ("retractions", np.int64),
        ("least_tokens", np.int64),
        ("most_tokens", np.int64),
        ("most_requests", np.int64),
        ("drafts_new", np.int64),
        ("prefills_since", np.int64),
        ("prefills_wait", np.int64),
        ("prefills_per_step", np.float64),
        ("mark_at", np.float64),
    ],
    align=True,
)
"""``formed_s`` is when the next step's batch is formed: what arrived later is not in it;
``clients_sent`` ends the part of the inbox that the clients of a closed loop have sent;
``leaving`` counts the finished requests that still hold places in the decode batch, ``ended`` those
that finished in the last step, with the tokens it verified of them and their contexts;
``chunked`` is the request whose prefill continues, -1 for none; ``waiting_tokens`` are
still to be prefilled or found in the cache, for it and the queue; ``verified_tokens``,
``accepted_tokens`` and ``undrafted`` sum those of its requests; ``handed`` counts requests
handed over after their prefill, the last ``outgoing`` of them in the outbox; ``left_before`` counts
the requests that had left the replica when its last step began, which is all that a router may know
while that step runs; ``answered`` counts the requests in ``answers``; ``least_tokens`` and
``most_tokens`` bound the target's decode forwards, ``most_requests`` their batch; ``drafts_new``
says whether a request that starts to decode is drafted for: if the last plan drafted for any;
``prefills_since`` counts the prefill steps since the last decode step, ``prefills_per_step``
averages that; ``prefills_wait`` is how many decode steps come before the next prefill step;
``mark_at`` is the number of requests sent, in an open loop the time, at which the host looks at the
counters next."""

BLOCK = np.dtype(
    [("resident", np.int8), ("locks", np.int32), ("before", np.int32), ("after", np.int32)],
    align=True,
)
"""A prefix block: whether its KV is in memory, who holds it, its neighbours in LRU order."""

STEP = np.dtype(
    [
        ("start_s", np.float64),
        ("duration_s", np.float64),
        ("predicted_s", np.float64),
        ("expected_tokens", np.float64),
        ("kind", np.int8),
        ("stop_reason", np.int8),
        ("requests", np.int32),
        ("computed_tokens", np.int32),
        ("verify_tokens", np.int32),
        ("committed_tokens", np.int32),
        ("prefill_tokens", np.int32),
        ("running", np.int32),
        ("queued", np.int32),
        ("context_tokens", np.int64),
        ("kv_free_tokens", np.int64),
    ],
    align=True,
)
"""One engine step. ``requests`` are those it serves and ``verify_tokens`` their draft tokens;
``computed_tokens`` is M, with what is computed once more of those that ended in the step before;
``running`` and ``queued`` are the requests decoding and waiting when the step ends."""


class Step(NamedTuple):
    """What a step says of itself; the rest of its STEP record is the clock's and the memory's."""

    kind: int
    requests: int
    predicted_s: float
    expected_tokens: float
    stop_reason: int
    computed_tokens: int
    verify_tokens: int
    committed_tokens: int
    prefill_tokens: int
    context_tokens: int
    finished: int
    """Requests that ended with it."""


ITL_BINS = 2048
ITL_FIRST_S = 1e-5
ITL_BINS_PER_E = 100.0
"""Inter-token latencies are counted in bins 1 % wide, from 10 microseconds to about two hours."""


class Engine(NamedTuple):
    """The engine settings as compiled code reads them; see ``engine.config.EngineConfig``."""

    max_running: int
    chunk_tokens: int
    max_prefill_tokens: int
    prefill_decode_interval: int
    min_free_slots: int
    mixed_chunk: bool
    overlap: bool
    """Whether a batch is formed while the step before it runs."""
    page_tokens: int
    pool_pages: int
    block_tokens: int
    lag_steps: int
    first_new_token_ratio: float
    least_new_token_ratio: float
    new_token_ratio_decay: float
    admission_new_tokens: int
    prefill_only: bool
    closed_loop: bool
    seed: int


class Memory(NamedTuple):
    """Everything a replica's kernel reads and writes. One replica owns one ``Memory``."""

    state: Records
    """[1] STATE."""
    requests: Records
    """[N] REQUEST; replicas of one fleet share this array, each touching its own rows."""
    inbox: npt.NDArray[np.int64]
    """Requests sent to this replica, by ``ready_s``; those before ``inbox_head`` are queued. The
    host makes it longer when it must."""
    queue: npt.NDArray[np.int64]
    """Ring buffer of waiting request numbers, with room for all that the replica holds."""
    outbox: npt.NDArray[np.int64]
    """Requests handed over since the host looked last; with room for all that the replica holds."""
    answers: npt.NDArray[np.int64]
    """[2 max_running + 1] requests that ended in the last step and that a turn waits for."""
    running: npt.NDArray[np.int64]
    """[max_running] request numbers in batch order."""
    free_slots: npt.NDArray[np.int32]
    """[max_running] stack of unused rows of ``ring``; the top is ``max_running - running``."""
    ring: npt.NDArray[np.float64]
    """[max_running, lag + 1, K] survivals of the last rounds of each running request."""
    ages: npt.NDArray[np.int64]
    """[max_running, lag + 1] steps since each row of ``ring`` was drafted, at its step."""
    prefix_offsets: npt.NDArray[np.int64]
    """[N + 1] slices of ``prefix_blocks``, one per request."""
    prefix_blocks: npt.NDArray[np.int64]
    """Block numbers of all prompts, in order."""
    blocks: Records
    """[n_blocks] BLOCK."""
    steps: Records
    """[capacity] STEP, a buffer that the host empties when it is full; capacity 0 logs nothing."""
    itl_counts: npt.NDArray[np.int64]
    """[ITL_BINS] emitted bursts by inter-token latency."""
    length_counts: npt.NDArray[np.int64]
    """[2, K + 1] rounds by verified length, and by accepted length within it."""
    survival: npt.NDArray[np.float64]
    """[max_running, K] scratch: current survivals."""
    stale: npt.NDArray[np.float64]
    """[max_running, K] scratch: stale survivals."""
    stale_age: npt.NDArray[np.int64]
    """[max_running] scratch: age of each row of ``stale``; 0 where there is no history."""
    note: npt.NDArray[np.float64]
    """[max_running] scratch: the policy's notes of the running requests."""
    slack_s: npt.NDArray[np.float64]
    """[max_running] scratch: seconds until each running request falls behind its SLO's pace."""
    priority: npt.NDArray[np.int64]
    """[max_running] scratch: priority of each running request."""
    weight: npt.NDArray[np.float64]
    """[max_running] scratch: what a token of each running request is worth."""
    logits: npt.NDArray[np.float64]
    """[max_running, K] scratch: raw confidences, -inf where nothing was drafted."""
    outcome: npt.NDArray[np.int64]
    """[max_running] scratch: draft tokens the target would accept, unknown to the policy."""
    batch: npt.NDArray[np.int64]
    """[max_running + 1] scratch: requests of the prefill batch."""
    batch_tokens: npt.NDArray[np.int64]
    """[max_running + 1] scratch: tokens each of them prefills in this step."""


def make_memory(
    *,
    requests: Records,
    prefix_offsets: npt.NDArray[np.int64],
    prefix_blocks: npt.NDArray[np.int64],
    n_blocks: int,
    engine: Engine,
    gamma: int,
    step_capacity: int,
) -> Memory:
    """An empty replica."""
    state = np.zeros(1, STATE)
    state["least_tokens"] = np.iinfo(np.int64).max
    state["mark_at"] = np.inf
    running = engine.max_running
    memory = Memory(
        state=state,
        requests=requests,
        inbox=np.zeros(0, np.int64),
        queue=np.zeros(1, np.int64),
        outbox=np.zeros(0, np.int64),
        answers=np.zeros(2 * running + 1, np.int64),
        running=np.zeros(running, np.int64),
        free_slots=np.zeros(running, np.int32),
        ring=np.zeros((running, engine.lag_steps + 1, gamma)),
        ages=np.zeros((running, engine.lag_steps + 1), np.int64),
        prefix_offsets=prefix_offsets,
        prefix_blocks=prefix_blocks,
        blocks=np.zeros(max(n_blocks, 1), BLOCK),
        steps=np.zeros(step_capacity, STEP),
        itl_counts=np.zeros(ITL_BINS, np.int64),
        length_counts=np.zeros((2, gamma + 1), np.int64),
        survival=np.zeros((running, gamma)),
        stale=np.zeros((running, gamma)),
        stale_age=np.zeros(running, np.int64),
        note=np.zeros(running),
        slack_s=np.zeros(running),
        priority=np.zeros(running, np.int64),
        weight=np.ones(running),
        logits=np.zeros((running, gamma)),
        outcome=np.zeros(running, np.int64),
        batch=np.zeros(running + 1, np.int64),
        batch_tokens=np.zeros(running + 1, np.int64),
    )
    clear_memory(memory, engine)
    return memory


def clear_memory(memory: Memory, engine: Engine) -> None:
    """Drop all requests and all KV, as a restart does; clock, counters and step log stay."""
    state = memory.state
    if state["resident_blocks"][0] > 0:  # an empty array is left untouched, and out of memory
        memory.blocks[:] = 0
    for name in (
        "resident_blocks", "evictable_blocks", "inbox_head", "inbox_tail", "clients_sent",
        "queue_head", "queued", "waiting_tokens", "running", "batch_full", "leaving", "ended",
        "ended_tokens", "ended_context", "answered", "prefills_since", "prefills_per_step",
        "prefills_wait",
    ):  # fmt: skip
        state[name] = 0
    state["free_pages"] = engine.pool_pages
    state["lru_head"] = state["lru_tail"] = state["chunked"] = -1
    state["new_token_ratio"] = engine.first_new_token_ratio
    state["last_decode_s"] = -1.0
    state["drafts_new"] = 1
    memory.free_slots[:] = np.arange(engine.max_running)[::-1]


class Counts(NamedTuple):
    """What a replica has counted by some time."""

    state: Records
    """[1] STATE."""
    itl: npt.NDArray[np.int64]
    """[ITL_BINS] as in ``Memory``."""
    lengths: npt.NDArray[np.int64]
    """[2, K + 1] as in ``Memory``."""


def counts(memory: Memory) -> Counts:
    """The counters as they are now."""
    return Counts(memory.state.copy(), memory.itl_counts.copy(), memory.length_counts.copy())
