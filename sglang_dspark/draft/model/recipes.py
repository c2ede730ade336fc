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

QWEN3_MASK_TOKEN = 151669
GEMMA4_MASK_TOKEN = 4


def dspark(
    target_text_config: Mapping[str, Any],
    *,
    mask_token_id: int,
    target_layer_ids: Sequence[int] | None = None,
    gamma: int = 7,
    depth: int = 5,
    num_anchors: int = 512,
    markov_rank: int = 256,
    markov_head_type: str = "vanilla",
    confidence: bool = True,
    confidence_with_markov: bool = True,
) -> DrafterConfig:
    """A drafter for the target of this text config (a dict, as in its config.json).

    Width, heads, RoPE, norms and vocabulary are the target's. ``target_layer_ids`` None spreads
    min(5, layers - 1) captured layers as the releases do: from layer 1 to the third from last.
    """
    text = dict(target_text_config.get("text_config") or target_text_config)
    family = _family_of(text)
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


def dspark5(target_text_config: Mapping[str, Any], *, mask_token_id: int) -> DrafterConfig:
    """gamma 5 and three layers, the shape that DeepSeek-V4 ships with, for any dense target."""
    return dspark(target_text_config, mask_token_id=mask_token_id, gamma=5, depth=3)


def dflash(target_text_config: Mapping[str, Any], **choices: Any) -> DrafterConfig:
    """The same backbone without heads; train it with ``losses.DFLASH``."""
    return dspark(target_text_config, markov_rank=0, confidence=False, **choices)


def eagle3(
    target_text_config: Mapping[str, Any], *, mask_token_id: int, gamma: int = 7
) -> DrafterConfig:
    """The autoregressive baseline: one layer, states of a low, a middle and a high layer."""
    base = dspark(target_text_config, mask_token_id=mask_token_id, gamma=gamma, depth=1)
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
    return dspark(target, mask_token_id=QWEN3_MASK_TOKEN, target_layer_ids=ids)


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
    return dspark(
        target_text_config,
        mask_token_id=GEMMA4_MASK_TOKEN,
        target_layer_ids=[5, 17, 29, 41, 46],
    )


# Laptop-size.


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
) -> DrafterConfig:
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
