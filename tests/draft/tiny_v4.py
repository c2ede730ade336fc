"""A tiny DeepSeek-V4 target with every kind of layer and of routing."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from sglang_dspark.draft.model import recipes
from sglang_dspark.draft.model.checkpoint import drafter_for
from sglang_dspark.draft.model.target import Target


def target_config(vocabulary: int = 61, **changes: Any) -> dict[str, Any]:
    """Text config: sliding, compressed sparse and heavily compressed layers, two hash-routed."""
    value = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "head_dim": 16,
        "qk_rope_head_dim": 8,
        "q_lora_rank": 16,
        "o_lora_rank": 8,
        "o_groups": 2,
        "sliding_window": 8,
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
            "sliding_attention",
        ],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
        "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe", "moe"],
        "index_n_heads": 8,
        "index_head_dim": 8,
        "index_topk": 3,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "hc_mult": 2,
        "hc_sinkhorn_iters": 5,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "attn_implementation": "eager",
    }
    return value | changes


def draw_tables(model: Any, seed: int = 0) -> None:
    """Tables of the hash-routed layers, which transformers leaves at zero."""
    random = torch.Generator().manual_seed(seed)
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):
            experts = model.config.n_routed_experts
            for token in range(len(table)):
                chosen = torch.randperm(experts, generator=random)
                table[token] = chosen[: table.shape[1]]


def sharp_target(vocabulary: int, *, seed: int = 0) -> Target:
    """A random target with opinions, frozen."""
    torch.manual_seed(seed)
    model = DeepseekV4ForCausalLM(DeepseekV4Config(**target_config(vocabulary)))
    draw_tables(model, seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25, generator=random)
    return Target.from_model(model)


def drafter_of(target: Target, *, mask: int, gamma: int = 4, markov_rank: int = 8) -> Any:
    """An untaught drafter with one stage, which captures the target's last layer."""
    config = recipes.dspark5(
        target.config.to_dict(),
        mask_token_id=mask,
        gamma=gamma,
        depth=1,
        markov_rank=markov_rank,
        num_anchors=8,
    )
    target.capture(config.layers_captured)
    torch.manual_seed(1)
    return drafter_for(config, target)
