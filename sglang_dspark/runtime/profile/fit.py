"""From measured points to a cost model: the fit, its error, and what makes it untrustworthy.

The forward is T(R, M) = bias + alpha(R) + theta(M) + context, fitted to relative errors by
``core.costs.fit``; where a server says which steps were ragged, alpha is 0, the form is of the
uniform ones alone, and ``shapes`` prices the others. Owns what is probed and what contexts are
measured from. Pure numbers: knows no server and no clock.

Symbols: R requests, M tokens of the target's forward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.fit import (
    LEAST_S,
    fit_parts,
    from_zero,
    relative_errors,
    relative_rises,
)
from sglang_dspark.core.costs.schema import (
    AdditiveCost,
    ContextCost,
    DraftCost,
    FitError,
    HostCost,
    PrefillCost,
    RaggedCost,
)
from sglang_dspark.runtime.profile.shapes import LEAST_POINTS, fit_ragged

Floats = npt.NDArray[np.float64]

MOST_TOKEN_PROBES = 24
LEAST_NOISE = 0.05
"""Relative: differences below it are never called a trend, however small the spread looks."""


@dataclass(frozen=True, kw_only=True)
class DecodePoint:
    """Medians of one run of decode steps of the same shape."""

    requests: int
    length: float
    """Drafts verified of each request."""
    tokens: float
    """M: mean of what the target really computed, padding excluded."""
    context_tokens: float
    """Summed over the requests, mean over the steps."""
    steps: int
    forward_s: float
    """The target's forward, and what follows it in the step."""
    draft_s: float
    """0 where drafting is inside the forward's time."""
    host_s: float
    """The rest of the step."""
    spread: float
    """Half the distance of the quartiles of the whole step, relative to its median."""
    ragged: bool = False
    """Whether it ran outside the uniform graph; False also where the server does not say."""


@dataclass(frozen=True, kw_only=True)
class PrefillPoint:
    """One prompt that shared no prefix."""

    tokens: int
    chunks: int
    """Forwards it took."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The blocks of a cost model."""

    additive: AdditiveCost
    context: ContextCost
    draft: DraftCost | None
    host: HostCost
    prefill: PrefillCost
    error: FitError
    ragged: RaggedCost | None = None
    """None where the server does not tell shapes, or showed one alone."""
    flaws: tuple[str, ...]
    """Why not to trust it, one sentence each; empty for a good one."""


def fit(decode: Sequence[DecodePoint], prefill: Sequence[PrefillPoint], *, gamma: int) -> Fit:
    """Fit all blocks. ``ValueError`` with too few points."""
    if not decode or not prefill:
        raise ValueError("no decode or no prefill point was measured; profile again")
    additive, context, ragged, relative = fit_shapes(decode)
    prefilled, prefill_relative = fit_prefill(prefill)
    draft, draft_token_s = fit_draft(decode, gamma=gamma, reference=context.reference_tokens)
    context = replace(context, token_s=context.token_s + draft_token_s)
    spreads = [p.spread for p in decode]
    error = FitError(
        median_rel=float(np.median(relative)),
        max_rel=float(relative.max()),
        note=f"forward, over {len(decode)} points of {min(p.steps for p in decode)} or more steps "
        f"(spread within a point: median {median(spreads):.1%}, largest {max(spreads):.1%}); "
        f"prefill: median {np.median(prefill_relative):.1%} over {len(prefill)} prompts",
    )
    return Fit(
        additive=additive,
        context=context,
        draft=draft,
        host=HostCost(
            step_s=max(median(p.host_s for p in decode), 0.0),
            origin="measured",
            note="median of the step's time outside drafting and the target's forward",
        ),
        prefill=prefilled,
        error=error,
        ragged=ragged,
        flaws=tuple(flaws(decode)),
    )


def fit_shapes(
    points: Sequence[DecodePoint],
) -> tuple[AdditiveCost, ContextCost, RaggedCost | None, Floats]:
    """``fit_forward`` of the uniform points, and what the ragged ones cost beside it."""
    ragged = [p for p in points if p.ragged]
    uniform = [p for p in points if not p.ragged]
    if min(len(ragged), len(uniform)) < LEAST_POINTS:
        additive, context, relative = fit_forward(points)
        return additive, context, None, relative
    additive, context, relative = fit_forward(uniform, by_requests=False)
    plain_s = [
        additive.bias_s
        + float(np.interp(p.tokens, additive.tokens, additive.theta_s))
        + context.token_s * (p.context_tokens - p.requests * context.reference_tokens)
        for p in ragged
    ]
    block, errors = fit_ragged([p.forward_s for p in ragged], plain_s)
    return additive, context, block, np.concatenate((relative, errors))


