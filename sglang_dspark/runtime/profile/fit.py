"""From measured points to a cost model: the fit, its error, and what makes it untrustworthy.

The forward is T(R, M) = bias + alpha(R) + theta(M) + context, all parts non-negative and
non-decreasing, fitted to relative errors by non-negative least squares: with increments for
unknowns, every solution is a valid ``AdditiveCost``. Pure numbers: knows no server and no clock.

Symbols: R requests, M tokens of the target's forward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from sglang_dspark.core.costs.schema import (
    AdditiveCost,
    ContextCost,
    DraftCost,
    FitError,
    HostCost,
    PrefillCost,
)

Floats = npt.NDArray[np.float64]

MOST_TOKEN_PROBES = 24
LEAST_NOISE = 0.05
"""Relative: differences below it are never called a trend, however small the spread looks."""
_LEAST_S = 1e-9


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
    flaws: tuple[str, ...]
    """Why not to trust it, one sentence each; empty for a good one."""


def fit(decode: Sequence[DecodePoint], prefill: Sequence[PrefillPoint], *, gamma: int) -> Fit:
    """Fit all blocks. ``ValueError`` with too few points."""
    if not decode or not prefill:
        raise ValueError("no decode or no prefill point was measured; profile again")
    additive, context, relative = fit_forward(decode)
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
        flaws=tuple(flaws(decode)),
    )


def fit_forward(points: Sequence[DecodePoint]) -> tuple[AdditiveCost, ContextCost, Floats]:
    """(T(R, M), its dependence on context, relative errors of the points)."""
    requests = sorted({p.requests for p in points})
    tokens = _thinned(sorted({round(p.tokens) for p in points}))
    reference = round(sum(p.context_tokens for p in points) / sum(p.requests for p in points))
    seconds = np.array([p.forward_s for p in points])
    found, relative = _solve(
        [
            np.ones(len(points)),
            _increments(requests, [p.requests for p in points]),
            _increments(tokens, [p.tokens for p in points]),
            # Signed: a context below the reference takes off.
            [p.context_tokens - p.requests * reference for p in points],
        ],
        seconds,
    )
    steps_R = found[1 : len(requests)]
    steps_M = found[len(requests) : len(requests) + len(tokens) - 1]
    additive = AdditiveCost(
        bias_s=max(float(found[0]), _LEAST_S),
        requests=tuple(requests),
        alpha_s=tuple(np.concatenate([[0.0], np.cumsum(steps_R)]).tolist()),
        tokens=tuple(tokens),
        theta_s=tuple(np.concatenate([[0.0], np.cumsum(steps_M)]).tolist()),
        origin="measured",
        note="the target's forward and what follows it in a step, between probes linear",
    )
    context = ContextCost(
        token_s=float(found[-1]),
        reference_tokens=reference,
        origin="measured",
        note="of the forward and of drafting, fitted together with them",
    )
    return additive, context, relative


def _solve(columns: Sequence[Any], seconds: Floats) -> tuple[Floats, Floats]:
    """(non-negative factors of the columns that fit the seconds, relative errors)."""
    design = np.column_stack(columns)
    scale = np.abs(design).max(axis=0)
    scale[scale == 0] = 1.0
    weight = 1 / np.maximum(seconds, _LEAST_S)
    found, _ = nnls(design / scale * weight[:, None], seconds * weight)
    found = found / scale
    return found, np.abs(design @ found - seconds) * weight


def _increments(probes: Sequence[int], sizes: Sequence[float]) -> Floats:
    """[points, probes - 1]: how much of the rise between two probes each size has behind it."""
    columns = [
        np.clip((np.array(sizes, dtype=np.float64) - low) / (high - low), 0.0, 1.0)
        for low, high in pairwise(probes)
    ]
    return np.column_stack(columns) if columns else np.zeros((len(sizes), 0))


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
    found, _ = _solve(
        [
            np.ones(len(points)),
            _increments(requests, [p.requests for p in points]),
            [p.context_tokens - p.requests * reference for p in points],
        ],
        np.array([p.draft_s for p in points]),
    )
    block_s = np.cumsum(np.concatenate([[max(found[0], _LEAST_S)], found[1:-1]]))
    draft = DraftCost(
        gamma=gamma,
        requests=tuple(requests),
        seconds=tuple(block_s.tolist()),
        between="linear",
        origin="measured",
        note="at the reference context; what longer contexts add is in the context block",
    )
    return draft, float(found[-1])


def fit_prefill(points: Sequence[PrefillPoint]) -> tuple[PrefillCost, Floats]:
    """(base of each forward + token * new + pair * attended pairs, relative errors)."""
    seconds = np.array([p.seconds for p in points])
    sizes = np.array([p.tokens for p in points], dtype=np.float64)
    chunks = np.array([p.chunks for p in points], dtype=np.float64)
    found, relative = _solve([chunks, sizes, sizes**2 / 2], seconds)
    cost = PrefillCost(
        base_s=float(found[0]),
        token_s=max(float(found[1]), _LEAST_S),
        pair_s=float(found[2]),
        origin="measured",
        note=f"{len(points)} prompts of {int(sizes.min())} to {int(sizes.max())} tokens",
    )
    return cost, relative


def falling(points: Sequence[DecodePoint]) -> list[tuple[DecodePoint, DecodePoint]]:
    """Pairs of neighbours in size of which the larger is faster, beyond noise."""
    by_batch: dict[tuple[int, int], list[DecodePoint]] = defaultdict(list)
    for point in points:
        # Contexts of one batch drift by a few tokens from length to length.
        context = round(np.log2(1 + point.context_tokens / point.requests))
        by_batch[point.requests, context].append(point)
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
    small, large = min(points, key=lambda p: p.tokens), max(points, key=lambda p: p.tokens)
    if large.forward_s < small.forward_s * (1 + _noise(small, large)):
        found.append(
            f"flat: {large.tokens:.0f} tokens take {1e3 * large.forward_s:.3f} ms, no more than "
            f"{small.tokens:.0f} tokens do ({1e3 * small.forward_s:.3f} ms), so that a planner "
            "would verify everything"
        )
    return found


def _noise(one: DecodePoint, other: DecodePoint) -> float:
    return max(LEAST_NOISE, 2 * (one.spread + other.spread))
