"""Drafter configurations by name: those of the released checkpoints and those a laptop trains.

Owns numbers only. A released recipe is exactly the shape of the checkpoint of that name; the
training settings that go with it are the trainer's. ``dspark`` and ``dspark5`` derive a drafter's
configuration from any supported target's text config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sglang_dspark.draft.model.config import FAMILIES, DrafterConfig, Family
from sglang_dspark.draft.model.deepseek_v4.config import (
    ARCHITECTURE,
    KEYS,
    MODEL_TYPE,
    BundledConfig,
)

AnyConfig = DrafterConfig | BundledConfig

QWEN3_MASK_TOKEN = 151669
GEMMA4_MASK_TOKEN = 4
DEEPSEEK_V4_MASK_TOKEN = 128799


def dspark(
    target_text_config: Mapping[str, Any],
    *,
    mask_token_id: int,
    target_layer_ids: Sequence[int] | None = None,
    gamma: int | None = None,
    depth: int | None = None,
    num_anchors: int = 512,
    markov_rank: int = 256,
    markov_head_type: str = "vanilla",
    confidence: bool = True,
    confidence_with_markov: bool = True,
) -> AnyConfig:
    """A drafter for the target of this text config (a dict, as in its config.json).

    Width, heads, RoPE, norms and vocabulary are the target's. None: gamma 7, 5 layers, and
    min(5, layers - 1) captured layers spread as the releases do: from layer 1 to the third from
    last. For DeepSeek-V4 it is its own kind of drafter (``dspark5``): gamma 5, and as many stages
    as layers are captured, the last three.
    """
    text = dict(target_text_config.get("text_config") or target_text_config)
    if text.get("model_type") == MODEL_TYPE:
        return _bundled(
            text,
            mask_token_id=mask_token_id,
            target_layer_ids=target_layer_ids,
            gamma=gamma or 5,
            depth=depth,
            num_anchors=num_anchors,
            markov_rank=markov_rank,
            markov_head_type=markov_head_type,
            confidence=confidence,
            confidence_with_markov=confidence_with_markov,
        )
    gamma, depth = gamma or 7, depth or 5
    family = _family_of(text)
    if text["model_type"] not in family.layer_types:
        text = _layers_of(family, text)
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    for key in needed:
        if not isinstance(text.get(key), int):
            raise ValueError(
                f"the target's text config has no {key}; give its config.json's object"
            )
    layers = text.pop("num_hidden_layers")
    value = _full_attention_shape(text, family)
    value |= {
        "architectures": [family.architecture],
        "num_hidden_layers": depth,
        "num_target_layers": layers,
        "layer_types": ["full_attention"] * depth,
        "tie_word_embeddings": False,
        "block_size": gamma,
        "mask_token_id": mask_token_id,
        "target_layer_ids": list(target_layer_ids or spread_layers(layers)),
        "num_anchors": num_anchors,
        "markov_rank": markov_rank,
        "enable_confidence_head": confidence,
    }
    if markov_rank:
        value["markov_head_type"] = markov_head_type
    if confidence:
        value["confidence_head_with_markov"] = confidence_with_markov and markov_rank > 0
    return DrafterConfig.from_dict(value, where="drafter recipe")


def dspark5(target_text_config: Mapping[str, Any], **choices: Any) -> AnyConfig:
    """gamma 5 and three layers: what DeepSeek-V4 ships with, and the same shape for any other."""
    return dspark(target_text_config, **{"gamma": 5, "depth": 3, **choices})


def _bundled(
    target_config: Mapping[str, Any],
    *,
    mask_token_id: int,
    target_layer_ids: Sequence[int] | None,
    gamma: int,
    depth: int | None,
    num_anchors: int,
    markov_rank: int,
    markov_head_type: str,
    confidence: bool,
    confidence_with_markov: bool,
) -> BundledConfig:
    """DeepSeek-V4's own kind; keys of a drafter that the target has already are left behind."""
    theirs = {key: entry for key, entry in target_config.items() if key not in KEYS.values()}
    layers = theirs.get("num_hidden_layers")
    if not isinstance(layers, int):
        raise ValueError(
            "the target's config has no num_hidden_layers; give its config.json's object"
        )
    ids = list(target_layer_ids or range(max(0, layers - (depth or 3)), layers))
    if depth is not None and depth != len(ids):
        raise ValueError(
            f"depth {depth} with target_layer_ids {ids}: DeepSeek-V4's drafter has a stage for "
            "each captured layer; give one of the two"
        )
    value = {
        **theirs,
        "architectures": [ARCHITECTURE],
        "dspark_block_size": gamma,
        "dspark_noise_token_id": mask_token_id,
        "dspark_target_layer_ids": ids,
        "dspark_markov_rank": markov_rank,
        "dspark_markov_head_type": None if markov_head_type == "vanilla" else markov_head_type,
        "enable_confidence_head": None if confidence else False,
    }
    if confidence and markov_rank and not confidence_with_markov:
        value["confidence_head_with_markov"] = False
    config = BundledConfig.from_dict(
        {key: entry for key, entry in value.items() if entry is not None or key in theirs},
        where="drafter recipe",
    )
    return replace(config.plain(), num_anchors=num_anchors)


