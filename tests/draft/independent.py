"""A second drafter, slow and plain, to compare with: dictionaries of tensors and loops over blocks.

Follows the published checkpoint layout and semantics only, and shares no code with the package:
no SDPA, no masks (a block's keys are gathered), no caches, one block at a time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def is_gemma(config: dict[str, Any]) -> bool:
    return config["architectures"][0].startswith("Gemma4")


def rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    normed = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight


def rope(x: Tensor, positions: list[int], config: dict[str, Any]) -> Tensor:
    """Rotate [T, heads, d]: the pair (i, i + d/2) turns by position * theta ** (-2i / d)."""
    parameters = config["rope_parameters"]
    parameters = parameters.get("full_attention", parameters)
    size = x.shape[-1]
    half = size // 2
    turning = half
    if parameters["rope_type"] == "proportional":
        turning = int(parameters["partial_rotary_factor"] * size // 2)
    out = x.clone()
    for t, position in enumerate(positions):
        for i in range(turning):
            frequency = torch.tensor(1.0) / parameters["rope_theta"] ** torch.tensor(2 * i / size)
            angle = (torch.tensor(float(position)) * frequency).to(x.dtype)
            a, b = x[t, :, i], x[t, :, i + half]
            out[t, :, i] = a * angle.cos() - b * angle.sin()
            out[t, :, i + half] = b * angle.cos() + a * angle.sin()
    return out


def context(weights: Weights, captured: Tensor, config: dict[str, Any]) -> Tensor:
    """RMSNorm(fc(concatenated captured states))."""
    fused = captured @ weights["fc.weight"].T
    return rms(fused, weights["hidden_norm.weight"], config["rms_norm_eps"])


def block(
    weights: Weights, states: Tensor, anchor: int, index: int, config: dict[str, Any]
) -> Tensor:
    """Final-normed states [gamma, D] of one block; ``states`` is the context [S, D]."""
    gemma, eps = is_gemma(config), config["rms_norm_eps"]
    gamma, width = config["block_size"], config["hidden_size"]
    heads = config["num_attention_heads"]
    same = gemma and config["attention_k_eq_v"]
    kv_heads = config["num_global_key_value_heads" if same else "num_key_value_heads"]
    size = config["global_head_dim" if gemma else "head_dim"]
    seen = states[:index]
    x = weights["embed_tokens.weight"][[anchor] + [config["mask_token_id"]] * (gamma - 1)]
    if gemma:
        x = x * math.sqrt(width)
    places = list(range(index, index + gamma))
    for i in range(config["num_hidden_layers"]):

        def w(name: str, i: int = i) -> Tensor:
            return weights[f"layers.{i}.{name}"]

        normed = rms(x, w("input_layernorm.weight"), eps)
        both = torch.cat([seen, normed])
        q = (normed @ w("self_attn.q_proj.weight").T).view(gamma, heads, size)
        raw = (both @ w("self_attn.k_proj.weight").T).view(-1, kv_heads, size)
        v = raw if same else (both @ w("self_attn.v_proj.weight").T).view(-1, kv_heads, size)
        if gemma:
            v = rms(v, None, eps)
        q = rope(rms(q, w("self_attn.q_norm.weight"), eps), places, config)
        k = rms(raw, w("self_attn.k_norm.weight"), eps)
        k = rope(k, list(range(index)) + places, config)
        scale = 1.0 if gemma else 1 / math.sqrt(size)
        parts = []
        for head in range(heads):
            mine = head // (heads // kv_heads)
            weight = torch.softmax(q[:, head] @ k[:, mine].T * scale, dim=-1)
            parts.append(weight @ v[:, mine])
        out = torch.cat(parts, dim=-1) @ w("self_attn.o_proj.weight").T

        def mlp(y: Tensor, w: Any = w) -> Tensor:
            gate = y @ w("mlp.gate_proj.weight").T
            if gemma:
                cube = 0.044715 * gate**3
                gate = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + cube)))
            else:
                gate = gate * torch.sigmoid(gate)
            return (gate * (y @ w("mlp.up_proj.weight").T)) @ w("mlp.down_proj.weight").T

        if gemma:
            x = x + rms(out, w("post_attention_layernorm.weight"), eps)
            fed = mlp(rms(x, w("pre_feedforward_layernorm.weight"), eps))
            x = x + rms(fed, w("post_feedforward_layernorm.weight"), eps)
            x = x * w("layer_scalar")
        else:
            x = x + out
            x = x + mlp(rms(x, w("post_attention_layernorm.weight"), eps))
    return rms(x, weights["norm.weight"], eps)


def heads(
    weights: Weights, hidden: Tensor, previous: list[int], config: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """(logits [gamma, V], confidence logits [gamma]) given the token before each slot."""
    rank, logits, confidence = config["markov_rank"], [], []
    state = torch.zeros(rank, dtype=hidden.dtype)
    for k, h in enumerate(hidden):
        base = weights["lm_head.weight"] @ h
        cap = config.get("final_logit_softcapping")
        if cap:
            base = cap * torch.tanh(base / cap)
        e = torch.zeros(0, dtype=hidden.dtype)
        if rank:
            e = weights["markov_head.markov_w1.weight"][previous[k]]
            u = e
            if config["markov_head_type"] == "gated":
                gate = weights["markov_head.gate_proj.weight"] @ torch.cat([h, e])
                u = torch.sigmoid(gate + weights["markov_head.gate_proj.bias"]) * e
            if config["markov_head_type"] == "rnn":
                joint = weights["markov_head.joint_proj.weight"] @ torch.cat([state, e, h])
                joint = joint + weights["markov_head.joint_proj.bias"]
                g = torch.sigmoid(joint[:rank])
                state = g * state + (1 - g) * torch.tanh(joint[rank : 2 * rank])
                u = torch.tanh(joint[2 * rank :])
            base = base + weights["markov_head.markov_w2.weight"] @ u
        logits.append(base)
        if config["enable_confidence_head"]:
            features = torch.cat([h, e]) if config["confidence_head_with_markov"] else h
            weight, bias = (weights[f"confidence_head.proj.{part}"] for part in ("weight", "bias"))
            confidence.append((weight @ features + bias)[0])
    return torch.stack(logits), torch.stack(confidence) if confidence else None


def reference_weights(config: dict[str, Any], seed: int = 0) -> Weights:
    """Random float32 weights under exactly the names and shapes of the published layout."""
    gemma = is_gemma(config)
    width, inner, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    size = config["global_head_dim" if gemma else "head_dim"]
    same = gemma and config["attention_k_eq_v"]
    kv = config["num_global_key_value_heads" if same else "num_key_value_heads"] * size
    q = config["num_attention_heads"] * size
    rank = config["markov_rank"]
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (vocab, width),
        "lm_head.weight": (vocab, width),
        "fc.weight": (width, len(config["target_layer_ids"]) * width),
        "hidden_norm.weight": (width,),
        "norm.weight": (width,),
    }
    for i in range(config["num_hidden_layers"]):
        layer = {
            "self_attn.q_proj.weight": (q, width),
            "self_attn.k_proj.weight": (kv, width),
            "self_attn.o_proj.weight": (width, q),
            "self_attn.q_norm.weight": (size,),
            "self_attn.k_norm.weight": (size,),
            "mlp.gate_proj.weight": (inner, width),
            "mlp.up_proj.weight": (inner, width),
            "mlp.down_proj.weight": (width, inner),
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
        }
        if not same:
            layer["self_attn.v_proj.weight"] = (kv, width)
        if gemma:
            layer["pre_feedforward_layernorm.weight"] = (width,)
            layer["post_feedforward_layernorm.weight"] = (width,)
            layer["layer_scalar"] = (1,)
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    if rank:
        shapes["markov_head.markov_w1.weight"] = (vocab, rank)
        shapes["markov_head.markov_w2.weight"] = (vocab, rank)
        if config["markov_head_type"] == "gated":
            shapes["markov_head.gate_proj.weight"] = (rank, width + rank)
            shapes["markov_head.gate_proj.bias"] = (rank,)
        if config["markov_head_type"] == "rnn":
            shapes["markov_head.joint_proj.weight"] = (3 * rank, 2 * rank + width)
            shapes["markov_head.joint_proj.bias"] = (3 * rank,)
    if config["enable_confidence_head"]:
        with_markov = rank if config["confidence_head_with_markov"] else 0
        shapes["confidence_head.proj.weight"] = (1, width + with_markov)
        shapes["confidence_head.proj.bias"] = (1,)
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        near_one = len(shape) == 1 and not name.endswith("bias")
        noise = torch.randn(shape, generator=random)
        weights[name] = 1 + 0.2 * noise if near_one else noise * shape[-1] ** -0.5
    return weights


def reference_config(family: str, **changes: Any) -> dict[str, Any]:
    """A small config.json object in the published layout; ``changes`` overwrite keys."""
    target: dict[str, Any] = {
        "vocab_size": 67,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "use_cache": True,
    }
    if family == "qwen3":
        target |= {
            "architectures": ["Qwen3DSparkModel"],
            "model_type": "qwen3",
            "head_dim": 8,
            "hidden_act": "silu",
            "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        }
    else:
        target |= {
            "architectures": ["Gemma4DSparkModel"],
            "model_type": "gemma4_text",
            "head_dim": 6,
            "global_head_dim": 8,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "hidden_activation": "gelu_pytorch_tanh",
            "final_logit_softcapping": 2.0,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": False,
            "sliding_window": 16,
            "rope_parameters": {
                "full_attention": {
                    "partial_rotary_factor": 0.5,
                    "rope_theta": 1000000.0,
                    "rope_type": "proportional",
                },
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
        }
    return {
        **target,
        "num_hidden_layers": 2,
        "num_target_layers": 6,
        "layer_types": ["full_attention"] * 2,
        "tie_word_embeddings": False,
        "block_size": 5,
        "mask_token_id": 66,
        "target_layer_ids": [-1, 1, 3],
        "num_anchors": 8,
        "enable_confidence_head": True,
        "confidence_head_with_markov": True,
        "markov_rank": 6,
        "markov_head_type": "vanilla",
        **changes,
    }
