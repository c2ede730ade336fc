"""A cost model from the step times that a server logged while it worked.

Law fitted, seconds of one decode step from the end of the last one, of R requests, M computed
tokens and C context tokens:
    draft(R drafted) + bias + alpha(R) + theta(M) + context C + ragged + host
with alpha, theta and draft piecewise linear and never decreasing, ragged the seconds of a step that
is not uniform, where the log has both, and host the time between two steps that no part of them
explains. What deciding costs is inside: a log has one policy. A prefill is what a gap between two
decode steps holds beyond that when new requests joined, and ``prefill``'s to price.

How curves and prices are found is ``core.costs.fit``'s; owns which times speak for which part.
Knows no file, no log and no policy.

Shapes: S steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.fit import WINSOR, fit_parts, from_zero, hinges, mean_rises
from sglang_dspark.core.costs.model import SCHEMA_VERSION, CostModel
from sglang_dspark.core.costs.schema import (
    AdditiveCost,
    ContextCost,
    DraftCost,
    FitError,
    GraphTiers,
    HostCost,
    PrefillCost,
    Provenance,
    RaggedCost,
    ValidRange,
)
from simulator.fit.prefill import LEAST_GAPS, Gaps, PrefillFit, fit_prefill

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_LEAST = 30
"""Observations that a curve is fitted from at least."""
_CELL = 20
"""Steps of a (requests, tokens) cell that the fit error is taken of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepTimes:
    """Times of decode steps and of the gaps before them; NaN where a gap says nothing."""

    requests: Ints
    """[S] R."""
    drafted: Ints
    """[S] requests that were drafted for."""
    tokens: Ints
    """[S] M, padding excluded."""
    context_tokens: Ints
    """[S] C: sum over the requests, before the step."""
    uniform: Bools
    """[S] whether every request was verified at full width."""
    draft_s: Floats
    """[S] the drafter's passes."""
    target_s: Floats
    """[S] plan, verify and commit."""
    gap_s: Floats
    """[S] since the end of the step before; NaN where anything but the loop ran between."""
    prefill_gap_s: Floats
    """[S] the same where prompts were prefilled between, and nothing else; NaN elsewhere. After an
    idle time since the first of them was formed, where that is known."""
    prefill_tokens: Ints
    """[S] new tokens of those prompts."""
    prefill_pairs: Floats
    """[S] their attended pairs: new * (cached + new / 2)."""
    prefill_batches: Ints
    """[S] prefill steps they took, 1 where nobody counted."""
    prefill_loops: Ints
    """[S] times that the loop's own time lies in the gap."""
    cached_unknown: Bools
    """[S] whether nobody says how much of those prompts was cached."""


@dataclass(frozen=True, kw_only=True)
class CostFit:
    """What came out of a fit beside the model."""

    model: CostModel
    steps: int
    """Decode steps fitted."""
    mean_factor: float
    """What the whole step was raised by so that the parts, fitted one by one, add up to it."""
    uniform_over_ragged: float | None
    """Measured over fitted time of uniform steps, over the same of ragged ones: 1 when the shape
    itself costs nothing. None without either."""
    prefill: PrefillFit | None
    """How sure the prices of a prefill are; None where the log shows too few."""
    not_identified: tuple[str, ...]
    """What the log cannot tell, and what to record instead."""


def _knots(sizes: Ints) -> Floats:
    """1, 2, 4, ... up to the largest size, kept where the steps on both sides are many."""
    most = int(sizes.max())
    powers = [2**i for i in range(most.bit_length()) if 2**i < most]
    kept = [1]
    for power in powers[1:]:
        inside = (sizes > kept[-1]) & (sizes <= power)
        if inside.sum() >= _LEAST and (sizes > power).sum() >= _LEAST:
            kept.append(power)
    if most > kept[-1]:
        kept.append(most)
    return np.array(kept, dtype=np.float64)


def _mean_factor(measured: Floats, fitted: Floats) -> float:
    """The factor that makes the fitted times add up to the measured ones, pauses left out."""
    ratio = measured / fitted
    kept = ratio <= np.percentile(ratio, WINSOR)
    return float(measured[kept].sum() / fitted[kept].sum())


def _positive(values: Floats) -> tuple[float, ...]:
    return tuple(round(float(v), 9) for v in np.maximum.accumulate(values))


