"""Measured seconds -> the parts of an additive cost model, by non-negative least squares.

    seconds = bias + the sum of curves of sizes + the sum of slopes times sizes
A target's forward is bias + alpha(R) + theta(M) + context C, a block of drafting
bias + alpha(R) (+ context C). A curve is piecewise linear between its knots, 0 at the first and
never decreasing: its unknowns are the rises between knots, so that every solution is a valid
``AdditiveCost``.

Two losses: ``relative_rises`` takes every point at its word, for points that are medians already;
``mean_rises`` is for single steps of a server at work, among them pauses of the machine. Knows
neither server nor log: which knots there are and what the parts mean is the caller's affair.

Shapes: S points, P unknowns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

Floats = npt.NDArray[np.float64]
Loss: TypeAlias = Callable[[Floats, Floats], Floats]
"""(design [S, P], seconds [S]) -> non-negative coefficients [P]."""

LEAST_S = 1e-9
WINSOR = 99.5
"""Percentile of the measured over the robustly fitted time at which longer times are cut off:
pauses of the machine, which a model of the engine should not spread over every step."""

_HUBER = 1.345
"""In robust standard deviations: 95 % as efficient as least squares on clean data."""
_ROUNDS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """A solution, part by part."""

    bias_s: float
    rises_s: tuple[Floats, ...]
    """Of each curve: [knots - 1], what it rises by from knot to knot."""
    slopes_s: tuple[float, ...]
    fitted_s: Floats
    """[S]"""


def fit_parts(
    seconds: Floats,
    *,
    curves: Sequence[tuple[Floats, Floats]],
    slopes: Sequence[Floats] = (),
    loss: Loss,
) -> Parts:
    """The parts that fit ``seconds`` best; ``curves`` are (sizes [S], knots), ``slopes`` sizes."""
    blocks = [hinges(sizes, knots) for sizes, knots in curves]
    design = np.concatenate(
        (np.ones((len(seconds), 1)), *blocks, *(sizes[:, None] for sizes in slopes)), axis=1
    )
    found = loss(design, seconds)
    ends = np.cumsum([1, *(block.shape[1] for block in blocks)])
    return Parts(
        bias_s=float(found[0]),
        rises_s=tuple(np.split(found, ends)[1:-1]),
        slopes_s=tuple(found[ends[-1] :].tolist()),
        fitted_s=design @ found,
    )


def hinges(sizes: Floats, knots: Floats) -> Floats:
    """[S, knots - 1] how much of each rise between two knots a size has behind it; beyond the last
    knot the last segment goes on."""
    rises = np.diff(knots)
    steps: Floats = np.clip((sizes[:, None] - knots[:-1]) / rises, 0.0, 1.0)
    if len(rises):
        beyond = np.maximum(sizes - knots[-1], 0.0) / rises[-1]
        steps[:, -1] += beyond
    return steps


def from_zero(rises: Floats) -> Floats:
    """[knots] the curve's values."""
    return np.concatenate(([0.0], np.cumsum(rises)))


def relative_rises(design: Floats, seconds: Floats) -> Floats:
    """The coefficients with the least squares of relative errors."""
    x, scale = _scaled(design)
    return _solve(x, seconds, 1 / np.maximum(seconds, LEAST_S)) / scale


def rises_relative_to(whole: Floats) -> Loss:
    """As ``relative_rises``, of seconds that are a part of ``whole`` [S]: errors count by that."""

    def loss(design: Floats, seconds: Floats) -> Floats:
        x, scale = _scaled(design)
        return _solve(x, seconds, 1 / np.maximum(whole, LEAST_S)) / scale

    return loss


def relative_errors(fitted: Floats, seconds: Floats) -> Floats:
    """[S] what ``relative_rises`` makes small."""
    errors: Floats = np.abs(fitted - seconds) * (1 / np.maximum(seconds, LEAST_S))
    return errors


def mean_rises(design: Floats, seconds: Floats) -> Floats:
    """The coefficients of the mean time, pauses cut off; relative errors weigh alike.

    Errors of step times are one-sided: what disturbs a step makes it longer. Huber's loss finds the
    curves that such steps cannot bend; a replay however adds times up, so that the mean must be
    right. Hence a second fit, of the mean, to times cut off where the robust one calls them pauses.
    """
    weight = 1.0 / np.maximum(seconds, 0.2 * np.median(seconds))
    x, scale = _scaled(design)
    # Of two columns that the log cannot tell apart neither takes all.
    ridge = 1e-4 * np.sqrt(len(seconds)) / np.median(seconds)
    robust = np.ones_like(seconds)
    found = np.zeros(x.shape[1])
    for _ in range(_ROUNDS):
        before = found
        found = _solve(x, seconds, np.sqrt(robust) * weight, ridge)
        error = (seconds - x @ found) * weight
        spread = 1.4826 * np.median(np.abs(error - np.median(error)))
        far = np.abs(error) / max(_HUBER * spread, 1e-12)
        robust = 1.0 / np.maximum(far, 1.0)
        if np.allclose(found, before, rtol=1e-4, atol=1e-9):
            break
    fitted = np.maximum(x @ found, 1e-9)
    cut = np.minimum(seconds, fitted * np.percentile(seconds / fitted, WINSOR))
    # Weights must not look at the single times any more: those that came out long would count less.
    weight = 1.0 / np.maximum(fitted, 0.2 * np.median(fitted))
    ridge = 1e-4 * np.sqrt(len(cut)) / np.median(cut)
    return _solve(x, cut, weight, ridge) / scale


def _scaled(design: Floats) -> tuple[Floats, Floats]:
    """(columns of largest size 1, what they were divided by)."""
    scale = np.abs(design).max(axis=0)
    scale[scale == 0] = 1.0
    return design / scale, scale


def _solve(x: Floats, seconds: Floats, weight: Floats, ridge: float = 0.0) -> Floats:
    """Non-negative weighted least squares, with a penalty of ``ridge`` on each coefficient."""
    left, right = x * weight[:, None], seconds * weight
    if ridge:
        left = np.vstack((left, ridge * np.eye(x.shape[1])))
        right = np.concatenate((right, np.zeros(x.shape[1])))
    found, _ = nnls(left, right)
    return np.asarray(found)
