"""From confidence logits to survival, and from a token budget to each request's length.

The device's twin of ``sglang_dspark.core.survival`` and ``core.ranking.assign_slots``, so that a
budget that the host already knows is handed out without reading confidences back. Owns no budget
and no tie rule of its own.

Shapes: R requests, K draft positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_dspark.core.ranking import SURVIVAL_FLOOR

# The constants of ``core.survival.sigmoid``, which numba has compiled into it.
LOG2_E = 1.4426950408889634
LN2_HIGH = 6.93147180369123816490e-01
LN2_LOW = 1.90821492927058770002e-10
ROUND = 6755399441055744.0


def survival(*, logits_RK: Tensor, inverse_temperature_K: Tensor, bias_K: Tensor) -> Tensor:
    """float64 a_k = c_1 ... c_k, c_k = sigmoid(z_k / T_k + b_k); rows are non-increasing.

    Equals ``core.survival.fill_survival_rows`` bit for bit, its marks included: a row whose first
    logit is NaN (no history) survives surely, one whose first logit is -inf (nothing drafted) not
    at all. Logits may be float32; temperatures and biases are float64.
    """
    if logits_RK.is_cuda:
        from sglang_dspark.runtime.kernels import triton_lengths

        return triton_lengths.survival(
            logits_RK=logits_RK, inverse_temperature_K=inverse_temperature_K, bias_K=bias_K
        )
    return survival_torch(
        logits_RK=logits_RK, inverse_temperature_K=inverse_temperature_K, bias_K=bias_K
    )


def assign_lengths(*, survival_RK: Tensor, budget: int) -> Tensor:
    """int64 [R]: the ``budget`` draft tokens of highest survival, as one length for each request.

    Equals ``core.ranking.assign_slots`` exactly: ties go by position, then request, and what is
    less likely than its ``SURVIVAL_FLOOR`` gets nothing. Rows must be non-increasing, so that a
    chosen set is a prefix. ``budget`` counts draft tokens, not anchors.
    """
    if survival_RK.dtype != torch.float64:
        raise ValueError(f"survivals are {survival_RK.dtype}; give float64, as core ranks them")
    if survival_RK.is_cuda:
        from sglang_dspark.runtime.kernels import triton_lengths

        return triton_lengths.assign_lengths(survival_RK=survival_RK, budget=budget)
    return assign_lengths_torch(survival_RK=survival_RK, budget=budget)


def assign_lengths_torch(*, survival_RK: Tensor, budget: int) -> Tensor:
    """``assign_lengths`` by one stable sort."""
    requests = survival_RK.shape[0]
    # Laid out by position, then request: a stable sort then breaks ties in that order.
    ordered, places = survival_RK.T.reshape(-1).sort(descending=True, stable=True)
    given = places[: max(budget, 0)] % requests
    worthwhile = ordered[: max(budget, 0)] >= SURVIVAL_FLOOR
    lengths_R = torch.zeros(requests, dtype=torch.int64, device=survival_RK.device)
    return lengths_R.index_add_(0, given, worthwhile.long())


def survival_torch(*, logits_RK: Tensor, inverse_temperature_K: Tensor, bias_K: Tensor) -> Tensor:
    """``survival`` in PyTorch, operation for operation as ``core.survival.sigmoid``."""
    z_RK = logits_RK.double()
    x = (-(z_RK * inverse_temperature_K + bias_K)).clamp(-690.0, 690.0)
    shifted = x * LOG2_E + ROUND
    n = shifted - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    square = r * r
    even = 665280.0 + square * (75600.0 + square * (840.0 + square))
    odd = r * (332640.0 + square * (10080.0 + square * 42.0))
    power = ((shifted.view(torch.int64) + 1023) << 52).view(torch.float64)
    below = even - odd
    survival_RK = (below / (below + power * (even + odd))).cumprod(-1)
    first_R1 = z_RK[:, :1]
    survival_RK = survival_RK.masked_fill(first_R1.isnan(), 1.0)
    return survival_RK.masked_fill(first_R1 == -torch.inf, 0.0)
