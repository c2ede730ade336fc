"""A verify step of R requests and M tokens, composed and brought to the form of kind ``additive``.

    seconds = body(M) + attention(R, context)
Every operator is priced at the step's M tokens, attention at its R requests: keys and values are
read once per request, however many tokens of it are verified. Where the tables hold an attention
only with the projections around it, its time at M requests without a context is the projections'
and belongs to the body. Sampling over the vocabulary is in no table: a data sheet prices it.

    attention(R, context) ~ alpha(R) + token_s * R * context
is fitted to the composed grid; what the form loses there is the fit error. Knows no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.composed.operators import ASSUMED, Operator, Operators, Priced
from sglang_dspark.core.costs.fit import fit_parts, from_zero, rises_relative_to

Floats = npt.NDArray[np.float64]

CONTEXTS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Tokens per request of the grid that the form is fitted to."""
_NO_CONTEXT = 1
_MOST_TIMED = 512
"""Requests of the largest decoding batch that the tables hold of every such attention."""


def body(operators: Operators, tokens: int, *, head: bool = True) -> list[Priced]:
    """Whatever depends on the step's ``tokens``; without the language-model head on request."""
    rows = operators.layout.share(tokens)
    found = []
    for op in operators.generation:
        if not head and op.name in ("logits_gemm", "embedding", "embedding_ar"):
            continue
        if op.projects:
            found += _projections(operators, op, rows)
        elif not op.attention:
            found += operators.price(op, rows, _NO_CONTEXT)
    return found + ([sampling(operators, tokens)] if head else [])


def _projections(operators: Operators, op: Operator, rows: int) -> list[Priced]:
    """Those inside an attention, which the tables hold for decoding batches only.

    Beyond the largest of them a time is an extrapolation; two halves one after the other are
    never worse.
    """
    whole = operators.price(op, rows, _NO_CONTEXT)
    if rows <= _MOST_TIMED:
        return whole
    halves = [
        one._replace(seconds=2 * one.seconds) for one in _projections(operators, op, -(-rows // 2))
    ]
    return min(whole, halves, key=seconds)


def sampling(operators: Operators, tokens: int) -> Priced:
    """Softmax and sampling over the logits of ``tokens``."""
    rows = operators.layout.share(tokens)
    vocabulary = operators.target.whole("vocab_size")
    return Priced("sampling", operators.assumed.sampling(vocabulary, rows), ASSUMED)


def attention(operators: Operators, requests: int, context: int) -> list[Priced]:
    """Whatever depends on the step's ``requests`` and their ``context`` tokens each."""
    rows = operators.layout.share(requests)
    found = []
    for op in operators.generation:
        if not op.attention:
            continue
        priced = operators.price(op, rows, context)
        if op.projects:
            bare = operators.price(op, rows, _NO_CONTEXT)
            priced = [
                with_it._replace(seconds=max(with_it.seconds - without.seconds, 0.0))
                for with_it, without in zip(priced, bare, strict=True)
            ]
        found += priced
    return found


def seconds(priced: list[Priced]) -> float:
    """Their sum."""
    return sum(one.seconds for one in priced)


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """The composed step in additive form."""

    requests: tuple[int, ...]
    alpha_s: Floats
    """[requests] 0 at the first."""
    tokens: tuple[int, ...]
    body_s: Floats
    """[tokens] never decreasing."""
    raised: int
    """How many of them were raised to the running maximum."""
    first_attention_s: float
    """Of the smallest step, without a context."""
    token_s: float
    """Per context token."""
    errors: Floats
    """[grid] |form - composed| / composed."""
    worst: tuple[int, int]
    """Requests and context where the largest error is."""


def compose_step(
    operators: Operators,
    *,
    requests: tuple[int, ...],
    tokens: tuple[int, ...],
    width: int,
    pool_tokens: int,
) -> Step:
    """The step at ``requests`` and ``tokens``; the grid verifies ``width`` tokens of each request,
    with contexts that ``pool_tokens`` hold, the shortest always."""
    composed = np.array([seconds(body(operators, m)) for m in tokens])
    body_s = np.array(list(accumulate(composed, max)))
    grid = [(r, c) for r in requests for c in CONTEXTS if r * c <= pool_tokens or c == CONTEXTS[0]]
    attended = np.array([seconds(attention(operators, r, c)) for r, c in grid])
    sizes = np.array(grid, dtype=np.float64)
    held = sizes[:, 0] * sizes[:, 1]
    others = np.interp(sizes[:, 0] * width, tokens, body_s)
    whole = attended + others
    parts = fit_parts(
        attended,
        curves=[(sizes[:, 0], np.array(requests, dtype=np.float64))],
        slopes=[held],
        loss=rises_relative_to(whole),
    )
    errors = np.abs(parts.fitted_s - attended) / whole
    worst = grid[int(errors.argmax())]
    return Step(
        requests=requests,
        alpha_s=from_zero(parts.rises_s[0]),
        tokens=tokens,
        body_s=body_s,
        raised=int((body_s > composed).sum()),
        first_attention_s=parts.bias_s,
        token_s=parts.slopes_s[0],
        errors=errors,
        worst=worst,
    )
