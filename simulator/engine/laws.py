"""The conservation laws of replicas and requests (``--check`` and the tests).

Slow and plain on purpose: everything is counted again from the records.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from simulator.engine.kv_cache import block_pages, private_pages
from simulator.engine.layout import (
    COMPLETED,
    PREFILLING,
    REJECTED,
    RUNNING,
    SHED,
    STATUS_NAMES,
    Engine,
    Memory,
    Records,
)


def check_memory(memory: Memory, engine: Engine) -> None:
    """Raise ``AssertionError`` with both sides when pages, locks or the batch do not add up."""
    state = memory.state[0]
    running = memory.running[: state["running"]].tolist()
    holders = running + ([int(state["chunked"])] if state["chunked"] >= 0 else [])
    private = sum(int(private_pages(memory, engine, r)) for r in holders)
    shared = int(state["resident_blocks"]) * (block_pages(engine) if engine.block_tokens else 0)
    free = int(state["free_pages"])
    assert free >= 0, f"{free} free KV pages"
    assert free + private + shared == engine.pool_pages, (
        f"KV pages: free {free} + private {private} + shared {shared} != {engine.pool_pages}"
    )
    resident = memory.blocks["resident"] == 1
    assert int(resident.sum()) == state["resident_blocks"], "resident blocks miscounted"
    idle = int((resident & (memory.blocks["locks"] == 0)).sum())
    assert idle == state["evictable_blocks"], (
        f"{idle} unlocked resident blocks, {state['evictable_blocks']} in the LRU list"
    )
    locks = np.zeros(memory.blocks.size, np.int64)
    for r in holders:
        start = memory.prefix_offsets[r]
        held = memory.prefix_blocks[start : start + memory.requests["locked_blocks"][r]]
        np.add.at(locks, held, 1)
    assert np.array_equal(locks, memory.blocks["locks"]), "block locks differ from their holders"
    assert len(set(running)) == len(running), "a request runs twice"
    for r in running:
        assert memory.requests["status"][r] == RUNNING, f"request {r} runs without being RUNNING"
        held = memory.requests["prompt_tokens"][r] + memory.requests["generated"][r] - 1
        assert memory.requests["kv_len"][r] == held, (
            f"request {r}: {memory.requests['kv_len'][r]} KV tokens for {held} known tokens"
        )
    places = (int(state["queue_head"]) + np.arange(state["queued"])) % memory.queue.size
    rows = memory.requests[memory.queue[places]]
    waiting = int(rows["prompt_tokens"].sum() + rows["generated"].sum())
    if state["chunked"] >= 0:
        chunked = memory.requests[state["chunked"]]
        waiting += int(chunked["prefill_end"] - chunked["kv_len"])
    assert waiting == state["waiting_tokens"], (
        f"{waiting} tokens wait, {state['waiting_tokens']} are counted"
    )
    if state["chunked"] >= 0:
        assert memory.requests["status"][state["chunked"]] == PREFILLING, (
            "chunked is not prefilling"
        )


def check_accounts(requests: Records, places: Mapping[str, Collection[int]]) -> None:
    """Raise ``AssertionError`` unless each request has ended or is in exactly one of the places."""
    count = np.isin(requests["status"], (COMPLETED, REJECTED, SHED)).astype(np.int64)
    for held in places.values():
        np.add.at(count, np.fromiter(held, np.int64), 1)
    for r in np.flatnonzero(count != 1).tolist():
        where = [name for name, held in places.items() if r in held]
        status = STATUS_NAMES[requests["status"][r]]
        raise AssertionError(f"request {r} ({status}) is in {len(where)} places: {where}")
