"""Failures that raise no error: what in a recording looks like a defect, said in a sentence.

Owns the buckets of context, the slope over them, and the marks of a drafter at chance and of random
prompts. A drafter whose positions are off by one, that is another target's or of another convention
decodes exactly and only drafts badly; this is where it shows. Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import kstest

from sglang_dspark.draft.evaluation.reliability import Acceptance, Estimate, acceptance, ratio
from sglang_dspark.logs.rounds import Floats, Rounds

STEEP = 0.1
"""Share of the accepted drafts whose loss over the contexts seen is worth a sentence."""
SURE = 3.0
"""Standard errors that a slope must be away from 0."""
CHANCE = 1.1
"""Tokens a round below which a drafter does nothing."""
RANDOM_TOKENS = 400
"""Fewest prompt tokens of a domain that say whether they are random."""
_UNIFORM = 0.05
"""Largest distance of random tokens' distribution from the uniform one; text is beyond 0.2."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """The rounds whose context has from ``low`` up to, not with, ``high`` tokens."""

    low: int
    high: int
    rounds: int
    length: Estimate
    """Tokens a round, bonus counted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ByContext:
    """Acceptance as the context grows."""

    buckets: tuple[Bucket, ...]
    """Powers of two; those with a round."""
    slope: Estimate
    """Tokens a round that a doubling of the context adds, within domains."""
    doublings: float
    """From the shortest to the longest context, the outer 5 % left out."""


def by_context(rounds: Rounds) -> ByContext | None:
    """Buckets and slope; None where contexts are unknown."""
    if rounds.context_tokens is None or not len(rounds):
        return None
    context = rounds.context_tokens
    powers = np.floor(np.log2(context)).astype(int)
    buckets = []
    for power in np.unique(powers):
        part = rounds.where(powers == power)
        one = np.ones(len(part))
        length = ratio(above=one + part.accepted, below=one, cluster=part.request)
        buckets.append(
            Bucket(low=2 ** int(power), high=2 ** int(power + 1), rounds=len(part), length=length)
        )
    low, high = np.quantile(context, [0.05, 0.95])
    return ByContext(
        buckets=tuple(buckets),
        slope=_slope(rounds, np.log2(context)),
        doublings=float(np.log2(high / low)),
    )


def _slope(rounds: Rounds, x: Floats) -> Estimate:
    """Least squares of accepted drafts over x within domains; requests are the unit."""
    y = rounds.accepted.astype(np.float64)
    x, y = x.copy(), y.copy()
    for domain in rounds.domains():
        mine = rounds.domain == domain
        x[mine] -= x[mine].mean()
        y[mine] -= y[mine].mean()
    square = float((x * x).sum())
    codes = np.unique(rounds.request, return_inverse=True)[1]
    count = int(codes.max()) + 1
    if square < 1e-9 or count < 3:
        return Estimate(value=np.array(np.nan), error=np.array(np.nan))
    value = float((x * y).sum()) / square
    score = np.zeros(count)
    np.add.at(score, codes, x * (y - value * x))
    error = math.sqrt(count / (count - 1) * float((score**2).sum())) / square
    return Estimate(value=np.array(value), error=np.array(error))


def warnings_of(rounds: Rounds) -> list[str]:
    """What looks like a defect in these rounds."""
    found = acceptance(rounds)
    says = _at_chance(found)
    context = by_context(rounds)
    if context is not None:
        says += _falling(context, found)
    return says


def _at_chance(found: Acceptance) -> list[str]:
    length = float(found.length.value)
    if length < CHANCE:
        return [
            f"{length:.2f} tokens a round: it drafts at chance. It was not trained, is another "
            "target's, or of another convention; see dspark draft inspect"
        ]
    first, *rest = (float(value) for value in np.atleast_1d(found.conditional.value))
    best = max((value for value in rest if math.isfinite(value)), default=0.0)
    if first < 0.5 * best:
        return [
            f"its first token is accepted with {first:.2f}, later ones with {best:.2f}: slots and "
            "tokens may be shifted (sample_from_anchor); see dspark draft inspect"
        ]
    return []


def _falling(context: ByContext, found: Acceptance) -> list[str]:
    value, error = float(context.slope.value), float(context.slope.error)
    drafts = float(found.length.value) - 1
    if not (math.isfinite(value) and math.isfinite(error)) or drafts <= 0:
        return []
    lost = -value * context.doublings
    if value < -SURE * error and lost > STEEP * drafts:
        return [
            f"acceptance falls by {-value:.2f}+-{error:.2f} tokens a doubling of the context, "
            f"{lost:.2f} of {drafts:.2f} over those seen: positions that are off by one look like "
            "this, and so does a drafter that was trained on shorter texts"
        ]
    return []


def random_prompts(tokens: Sequence[Sequence[int]], vocabulary: int) -> str:
    """The sentence for prompts whose tokens are spread like random ones; empty for text.

    Acceptance on them says nothing of real traffic, neither in height nor in order.
    """
    ids: npt.NDArray[np.int64] = np.array([t for row in tokens for t in row], dtype=np.int64)
    if len(ids) < RANDOM_TOKENS:
        return ""
    spread = (ids + 0.5) / vocabulary
    distance = float(kstest(spread, "uniform").statistic)
    repeated = 1 - len(np.unique(ids)) / len(ids)
    # Of n draws from V values 1 - V/n (1 - exp(-n/V)) are repeats; text repeats far more.
    n, v = len(ids), vocabulary
    wanted = 1 - v / n * (1 - math.exp(-n / v))
    if distance < _UNIFORM and repeated < wanted + 0.1:
        return (
            "the prompts' tokens are spread like random ones: acceptance on them misleads in both "
            "directions; measure on real prompts"
        )
    return ""
