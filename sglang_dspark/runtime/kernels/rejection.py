"""Accept-or-resample for the ragged rows of one verification step.

The law is ``draft.evaluation.rejection``'s: what is committed is distributed exactly as the
target's p for all lengths that do not look at the tokens they cut off. Owns no model and no
randomness.

Shapes: R requests, K draft positions, T = K + 1, M = sum(1 + length) rows of the target,
V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_dspark.draft.evaluation.rejection import acceptance_probability, residual
from sglang_dspark.runtime.kernels.head import drawn


def verify_chain(
    *,
    drafts_RK: Tensor,
    draft_RKV: Tensor,
    target_MV: Tensor,
    start_R: Tensor,
    lengths_R: Tensor,
    uniform_RT: Tensor,
) -> tuple[Tensor, Tensor]:
    """(draft tokens accepted [R], the token after them [R]), both int64.

    Draft token k of request i passes when uniform[i, k] < min(1, p/q), in float64; p is its
    probability in the target's row start_i + k, q in ``draft_RKV[i, k]``. At the first rejection
    the next token comes from the positive part of p - q (from p where rounding leaves nothing of
    it), after a whole verified prefix from the target's row after it: the running sum of weights
    inverted at uniform[i, K], in float64. A token of p = 0 is never drawn. Only q of the first
    ``lengths_R`` positions is read. Probabilities are float32, uniforms float64 in [0, 1), where 1
    counts as the number before it.
    """
    if target_MV.dtype != torch.float32 or draft_RKV.dtype != torch.float32:
        raise ValueError(
            f"probabilities are {target_MV.dtype} and {draft_RKV.dtype}; give float32, the very "
            "values that tokens are drawn from"
        )
    if uniform_RT.shape[1] != drafts_RK.shape[1] + 1:
        raise ValueError(
            f"{uniform_RT.shape[1]} uniforms for {drafts_RK.shape[1]} draft positions; "
            "give one more than positions, the last for the next token"
        )
    verify = verify_chain_torch
    if target_MV.is_cuda:
        from sglang_dspark.runtime.kernels import triton_rejection

        verify = triton_rejection.verify_chain
    return verify(
        drafts_RK=drafts_RK,
        draft_RKV=draft_RKV,
        target_MV=target_MV,
        start_R=start_R,
        lengths_R=lengths_R,
        uniform_RT=uniform_RT,
    )


def verify_chain_torch(
    *,
    drafts_RK: Tensor,
    draft_RKV: Tensor,
    target_MV: Tensor,
    start_R: Tensor,
    lengths_R: Tensor,
    uniform_RT: Tensor,
) -> tuple[Tensor, Tensor]:
    """``verify_chain`` in PyTorch: the reference, and what runs on CPU."""
    requests, columns = drafts_RK.shape
    start_R1, lengths_R1 = start_R.long()[:, None], lengths_R.long()[:, None]
    positions_K = torch.arange(columns, device=drafts_RK.device)
    # Rows beyond a request's own are another's; those positions cannot pass.
    rows_RK = start_R1 + torch.minimum(positions_K, lengths_R1)
    target_RK = target_MV[rows_RK, drafts_RK]
    draft_RK = draft_RKV.gather(-1, drafts_RK[..., None]).squeeze(-1)
    passed = uniform_RT[:, :columns] < acceptance_probability(target=target_RK, draft=draft_RK)
    passed &= positions_K < lengths_R1
    accepted_R = passed.long().cumprod(-1).sum(-1)

    target_RV = target_MV[start_R + accepted_R]
    requests_R = torch.arange(requests, device=drafts_RK.device)
    draft_RV = draft_RKV[requests_R, accepted_R.clamp(max=columns - 1)]
    replaced_RV = residual(target_RV=target_RV, draft_RV=draft_RV)
    weights_RV = torch.where((accepted_R < lengths_R)[:, None], replaced_RV, target_RV)
    return accepted_R, drawn(weights_RV, uniform_R=uniform_RT[:, -1])
