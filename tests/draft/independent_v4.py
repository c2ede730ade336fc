"""DeepSeek-V4's drafter a second time, slow and plain, and a writer of its checkpoints.

Follows the published layout and semantics only and shares no code with the package or with
transformers: dictionaries of tensors under the checkpoint's names, one block at a time, loops over
heads, streams and experts, no masks (what is not seen is not gathered) and no caches.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def bundled_config(**changes: Any) -> dict[str, Any]:
    """A small config.json object with the keys that the released checkpoints have."""
    value = {
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "vocab_size": 67,
        "hidden_size": 24,
        "moe_intermediate_size": 20,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "qk_rope_head_dim": 4,
        "q_lora_rank": 16,
        "o_lora_rank": 6,
        "o_groups": 2,
        "sliding_window": 8,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_topk": 4,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "num_hash_layers": 1,
        "scoring_func": "sqrtsoftplus",
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "swiglu_limit": 1.5,
        "hc_mult": 3,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-06,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "compress_rope_theta": 160000.0,
        "compress_ratios": [0, 4, 128, 4, 128, 4, 0, 0, 0],
        "max_position_embeddings": 512,
        "num_nextn_predict_layers": 1,
        "initializer_range": 0.02,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dspark_block_size": 5,
        "dspark_markov_rank": 6,
        "dspark_noise_token_id": 66,
        "dspark_target_layer_ids": [2, 4, 5],
    }
    value |= changes
    return {key: entry for key, entry in value.items() if entry is not ...}


def experts_of(config: dict[str, Any]) -> tuple[int, int]:
    """(routed, active) experts of a stage."""
    return (
        config.get("dspark_n_routed_experts") or config["n_routed_experts"],
        config.get("dspark_num_experts_per_tok") or config["num_experts_per_tok"],
    )


def shapes(config: dict[str, Any], *, hashed: tuple[int, ...] = ()) -> dict[str, tuple[int, ...]]:
    """Every tensor of the drafter and the two ends, as the checkpoint names them."""
    width, size, inner = (config[k] for k in ("hidden_size", "head_dim", "moe_intermediate_size"))
    heads, q_rank, o_rank, groups = (
        config[k] for k in ("num_attention_heads", "q_lora_rank", "o_lora_rank", "o_groups")
    )
    vocab, streams, rank = config["vocab_size"], config["hc_mult"], config["dspark_markov_rank"]
    experts, active = experts_of(config)
    stages = len(config["dspark_target_layer_ids"])
    found: dict[str, tuple[int, ...]] = {
        "embed.weight": (vocab, width),
        "head.weight": (vocab, width),
    }
    for i in range(stages):
        stage: dict[str, tuple[int, ...]] = {
            "attn.wq_a.weight": (q_rank, width),
            "attn.q_norm.weight": (q_rank,),
            "attn.wq_b.weight": (heads * size, q_rank),
            "attn.wkv.weight": (size, width),
            "attn.kv_norm.weight": (size,),
            "attn.wo_a.weight": (groups * o_rank, heads * size // groups),
            "attn.wo_b.weight": (width, groups * o_rank),
            "attn.attn_sink": (heads,),
            "attn_norm.weight": (width,),
            "ffn_norm.weight": (width,),
            "ffn.gate.weight": (experts, width),
        }
        if i in hashed:
            stage["ffn.gate.tid2eid"] = (vocab, active)
        else:
            stage["ffn.gate.bias"] = (experts,)
        for e in [f"experts.{e}" for e in range(experts)] + ["shared_experts"]:
            stage[f"ffn.{e}.w1.weight"] = stage[f"ffn.{e}.w3.weight"] = (inner, width)
            stage[f"ffn.{e}.w2.weight"] = (width, inner)
        for part in ("attn", "ffn"):
            stage[f"hc_{part}_fn"] = ((2 + streams) * streams, streams * width)
            stage[f"hc_{part}_base"] = ((2 + streams) * streams,)
            stage[f"hc_{part}_scale"] = (3,)
        if i == 0:
            stage["main_proj.weight"] = (width, stages * width)
            stage["main_norm.weight"] = (width,)
        if i == stages - 1:
            stage["norm.weight"] = (width,)
            stage["hc_head_fn"] = (streams, streams * width)
            stage["hc_head_base"] = (streams,)
            stage["hc_head_scale"] = (1,)
            if rank:
                stage["markov_head.markov_w1.weight"] = (vocab, rank)
                stage["markov_head.markov_w2.weight"] = (vocab, rank)
            if config.get("enable_confidence_head", True):
                with_markov = rank if config.get("confidence_head_with_markov", rank > 0) else 0
                stage["confidence_head.proj.weight"] = (1, width + with_markov)
        found |= {f"mtp.{i}.{name}": shape for name, shape in stage.items()}
    return found


def random_weights(
    config: dict[str, Any], *, seed: int = 0, hashed: tuple[int, ...] = ()
) -> Weights:
    """Random float32 weights of these names and shapes."""
    random = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for name, shape in shapes(config, hashed=hashed).items():
        noise = torch.randn(shape, generator=random)
        if name.endswith("tid2eid"):
            experts = experts_of(config)[0]
            rows = [torch.randperm(experts, generator=random)[: shape[1]] for _ in range(shape[0])]
            weights[name] = torch.stack(rows)
        elif name.endswith("norm.weight") or name.endswith("scale"):
            weights[name] = 1 + 0.2 * noise
        elif len(shape) == 1:
            weights[name] = 0.5 * noise
        else:
            small = 0.4 if name.endswith(("wo_b.weight", "w2.weight")) else 1.0
            weights[name] = small * noise * shape[-1] ** -0.5
    return weights


def quantise(weights: Weights, config: dict[str, Any], *, seed: int = 1) -> tuple[Weights, Weights]:
    """(as stored, as meant): FP8 blocks for the stages' matrices, FP4 for the routed experts.

    The stored numbers are drawn, not rounded: what they mean follows from them.
    """
    random = torch.Generator().manual_seed(seed)
    stored, meant = dict(weights), dict(weights)
    for name, weight in weights.items():
        linear = ".attn.w" in name or ".experts." in name or "shared" in name or "main_proj" in name
        if not (name.startswith("mtp.") and linear):
            continue
        rows, columns = weight.shape
        base = name.removesuffix("weight")
        if ".experts." in name:
            packed = torch.randint(0, 256, (rows, columns // 2), generator=random)
            powers = torch.randint(-6, -3, (rows, -(-columns // 32)), generator=random)
            plain = torch.empty(rows, columns)
            plain[:, 0::2] = torch.tensor(E2M1)[packed % 16]
            plain[:, 1::2] = torch.tensor(E2M1)[packed // 16]
            plain *= 2.0 ** powers[:, torch.arange(columns) // 32]
            stored[name] = packed.to(torch.uint8).view(torch.int8)
            stored[base + "scale"] = (2.0**powers).to(torch.float8_e8m0fnu)
        else:
            codes = (torch.randn(rows, columns, generator=random) * 8).to(torch.float8_e4m3fn)
            scale = 0.01 * torch.rand(-(-rows // 128), -(-columns // 128), generator=random) + 0.005
            blocks = scale[torch.arange(rows) // 128][:, torch.arange(columns) // 128]
            plain = codes.float() * blocks
            stored[name], stored[base + "scale"] = codes, scale
        meant[name] = plain
    return stored, meant


def write(folder: Path, config: dict[str, Any], weights: Weights) -> Path:
    """A checkpoint folder in the released layout."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# What it computes.


def rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    normed = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight


def rope(x: Tensor, position: int, config: dict[str, Any], *, back: bool = False) -> Tensor:
    """Turn the last components of a vector pairwise: (2i, 2i + 1) by position * theta^(-2i/r)."""
    turning = config["qk_rope_head_dim"]
    out = x.clone()
    start = len(x) - turning
    for i in range(turning // 2):
        angle = position * config["rope_theta"] ** (-2 * i / turning)
        cos, sin = math.cos(angle), math.sin(-angle if back else angle)
        a, b = x[start + 2 * i], x[start + 2 * i + 1]
        out[start + 2 * i] = a * cos - b * sin
        out[start + 2 * i + 1] = a * sin + b * cos
    return out


def context(weights: Weights, captured: Tensor, config: dict[str, Any]) -> Tensor:
    """[S, m * D] -> [S, D]: main_norm of main_proj."""
    fused = captured @ weights["mtp.0.main_proj.weight"].T
    return rms(fused, weights["mtp.0.main_norm.weight"], config["rms_norm_eps"])


def mixing(
    streams: Tensor, weights: Weights, name: str, config: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """(what goes in [D], post [n], comb [n, n]) of one token's streams [n, D]."""
    count, eps = config["hc_mult"], config["hc_eps"]
    fn, base, scale = (weights[f"{name}_{part}"] for part in ("fn", "base", "scale"))
    mixes = fn @ rms(streams.flatten(), None, config["rms_norm_eps"])
    pre = torch.sigmoid(mixes[:count] * scale[0] + base[:count]) + eps
    post = 2 * torch.sigmoid(mixes[count : 2 * count] * scale[1] + base[count : 2 * count])
    square = (mixes[2 * count :] * scale[2] + base[2 * count :]).view(count, count)
    comb = torch.softmax(square, dim=1) + eps
    comb = comb / (comb.sum(0, keepdim=True) + eps)
    for _ in range(config["hc_sinkhorn_iters"] - 1):
        comb = comb / (comb.sum(1, keepdim=True) + eps)
        comb = comb / (comb.sum(0, keepdim=True) + eps)
    return sum(pre[n] * streams[n] for n in range(count)), post, comb  # type: ignore[return-value]


def mixed(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """The streams after a block that gave ``out`` [D]."""
    count = len(post)
    return torch.stack(
        [post[j] * out + sum(comb[i, j] * streams[i] for i in range(count)) for j in range(count)]
    )


def attention(
    weights: Weights, at: str, x: Tensor, seen: Tensor, index: int, config: dict[str, Any]
) -> Tensor:
    """[K, D]: block rows x over the seen context rows [W', D], which end before ``index``."""
    eps, heads, size = config["rms_norm_eps"], config["num_attention_heads"], config["head_dim"]
    slots = len(x)

    def w(name: str) -> Tensor:
        return weights[f"{at}attn.{name}"]

    keys = []
    places = [*range(index - len(seen), index), *range(index, index + slots)]
    for row, place in zip(torch.cat([seen, x]), places, strict=True):
        keys.append(rope(rms(w("wkv.weight") @ row, w("kv_norm.weight"), eps), place, config))
    kv = torch.stack(keys)
    outs = []
    for k in range(slots):
        q = w("wq_b.weight") @ rms(w("wq_a.weight") @ x[k], w("q_norm.weight"), eps)
        parts = []
        for head in range(heads):
            mine = rms(q[head * size : (head + 1) * size], None, eps)
            scores = kv @ rope(mine, index + k, config) / math.sqrt(size)
            raw = torch.exp(scores - scores.max())
            sink = torch.exp(w("attn_sink")[head] - scores.max())
            parts.append(rope((raw / (raw.sum() + sink)) @ kv, index + k, config, back=True))
        groups = torch.cat(parts).view(config["o_groups"], -1)
        low = w("wo_a.weight").view(config["o_groups"], config["o_lora_rank"], -1)
        outs.append(w("wo_b.weight") @ torch.cat([a @ g for a, g in zip(low, groups, strict=True)]))
    return torch.stack(outs)


def experts(weights: Weights, at: str, x: Tensor, token: int, config: dict[str, Any]) -> Tensor:
    """[D] of one row: the chosen experts by weight, and the shared one."""
    limit = config["swiglu_limit"]

    def one(name: str) -> Tensor:
        w1, w2, w3 = (weights[f"{at}ffn.{name}.w{i}.weight"] for i in (1, 2, 3))
        gate = (w1 @ x).clamp(max=limit)
        return w2 @ (gate * torch.sigmoid(gate) * (w3 @ x).clamp(-limit, limit))

    scores = torch.sqrt(torch.log(1 + torch.exp(weights[f"{at}ffn.gate.weight"] @ x)))
    if f"{at}ffn.gate.tid2eid" in weights:
        chosen = weights[f"{at}ffn.gate.tid2eid"][token].tolist()
    else:
        biased = scores + weights[f"{at}ffn.gate.bias"]
        chosen = biased.argsort(descending=True)[: experts_of(config)[1]].tolist()
    total = sum(scores[e] for e in chosen)
    out = one("shared_experts")
    for e in chosen:
        out = out + config["routed_scaling_factor"] * scores[e] / total * one(f"experts.{e}")
    return out


def block(
    weights: Weights, states: Tensor, anchor: int, index: int, config: dict[str, Any]
) -> Tensor:
    """Collapsed states [gamma, D] of one block; ``states`` is the context [S, D]."""
    slots, eps = config["dspark_block_size"], config["rms_norm_eps"]
    tokens = [anchor] + [config["dspark_noise_token_id"]] * (slots - 1)
    seen = states[max(0, index - config["sliding_window"]) : index]
    streams = [weights["embed.weight"][t].repeat(config["hc_mult"], 1) for t in tokens]
    stages = len(config["dspark_target_layer_ids"])
    for i in range(stages):
        at = f"mtp.{i}."
        before = [mixing(s, weights, f"{at}hc_attn", config) for s in streams]
        x = torch.stack([rms(b[0], weights[f"{at}attn_norm.weight"], eps) for b in before])
        out = attention(weights, at, x, seen, index, config)
        streams = [mixed(s, o, b[1], b[2]) for s, o, b in zip(streams, out, before, strict=True)]
        before = [mixing(s, weights, f"{at}hc_ffn", config) for s in streams]
        for k, (b, token) in enumerate(zip(before, tokens, strict=True)):
            row = rms(b[0], weights[f"{at}ffn_norm.weight"], eps)
            out = experts(weights, at, row, token, config)
            streams[k] = mixed(streams[k], out, b[1], b[2])
    at = f"mtp.{stages - 1}.hc_head"
    rows = []
    for s in streams:
        mixes = weights[f"{at}_fn"] @ rms(s.flatten(), None, eps)
        pre = torch.sigmoid(mixes * weights[f"{at}_scale"] + weights[f"{at}_base"])
        rows.append(((pre + config["hc_eps"])[:, None] * s).sum(0))
    return torch.stack(rows)


def heads(
    weights: Weights, hidden: Tensor, previous: list[int], config: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """(logits [gamma, V], confidence logits [gamma]) given the token before each slot."""
    at = f"mtp.{len(config['dspark_target_layer_ids']) - 1}."
    rank, logits, confidence = config["dspark_markov_rank"], [], []
    for k, h in enumerate(hidden):
        row = weights["head.weight"] @ rms(h, weights[f"{at}norm.weight"], config["rms_norm_eps"])
        e = torch.zeros(0)
        if rank:
            e = weights[f"{at}markov_head.markov_w1.weight"][previous[k]]
            row = row + weights[f"{at}markov_head.markov_w2.weight"] @ e
        logits.append(row)
        if config.get("enable_confidence_head", True):
            with_markov = config.get("confidence_head_with_markov", rank > 0)
            features = torch.cat([h, e]) if with_markov else h
            confidence.append((weights[f"{at}confidence_head.proj.weight"] @ features)[0])
    return torch.stack(logits), torch.stack(confidence) if confidence else None
