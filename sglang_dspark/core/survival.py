"""From confidence logits to prefix survival: c_k = sigmoid(z_k / T_k + b_k), a_k = c_1 ... c_k.

Paper sections 3.2.1 and 3.2.2. Knows no budget.
"""

from __future__ import annotations

import numpy as np

from sglang_dspark.core.compiled import compiled
from sglang_dspark.core.state import Floats

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01  # ln 2 cut to 32 bits, so that n * _LN2_HIGH is exact
_LN2_LOW = 1.90821492927058770002e-10  # the rest of it
_ROUND = 6755399441055744.0  # 1.5 * 2**52: adding it rounds to an integer, held in the low bits


@compiled
def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)) to 4e-16 of its value, finite for every logit but NaN.

    With x = -logit, exp(x) = 2**n exp(r), |r| <= ln(2) / 2, and by the Pade approximant of degrees
    6 and 6 exp(r) = (even + odd) / (even - odd), 2e-19 off. Without branches and calls, so that a
    loop over it does several at a time, with the same bits on every machine.
    """
    x = min(max(-logit, -690.0), 690.0)
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    square = r * r
    even = 665280.0 + square * (75600.0 + square * (840.0 + square))
    odd = r * (332640.0 + square * (10080.0 + square * 42.0))
    power = np.int64((np.float64(shifted).view(np.int64) + 1023) << 52).view(np.float64)
    below = even - odd
    # np.true_divide, since a / b would test b for zero: a branch.
    return np.true_divide(below, below + power * (even + odd))


@compiled
def fill_survival(logits: Floats, inverse_temperature: Floats, bias: Floats, out: Floats) -> None:
    """Write a_1..a_K of one request into ``out``; non-increasing by construction. Shapes [K]."""
    survival = 1.0
    for k in range(logits.size):
        survival *= sigmoid(logits[k] * inverse_temperature[k] + bias[k])
        out[k] = survival


@compiled
def fill_survival_float32(
    logits: Floats, inverse_temperature: Floats, bias: Floats, out: Floats
) -> None:
    """``fill_survival`` in SGLang's arithmetic, for decisions that have to equal its planner's.

    There a confidence is a float32, and PyTorch on a CPU multiplies them in float64 and rounds each
    product to float32 (``torch.cumprod``; dspark_planner._two_steps_prior_survival).
    """
    survival = 1.0
    for k in range(logits.size):
        confidence = np.float32(sigmoid(logits[k] * inverse_temperature[k] + bias[k]))
        survival *= np.float64(confidence)
        out[k] = np.float64(np.float32(survival))


@compiled
def fill_survival_rows(
    logits: Floats, inverse_temperature: Floats, bias: Floats, out: Floats
) -> None:
    """``fill_survival`` for each row of [R, K], with two marks in the first column.

    NaN, no history: survival 1, so that the request is planned as if all it drafts were accepted
    until there is evidence, as SGLang does. -inf, nothing drafted: survival 0, no candidates.
    ``out`` is C-contiguous.
    """
    rows, columns = logits.shape
    for r in range(rows):
        for k in range(columns):
            out[r, k] = logits[r, k] * inverse_temperature[k] + bias[k]
    confidence = out.reshape(-1)
    for i in range(confidence.size):
        confidence[i] = sigmoid(confidence[i])
    for r in range(rows):
        if np.isnan(logits[r, 0]):
            out[r, :] = 1.0
        elif logits[r, 0] == -np.inf:
            out[r, :] = 0.0
        else:
            for k in range(1, columns):
                out[r, k] *= out[r, k - 1]


@compiled
def fill_survival_rows_float32(
    logits: Floats, inverse_temperature: Floats, bias: Floats, out: Floats
) -> None:
    """``fill_survival_float32`` for each row, with the marks of ``fill_survival_rows``."""
    for r in range(logits.shape[0]):
        if np.isnan(logits[r, 0]):
            out[r, :] = 1.0
        elif logits[r, 0] == -np.inf:
            out[r, :] = 0.0
        else:
            fill_survival_float32(logits[r], inverse_temperature, bias, out[r])
