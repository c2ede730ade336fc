"""From confidence logits to prefix survival: c_k = sigmoid(z_k / T_k + b_k), a_k = c_1 ... c_k.

Paper sections 3.2.1 and 3.2.2. Knows no budget.
"""

from __future__ import annotations

import math

import numpy as np

from sglang_dspark.core.compiled import compiled
from sglang_dspark.core.state import Floats


@compiled
def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), finite for every finite logit."""
    return 1.0 / (1.0 + math.exp(-min(max(logit, -700.0), 700.0)))


@compiled
def fill_survival(logits: Floats, inverse_temperature: Floats, bias: Floats, out: Floats) -> None:
    """Write a_1..a_K of one request into ``out``; non-increasing by construction. Shapes [K]."""
    survival = 1.0
    for k in range(logits.size):
        survival *= sigmoid(logits[k] * inverse_temperature[k] + bias[k])
        out[k] = survival


@compiled
def fill_survival_rows(
    logits: Floats, inverse_temperature: Floats, bias: Floats, out: Floats
) -> None:
    """``fill_survival`` for each row of [R, K], with two marks in the first column.

    NaN, no history: survival 1, so that the request is planned as if all it drafts were accepted
    until there is evidence, as SGLang does. -inf, nothing drafted: survival 0, no candidates.
    """
    for r in range(logits.shape[0]):
        if np.isnan(logits[r, 0]):
            out[r, :] = 1.0
        elif logits[r, 0] == -np.inf:
            out[r, :] = 0.0
        else:
            fill_survival(logits[r], inverse_temperature, bias, out[r])
