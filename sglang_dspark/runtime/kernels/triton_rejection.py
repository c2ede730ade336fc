"""``rejection.verify_chain`` on a GPU: two launches, nothing read back.

Owns the tiles over the vocabulary and what passes between the launches: the tiles' sums, 16 bytes
for each request and tile. The law and the reference are in ``rejection``.

Shapes: R requests, K draft positions, T = K + 1, M rows of the target, V vocabulary, N tiles.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglang_dspark.runtime.kernels.triton_draw import TILE, passing, passing_tile


def verify_chain(
    *,
    drafts_RK: Tensor,
    draft_RKV: Tensor,
    target_MV: Tensor,
    start_R: Tensor,
    lengths_R: Tensor,
    uniform_RT: Tensor,
) -> tuple[Tensor, Tensor]:
    """``rejection.verify_chain`` for tensors on one GPU; the vocabulary is innermost."""
    if draft_RKV.stride(-1) != 1 or target_MV.stride(-1) != 1:
        raise ValueError(
            f"strides {draft_RKV.stride()} and {target_MV.stride()} of the probabilities end "
            "otherwise than in 1; lay each distribution out contiguously"
        )
    requests, columns = drafts_RK.shape
    vocabulary = target_MV.shape[1]
    tile = min(TILE, triton.next_power_of_2(vocabulary))
    tiles = triton.cdiv(vocabulary, tile)
    accepted_R = torch.empty(requests, dtype=torch.int64, device=target_MV.device)
    next_R = torch.empty_like(accepted_R)
    sums_2RN = torch.empty(2, requests, tiles, dtype=torch.float64, device=target_MV.device)
    lengths = lengths_R.long()
    start = start_R.long()
    uniform_RT = uniform_RT.contiguous()
    strides = (draft_RKV.stride(0), draft_RKV.stride(1), target_MV.stride(0))
    _accept[(requests, tiles)](
        drafts_RK.contiguous(), draft_RKV, target_MV, start, lengths, uniform_RT, accepted_R,
        sums_2RN[0], sums_2RN[1], vocabulary, columns, *strides,
        BLOCK_K=triton.next_power_of_2(columns), BLOCK_V=tile, num_warps=8,
    )  # fmt: skip
    _next[(requests,)](
        draft_RKV, target_MV, start, lengths, uniform_RT, accepted_R, sums_2RN[0], sums_2RN[1],
        next_R, vocabulary, columns, tiles, *strides,
        BLOCK_V=tile, BLOCK_N=triton.next_power_of_2(tiles), num_warps=8,
    )  # fmt: skip
    return accepted_R, next_R


@triton.jit
def _rows(draft, target, start, request, accepted, columns, stride_r, stride_k, stride_m):
    """Where q and p of the token after the accepted run begin."""
    q_row = draft + request * stride_r + tl.minimum(accepted, columns - 1) * stride_k
    return q_row, target + (start + accepted) * stride_m


@triton.jit
def _weights(q_row, p_row, token, inside, resampling):
    """Residual and p of these tokens; the residual is rounded to float32, as the reference's."""
    p = tl.load(p_row + token, mask=inside, other=0.0)
    q = tl.load(q_row + token, mask=inside & resampling, other=0.0)
    return tl.maximum(p - q, 0.0).to(tl.float64), p.to(tl.float64)


# The second sums begin where the batch ends; else every second batch compiles again.
@triton.jit(do_not_specialize_on_alignment=["rest_out", "whole_out"])
def _accept(
    drafts, draft, target, starts, lengths, uniforms, accepted_out, rest_out, whole_out,
    vocabulary, columns, stride_r, stride_k, stride_m,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The accepted run, found by each tile's program for itself, and the tile's two sums."""
    request, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, length = tl.load(starts + request), tl.load(lengths + request)
    position = tl.arange(0, BLOCK_K)
    # Beyond the columns there is nothing to read, whatever the length says.
    verified = (position < length) & (position < columns)
    token = tl.load(drafts + request * columns + position, mask=verified, other=0)
    p = tl.load(target + (start + position) * stride_m + token, mask=verified, other=0.0)
    q_at = draft + request * stride_r + position.to(tl.int64) * stride_k + token
    q = tl.load(q_at, mask=verified, other=1.0)
    uniform = tl.load(uniforms + request * (columns + 1) + position, mask=verified, other=1.0)
    ratio = p.to(tl.float64) / q.to(tl.float64)
    # Not "uniform >= ratio": a ratio that is no number must reject.
    passed = (uniform < tl.minimum(ratio, 1.0)) & (ratio == ratio) & verified
    accepted = tl.min(tl.where(passed, BLOCK_K, position), axis=0)
    accepted = tl.minimum(accepted.to(tl.int64), length)
    tl.store(accepted_out + request, accepted, mask=tile == 0)

    q_row, p_row = _rows(
        draft, target, start, request, accepted, columns, stride_r, stride_k, stride_m
    )
    token = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    rest, whole = _weights(q_row, p_row, token, token < vocabulary, accepted < length)
    at = request * tl.num_programs(1) + tile
    tl.store(rest_out + at, tl.sum(rest, axis=0))
    tl.store(whole_out + at, tl.sum(whole, axis=0))


@triton.jit(do_not_specialize_on_alignment=["rest_in", "whole_in"])
def _next(
    draft, target, starts, lengths, uniforms, accepted_in, rest_in, whole_in, next_out,
    vocabulary, columns, tiles, stride_r, stride_k, stride_m,
    BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The token after the accepted run, drawn from one tile."""
    request = tl.program_id(0).to(tl.int64)
    start, length = tl.load(starts + request), tl.load(lengths + request)
    accepted = tl.load(accepted_in + request)
    part = tl.arange(0, BLOCK_N)
    at = request * tiles + part
    rest_N = tl.load(rest_in + at, mask=part < tiles, other=0.0)
    whole_N = tl.load(whole_in + at, mask=part < tiles, other=0.0)
    # Where p and q are equal but for their last bits, nothing is left of the residual.
    resampling = (accepted < length) & (tl.sum(rest_N, axis=0) > 0.0)
    uniform = tl.load(uniforms + request * (columns + 1) + columns)
    tile, below, goal = passing_tile(tl.where(resampling, rest_N, whole_N), uniform, BLOCK_N)

    q_row, p_row = _rows(
        draft, target, start, request, accepted, columns, stride_r, stride_k, stride_m
    )
    token = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    rest, whole = _weights(q_row, p_row, token, token < vocabulary, resampling)
    place = passing(tl.where(resampling, rest, whole), below, goal, BLOCK_V)
    tl.store(next_out + request, tl.minimum(tile * BLOCK_V + place, vocabulary - 1).to(tl.int64))
