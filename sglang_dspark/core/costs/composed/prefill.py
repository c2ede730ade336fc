"""Prompts: the composed seconds of prefills, fitted as max(floor, base + token n) + pair * pairs.

A prompt's operators see all its new tokens, attention the tokens before them too. Launches are
priced as the analytic models do, as a floor, since they run beside a GPU that is busy. Knows no
file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_dspark.core.costs.composed.operators import ASSUMED, Operators, Priced
from sglang_dspark.core.costs.composed.step import seconds
from sglang_dspark.core.costs.fit import fit_parts, relative_errors, relative_rises
from sglang_dspark.core.costs.roofline import EAGER_LAYER_S

NEW_TOKENS = (512, 1024, 2048, 4096, 8192)
PREFIXES = (0, 2048, 8192, 16384)
_SHORT_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """The fitted parts."""

    base_s: float
    token_s: float
    pair_s: float
    floor_s: float
    median_rel: float
    max_rel: float
    """Of the composed prefills that were fitted."""


def prompt(operators: Operators, tokens: int, prefix: int) -> list[Priced]:
    """One prefill of ``tokens`` new tokens behind ``prefix`` cached ones."""
    priced = [one for op in operators.context for one in operators.price_prompt(op, tokens, prefix)]
    row = operators.assumed.sampling(operators.target.whole("vocab_size"), 1)
    return [*priced, Priced("sampling", row, ASSUMED)]


def compose_prefill(operators: Operators) -> Prefill:
    """The parts of the prefill that fit ``NEW_TOKENS`` behind ``PREFIXES``."""
    grid = [(n, p) for n in NEW_TOKENS for p in PREFIXES]
    sizes = np.array(grid, dtype=np.float64)
    new, before = sizes[:, 0], sizes[:, 1]
    composed = np.array([seconds(prompt(operators, n, p)) for n, p in grid])
    parts = fit_parts(
        composed, curves=[], slopes=[new, new * (before + new / 2)], loss=relative_rises
    )
    errors = relative_errors(parts.fitted_s, composed)
    short = seconds(prompt(operators, _SHORT_TOKENS, 0))
    return Prefill(
        base_s=parts.bias_s,
        token_s=parts.slopes_s[0],
        pair_s=parts.slopes_s[1],
        floor_s=max(short, EAGER_LAYER_S * operators.layers),
        median_rel=float(np.median(errors)),
        max_rel=float(errors.max()),
    )
