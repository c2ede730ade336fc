"""What a confidence head makes of the true acceptance process, by quadrature.

Owns AUC and ECE of the prefix survival a_k (the product of the first k confidences) against the
prefix mask, raw and after sequential temperature scaling, and the threshold sweep. Knows no
published figure and no file. Rounds are weighed as in ``quadrature``; given a round's
context the positions are independent, so the law of log a_k is a convolution on a grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, ndtr

from simulator.acceptance.published.quadrature import (
    LUCK_NODES,
    REACH,
    FloatArray,
    Truth,
    context_law,
    normal_nodes,
)

_LOGIT_CELLS = 240
_GRID_CELLS = 1024
_GRID_STEP = 0.01  # of -log a: 1024 cells reach down to a = 4e-5
_ECE_BINS = 20
_CUT_NODES = 40


@dataclass(frozen=True, kw_only=True)
class Belief:
    """What the confidence head sees of the truth, [K] each: z = bias + scale (eta + noise N)."""

    bias: FloatArray
    scale: FloatArray
    noise: FloatArray


def _seen(
    truth: Truth, belief: Belief, context: FloatArray, k: int, unit: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Raw logits that lie ``unit`` [nodes, n] deviations from their mean; P(accepted | them)."""
    sd = np.hypot(truth.token_sd, belief.noise[k])
    mean = truth.mean_logit[k] + context[:, None]
    # The true logit given what is seen of it: a normal, shrunk towards its mean.
    known = truth.token_sd**2 / sd**2 if sd > 0 else 0.0
    luck, luck_weights = normal_nodes(LUCK_NODES)
    left = truth.token_sd * np.sqrt(max(0.0, 1.0 - known))
    accept = expit((mean + known * sd * unit)[..., None] + left * luck) @ luck_weights
    return belief.bias[k] + belief.scale[k] * (mean + sd * unit), accept


def _position_law(
    truth: Truth, belief: Belief, context: FloatArray, k: int, temperature: float
) -> tuple[FloatArray, FloatArray]:
    """[nodes, grid] laws of -log c_k: of all rounds, and of those that accept token k."""
    unit = np.linspace(-REACH, REACH, _LOGIT_CELLS + 1)
    middle = np.broadcast_to(0.5 * (unit[1:] + unit[:-1]), (len(context), _LOGIT_CELLS))
    mass = np.diff(ndtr(unit))
    mass /= mass.sum()
    seen, accept = _seen(truth, belief, context, k, middle)
    place = -log_expit(seen / temperature) / _GRID_STEP
    place = np.minimum(place, _GRID_CELLS - 1.001)
    cell = place.astype(np.int64)
    upper = place - cell
    law = np.zeros((2, len(context), _GRID_CELLS))
    rows = np.arange(len(context))[:, None]
    for i, weight in enumerate((np.broadcast_to(mass, place.shape), mass * accept)):
        np.add.at(law[i], (rows, cell), weight * (1.0 - upper))
        np.add.at(law[i], (rows, cell + 1), weight * upper)
    return law[0], law[1]


def _convolve(one: FloatArray, other: FloatArray) -> FloatArray:
    """Laws of sums on the grid, row by row; what leaves it stays in its last cell."""
    size = 2 * _GRID_CELLS
    product = np.fft.irfft(np.fft.rfft(one, size) * np.fft.rfft(other, size), size)
    product = np.maximum(product, 0.0)
    kept = product[:, :_GRID_CELLS].copy()
    kept[:, -1] += product[:, _GRID_CELLS:].sum(axis=1)
    return kept


