"""Bytes of a compiled model: its weights and what a token keeps.

Knows no time and no GPU's memory.
"""

from __future__ import annotations

from sglang_dspark.core.costs.composed.package import Compiled
from sglang_dspark.core.costs.composed.targets import Layout, Target

KERNELS = ("GenerationAttention", "GenerationMLA", "ContextAttention", "ContextMLA")
"""The package's attentions without the projections around them."""
_KV_SAMPLE_TOKENS = 4096


def attention_params(model: Compiled, target: Target, layout: Layout) -> float:
    """Weights of the attentions of all layers on one GPU, as a plain attention has them."""
    hidden, heads = target.whole("hidden_size"), target.whole("num_attention_heads")
    width = target.text.get("head_dim") or hidden // heads
    kv = target.text.get("num_key_value_heads") or heads
    return float(2 * (heads + kv) * width * hidden * model.model._num_layers / layout.attention_tp)


def bytes_per_weight(model: Compiled) -> float:
    """Of the matrices outside the experts."""
    return float(model.config.gemm_quant_mode.value.memory)


def weights_bytes(model: Compiled, target: Target, layout: Layout) -> float:
    """Over all GPUs of the replica."""
    tied = target.text.get("tie_word_embeddings") or target.config.get("tie_word_embeddings")
    held = 0.0
    for op in model.model.context_ops:
        weights = float(op.get_weights())
        silent = op._name == "context_attention" and not weights
        if silent and type(op).__name__ not in KERNELS:  # a module that does not tell its weights
            weights = attention_params(model, target, layout) * bytes_per_weight(model)
        if not (tied and op._name == "context_logits_gemm"):
            held += weights
    return held * layout.tp


def kv_bytes(model: Compiled, layout: Layout) -> float:
    """Per token of a request of 4096, over all GPUs that hold it."""
    held = float(model.model.get_kvcache_bytes_per_sequence(_KV_SAMPLE_TOKENS))
    return held / _KV_SAMPLE_TOKENS * layout.attention_tp


def dtype_words(model: Compiled) -> str:
    """The dtype of the weights, and of the experts where theirs is another."""
    gemm, moe = model.config.gemm_quant_mode.name, model.config.moe_quant_mode
    experts = any("moe" in op._name for op in model.model.context_ops)
    return f"{gemm}, experts {moe.name}" if experts and moe and moe.name != gemm else str(gemm)
