"""Quantised weights made plain: FP8 in blocks of 128 x 128, FP4 in groups of 32 along a row.

Owns the arithmetic and what a scale must look like. Knows no names and no files. A weight times
its block's scale, in float32, rounded once. Sources: the released checkpoints' layout, and
transformers' ``Fp8Dequantize``, which reads the same ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = (torch.float8_e4m3fn,)
FP4 = tuple(
    kind for kind in (torch.int8, torch.uint8, getattr(torch, "float4_e2m1fn_x2", None)) if kind
)
"""FP4 comes packed: two values a byte, the first in the low half."""
BLOCK, GROUP = 128, 32

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def is_quantised(tensor: Tensor) -> bool:
    """Whether it needs a scale to mean anything."""
    return tensor.dtype in FP8 or tensor.dtype in FP4


def plain(weight: Tensor, scale: Tensor, *, dtype: torch.dtype, where: str) -> Tensor:
    """weight * scale in ``dtype``; errors begin with ``where``."""
    if weight.ndim != 2:
        raise ValueError(f"{where}: quantised, but no matrix; download the checkpoint again")
    if weight.dtype in FP4:
        values, steps = _unpacked(weight), (1, GROUP)
    else:
        values, steps = weight.float(), (BLOCK, BLOCK)
    wanted = tuple(-(-size // step) for size, step in zip(values.shape, steps, strict=True))
    if tuple(scale.shape) != wanted:
        raise ValueError(
            f"{where}: its scale has shape {list(scale.shape)}, blocks of {steps[0]} x {steps[1]} "
            f"ask for {list(wanted)}; other block sizes are not read"
        )
    factors = _as_float(scale)
    if not bool((torch.isfinite(factors) & (factors > 0)).all()):
        raise ValueError(f"{where}: its scale is not finite and above 0 everywhere; mend it")
    for axis, step in enumerate(steps):
        factors = factors.repeat_interleave(step, dim=axis).narrow(axis, 0, values.shape[axis])
    return (values * factors).to(dtype)


def _as_float(scale: Tensor) -> Tensor:
    """Bytes are exponents (e8m0), everything else a number."""
    if scale.dtype == torch.uint8:
        return (scale.float() - 127).exp2()
    return scale.float()


def _unpacked(weight: Tensor) -> Tensor:
    table = torch.tensor([*_E2M1, *(-x for x in _E2M1)], device=weight.device)
    packed = weight.contiguous().view(torch.uint8)
    halves = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)
    return table[halves.long()]
