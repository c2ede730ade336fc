"""Random inputs for the kernels, and the laws that every version of them keeps.

Shared by the PyTorch tests and by those that run Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sglang_dspark.draft.model.heads import ConfidenceHead, MarkovHead
from sglang_dspark.runtime.kernels.head import RowChoice

Verify = Callable[..., tuple[Tensor, Tensor]]
"""``verify_chain``, or one that is broken on purpose."""

PASSES, FAILS = 1e-4, 1e-10
"""A right law's chi-square stays above the one, a broken law's below the other; seeds are fixed."""


class Shapes:
    """As much of a drafter's config as its heads read."""

    with_markov = True

    def __init__(self, *, kind: str, vocabulary: int, rank: int, hidden: int) -> None:
        self.head, self.vocab_size = kind, vocabulary
        self.markov_rank, self.hidden_size = rank, hidden


def heads(
    kind: str, *, vocabulary: int, rank: int = 8, hidden: int = 12, dtype: Any = torch.float32
) -> tuple[MarkovHead, ConfidenceHead]:
    """Heads with random weights, the bias as strong as the base logits."""
    torch.manual_seed(rank)
    shapes: Any = Shapes(kind=kind, vocabulary=vocabulary, rank=rank, hidden=hidden)
    markov, confidence = MarkovHead(shapes), ConfidenceHead(shapes)
    markov.markov_w2.weight.data.normal_()
    return markov.to(dtype), confidence.to(dtype)


def block_inputs(
    *,
    requests: int,
    slots: int,
    vocabulary: int,
    hidden: int = 12,
    seed: int = 0,
    dtype: Any = torch.float32,
) -> dict[str, Any]:
    """What ``draft_block`` takes besides the heads: temperatures 0, 0.7 and 1, no filters."""
    torch.manual_seed(seed)
    temperature_R = torch.tensor([0.0, 0.7, 1.0, 1.0]).repeat(requests)[:requests]
    return {
        "hidden_RKD": torch.randn(requests, slots, hidden).to(dtype),
        "logits_RKV": 2 * torch.randn(requests, slots, vocabulary),
        "anchors_R": torch.randint(vocabulary, (requests,)),
        "chooser": RowChoice(
            temperature_R=temperature_R,
            uniform_RK=torch.rand(requests, slots, dtype=torch.float64),
        ),
    }


def chain_inputs(
    *, requests: int, slots: int, vocabulary: int, seed: int, near: float = 0.5
) -> dict[str, Tensor]:
    """What ``verify_chain`` takes, lengths 0 to K; a share ``near`` of p's rows resembles q."""
    torch.manual_seed(seed)
    draft_RKV = (2 * torch.randn(requests, slots, vocabulary)).softmax(-1)
    lengths_R = torch.randint(slots + 1, (requests,))
    start_R = (lengths_R + 1).cumsum(0) - lengths_R - 1
    target_MV = (2 * torch.randn(int((lengths_R + 1).sum()), vocabulary)).softmax(-1)
    for i in range(requests):
        for k in range(int(lengths_R[i])):
            if torch.rand(()) < near:
                target_MV[start_R[i] + k] = draft_RKV[i, k] * (0.9 + 0.2 * torch.rand(vocabulary))
    target_MV /= target_MV.sum(-1, keepdim=True)
    drafts = torch.multinomial(draft_RKV.flatten(0, 1), 1)
    return {
        "drafts_RK": drafts.view(requests, slots),
        "draft_RKV": draft_RKV,
        "target_MV": target_MV,
        "start_R": start_R,
        "lengths_R": lengths_R,
        "uniform_RT": torch.rand(requests, slots + 1, dtype=torch.float64),
    }


def logits_with_marks(rng: np.random.Generator, requests: int, slots: int) -> dict[str, Tensor]:
    """What ``survival`` takes: some rows without history, some without draft, some extremes."""
    logits = rng.normal(1.0, 4.0, (requests, slots)).astype(np.float32)
    logits[rng.random((requests, slots)) < 0.05] = 800.0
    logits[rng.random(requests) < 0.1] = np.nan
    logits[rng.random(requests) < 0.1] = -np.inf
    return {
        "logits_RK": torch.from_numpy(logits),
        "inverse_temperature_K": torch.from_numpy(rng.uniform(0.3, 3.0, slots)),
        "bias_K": torch.from_numpy(rng.normal(0.0, 1.0, slots)),
    }


def random_chain(seed: int, vocabulary: int) -> Tensor:
    """Transition probabilities [previous, next], float32."""
    torch.manual_seed(seed)
    return torch.randn(vocabulary, vocabulary).softmax(-1)