def dflash(target_text_config: Mapping[str, Any], **choices: Any) -> AnyConfig:
    """The same backbone without heads; train it with ``losses.DFLASH``."""
    return dspark(target_text_config, markov_rank=0, confidence=False, **choices)


def eagle3(
    target_text_config: Mapping[str, Any], *, mask_token_id: int, gamma: int = 7
) -> DrafterConfig:
    """The autoregressive baseline: one layer, states of a low, a middle and a high layer."""
    base = dspark(target_text_config, mask_token_id=mask_token_id, gamma=gamma, depth=1)
    if isinstance(base, BundledConfig):
        raise ValueError("the autoregressive baseline has no kind for DeepSeek-V4; use dspark")
    autoregressive = base.architecture.replace("DSpark", "Eagle3")
    return replace(
        base,
        architecture=autoregressive,
        target_layer_ids=spread_layers(base.num_target_layers, 3),
        markov_rank=0,
        enable_confidence_head=False,
        confidence_head_with_markov=False,
    )


def spread_layers(layers: int, count: int = 5) -> tuple[int, ...]:
    """``count`` layers evenly from 1 to ``layers - 3``; of a shallow target the highest allowed."""
    if layers < 2:
        raise ValueError(f"a target of {layers} layer has none to capture; it needs at least 2")
    count = min(count, layers - 1)
    if layers - 3 < count:  # too few layers for that range
        return tuple(range(-1, layers - 1))[-count:]
    step = (layers - 4) / max(count - 1, 1)
    return tuple(1 + round(i * step) for i in range(count))


def _family_of(text: Mapping[str, Any]) -> Family:
    kind = text.get("model_type")
    for family in FAMILIES.values():
        if kind in family.text_model_types and not family.autoregressive:
            return family
    known = ", ".join(
        t for f in FAMILIES.values() if not f.autoregressive for t in f.text_model_types
    )
    raise ValueError(f"target model_type {kind!r} has no drafter family; known: {known}")


_SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "rope_theta",
    "rope_scaling",
    "max_position_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def _layers_of(family: Family, text: Mapping[str, Any]) -> dict[str, Any]:
    """The drafter's own layers at another target's shape: what both have, and nothing else.

    A Qwen3-MoE, Llama or GPT-OSS target has a drafter of dense Qwen3 layers, as others train them:
    loaders would take the target's experts, biases and sinks for the drafter's.
    """
    shared = {key: text[key] for key in _SHARED_KEYS if text.get(key) is not None}
    return {
        **shared,
        "model_type": family.layer_types[0],
        "attention_bias": False,
        "attention_dropout": 0.0,
    }


def _full_attention_shape(text: dict[str, Any], family: Family) -> dict[str, Any]:
    """The text config with the full-attention layers' shape under the keys that drafters use."""
    layers = text.pop("per_layer_config", None)
    if family.head_dim_key not in text and layers:
        # Newer transformers store the full-attention layers' shape by (zero-padded) layer number.
        full = text["layer_types"].index("full_attention")
        shape = {int(number): layer for number, layer in layers.items()}.get(full, {})
        text[family.head_dim_key] = shape.get("head_dim", text["head_dim"])
        if text.get("attention_k_eq_v"):
            text["num_global_key_value_heads"] = shape.get(
                "num_key_value_heads", text["num_key_value_heads"]
            )
    text.setdefault(family.head_dim_key, text["hidden_size"] // text["num_attention_heads"])
    if family.sandwich:
        text |= {"hidden_size_per_layer_input": 0, "enable_moe_block": False}
    return text


# Released checkpoints.


def _qwen3(*, hidden: int, inner: int, layers: int, heads: int, ids: list[int]) -> DrafterConfig:
    target = {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000},
    }
    return _dense(dspark(target, mask_token_id=QWEN3_MASK_TOKEN, target_layer_ids=ids))