def _auc_ece(all_rounds: FloatArray, survivors: FloatArray) -> tuple[float, float]:
    """AUC and 20-bin ECE of a_k against the prefix mask, from the two laws of -log a_k."""
    lost = all_rounds - survivors
    # Cells run from sure to hopeless: a survivor wins against every loser in a later cell.
    later = lost.sum() - np.cumsum(lost)
    auc = float((survivors * (later + 0.5 * lost)).sum() / (survivors.sum() * lost.sum()))
    predicted = np.exp(-_GRID_STEP * np.arange(_GRID_CELLS))
    bins = np.minimum((predicted * _ECE_BINS).astype(np.int64), _ECE_BINS - 1)
    gap = np.bincount(bins, survivors - all_rounds * predicted, minlength=_ECE_BINS)
    return auc, float(np.abs(gap).sum())


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How well a_k ranks and predicts prefix survival, [K] each."""

    auc: FloatArray
    """Area under the ROC curve."""
    ece: FloatArray
    """Expected calibration error over 20 equal bins, 0..1."""
    temperature: FloatArray
    """Temperatures that the confidences were divided by."""


class CalibrationChain:
    """Laws of a_1, a_2, ... built position by position, so that a fit can stop at any of them."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.context, self.weights = context_law(truth)
        start = np.zeros((len(self.context), _GRID_CELLS))
        start[:, 0] = 1.0
        self._laws = (start, start)

    def look(self, belief: Belief, k: int, temperature: float = 1.0) -> tuple[float, float]:
        """(AUC, ECE) of a_k with ``temperature`` at position k; the chain stays at k - 1."""
        laws = self._next(belief, k, temperature)
        return _auc_ece(self.weights @ laws[0], self.weights @ laws[1])

    def advance(self, belief: Belief, k: int, temperature: float = 1.0) -> None:
        """Fix position k."""
        self._laws = self._next(belief, k, temperature)

    def _next(self, belief: Belief, k: int, temperature: float) -> tuple[FloatArray, FloatArray]:
        law = _position_law(self.truth, belief, self.context, k, temperature)
        return _convolve(self._laws[0], law[0]), _convolve(self._laws[1], law[1])


def raw_calibration(truth: Truth, belief: Belief) -> Calibration:
    """AUC and ECE of the raw confidences."""
    return _calibrate(truth, belief, scaled=False)


def sequential_temperatures(truth: Truth, belief: Belief) -> Calibration:
    """What sequential temperature scaling reaches: position by position, the temperature that
    makes the ECE of a_k smallest, those before it held (paper 3.2.1)."""
    return _calibrate(truth, belief, scaled=True)


def _calibrate(truth: Truth, belief: Belief, *, scaled: bool) -> Calibration:
    chain = CalibrationChain(truth)
    found = []
    for k in range(len(truth.mean_logit)):
        temperature = _least_ece(chain, belief, k) if scaled else 1.0
        found.append((*chain.look(belief, k, temperature), temperature))
        chain.advance(belief, k, temperature)
    auc, ece, temperatures = np.array(found).T
    return Calibration(auc=auc, ece=ece, temperature=temperatures)


def _least_ece(chain: CalibrationChain, belief: Belief, k: int) -> float:
    best = minimize_scalar(
        lambda log_t: chain.look(belief, k, float(np.exp(log_t)))[1],
        bounds=(np.log(0.3), np.log(4.0)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(best.x))


def threshold_round(truth: Truth, belief: Belief, threshold: float) -> tuple[float, float]:
    """(tokens committed, tokens verified) per round, bonus and anchor counted, when verification
    stops before the first raw confidence below ``threshold`` (paper 4.3.3)."""
    context, _ = context_law(truth)
    cut = np.log(threshold / (1.0 - threshold)) if threshold > 0 else -np.inf
    node, node_weight = np.polynomial.legendre.leggauss(_CUT_NODES)
    whole = np.sqrt(2 * np.pi) * (ndtr(REACH) - ndtr(-REACH))
    admit, commit = [], []
    for k in range(len(truth.mean_logit)):
        # How many standard deviations above its mean a logit must lie to pass the threshold.
        sd = max(np.hypot(truth.token_sd, belief.noise[k]), 1e-9)
        needed = (cut - belief.bias[k]) / belief.scale[k] - truth.mean_logit[k] - context
        start = np.clip(needed / sd, -REACH, REACH)
        half = 0.5 * (REACH - start)
        unit = start[:, None] + half[:, None] * (1.0 + node)
        density = half[:, None] * node_weight * np.exp(-0.5 * unit**2) / whole
        _, accept = _seen(truth, belief, context, k, unit)
        admit.append(density.sum(axis=1))
        commit.append((density * accept).sum(axis=1))
    committed = 1.0 + np.cumprod(commit, axis=0).sum(axis=0)
    verified = 1.0 + np.cumprod(admit, axis=0).sum(axis=0)
    _, weights = context_law(truth, committed)
    return float(committed @ weights), float(verified @ weights)