def served_p_value(
    verify: Verify,
    *,
    target_VV: Tensor,
    drafter_VV: Tensor,
    lengths_of: Callable[[Tensor], Tensor],
    requests: int,
    seed: int,
    positions: int = 2,
) -> float:
    """Chi-square of the first K served tokens against the target's chain, after token 0.

    Drafts are sampled from the drafter's chain; ``lengths_of(drafts_RK)`` says how many of them are
    verified; where the committed run is shorter than K, the target samples the rest.
    """
    torch.manual_seed(seed)
    vocabulary = len(target_VV)
    before = torch.zeros(requests, dtype=torch.int64)
    chain = [before]
    for _ in range(positions):
        chain.append(torch.multinomial(drafter_VV[chain[-1]], 1).squeeze(-1))
    previous_RT, drafts_RK = torch.stack(chain, 1), torch.stack(chain[1:], 1)
    lengths_R = lengths_of(drafts_RK)
    rows_RT = torch.arange(positions + 1) <= lengths_R[:, None]
    accepted_R, next_R = verify(
        drafts_RK=drafts_RK,
        draft_RKV=drafter_VV[previous_RT[:, :-1]],
        target_MV=target_VV[previous_RT[rows_RT]],
        start_R=(lengths_R + 1).cumsum(0) - lengths_R - 1,
        lengths_R=lengths_R,
        uniform_RT=torch.rand(requests, positions + 1, dtype=torch.float64),
    )
    code, last = torch.zeros(requests, dtype=torch.int64), before
    for k in range(positions):
        sampled = torch.multinomial(target_VV[last], 1).squeeze(-1)
        last = torch.where(accepted_R == k, next_R, sampled)
        last = torch.where(accepted_R > k, drafts_RK[:, k], last)
        code = code * vocabulary + last
    expected = target_VV[0].double()
    for _ in range(positions - 1):
        expected = (
            expected[:, None] * target_VV.double().repeat(len(expected) // vocabulary, 1)
        ).flatten()
    observed = torch.bincount(code, minlength=vocabulary**positions).numpy()
    law = (expected / expected.sum()).numpy() * requests
    return float(stats.chisquare(observed, law).pvalue)


def first_token_law(
    verify: Verify,
    *,
    draft_V: Tensor,
    target_V: Tensor,
    lengths_of: Callable[[Tensor], Tensor],
    accept_points: int,
    next_points: int,
) -> Tensor:
    """float64 distribution of the first served token, without random numbers.

    Enumerates first draft tokens, weighted by their probability, and the midpoints of that many
    equal steps of both uniforms that matter: exact where those steps resolve p/q and what is drawn
    from. Slots are two, both tokens drawn from the same distributions.
    """
    vocabulary = len(draft_V)
    accept = (torch.arange(accept_points, dtype=torch.float64) + 0.5) / accept_points
    following = (torch.arange(next_points, dtype=torch.float64) + 0.5) / next_points
    combinations = torch.arange(vocabulary * accept_points * next_points)
    first_R = combinations // (accept_points * next_points)
    accept_R = accept[combinations // next_points % accept_points]
    next_R = following[combinations % next_points]
    requests = len(first_R)
    drafts_RK = torch.stack([first_R, torch.zeros_like(first_R)], 1)
    lengths_R = lengths_of(drafts_RK)
    accepted_R, served_R = verify(
        drafts_RK=drafts_RK,
        draft_RKV=draft_V.expand(requests, 2, vocabulary).contiguous(),
        target_MV=target_V.expand(int((lengths_R + 1).sum()), vocabulary).contiguous(),
        start_R=(lengths_R + 1).cumsum(0) - lengths_R - 1,
        lengths_R=lengths_R,
        uniform_RT=torch.stack([accept_R, torch.full_like(accept_R, 0.5), next_R], 1),
    )
    served_R = torch.where(accepted_R > 0, first_R, served_R)
    weight_R = draft_V.double()[first_R] / (accept_points * next_points)
    return torch.zeros(vocabulary, dtype=torch.float64).index_add_(0, served_R, weight_R)


EIGHTHS: dict[str, Any] = {
    "draft_V": torch.tensor([4.0, 2.0, 1.0, 1.0]) / 8,
    "target_V": torch.tensor([2.0, 3.0, 2.0, 1.0]) / 8,
    "accept_points": 2,
    "next_points": 8,
}
"""p/q is 1/2 or above 1; the residual halves between the tokens 1 and 2."""

PAPER: dict[str, Any] = {
    "draft_V": torch.tensor([0.5, 0.5]),
    "target_V": torch.tensor([0.7, 0.3]),
    "accept_points": 5,
    "next_points": 10,
}
"""Appendix A: p/q is 1.4 and 0.6, the residual is token A's."""


def appendix_a_survivals(drafts_RK: Tensor) -> Tensor:
    """c_1 = 0.8; c_2 = 0.9 after token A, 0 after token B."""
    second = torch.where(drafts_RK[:, 0] == 0, 0.9, 0.0).double()
    return torch.stack([torch.full_like(second, 0.8), 0.8 * second], 1)


def retrospective(drafts_RK: Tensor) -> Tensor:
    """What a search over each request's current confidences verifies in Appendix A."""
    return 2 * (drafts_RK[:, 0] == 0).long()