def fit_cost(times: StepTimes, *, gamma: int, name: str, provenance: Provenance) -> CostFit:
    """The additive cost model of a log. ``ValueError`` below 30 usable steps.

    ``provenance`` is written into the model as it is.
    """
    lost: list[str] = []
    plain = np.isfinite(times.gap_s)
    if plain.sum() < _LEAST:
        raise ValueError(
            f"{int(plain.sum())} decode steps follow another without a prefill between; a cost "
            f"model needs {_LEAST}: record longer"
        )
    host_s, gap_slope_s = _fit_gap(times, plain)
    target = _fit_target(times, plain, lost)
    draft = _fit_draft(times, gamma, lost)
    requests = times.requests.astype(np.float64)
    fitted = target.at(requests, times) + host_s + gap_slope_s * (requests - 1.0)
    fitted = fitted + (draft.at(times.drafted) if draft else 0.0)
    measured = times.draft_s + times.target_s + times.gap_s
    factor = _mean_factor(measured[plain], fitted[plain])
    gaps = _gaps(times, factor * host_s, factor * gap_slope_s)
    prefill = fit_prefill(gaps)
    lost += prefill.not_identified if prefill else ()
    ratio = measured[plain] / (factor * fitted[plain])
    reference = round(float(times.context_tokens.sum() / times.requests.sum()))
    alpha_s = target.alpha_s + gap_slope_s * (target.request_knots - 1.0)
    context_s = target.context_s * factor
    # The reference context is inside the curves: C - R * reference is what the model adds.
    alpha_s = alpha_s + target.context_s * reference * (target.request_knots - 1.0)
    bias_s = target.bias_s + target.context_s * reference
    longest = int((times.context_tokens / times.requests).max())
    model = CostModel(
        schema_version=SCHEMA_VERSION,
        name=name,
        kind="additive",
        provenance=provenance,
        valid_range=ValidRange(
            tokens=(int(times.tokens[plain].min()), int(times.tokens[plain].max())),
            requests=(int(times.requests[plain].min()), int(times.requests[plain].max())),
            context_tokens=(0, longest),
        ),
        fit_error=_fit_error(times, plain, measured, factor * fitted),
        additive=AdditiveCost(
            bias_s=max(round(bias_s * factor, 9), 1e-9),
            requests=tuple(int(k) for k in target.request_knots),
            alpha_s=_positive(alpha_s * factor),
            tokens=tuple(int(k) for k in target.token_knots),
            theta_s=_positive(target.theta_s * factor),
            origin="measured",
            note="plan, verify, commit and the part of the gap that grows with the requests",
        ),
        draft=draft.cost(gamma, factor) if draft else None,
        prefill=prefill.cost() if prefill else _as_verified(target, gaps, lost),
        host=HostCost(
            step_s=round(host_s * factor, 9),
            origin="measured",
            note="between steps: results processed, next batch formed, at one request",
        ),
        graphs=GraphTiers(
            tiers_tokens=(), beyond_last_s=0.0, origin="measured", note="steps as they were"
        ),
        ragged=RaggedCost(
            step_s=round(target.ragged_s * factor, 9),
            origin="measured",
            note="beyond uniform steps of as many tokens in the same log",
        )
        if target.ragged_s > 0
        else None,
        context=ContextCost(
            token_s=round(context_s, 12), reference_tokens=reference, origin="measured"
        )
        if context_s > 0
        else None,
    )
    return CostFit(
        model=model,
        steps=int(plain.sum()),
        mean_factor=factor,
        uniform_over_ragged=_shape_ratio(times.uniform[plain], ratio),
        prefill=prefill,
        not_identified=tuple(lost),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Target:
    bias_s: float
    request_knots: Floats
    alpha_s: Floats
    token_knots: Floats
    theta_s: Floats
    context_s: float
    ragged_s: float

    def at(self, requests: Floats, times: StepTimes) -> Floats:
        """Seconds of every step; contexts beyond the least a request can have are priced apart."""
        return (
            self.bias_s
            + _curve(requests, self.request_knots, self.alpha_s)
            + _curve(times.tokens.astype(np.float64), self.token_knots, self.theta_s)
            + self.context_s * times.context_tokens
            + self.ragged_s * ~times.uniform
        )


def _curve(sizes: Floats, knots: Floats, seconds: Floats) -> Floats:
    """The piecewise linear curve through ``seconds`` at the knots."""
    if len(knots) == 1:
        return np.full(sizes.shape, seconds[0])
    values: Floats = seconds[0] + hinges(sizes, knots) @ np.diff(seconds)
    return values


def _fit_gap(times: StepTimes, plain: Bools) -> tuple[float, float]:
    """(seconds at one request, seconds for each further one) of the loop between steps."""
    more = (times.requests[plain] - 1).astype(np.float64)
    gap_s = np.maximum(times.gap_s[plain], 0.0)
    parts = fit_parts(gap_s, curves=(), slopes=(more,), loss=mean_rises)
    return parts.bias_s, parts.slopes_s[0]


def _fit_target(times: StepTimes, plain: Bools, lost: list[str]) -> _Target:
    requests, tokens = times.requests[plain], times.tokens[plain]
    request_knots, token_knots = _knots(requests), _knots(tokens)
    many = requests.astype(np.float64)
    ragged = ~times.uniform[plain]
    shapes = (ragged.astype(np.float64),) if _both(times.uniform[plain]) else ()
    parts = fit_parts(
        times.target_s[plain],
        curves=((many, request_knots), (tokens.astype(np.float64), token_knots)),
        slopes=(times.context_tokens[plain].astype(np.float64), *shapes),
        loss=mean_rises,
    )
    others = np.concatenate((np.ones((len(requests), 1)), hinges(many, request_knots)), axis=1)
    unexplained = tokens - others @ np.linalg.lstsq(others, tokens, rcond=None)[0]
    if tokens.std() == 0 or unexplained.std() < 0.05 * tokens.std():
        lost.append(
            "requests and verified tokens always grew together, so that their costs cannot be "
            "told apart: record a policy that trims, or several fixed lengths"
        )
    if requests.max() == requests.min():
        lost.append(f"all steps had {requests.max()} requests: other batch sizes are extrapolated")
    return _Target(
        bias_s=parts.bias_s,
        request_knots=request_knots,
        alpha_s=from_zero(parts.rises_s[0]),
        token_knots=token_knots,
        theta_s=from_zero(parts.rises_s[1]),
        context_s=parts.slopes_s[0],
        ragged_s=parts.slopes_s[1] if shapes else 0.0,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Draft:
    knots: Floats
    seconds: Floats

    def at(self, drafted: Ints) -> Floats:
        """Seconds of every step; none where nobody was drafted for."""
        seconds = _curve(drafted.astype(np.float64), self.knots, self.seconds)
        return np.where(drafted > 0, seconds, 0.0)

    def cost(self, gamma: int, factor: float) -> DraftCost:
        """The block of the file."""
        return DraftCost(
            gamma=gamma,
            requests=tuple(int(k) for k in self.knots),
            seconds=_positive(np.maximum(self.seconds * factor, 1e-9)),
            between="linear",
            origin="measured",
        )


def _fit_draft(times: StepTimes, gamma: int, lost: list[str]) -> _Draft | None:
    drafting = (times.drafted > 0) & np.isfinite(times.gap_s)
    if drafting.sum() < _LEAST:
        lost.append("no steps drafted: the drafter's time is unknown and taken for nothing")
        return None
    drafted = times.drafted[drafting]
    knots = _knots(drafted)
    parts = fit_parts(
        times.draft_s[drafting], curves=((drafted.astype(np.float64), knots),), loss=mean_rises
    )
    return _Draft(knots=knots, seconds=np.cumsum([parts.bias_s, *parts.rises_s[0]]))


def _gaps(times: StepTimes, host_s: float, gap_slope_s: float) -> Gaps:
    """What gaps with prefills hold beyond the loop's own time; each batch has a loop of its own."""
    use = np.isfinite(times.prefill_gap_s)
    known = use & ~times.cached_unknown
    if known.sum() >= LEAST_GAPS:  # the others would tell less, and wrongly
        use = known
    loop_s = host_s * times.prefill_loops[use] + gap_slope_s * (times.requests[use] - 1.0)
    return Gaps(
        seconds=times.prefill_gap_s[use] - loop_s,
        tokens=times.prefill_tokens[use],
        pairs=times.prefill_pairs[use],
        steps=times.prefill_batches[use],
        cached_unknown=int(times.cached_unknown[use].sum()),
    )


def _as_verified(target: _Target, gaps: Gaps, lost: list[str]) -> PrefillCost:
    """A price for logs that show no prefills."""
    lost.append(
        f"{int((gaps.seconds > 0).sum())} prefills ran between two decode steps, too few: prompts "
        "are priced as verified tokens"
    )
    return PrefillCost(
        base_s=round(target.bias_s, 9),
        token_s=max(round(float(target.theta_s[-1] / target.token_knots[-1]), 12), 1e-12),
        pair_s=0.0,
        origin="measured",
        note="not measured: as a forward of verified tokens",
    )


def _fit_error(times: StepTimes, plain: Bools, measured: Floats, fitted: Floats) -> FitError:
    """Errors of the mean times of cells of equal requests and tokens."""
    cell = times.requests[plain] * (int(times.tokens.max()) + 1) + times.tokens[plain]
    _, which, count = np.unique(cell, return_inverse=True, return_counts=True)
    mean_s = np.bincount(which, measured[plain]) / count
    model_s = np.bincount(which, fitted[plain]) / count
    big = count >= _CELL
    if not big.any():
        big = count == count.max()
    error = np.abs(model_s[big] - mean_s[big]) / mean_s[big]
    return FitError(
        median_rel=round(float(np.median(error)), 6),
        max_rel=round(float(error.max()), 6),
        note=f"mean step times of {int(big.sum())} cells of equal requests and tokens with at "
        f"least {_CELL} of the {int(plain.sum())} steps; single steps vary more",
    )


def _both(uniform: Bools) -> bool:
    """Whether both shapes are there often enough to be told apart."""
    return bool(min(uniform.sum(), (~uniform).sum()) >= _LEAST)


def _shape_ratio(uniform: Bools, ratio: Floats) -> float | None:
    if not _both(uniform):
        return None
    return float(np.median(ratio[uniform]) / np.median(ratio[~uniform]))
