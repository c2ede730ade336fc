"""Top-k, top-p and min-p on rows of probabilities, each row with limits of its own.

Owns what is kept: every filter looks at the probabilities before any other and a token stays when
all keep it, as in SGLang's joint order. Knows neither requests nor logits.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.layers import sampler
from torch import Tensor

FILTER_WEIGHTS = 2**25
"""Weights that are filtered at a time: bounds the scratch to about a gigabyte, whatever N is."""

Renorm = Callable[[Tensor, Tensor], Tensor]
"""(probabilities [N, V], limits [N]) -> what the limit keeps, scaled to sum to 1."""


def filtered(
    weights_NV: Tensor, *, top_k_N: Tensor, top_p_N: Tensor, min_p_N: Tensor, most: int
) -> Tensor:
    """Probabilities [N, V] of what is kept, as SGLang's PyTorch sampler keeps it.

    A token stays while those before it do not exceed top-p. ``most`` is the largest top-k, known
    to the host; when it is the whole vocabulary, ties keep the lower token number.
    """
    if most < weights_NV.shape[1]:
        ordered_NS, tokens_NS = weights_NV.topk(most, dim=-1)
    else:
        ordered_NS, tokens_NS = weights_NV.sort(dim=-1, descending=True, stable=True)
    places_S = torch.arange(ordered_NS.shape[1], device=weights_NV.device)
    drop_NS = places_S >= top_k_N[:, None]
    drop_NS |= ordered_NS.cumsum(-1) - ordered_NS > top_p_N[:, None]
    drop_NS |= ordered_NS < ordered_NS[:, :1] * min_p_N[:, None]
    ordered_NS.masked_fill_(drop_NS, 0.0)
    ordered_NS /= ordered_NS.sum(-1, keepdim=True)
    return torch.zeros_like(weights_NV).scatter_(1, tokens_NS, ordered_NS)


def renorm_kernels() -> tuple[Renorm, Renorm] | None:
    """(top-k, top-p) kernels that SGLang's sampler itself has on this machine, which sort nothing.

    None where it has none.
    """
    top_k = getattr(sampler, "top_k_renorm_prob", None)
    top_p = getattr(sampler, "top_p_renorm_prob", None)
    return None if top_k is None or top_p is None else (top_k, top_p)


def filtered_by_kernels(
    weights_NV: Tensor,
    *,
    top_k_N: Tensor,
    top_p_N: Tensor,
    min_p_N: Tensor,
    kernels: tuple[Renorm, Renorm],
) -> Tensor:
    """``filtered`` without a sort; all of several equally likely tokens at an edge are kept."""
    weights_NV = weights_NV.contiguous()
    top_k, top_p = kernels
    keep_NV = weights_NV >= weights_NV.amax(-1, keepdim=True) * min_p_N[:, None]
    keep_NV &= top_k(weights_NV, top_k_N) > 0
    keep_NV &= top_p(weights_NV, top_p_N) > 0
    kept_NV = torch.where(keep_NV, weights_NV, 0.0)
    return kept_NV.div_(kept_NV.sum(-1, keepdim=True))
