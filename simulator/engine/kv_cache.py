"""KV pages and the prefix cache of one simulated replica, compiled.

Law: free pages + pages of resident blocks + private pages of admitted requests = pool pages, at
every step boundary. A prompt's full blocks are shared and locked while a request uses them; blocks
nobody holds stay resident until the pages are needed, least recently used first, leaves before
their parents. Knows no time and no policy.
"""

from __future__ import annotations

from sglang_dspark.core.compiled import compiled
from simulator.engine.layout import Engine, Memory


@compiled
def pages_of(engine: Engine, tokens: int) -> int:
    """Pages that hold ``tokens``; 0 for none or fewer."""
    return max(0, -(-tokens // engine.page_tokens))


@compiled
def private_pages(memory: Memory, engine: Engine, r: int) -> int:
    """Pages of request ``r`` outside the shared blocks."""
    request = memory.requests[r]
    return pages_of(engine, request.kv_len - request.locked_blocks * engine.block_tokens)


@compiled
def block_pages(engine: Engine) -> int:
    """Pages of one prefix block; ``block_tokens`` is a multiple of the page size."""
    return engine.block_tokens // engine.page_tokens


@compiled
def available_pages(memory: Memory, engine: Engine) -> int:
    """Pages that are free or held by blocks nobody uses."""
    state = memory.state[0]
    return state.free_pages + state.evictable_blocks * block_pages(engine)


@compiled
def cacheable_blocks(memory: Memory, engine: Engine, r: int) -> int:
    """Full blocks of the request's prompt; a partial last block is never shared."""
    if engine.block_tokens == 0:
        return 0
    listed = memory.prefix_offsets[r + 1] - memory.prefix_offsets[r]
    return min(listed, memory.requests[r].prompt_tokens // engine.block_tokens)


@compiled
def _unlink(memory: Memory, block: int) -> None:
    state = memory.state[0]
    before, after = memory.blocks[block].before, memory.blocks[block].after
    if before >= 0:
        memory.blocks[before].after = after
    else:
        state.lru_head = after
    if after >= 0:
        memory.blocks[after].before = before
    else:
        state.lru_tail = before
    state.evictable_blocks -= 1


@compiled
def _append(memory: Memory, block: int) -> None:
    state = memory.state[0]
    memory.blocks[block].before = state.lru_tail
    memory.blocks[block].after = -1
    if state.lru_tail >= 0:
        memory.blocks[state.lru_tail].after = block
    else:
        state.lru_head = block
    state.lru_tail = block
    state.evictable_blocks += 1


@compiled
def _lock(memory: Memory, block: int) -> None:
    if memory.blocks[block].locks == 0:
        _unlink(memory, block)
    memory.blocks[block].locks += 1


@compiled
def lock_prefix(memory: Memory, engine: Engine, r: int) -> int:
    """Lock the resident leading blocks of the request's prompt; return how many."""
    start = memory.prefix_offsets[r]
    hits = 0
    for i in range(cacheable_blocks(memory, engine, r)):
        block = memory.prefix_blocks[start + i]
        if memory.blocks[block].resident == 0:
            break
        _lock(memory, block)
        hits += 1
    memory.requests[r].locked_blocks = hits
    return hits


@compiled
def unlock_prefix(memory: Memory, r: int) -> None:
    """Release the request's blocks, deepest first, so that leaves are evicted before parents."""
    start = memory.prefix_offsets[r]
    for i in range(memory.requests[r].locked_blocks - 1, -1, -1):
        block = memory.prefix_blocks[start + i]
        memory.blocks[block].locks -= 1
        if memory.blocks[block].locks == 0:
            _append(memory, block)
    memory.requests[r].locked_blocks = 0


@compiled
def evict_until(memory: Memory, engine: Engine, pages: int) -> bool:
    """Evict least recently used blocks until ``pages`` are free; False when they cannot be."""
    state = memory.state[0]
    if available_pages(memory, engine) < pages:
        return False
    while state.free_pages < pages:
        block = state.lru_head
        _unlink(memory, block)
        memory.blocks[block].resident = 0
        state.resident_blocks -= 1
        state.free_pages += block_pages(engine)
    return True


@compiled
def share_computed_blocks(memory: Memory, engine: Engine, r: int) -> None:
    """Put the prompt blocks computed so far into the cache, locked by the request.

    A block that another request computed meanwhile is used instead of the request's own copy.
    """
    state = memory.state[0]
    request = memory.requests[r]
    start = memory.prefix_offsets[r]
    limit = cacheable_blocks(memory, engine, r)
    while request.locked_blocks < limit:
        if (request.locked_blocks + 1) * engine.block_tokens > request.kv_len:
            return
        block = memory.prefix_blocks[start + request.locked_blocks]
        if memory.blocks[block].resident == 0:
            memory.blocks[block].resident = 1
            memory.blocks[block].locks = 1
            state.resident_blocks += 1
        else:
            _lock(memory, block)
            state.free_pages += block_pages(engine)
        request.locked_blocks += 1


@compiled
def release_kv(memory: Memory, engine: Engine, r: int) -> None:
    """Free the request's private pages and unlock its blocks."""
    memory.state[0].free_pages += private_pages(memory, engine, r)
    unlock_prefix(memory, r)
    memory.requests[r].kv_len = 0
