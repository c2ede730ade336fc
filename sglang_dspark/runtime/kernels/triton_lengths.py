"""``lengths`` on a GPU: one launch each, nothing read back.

Owns the launch shapes. The law and the reference are in ``lengths``.

Shapes: R requests, K draft positions.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglang_dspark.core.ranking import SURVIVAL_FLOOR
from sglang_dspark.runtime.kernels import lengths as reference

FLOOR = tl.constexpr(SURVIVAL_FLOOR)
LOG2_E = tl.constexpr(reference.LOG2_E)
LN2_HIGH = tl.constexpr(reference.LN2_HIGH)
LN2_LOW = tl.constexpr(reference.LN2_LOW)
ROUND = tl.constexpr(reference.ROUND)

RIVALS = 1024
"""Candidates that a program compares its own with at a time."""


def survival(*, logits_RK: Tensor, inverse_temperature_K: Tensor, bias_K: Tensor) -> Tensor:
    """``lengths.survival``; products run along the positions, so that rows never increase."""
    requests, columns = logits_RK.shape
    out_RK = torch.empty(requests, columns, dtype=torch.float64, device=logits_RK.device)
    block = 32
    # A fused multiply-add rounds once where the reference rounds twice.
    _survival[(triton.cdiv(requests, block),)](
        logits_RK,
        inverse_temperature_K,
        bias_K,
        out_RK,
        requests,
        columns,
        *logits_RK.stride(),
        BLOCK_R=block,
        num_warps=1,
        enable_fp_fusion=False,
    )
    return out_RK


def assign_lengths(*, survival_RK: Tensor, budget: int) -> Tensor:
    """``lengths.assign_lengths``: a candidate is in when fewer than ``budget`` go before it.

    Each program counts that for one request's candidates, against all R x K: nothing is sorted
    and no program waits for another, which beats a sort up to thousands of requests.
    """
    requests, columns = survival_RK.shape
    lengths_R = torch.empty(requests, dtype=torch.int64, device=survival_RK.device)
    _assign[(requests,)](
        survival_RK.contiguous(),
        lengths_R,
        budget,
        requests,
        columns,
        BLOCK_K=triton.next_power_of_2(columns),
        BLOCK_N=RIVALS,
        num_warps=4,
    )
    return lengths_R


@triton.jit(do_not_specialize=["requests"])
def _survival(
    logits, inverse_temperature, bias, out, requests, columns, stride_r, stride_k,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < requests
    first = tl.load(logits + row * stride_r, mask=inside, other=0.0).to(tl.float64)
    survived = tl.full((BLOCK_R,), 1.0, tl.float64)
    for k in range(columns):
        z = tl.load(logits + row * stride_r + k * stride_k, mask=inside, other=0.0).to(tl.float64)
        x = -(z * tl.load(inverse_temperature + k) + tl.load(bias + k))
        x = tl.minimum(tl.maximum(x, -690.0), 690.0)
        shifted = x * LOG2_E + ROUND
        n = shifted - ROUND
        r = (x - n * LN2_HIGH) - n * LN2_LOW
        square = r * r
        even = 665280.0 + square * (75600.0 + square * (840.0 + square))
        odd = r * (332640.0 + square * (10080.0 + square * 42.0))
        bits = (shifted.to(tl.int64, bitcast=True) + 1023) << 52
        power = bits.to(tl.float64, bitcast=True)
        below = even - odd
        survived *= below / (below + power * (even + odd))
        value = tl.where(first != first, 1.0, survived)
        value = tl.where(first == float("-inf"), 0.0, value)
        tl.store(out + row * columns + k, value, mask=inside)


@triton.jit(do_not_specialize=["budget", "requests"])  # else many values compile again
def _assign(
    survival, lengths, budget, requests, columns, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr
):
    request = tl.program_id(0)
    position = tl.arange(0, BLOCK_K)
    own = tl.load(survival + request * columns + position, mask=position < columns, other=-1.0)
    order = position * requests + request  # what breaks ties: position, then request
    before = tl.zeros((BLOCK_K,), tl.int32)
    for start in range(0, requests * columns, BLOCK_N):
        rival = start + tl.arange(0, BLOCK_N)
        inside = rival < requests * columns
        value = tl.load(survival + rival, mask=inside, other=-1.0)
        rival_order = (rival % columns) * requests + rival // columns
        ahead = (value[None, :] > own[:, None]) | (
            (value[None, :] == own[:, None]) & (rival_order[None, :] < order[:, None])
        )
        before += tl.sum((ahead & inside[None, :]).to(tl.int32), axis=1)
    chosen = (before < budget) & (own >= FLOOR)
    tl.store(lengths + request, tl.sum(chosen.to(tl.int64), axis=0))
