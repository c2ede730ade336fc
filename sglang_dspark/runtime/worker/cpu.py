"""What SGLang 0.5.15 lacks when DSPARK runs on a CPU: five functions that it writes in Triton.

Owns their torch versions and hooks them in on machines without an accelerator. Knows nothing of
speculative decoding.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from sglang.srt.mem_cache.allocator.paged import alloc_extend_naive
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from torch import Tensor

from sglang_dspark.runtime.worker.sampling.grammar import apply_packed_mask


def assign_locations(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    batch_size: int,
) -> None:
    """Write consecutive locations into each request's row of the pool, from start to end."""
    counts = (end_offset - start_offset).long()
    first = counts.cumsum(0) - counts
    rows = req_pool_indices.long().repeat_interleave(counts)
    within = torch.arange(len(rows)) - first.repeat_interleave(counts)
    columns = start_offset.long().repeat_interleave(counts) + within
    req_to_token[rows, columns] = out_cache_loc[: len(rows)].to(req_to_token.dtype)


def alloc_extend(
    allocator: Any,
    prefix_lens: Tensor,
    prefix_lens_cpu: Tensor,
    seq_lens: Tensor,
    seq_lens_cpu: Tensor,
    last_loc: Tensor,
    extend_num_tokens: int,
    num_new_pages: int | None = None,
) -> Tensor | None:
    """Locations of the tokens that extend each request, page by page; None when pages run out."""
    page = allocator.page_size
    before = (prefix_lens_cpu.long() + page - 1) // page
    needed = int(((seq_lens_cpu.long() + page - 1) // page - before).sum())
    if allocator.need_sort and needed > len(allocator.free_pages):
        allocator.merge_and_sort_free()
    if needed > len(allocator.free_pages):
        return None
    locations = torch.empty(extend_num_tokens, dtype=torch.int64)
    alloc_extend_naive(
        prefix_lens, seq_lens, last_loc, allocator.free_pages, locations, page, "cpu"
    )
    allocator.free_pages = allocator.free_pages[needed:]
    return locations


def _no_copy_kernel(original: Any, pool: Any) -> None:
    """Only a Triton kernel is warmed up here; DSPARK never moves keys and values."""
    pool._kv_copy_config = None


def _mask_vocabulary(grammar: Any, logits: Tensor, vocab_mask: Tensor) -> None:
    apply_packed_mask(logits, vocab_mask)


def register() -> None:
    """Hook the torch versions in, unless there is an accelerator that runs the originals."""
    if torch.cuda.is_available():
        return
    for target, hook, kind in (
        (
            "sglang.srt.speculative.triton_ops.cache_locs.assign_req_to_token_pool_func",
            assign_locations,
            HookType.REPLACE,
        ),
        (
            "sglang.srt.mem_cache.allocator.paged.PagedTokenToKVPoolAllocator.alloc_extend",
            alloc_extend,
            HookType.REPLACE,
        ),
        (
            "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool._init_kv_copy_and_warmup",
            _no_copy_kernel,
            HookType.AROUND,
        ),
        (
            "sglang.srt.constrained.xgrammar_backend.XGrammarGrammar.apply_vocab_mask",
            _mask_vocabulary,
            HookType.REPLACE,
        ),
    ):
        if "xgrammar" not in target or find_spec("xgrammar"):
            HookRegistry.register(target, hook, kind)