def fit_forward(
    points: Sequence[DecodePoint], *, by_requests: bool = True
) -> tuple[AdditiveCost, ContextCost, Floats]:
    """(T(R, M), its dependence on context, relative errors of the points)."""
    requests = sorted({p.requests for p in points})
    tokens = _thinned(sorted({round(p.tokens) for p in points}))
    reference = round(sum(p.context_tokens for p in points) / sum(p.requests for p in points))
    seconds = np.array([p.forward_s for p in points])
    curves = (
        _sizes([p.requests for p in points], requests),
        _sizes([p.tokens for p in points], tokens),
    )
    parts = fit_parts(
        seconds,
        curves=curves if by_requests else curves[1:],
        slopes=(_beyond(points, reference),),
        loss=relative_rises,
    )
    alpha_s = from_zero(parts.rises_s[0]) if by_requests else np.zeros(len(requests))
    additive = AdditiveCost(
        bias_s=max(parts.bias_s, LEAST_S),
        requests=tuple(requests),
        alpha_s=tuple(alpha_s.tolist()),
        tokens=tuple(tokens),
        theta_s=tuple(from_zero(parts.rises_s[-1]).tolist()),
        origin="measured",
        note="the target's forward and what follows it in a step, between probes linear",
    )
    context = ContextCost(
        token_s=parts.slopes_s[0],
        reference_tokens=reference,
        origin="measured",
        note="of the forward and of drafting, fitted together with them",
    )
    return additive, context, relative_errors(parts.fitted_s, seconds)


def _sizes(sizes: Sequence[float], probes: Sequence[int]) -> tuple[Floats, Floats]:
    """A curve's sizes and knots; a mean a little beyond the last probe counts as the probe."""
    return np.minimum(np.array(sizes, dtype=np.float64), probes[-1]), np.array(probes, np.float64)


def _beyond(points: Sequence[DecodePoint], reference: int) -> Floats:
    """Context tokens beyond the reference; signed, a context below it takes off."""
    return np.array([p.context_tokens - p.requests * reference for p in points], np.float64)


def _thinned(sizes: list[int]) -> list[int]:
    """At most ``MOST_TOKEN_PROBES`` of them, first and last kept, evenly in rank."""
    if len(sizes) <= MOST_TOKEN_PROBES:
        return sizes
    ranks = np.linspace(0, len(sizes) - 1, MOST_TOKEN_PROBES).round().astype(int)
    return [sizes[i] for i in ranks]


def fit_draft(
    points: Sequence[DecodePoint], *, gamma: int, reference: int
) -> tuple[DraftCost | None, float]:
    """(Seconds of a block by requests at the reference context, seconds per context token).

    None and 0 where drafting is not timed apart.
    """
    if any(point.draft_s <= 0 for point in points):
        return None, 0.0
    requests = sorted({p.requests for p in points})
    parts = fit_parts(
        np.array([p.draft_s for p in points]),
        curves=(_sizes([p.requests for p in points], requests),),
        slopes=(_beyond(points, reference),),
        loss=relative_rises,
    )
    block_s = np.cumsum([max(parts.bias_s, LEAST_S), *parts.rises_s[0]])
    draft = DraftCost(
        gamma=gamma,
        requests=tuple(requests),
        seconds=tuple(block_s.tolist()),
        between="linear",
        origin="measured",
        note="at the reference context; what longer contexts add is in the context block",
    )
    return draft, parts.slopes_s[0]


def fit_prefill(points: Sequence[PrefillPoint]) -> tuple[PrefillCost, Floats]:
    """(base of each forward + token * new + pair * attended pairs, relative errors)."""
    seconds = np.array([p.seconds for p in points])
    sizes = np.array([p.tokens for p in points], dtype=np.float64)
    chunks = np.array([p.chunks for p in points], dtype=np.float64)
    design = np.stack((chunks, sizes, sizes**2 / 2), axis=1)
    found = relative_rises(design, seconds)
    cost = PrefillCost(
        base_s=float(found[0]),
        token_s=max(float(found[1]), LEAST_S),
        pair_s=float(found[2]),
        origin="measured",
        note=f"{len(points)} prompts of {int(sizes.min())} to {int(sizes.max())} tokens",
    )
    return cost, relative_errors(design @ found, seconds)


def falling(points: Sequence[DecodePoint]) -> list[tuple[DecodePoint, DecodePoint]]:
    """Pairs of neighbours in size and of one shape of which the larger is faster, beyond noise."""
    by_batch: dict[tuple[int, int, bool], list[DecodePoint]] = defaultdict(list)
    for point in points:
        # Contexts of one batch drift by a few tokens from length to length.
        context = round(np.log2(1 + point.context_tokens / point.requests))
        by_batch[point.requests, context, point.ragged].append(point)
    return [
        (before, after)
        for batch in by_batch.values()
        for before, after in pairwise(sorted(batch, key=lambda p: p.tokens))
        if after.forward_s < before.forward_s * (1 - _noise(before, after))
    ]


def flaws(points: Sequence[DecodePoint]) -> list[str]:
    """Flat or falling times beyond noise: what no planner should be given without a word."""
    found = [
        f"non-monotone: {after.requests} requests take {1e3 * after.forward_s:.3f} ms for "
        f"{after.tokens:.0f} tokens but {1e3 * before.forward_s:.3f} ms for {before.tokens:.0f}"
        for before, after in falling(points)
    ]
    alike = [p for p in points if not p.ragged] or points
    small, large = min(alike, key=lambda p: p.tokens), max(alike, key=lambda p: p.tokens)
    if large.forward_s < small.forward_s * (1 + _noise(small, large)):
        found.append(
            f"flat: {large.tokens:.0f} tokens take {1e3 * large.forward_s:.3f} ms, no more than "
            f"{small.tokens:.0f} tokens do ({1e3 * small.forward_s:.3f} ms), so that a planner "
            "would verify everything"
        )
    return found


def _noise(one: DecodePoint, other: DecodePoint) -> float:
    return max(LEAST_NOISE, 2 * (one.spread + other.spread))
