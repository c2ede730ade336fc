"""The tokens that SGLang's seeded sampler takes, for every row of a step at once.

Owns nothing random: a token is the argmax of log p plus Gumbel noise hashed from (seed, position,
column), as in ``sglang.srt.layers.sampler``, whose function is used where it runs. Here is its law
once more in plain PyTorch, for devices without Triton.

Shapes: M rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.layers import sampler
from torch import Tensor

WORD = 0xFFFFFFFF


def seeded_tokens(
    probabilities_MV: Tensor, *, seeds_M: Tensor, positions_M: Tensor, ranked_M: Tensor | None
) -> Tensor:
    """[M] each row's token.

    The noise goes by token number, but by rank of probability in rows ``ranked_M``, which is how
    the stock sampler treats requests with top-k, top-p or min-p; None for no such row.
    """
    noisy_argmax: Callable[[Tensor, Tensor, Tensor], Tensor] = multinomial_with_seed
    if probabilities_MV.is_cuda:
        noisy_argmax = sampler.multinomial_with_seed
    by_number_M1 = noisy_argmax(probabilities_MV.log(), seeds_M, positions_M)
    if ranked_M is None:
        return by_number_M1.squeeze(1)
    ordered_MV, tokens_MV = probabilities_MV.sort(dim=-1, descending=True, stable=True)
    ranks_M1 = noisy_argmax(ordered_MV.double().log(), seeds_M, positions_M)
    by_rank_M1 = tokens_MV.gather(1, ranks_M1)
    return torch.where(ranked_M[:, None], by_rank_M1, by_number_M1).squeeze(1)


def multinomial_with_seed(logprobs: Tensor, seed: Tensor, positions: Tensor) -> Tensor:
    """[M, 1] argmax over columns of log p - log(-log x), x = hash(seed, position, column) / 2^32.

    Same arguments and result as the function of this name in SGLang's sampler.
    """
    columns = torch.arange(logprobs.shape[1], device=logprobs.device)
    x = murmur_hash32(seed, positions, columns).double() / WORD
    x = -x.log().clamp(min=torch.finfo(x.dtype).min)
    return (logprobs.double() - x.log()).argmax(dim=1, keepdim=True)


def murmur_hash32(seed: Tensor, positions: Tensor, col_indices: Tensor) -> Tensor:
    """[n, m] int64: MurmurHash3's 32-bit hash of (low seed, high seed, position, column)."""
    seed = seed.long()
    state = torch.zeros_like(seed)
    for word in (seed & WORD, (seed >> 32) & WORD, positions.long() & WORD):
        state = _mixed(state, word)
    state = _mixed(state[:, None], col_indices.long()[None, :]) ^ 16
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = _times(state ^ (state >> shift), factor)
    return state ^ (state >> 16)


def _mixed(state: Tensor, word: Tensor) -> Tensor:
    word = _times(_rotated(_times(word, 0xCC9E2D51), 15), 0x1B873593)
    return (_times(_rotated(state ^ word, 13), 5) + 0xE6546B64) & WORD


def _times(value: Tensor, factor: int) -> Tensor:
    # Wraps around modulo 2^64, whose low 32 bits are those of the product.
    return (value * factor) & WORD


def _rotated(value: Tensor, bits: int) -> Tensor:
    return ((value << bits) | (value >> (32 - bits))) & WORD
