"""``head.fill_slot`` on a GPU: bias, then probabilities, then the draw, three launches a slot.

Owns the tiles over the vocabulary and what passes between the launches: the tiles' maxima and
sums, 12 bytes for each request and ``BIAS_TOKENS``, 8 for each request and ``TILE``. The law and
the reference are in ``head``.

Shapes: R requests, V vocabulary, r Markov rank, N tiles.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglang_dspark.draft.evaluation.sampling import GREEDY_BELOW
from sglang_dspark.runtime.kernels.head import RowChoice
from sglang_dspark.runtime.kernels.triton_draw import TILE, passing, passing_tile

BIAS_TOKENS = 128
"""Tokens of one tile of the bias: W2's rows of a tile are read once for up to 64 requests."""

RANK_BYTES = 128
"""Of each row of W2, read at a time; more spills registers."""

GREEDY = tl.constexpr(GREEDY_BELOW)


def fill_slot(
    *,
    logits_RV: Tensor,
    latent_Rr: Tensor | None,
    weight_Vr: Tensor | None,
    choice: RowChoice,
    uniform_R: Tensor,
) -> Tensor:
    """``head.fill_slot`` for tensors on one GPU."""
    requests, vocabulary = logits_RV.shape
    device = logits_RV.device
    tiles = triton.cdiv(vocabulary, BIAS_TOKENS)
    most_RN = torch.empty(requests, tiles, dtype=torch.float32, device=device)
    sum_RN = torch.empty(requests, tiles, dtype=torch.float32, device=device)
    best_RN = torch.empty(requests, tiles, dtype=torch.int32, device=device)
    biased = latent_Rr is not None and weight_Vr is not None
    # Without a head these stand for nothing and are never read.
    weight = logits_RV if weight_Vr is None else weight_Vr
    latent = weight if latent_Rr is None else latent_Rr.to(weight.dtype).contiguous()
    rank = latent.shape[1] if biased else 0
    # Without tensor cores, which float32 proper has not, larger blocks only cost registers.
    widest = 16 if weight.dtype == torch.float32 else 64
    block = min(widest, max(16, triton.next_power_of_2(requests)))
    step = min(RANK_BYTES // weight.element_size(), triton.next_power_of_2(rank))
    _bias[(triton.cdiv(requests, block), tiles)](
        logits_RV, latent, weight, choice.temperature_R, most_RN, sum_RN, best_RN,
        requests, vocabulary, rank, tiles, logits_RV.stride(0), weight.stride(0),
        BLOCK_R=block, BLOCK_V=BIAS_TOKENS, BLOCK_r=max(16, step),
        # The interpreter's matrix product takes the bits of a bfloat16 for an integer.
        BIASED=biased, UPCAST=triton.knobs.runtime.interpret,
        num_warps=4 if block == 16 else 8,
    )  # fmt: skip

    draw_tile = min(TILE, triton.next_power_of_2(vocabulary))
    draw_tiles = triton.cdiv(vocabulary, draw_tile)
    weight_RN = torch.empty(requests, draw_tiles, dtype=torch.float64, device=device)
    _probabilities[(requests, draw_tiles)](
        logits_RV, choice.temperature_R, most_RN, sum_RN, best_RN, weight_RN,
        vocabulary, tiles, draw_tiles, logits_RV.stride(0),
        BLOCK_V=draw_tile, BLOCK_N=triton.next_power_of_2(tiles), num_warps=8,
    )  # fmt: skip

    tokens_R = torch.empty(requests, dtype=torch.int64, device=device)
    _draw[(requests,)](
        logits_RV, weight_RN, uniform_R, tokens_R,
        vocabulary, draw_tiles, logits_RV.stride(0), uniform_R.stride(0),
        BLOCK_V=draw_tile, BLOCK_N=triton.next_power_of_2(draw_tiles), num_warps=8,
    )  # fmt: skip
    return tokens_R


@triton.jit(do_not_specialize=["requests"])  # else a first batch of 1 or 16 compiles again
def _bias(
    logits, latent, weight, temperature, most_out, sum_out, best_out,
    requests, vocabulary, rank, tiles, stride_logits, stride_weight,
    BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_r: tl.constexpr,
    BIASED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """logits += latent @ weight.T; of each tile the maximum, the sum of exponentials, the best."""
    first, tile = tl.program_id(0) * BLOCK_R, tl.program_id(1)
    local, place = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_V)
    row, token = first + local, tile * BLOCK_V + place
    in_row, in_token = row < requests, token < vocabulary
    inside = in_row[:, None] & in_token[None, :]
    # 64-bit bases and 32-bit places within a tile: half the registers of 64-bit places.
    logits += first.to(tl.int64) * stride_logits + tile * BLOCK_V
    x_at = logits + (local[:, None] * stride_logits + place[None, :])
    if BIASED:
        weight += (tile * BLOCK_V).to(tl.int64) * stride_weight
        bias = tl.zeros((BLOCK_R, BLOCK_V), tl.float32)
        for start in range(0, rank, BLOCK_r):
            inner = start + tl.arange(0, BLOCK_r)
            u = tl.load(
                latent + (row[:, None] * rank + inner[None, :]),
                mask=in_row[:, None] & (inner < rank)[None, :],
                other=0.0,
            )
            w = tl.load(
                weight + (place[:, None] * stride_weight + inner[None, :]),
                mask=in_token[:, None] & (inner < rank)[None, :],
                other=0.0,
            )
            if UPCAST:
                u, w = u.to(tl.float32), w.to(tl.float32)
            bias = tl.dot(u, w.T, bias, input_precision="ieee")
        x = tl.load(x_at, mask=inside, other=float("-inf")) + bias
        tl.store(x_at, x, mask=inside)
    else:
        x = tl.load(x_at, mask=inside, other=float("-inf"))
    heat = tl.load(temperature + row, mask=in_row, other=1.0)
    heat = tl.where(heat < GREEDY, 1.0, heat)
    most = tl.max(x, axis=1)
    best = tl.min(tl.where(x == most[:, None], token[None, :], vocabulary), axis=1)
    # A tile may hold nothing but -inf, whose difference is no number.
    anchor = tl.where(most == float("-inf"), 0.0, most)
    total = tl.sum(tl.exp((x - anchor[:, None]) / heat[:, None]), axis=1)
    at = row * tiles + tile
    tl.store(most_out + at, most, mask=in_row)
    tl.store(sum_out + at, total, mask=in_row)
    tl.store(best_out + at, best, mask=in_row)


@triton.jit
def _probabilities(
    logits, temperature, most_in, sum_in, best_in, weight_out,
    vocabulary, tiles, draw_tiles, stride_logits,
    BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Logits of one tile to probabilities, and their sum in float64."""
    row, tile = tl.program_id(0), tl.program_id(1)
    heat = tl.load(temperature + row)
    greedy = heat < GREEDY
    heat = tl.where(greedy, 1.0, heat)
    part = tl.arange(0, BLOCK_N)
    known = part < tiles
    most_N = tl.load(most_in + row * tiles + part, mask=known, other=float("-inf"))
    sum_N = tl.load(sum_in + row * tiles + part, mask=known, other=0.0)
    most = tl.max(most_N, axis=0)
    total = tl.sum(sum_N * tl.exp((most_N - most) / heat), axis=0)
    best_N = tl.load(best_in + row * tiles + part, mask=known, other=vocabulary)
    best = tl.min(tl.where(most_N == most, best_N, vocabulary), axis=0)

    token = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = token < vocabulary
    place = logits + row.to(tl.int64) * stride_logits + token
    x = tl.load(place, mask=inside, other=float("-inf"))
    q = tl.exp((x - most) / heat) / total
    q = tl.where(greedy, (token == best).to(tl.float32), q)
    tl.store(place, q, mask=inside)
    tl.store(weight_out + row * draw_tiles + tile, tl.sum(q.to(tl.float64), axis=0))


@triton.jit(do_not_specialize_on_alignment=["uniforms"])  # else every second slot compiles again
def _draw(
    weights, weight_in, uniforms, tokens,
    vocabulary, draw_tiles, stride_weights, stride_uniforms,
    BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The token at which the running sum passes the uniform's share of the whole."""
    row = tl.program_id(0)
    part = tl.arange(0, BLOCK_N)
    sum_N = tl.load(weight_in + row * draw_tiles + part, mask=part < draw_tiles, other=0.0)
    tile, below, goal = passing_tile(sum_N, tl.load(uniforms + row * stride_uniforms), BLOCK_N)
    token = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    place = weights + row.to(tl.int64) * stride_weights + token
    q = tl.load(place, mask=token < vocabulary, other=0.0).to(tl.float64)
    chosen = tile * BLOCK_V + passing(q, below, goal, BLOCK_V)
    tl.store(tokens + row, tl.minimum(chosen, vocabulary - 1).to(tl.int64))
