"""From logits to the probabilities that tokens are drawn from, and the draw itself.

One function serves target and drafter, so both sample under the same rule. Probabilities are
float32 and computed once, whatever the dtype of the logits: whoever needs them later (the
acceptance test above all) gets the tensor that the token was drawn from. Knows no model.

Shapes: ... any leading axes, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GREEDY_BELOW = 1e-5
"""Temperatures below this mean the most likely token, as in DeepSpec."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the same for every request of a batch."""

    temperature: float = 1.0
    """Logits are divided by it; below ``GREEDY_BELOW`` the most likely token is taken."""
    top_k: int = 0
    """Keep this many of the most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest most likely tokens that together reach this probability."""
    min_p: float = 0.0
    """Keep tokens at least this likely relative to the most likely one."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature {self.temperature} must be 0 (greedy) or above")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} must be at least 1, or 0 to keep all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p {self.min_p} must be between 0 and 1")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def label(self) -> str:
        """What tables call it: ``greedy``, ``T=0.7``, ``T=1 top-p=0.9``."""
        if self.greedy:
            return "greedy"
        parts = [f"T={self.temperature:g}"]
        parts += [f"top-k={self.top_k}"] if self.top_k else []
        parts += [f"top-p={self.top_p:g}"] if self.top_p < 1 else []
        parts += [f"min-p={self.min_p:g}"] if self.min_p else []
        return " ".join(parts)


def probabilities(*, logits: Tensor, sampling: Sampling) -> Tensor:
    """float32 [..., V] that sum to 1; one-hot when greedy.

    Every filter looks at the softmax at the temperature and a token stays when all keep it, as in
    SGLang's joint order; ties keep the lower token number.
    """
    values = logits.to(torch.float32)
    if sampling.greedy:
        best = values.argmax(-1, keepdim=True)
        return torch.zeros_like(values).scatter_(-1, best, 1.0)
    weights = torch.softmax(values / sampling.temperature, dim=-1)
    if not sampling.top_k and sampling.top_p >= 1 and sampling.min_p <= 0:
        return weights
    ordered, tokens = weights.sort(dim=-1, descending=True, stable=True)
    keep = ordered >= sampling.min_p * ordered[..., :1]
    if sampling.top_k:
        keep[..., sampling.top_k :] = False
    if sampling.top_p < 1:
        keep &= ordered.cumsum(-1) - ordered < sampling.top_p
    kept = torch.where(keep, ordered, 0.0)
    kept /= kept.sum(-1, keepdim=True)
    return torch.zeros_like(weights).scatter_(-1, tokens, kept)


def uniforms(*shape: int, generator: torch.Generator) -> Tensor:
    """float64 in [0, 1) on the generator's device."""
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)


def draw(*, weights: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [...] drawn from ``weights`` [..., V] >= 0: their sum inverted at ``uniform`` [...].

    Weights need not sum to 1. A token of weight 0 is never drawn: sums are float64, so that
    neither a large vocabulary nor a residual of nearly equal distributions loses small weights.
    """
    below = weights.to(torch.float64).cumsum(-1)
    goal = uniform.to(below.device).unsqueeze(-1) * below[..., -1:]
    return torch.searchsorted(below, goal, right=True).squeeze(-1)
