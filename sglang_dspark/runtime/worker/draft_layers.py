"""The drafter's decoder layers, built from SGLang's parallel linears and attention.

Owns one layer's arithmetic, in a forward pass over a block and for context that only leaves keys
and values behind. ``sglang_dspark.draft`` is the reference for both; what differs is where keys
and values live and that weights are sharded. Knows neither checkpoints nor the shared ends.

Shapes: T tokens end to end, D hidden, H heads and N key/value heads of this rank, E head size.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.activation import GeluAndMul, SiluAndMul
from sglang.srt.layers.layernorm import Gemma4RMSNorm, RMSNorm
from sglang.srt.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.layers.rotary_embedding import RotaryEmbedding
from sglang.srt.models.utils import apply_qk_norm
from sglang.srt.utils import use_intel_amx_backend
from torch import Tensor, nn
from torch.nn.functional import linear

from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.draft.model.layers import Rope


class DraftRope(RotaryEmbedding):  # type: ignore[misc]
    """SGLang's rotary kernels over the angles that the drafter was trained with.

    One table for all layers. SGLang's own factory rounds some kinds of RoPE otherwise and reads
    another form of their parameters.
    """

    cos_sin_cache: Tensor

    def __init__(self, config: DrafterConfig, *, positions: int) -> None:
        self._angles = Rope(config)
        super().__init__(
            config.head_dim,
            config.head_dim,
            positions,
            config.rope["rope_theta"],
            True,
            torch.get_default_dtype(),
        )

    def _compute_cos_sin_cache(self) -> Tensor:
        places = torch.arange(self.max_position_embeddings)
        cos, sin = self._angles(places, torch.float32)
        half = self.head_size // 2
        return torch.cat([cos[:, :half], sin[:, :half]], dim=-1)

    def _ensure_cos_sin_cache_length(self, needed_max_pos: int) -> None:
        if needed_max_pos < self.cos_sin_cache.shape[0]:
            return
        self.max_position_embeddings = needed_max_pos + 1
        with self.cos_sin_cache.device:
            self.cos_sin_cache = self._compute_cos_sin_cache().to(self.cos_sin_cache.dtype)


def check_shards(config: DrafterConfig, ranks: int) -> None:
    """``ValueError`` unless heads and the MLP split evenly over the tensor-parallel ranks."""
    for name, size in (
        ("num_attention_heads", config.num_attention_heads),
        ("intermediate_size", config.intermediate_size),
    ):
        if size % ranks:
            raise ValueError(
                f"the drafter's {name} {size} does not split over {ranks} tensor-parallel ranks; "
                "choose a --tp-size that divides it"
            )
    kv_heads = config.num_key_value_heads
    if kv_heads % ranks and ranks % kv_heads:
        raise ValueError(
            f"the drafter's {kv_heads} key/value heads neither split over nor repeat on {ranks} "
            "tensor-parallel ranks; choose a --tp-size that divides them or that they divide"
        )


class DraftAttention(nn.Module):
    """Attention of a block over the context in the KV pool and its own slots, both ways."""

    def __init__(
        self,
        config: DrafterConfig,
        *,
        layer: int,
        rope: DraftRope,
        quant_config: Any = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        family, eps, self.head_dim = config.family, config.rms_norm_eps, config.head_dim
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            self.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=config.attention_bias,
            quant_config=quant_config,
            prefix=f"{prefix}qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * self.head_dim,
            config.hidden_size,
            bias=config.attention_bias,
            quant_config=quant_config,
            prefix=f"{prefix}o_proj",
        )
        self.q_size = self.qkv_proj.num_heads * self.head_dim
        self.kv_size = self.qkv_proj.num_kv_heads * self.head_dim
        self.q_norm = RMSNorm(self.head_dim, eps=eps)
        self.k_norm = RMSNorm(self.head_dim, eps=eps)
        self.v_norm = None
        if family.value_norm:
            self.v_norm = Gemma4RMSNorm(self.head_dim, eps=eps, with_scale=False)
        self.rotary_emb = rope
        self.attn = RadixAttention(
            self.qkv_proj.num_heads,
            self.head_dim,
            1.0 if family.unit_attention_scale else self.head_dim**-0.5,
            num_kv_heads=self.qkv_proj.num_kv_heads,
            layer_id=layer,
            # Not causal: a slot sees every slot of its block, and all context lies before it.
            attn_type=AttentionType.ENCODER_ONLY,
            prefix=f"{prefix}attn",
        )

    def forward(self, positions_T: Tensor, hidden_TD: Tensor, forward_batch: Any) -> Tensor:
        """The backend writes the block's keys and values where ``out_cache_loc`` says."""
        qkv, _ = self.qkv_proj(hidden_TD)
        query, key, value = qkv.split_with_sizes([self.q_size, self.kv_size, self.kv_size], dim=-1)
        query, key = apply_qk_norm(query, key, self.q_norm, self.k_norm, self.head_dim)
        query, key = self.rotary_emb(positions_T, query, key)
        attended = self.attn(query, key, self._normed_value(value), forward_batch)
        out: Tensor = self.o_proj(attended)[0]
        return out

    def keys_values(self, context_TD: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values [T, N, E] of context tokens, which no query of a layer reads."""
        if self._sliceable():
            bias = self.qkv_proj.bias
            kv = linear(
                context_TD,
                self.qkv_proj.weight[self.q_size :],
                None if bias is None else bias[self.q_size :],
            )
        else:
            kv = self.qkv_proj(context_TD)[0][:, self.q_size :]
        key, value = kv.split_with_sizes([self.kv_size, self.kv_size], dim=-1)
        key = self.k_norm(key.reshape(-1, self.head_dim)).view(key.shape)
        # The rotary kernels want queries too; of the keys' shape, they fit every kernel.
        _, key = self.rotary_emb(positions_T, torch.zeros_like(key), key)
        split = (len(context_TD), -1, self.head_dim)
        return key.view(split), self._normed_value(value).reshape(split)

    def _normed_value(self, value: Tensor) -> Tensor:
        if self.v_norm is None:
            return value
        normed: Tensor = self.v_norm(value.reshape(-1, self.head_dim))
        return normed.view(value.shape)

    def _sliceable(self) -> bool:
        """The weight is a plain [rows, D] matrix: neither quantised nor packed."""
        plain = isinstance(self.qkv_proj.quant_method, UnquantizedLinearMethod)
        return plain and not use_intel_amx_backend(self.qkv_proj)


class DraftMLP(nn.Module):
    """Gated MLP."""

    def __init__(
        self, config: DrafterConfig, *, quant_config: Any = None, prefix: str = ""
    ) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_up_proj = MergedColumnParallelLinear(
            width,
            [inner, inner],
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}gate_up_proj",
        )
        self.down_proj = RowParallelLinear(
            inner, width, bias=False, quant_config=quant_config, prefix=f"{prefix}down_proj"
        )
        self.activation = SiluAndMul() if config.activation == "silu" else GeluAndMul("tanh")

    def forward(self, hidden_TD: Tensor) -> Tensor:
        gate_up, _ = self.gate_up_proj(hidden_TD)
        out: Tensor = self.down_proj(self.activation(gate_up))[0]
        return out


class DraftLayer(nn.Module):
    """Attention and MLP, with Gemma4's extra norms and scalar where the family has them."""

    layer_scalar: Tensor

    def __init__(
        self,
        config: DrafterConfig,
        *,
        layer: int,
        rope: DraftRope,
        quant_config: Any = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = DraftAttention(
            config,
            layer=layer,
            rope=rope,
            quant_config=quant_config,
            prefix=f"{prefix}self_attn.",
        )
        self.mlp = DraftMLP(config, quant_config=quant_config, prefix=f"{prefix}mlp.")
        self.input_layernorm = RMSNorm(width, eps=eps)
        self.post_attention_layernorm = RMSNorm(width, eps=eps)
        self.sandwich = config.family.sandwich
        if self.sandwich:
            self.pre_feedforward_layernorm = RMSNorm(width, eps=eps)
            self.post_feedforward_layernorm = RMSNorm(width, eps=eps)
            self.register_buffer("layer_scalar", torch.ones(1))

    def forward(
        self, positions_T: Tensor, hidden_TD: Tensor, residual_TD: Tensor | None, batch: Any
    ) -> tuple[Tensor, Tensor | None]:
        """(hidden, residual), whose sum is the layer's output; Gemma4 leaves no residual."""
        if self.sandwich:
            out = self.self_attn(positions_T, self.input_layernorm(hidden_TD), batch)
            hidden_TD = hidden_TD + self.post_attention_layernorm(out)
            fed = self.mlp(self.pre_feedforward_layernorm(hidden_TD))
            hidden_TD = hidden_TD + self.post_feedforward_layernorm(fed)
            return hidden_TD * self.layer_scalar, None
        # Sum and norm are one kernel on a GPU, which is why the residual travels apart.
        if residual_TD is None:
            hidden_TD, residual_TD = self.input_layernorm(hidden_TD), hidden_TD
        else:
            hidden_TD, residual_TD = self.input_layernorm(hidden_TD, residual_TD)
        out = self.self_attn(positions_T, hidden_TD, batch)
        hidden_TD, residual_TD = self.post_attention_layernorm(out, residual_TD)
        return self.mlp(hidden_TD), residual_TD
