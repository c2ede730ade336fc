"""Speculative sampling's accept-or-resample rule for chains, as pure functions of tensors.

Law: with drafts drawn from q, what is committed is distributed exactly as the target's p, for
every ``lengths`` that does not look at the tokens it cuts off. Owns no model and no randomness.

Shapes: R requests, K draft positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def acceptance_probability(*, target: Tensor, draft: Tensor) -> Tensor:
    """min(1, p/q), elementwise; ``draft`` > 0 wherever a token was drawn."""
    return (target.double() / draft.double()).clamp(max=1.0)


def residual(*, target_RV: Tensor, draft_RV: Tensor) -> Tensor:
    """Weights [R, V] of the token that replaces a rejected one: the positive part of p - q.

    Where rounding leaves nothing of it (p and q equal but for their last bits), p itself.
    """
    rest = (target_RV - draft_RV).clamp(min=0.0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, target_RV)


def accepted_run(
    *,
    drafts_RK: Tensor,
    draft_RKV: Tensor,
    target_RTV: Tensor,
    lengths_R: Tensor,
    uniform_RK: Tensor,
) -> Tensor:
    """[R] leading draft tokens accepted, at most ``lengths_R``; T >= K rows of the target.

    Row k of ``target_RTV`` is the target's distribution for draft position k.
    """
    columns = drafts_RK.shape[1]
    chosen = drafts_RK.unsqueeze(-1)
    target_RK = target_RTV[:, :columns].gather(-1, chosen).squeeze(-1)
    draft_RK = draft_RKV.gather(-1, chosen).squeeze(-1)
    passed = uniform_RK < acceptance_probability(target=target_RK, draft=draft_RK)
    positions = torch.arange(columns, device=drafts_RK.device)
    passed &= positions < lengths_R.unsqueeze(-1)
    return passed.long().cumprod(-1).sum(-1)


def next_weights(
    *, draft_RKV: Tensor, target_RTV: Tensor, lengths_R: Tensor, accepted_R: Tensor
) -> Tensor:
    """Weights [R, V] of the token after the accepted run.

    The residual at the first rejection; the target's own next row (the bonus token) when the whole
    verified prefix was accepted.
    """
    rows = torch.arange(len(accepted_R), device=accepted_R.device)
    target_RV = target_RTV[rows, accepted_R]
    at = accepted_R.clamp(max=max(draft_RKV.shape[1] - 1, 0))
    replaced = residual(target_RV=target_RV, draft_RV=draft_RKV[rows, at])
    return torch.where((accepted_R < lengths_R).unsqueeze(-1), replaced, target_RV)