def _dense(config: AnyConfig) -> DrafterConfig:
    assert isinstance(config, DrafterConfig)
    return config


def qwen3_4b() -> DrafterConfig:
    """For Qwen3-4B: gamma 7, 5 layers, rank 256."""
    return _qwen3(hidden=2560, inner=9728, layers=36, heads=32, ids=[1, 9, 17, 25, 33])


def qwen3_8b() -> DrafterConfig:
    """For Qwen3-8B."""
    return _qwen3(hidden=4096, inner=12288, layers=36, heads=32, ids=[1, 9, 17, 25, 33])


def qwen3_14b() -> DrafterConfig:
    """For Qwen3-14B."""
    return _qwen3(hidden=5120, inner=17408, layers=40, heads=40, ids=[1, 10, 19, 28, 37])


def gemma4_12b(target_text_config: Mapping[str, Any]) -> DrafterConfig:
    """For Gemma4-12B, whose text config the caller brings: gamma 7, 5 layers, rank 256."""
    return _dense(
        dspark(
            target_text_config,
            mask_token_id=GEMMA4_MASK_TOKEN,
            target_layer_ids=[5, 17, 29, 41, 46],
        )
    )


def deepseek_v4_flash() -> BundledConfig:
    """For DeepSeek-V4-Flash: gamma 5, three stages on the last three layers, rank 256."""
    layers = 43
    target = {
        "model_type": MODEL_TYPE,
        "vocab_size": 129280,
        "hidden_size": 4096,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": 1,
        "head_dim": 512,
        "qk_rope_head_dim": 64,
        "q_lora_rank": 1024,
        "o_lora_rank": 1024,
        "o_groups": 8,
        "sliding_window": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 6,
        "scoring_func": "sqrtsoftplus",
        "routed_scaling_factor": 1.5,
        "swiglu_limit": 10.0,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 1048576,
    }
    config = dspark5(target, mask_token_id=DEEPSEEK_V4_MASK_TOKEN)
    assert isinstance(config, BundledConfig)
    return config


# Laptop-size.


def laptop_v4_target(
    *, vocab_size: int = 1024, hidden: int = 128, max_tokens: int = 1024
) -> dict[str, Any]:
    """Config of a small DeepSeek-V4 (1.2 M parameters), for DeepseekV4Config(**it).

    It has every kind of layer and of routing: a sliding one, compressed sparse ones, a heavily
    compressed one; tables for the first two, top-k for the rest. Windows of 32 tokens. Its indexer
    has 8 heads: scores of two are often exactly 0, and which of equal ones is taken depends on how
    many entries there are.
    """
    sparse, heavy = "compressed_sparse_attention", "heavily_compressed_attention"
    return {
        "model_type": MODEL_TYPE,
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "moe_intermediate_size": hidden // 2,
        "num_hidden_layers": 5,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "qk_rope_head_dim": 16,
        "q_lora_rank": hidden // 2,
        "o_lora_rank": hidden // 4,
        "o_groups": 2,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", sparse, heavy, sparse, "sliding_attention"],
        "compress_rates": {sparse: 4, heavy: 16},
        "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe", "moe"],
        "index_n_heads": 8,
        "index_head_dim": 16,
        "index_topk": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "hc_mult": 2,
        "hc_sinkhorn_iters": 4,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": max_tokens,
        "tie_word_embeddings": False,
    }


def laptop_target(
    *, vocab_size: int = 1024, hidden: int = 128, layers: int = 4, max_tokens: int = 1024
) -> dict[str, Any]:
    """Text config of a small Qwen3 target (0.9 M parameters by default), for Qwen3Config(**it)."""
    return {
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": max(1, hidden // 64),
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": max_tokens,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }


def laptop(
    target_text_config: Mapping[str, Any],
    *,
    mask_token_id: int,
    gamma: int = 7,
    depth: int = 2,
    markov_rank: int = 64,
    markov_head_type: str = "vanilla",
    num_anchors: int = 32,
    confidence: bool = True,
) -> AnyConfig:
    """A drafter that two cores train in a minute or two; capture -1, 0, .. of a shallow target."""
    return dspark(
        target_text_config,
        mask_token_id=mask_token_id,
        gamma=gamma,
        depth=depth,
        markov_rank=markov_rank,
        markov_head_type=markov_head_type,
        num_anchors=num_anchors,
        confidence=confidence,
    )
