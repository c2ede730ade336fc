"""Building blocks of a drafter: norms, rotary embeddings, MLP and attention over blocks.

Owns how a set of blocks attends to a shared context without ever building a [T, T] mask. Knows
neither which block belongs to which sequence position (indices are given) nor any checkpoint.

Shapes: B sequences, S context tokens, A anchors (blocks), K slots in a block, H heads, N key/value
heads, E head size, D hidden.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from sglang_dspark.draft.model.config import DrafterConfig

MASK_ELEMENTS = 1 << 24
"""Largest attention mask built at once, in elements (16 MiB as bool, 64 MiB as float32)."""


class RMSNorm(nn.Module):
    """x / rms(x), times a weight unless ``scale`` is off; statistics in float32 or better."""

    def __init__(self, width: int, *, eps: float, in_float32: bool, scale: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.in_float32 = in_float32
        self.weight = nn.Parameter(torch.ones(width)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.weight is None:
            return normed.to(x.dtype)
        if self.in_float32:
            return (normed * self.weight.to(normed.dtype)).to(x.dtype)
        return self.weight * normed.to(x.dtype)


class Rope:
    """Rotary embeddings of the target's full-attention layers.

    No module and no buffer: frequencies stay float32 whatever dtype the model is moved to, and
    no checkpoint holds them.
    """

    def __init__(self, config: DrafterConfig) -> None:
        self.frequencies, self.scale = _rope_frequencies(config)

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [*positions.shape, E], for ``rotate``."""
        if self.frequencies.device != positions.device:
            self.frequencies = self.frequencies.to(positions.device)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        # float32 angles even for a float64 model: that is what the target computes.
        angles = positions[..., None].float() * self.frequencies
        angles = torch.cat([angles, angles], dim=-1).to(wide)
        return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)


def _rope_frequencies(config: DrafterConfig) -> tuple[Tensor, float]:
    """Inverse frequencies float32[E/2] and the factor on cos and sin."""
    rope, width = config.rope, config.head_dim
    with torch.device("cpu"):  # also when the model is being built on the meta device
        if rope["rope_type"] == "default":
            steps = torch.arange(0, width, 2, dtype=torch.float32) / width
            return 1.0 / (rope["rope_theta"] ** steps), 1.0
        from transformers import PretrainedConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        shape: Any = {
            "head_dim": width,
            "hidden_size": config.hidden_size,
            "num_attention_heads": config.num_attention_heads,
            "max_position_embeddings": config.target_text_config.get("max_position_embeddings"),
            "rope_parameters": rope,
        }
        plain = PretrainedConfig(**shape)
        frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](plain, torch.device("cpu"))
        return frequencies.float(), float(scale)


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate [..., T, heads, E] by (cos, sin) of [..., T, E]."""
    cos, sin = (part.unsqueeze(-2) for part in cos_sin)
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class MLP(nn.Module):
    """Gated MLP."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)
        self.activation = silu if config.activation == "silu" else partial(gelu, approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x)))


