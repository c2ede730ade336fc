"""The two ends that a drafter shares with its target: embedding in, lm_head out, both frozen.

Owns how they are wrapped, scaled and capped, and how everything between them starts. Knows no
backbone. Shapes: V vocabulary, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sglang_dspark.draft.model.config import DrafterConfig


def frozen_embedding(config: Any, weight: Tensor | None) -> nn.Embedding:
    """An untrained Embedding around the target's weight [V, D] (shared), or around a new one."""
    shape = config.vocab_size, config.hidden_size
    embedding = nn.Embedding(*shape, _weight=_fresh_or_checked(config, weight))
    return embedding.requires_grad_(False)


def frozen_lm_head(config: Any, weight: Tensor | None) -> nn.Linear:
    """An untrained, bias-free Linear D -> V around the target's weight, or around a new one."""
    head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device="meta")
    head.weight = nn.Parameter(_fresh_or_checked(config, weight), requires_grad=False)
    return head


def _fresh_or_checked(config: Any, weight: Tensor | None) -> Tensor:
    wanted = (config.vocab_size, config.hidden_size)
    if weight is None:
        return torch.randn(wanted) * config.initializer_range
    if tuple(weight.shape) != wanted:
        raise ValueError(
            f"the target's embedding or lm_head is {tuple(weight.shape)}, the drafter wants "
            f"{wanted}; it was made for another target"
        )
    return weight.detach()


def initialise(drafter: nn.Module, *, std: float) -> None:
    """Normal weights and zero biases in every trainable linear map and embedding."""
    for module in drafter.modules():
        if isinstance(module, nn.Linear | nn.Embedding) and module.weight.requires_grad:
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def embedded(config: DrafterConfig, embedding: nn.Embedding, tokens: Tensor) -> Tensor:
    """Embeddings [..., D], times sqrt(D) where the family scales them."""
    states: Tensor = embedding(tokens)
    if not config.family.scaled_embeddings:
        return states
    # Rounded to the embedding's dtype first, as the target does.
    scale = torch.tensor(config.hidden_size**0.5, dtype=states.dtype, device=states.device)
    return states * scale


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """tanh(logits / cap) * cap, or the logits."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap
