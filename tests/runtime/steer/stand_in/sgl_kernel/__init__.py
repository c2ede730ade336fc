"""Stands in for ``sgl_kernel`` where SGLang 0.5.21 serves on a CPU: three functions, in torch.

The real package is compiled for one machine and its CPU build is not on the package index. SGLang
imports it before it loads plugins, so this folder's parent belongs on PYTHONPATH. For tests and
demonstrations: every other name can be imported, and raises ``NotImplementedError`` when called.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor


def _places(start_offset: Tensor, end_offset: Tensor) -> tuple[Tensor, Tensor]:
    """(request, column) of every place from start to end, request after request."""
    counts = (end_offset - start_offset).long()
    first = counts.cumsum(0) - counts
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    within = torch.arange(len(rows)) - first.repeat_interleave(counts)
    return rows, start_offset.long().repeat_interleave(counts) + within


def assign_req_to_token_pool_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """Write consecutive locations into each request's row of the pool, from start to end."""
    rows, columns = _places(start_offset, end_offset)
    slots = req_pool_indices.long()[rows]
    req_to_token[slots, columns] = out_cache_loc[: len(rows)].to(req_to_token.dtype)


def assign_extend_cache_locs_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """Read each request's locations from its row of the pool, from start to end."""
    rows, columns = _places(start_offset, end_offset)
    slots = req_pool_indices.long()[rows]
    out_cache_loc[: len(rows)] = req_to_token[slots, columns].to(out_cache_loc.dtype)


def copy_all_layer_kv_cache_cpu(
    data_ptrs: Tensor, strides: Tensor, tgt_loc: Tensor, src_loc: Tensor
) -> None:
    """Copy rows of every buffer, given by address and row size in bytes."""
    for address, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        rows = [ctypes.string_at(address + source * stride, stride) for source in src_loc.tolist()]
        for target, row in zip(tgt_loc.tolist(), rows, strict=True):
            ctypes.memmove(address + target * stride, row, stride)


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """What SGLang imports and a server on a CPU does not call."""
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} is not in the stand-in; use the real package")

    return missing