class Attention(nn.Module):
    """Projections and norms of one attention; who sees whom is the caller's."""

    def __init__(self, config: DrafterConfig, *, input_width: int | None = None) -> None:
        super().__init__()
        width, bias, family = config.hidden_size, config.attention_bias, config.family
        given = input_width or width
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scale = 1.0 if family.unit_attention_scale else config.head_dim**-0.5
        norm = partial(
            RMSNorm, config.head_dim, eps=config.rms_norm_eps, in_float32=family.norm_in_float32
        )
        self.q_proj = nn.Linear(given, self.heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(given, self.kv_heads * self.head_dim, bias=bias)
        self.v_proj = None
        if not config.keys_are_values:
            self.v_proj = nn.Linear(given, self.kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, width, bias=bias)
        self.q_norm = norm()
        self.k_norm = norm()
        self.v_norm = norm(scale=False) if family.value_norm else None

    def queries(self, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        """[..., T, D] -> rotated [..., T, H, E]."""
        split = self.q_proj(x).unflatten(-1, (self.heads, self.head_dim))
        return rotate(self.q_norm(split), cos_sin)

    def keys_values(self, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """[..., T, D] -> rotated keys and values, each [..., T, N, E]."""
        shape = (self.kv_heads, self.head_dim)
        raw = self.k_proj(x).unflatten(-1, shape)
        value = raw if self.v_proj is None else self.v_proj(x).unflatten(-1, shape)
        if self.v_norm is not None:
            value = self.v_norm(value)
        return rotate(self.k_norm(raw), cos_sin), value

    def output(self, attended: Tensor) -> Tensor:
        """[..., H, E] -> [..., D]."""
        return cast(Tensor, self.o_proj(attended.flatten(-2)))


def attend(
    query_BTHE: Tensor, key_BNLE: Tensor, value_BNLE: Tensor, mask_BTL: Tensor, scale: float
) -> Tensor:
    """Softmax attention -> [B, T, H, E]; ``mask`` true where a query sees a key.

    The query heads of a group are folded into the query axis: keys and values are never repeated,
    which the fused kernels that take a mask would otherwise ask for.
    """
    batch, tokens, heads, size = query_BTHE.shape
    kv_heads = key_BNLE.shape[1]
    groups = heads // kv_heads
    split = query_BTHE.reshape(batch, tokens, kv_heads, groups, size)
    folded = split.permute(0, 2, 3, 1, 4).reshape(batch, kv_heads, groups * tokens, size)
    mask = mask_BTL[:, None, None].expand(-1, 1, groups, -1, -1).flatten(2, 3)
    out = scaled_dot_product_attention(folded, key_BNLE, value_BNLE, attn_mask=mask, scale=scale)
    out = out.reshape(batch, kv_heads, groups, tokens, size)
    return out.permute(0, 3, 1, 2, 4).reshape(batch, tokens, heads, size)


def block_attention(
    *,
    query_BAKHE: Tensor,
    context_key_BSNE: Tensor,
    context_value_BSNE: Tensor,
    block_key_BAKNE: Tensor,
    block_value_BAKNE: Tensor,
    anchor_index_BA: Tensor,
    limits: list[tuple[int, int, int]],
    scale: float,
) -> Tensor:
    """Every block's queries see context indices < its anchor's and all slots given as its own.

    Law: equal to one attention per block over [context[:anchor] ; block]. Blocks go in the groups
    of ``limits`` (``anchor_groups``). A group of c blocks attends to one [L ; c*K] key set, L the
    largest anchor index in it, so a mask has c*K*(L + c*K) elements a sequence and query group,
    never more than ``MASK_ELEMENTS``. Gathering each block's own keys instead would copy S keys
    for each of A blocks; one mask for all would be [A*K, S + A*K]. With several groups the
    backward pass recomputes a group's attention instead of keeping its copy of the keys, so the
    peak is one group's: 2*N*E*(L + c*K) keys and values plus the mask. Returns [B, A, K, H, E].
    """
    key_BNSE, value_BNSE = context_key_BSNE.transpose(1, 2), context_value_BSNE.transpose(1, 2)
    parts = []
    for first, last, limit in limits:
        blocks = slice(first, last)
        arguments = (
            query_BAKHE[:, blocks],
            key_BNSE[:, :, :limit],
            value_BNSE[:, :, :limit],
            block_key_BAKNE[:, blocks],
            block_value_BAKNE[:, blocks],
            anchor_index_BA[:, blocks],
            scale,
        )
        if len(limits) > 1 and torch.is_grad_enabled():
            parts.append(checkpoint(_attend_group, *arguments, use_reentrant=False))
        else:
            parts.append(_attend_group(*arguments))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend_group(
    query_BcKHE: Tensor,
    key_BNLE: Tensor,
    value_BNLE: Tensor,
    block_key_BcKNE: Tensor,
    block_value_BcKNE: Tensor,
    anchor_index_Bc: Tensor,
    scale: float,
) -> Tensor:
    blocks, slots = query_BcKHE.shape[1:3]
    own_key_BNTE = block_key_BcKNE.flatten(1, 2).transpose(1, 2)
    own_value_BNTE = block_value_BcKNE.flatten(1, 2).transpose(1, 2)
    block_c = torch.arange(blocks, device=query_BcKHE.device)
    own_TT = block_c.repeat_interleave(slots)[:, None] == block_c.repeat_interleave(
        block_key_BcKNE.shape[2]
    )
    index_L = torch.arange(key_BNLE.shape[2], device=query_BcKHE.device)
    context_BTL = (index_L < anchor_index_Bc[..., None]).repeat_interleave(slots, dim=1)
    mask = torch.cat([context_BTL, own_TT.expand(len(context_BTL), -1, -1)], dim=-1)
    attended = attend(
        query_BcKHE.flatten(1, 2),
        torch.cat([key_BNLE, own_key_BNTE], dim=2),
        torch.cat([value_BNLE, own_value_BNTE], dim=2),
        mask,
        scale,
    )
    return attended.reshape(query_BcKHE.shape)


def anchor_groups(
    *, anchor_index_BA: Tensor, slots: int, query_groups: int
) -> list[tuple[int, int, int]]:
    """(first block, last block, context length) of each group of blocks for ``block_attention``.

    Anchors in ascending order make the context lengths of early groups short.
    """
    sequences, blocks = anchor_index_BA.shape
    most_A = anchor_index_BA.amax(dim=0).tolist() if blocks else []
    longest = max(most_A, default=0)
    # Own slots of other blocks are wasted keys: keep them below the context's, in reason.
    size = min(blocks, max(16, longest // slots))
    rows = sequences * query_groups * slots
    while size > 1 and rows * size * (longest + size * slots) > MASK_ELEMENTS:
        size = (size + 1) // 2
    return [
        (first, min(first + size, blocks), max(most_A[first : first + size]))
        for first in range(0, blocks, max(size, 1))
    ] or [(0, 0, 0)]
