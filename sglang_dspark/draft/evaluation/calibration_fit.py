"""Fit calibrations of confidence logits to recorded rounds, and judge them on rounds held out.

Owns the two fits. Sequential Temperature Scaling (paper 3.2.1): position by position, the T_k of a
grid that makes the ECE of the cumulative product smallest, earlier positions held. Temperature and
bias: per position, the logistic regression of "token k accepted" on z_k over rounds whose prefix
survived, by log-loss. A temperature can only move confidences towards or away from 1/2; a bias
repairs what it cannot. Knows no file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.draft.evaluation.reliability import Reliability, ece, reliability, survival_of
from sglang_dspark.logs.rounds import Floats, Mask, Rounds

METHODS = ("sts", "bias")

GRID: Floats = np.geomspace(0.1, 10.0, 401)
"""Temperatures tried by STS; 1 is the middle one."""

LEAST_ROUNDS = 30
"""Positions reached by fewer rounds keep T = 1 and no bias."""

_RESAMPLES = 200


def split_rounds(rounds: Rounds, held_out: float, seed: int) -> tuple[Rounds, Rounds]:
    """(to fit on, held out): whole requests, since rounds of one request resemble each other."""
    if not 0 < held_out < 1:
        raise ValueError(f"held-out share {held_out} must be between 0 and 1")
    requests = np.unique(rounds.request)
    if len(requests) < 2:
        raise ValueError("all rounds are of one request; record at least two to hold one out")
    count = min(max(round(held_out * len(requests)), 1), len(requests) - 1)
    held = np.random.default_rng(seed).permutation(requests)[:count]
    mask = np.isin(rounds.request, held)
    return rounds.where(~mask), rounds.where(mask)


def fit_temperatures(rounds: Rounds) -> Floats:
    """STS: [K] temperatures from ``GRID``; the nearest to 1 where several do equally well."""
    happened = rounds.survived.astype(np.float64)
    before = np.ones(len(rounds))
    by_distance = GRID[np.argsort(np.abs(np.log(GRID)), kind="stable")]
    found = np.ones(rounds.gamma)
    for k in range(rounds.gamma):
        logit = rounds.logits[:, k]
        if k and happened[:, k - 1].sum() < LEAST_ROUNDS:
            break
        errors = [ece(before * expit(logit / t), happened[:, k]) for t in by_distance]
        found[k] = by_distance[int(np.argmin(errors))]
        before = before * expit(logit / found[k])
    return found


def fit_temperature_and_bias(rounds: Rounds) -> tuple[Floats, Floats]:
    """(T, b), [K] each, by log-loss of the conditional acceptance; T within ``GRID``'s ends."""
    temperatures, biases = np.ones(rounds.gamma), np.zeros(rounds.gamma)
    for k in range(rounds.gamma):
        reached = rounds.accepted >= k
        logit = rounds.logits[reached, k]
        accepted = rounds.accepted[reached] > k
        if len(logit) < LEAST_ROUNDS or accepted.all() or not accepted.any():
            continue

        def loss(
            x: Floats, logit: Floats = logit, accepted: Mask = accepted
        ) -> tuple[float, Floats]:
            score = x[0] * logit + x[1]
            miss = expit(score) - accepted
            value = np.logaddexp(0.0, np.where(accepted, -score, score)).mean()
            return float(value), np.array([(miss * logit).mean(), miss.mean()])

        best = minimize(
            loss,
            np.array([1.0, 0.0]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(1 / GRID[-1], 1 / GRID[0]), (-20.0, 20.0)],
        )
        temperatures[k], biases[k] = 1 / best.x[0], best.x[1]
    return temperatures, biases


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One method's calibration, judged on held-out rounds."""

    method: str
    """One of ``METHODS``."""
    calibration: Calibration
    before: Reliability
    """Of raw confidences, held-out rounds."""
    after: Reliability
    """Of calibrated ones, the same rounds."""
    gain: float
    """Mean ECE before over mean ECE after."""
    gain_error: float
    """Its standard error, over resampled held-out requests."""


def _mean_ece(predicted: Floats, happened: Floats, weights: Floats) -> float:
    columns = range(predicted.shape[1])
    return float(np.mean([ece(predicted[:, k], happened[:, k], weights) for k in columns]))


def _gain(held: Rounds, raw: Floats, calibrated: Floats, seed: int) -> tuple[float, float]:
    happened = held.survived.astype(np.float64)
    codes = np.unique(held.request, return_inverse=True)[1]
    count, rng = int(codes.max()) + 1, np.random.default_rng(seed)
    one = np.ones(len(held))
    value = _mean_ece(raw, happened, one) / _mean_ece(calibrated, happened, one)
    again = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        weights = rng.multinomial(count, np.full(count, 1 / count))[codes].astype(np.float64)
        before = _mean_ece(raw, happened, weights)
        again[i] = before / _mean_ece(calibrated, happened, weights)
    return value, float(again.std())


def fit(rounds: Rounds, method: str, *, held_out: float = 0.3, seed: int = 0) -> Fit:
    """Fit ``method`` on part of the rounds of one decode temperature; judge it on the rest."""
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; there are {', '.join(METHODS)}")
    train, held = split_rounds(rounds, held_out, seed)
    if len(train) < LEAST_ROUNDS:
        raise ValueError(
            f"{len(train)} rounds to fit on are too few; record {LEAST_ROUNDS} or more"
        )
    if method == "sts":
        temperatures, biases = fit_temperatures(train), np.zeros(rounds.gamma)
    else:
        temperatures, biases = fit_temperature_and_bias(train)
    raw = survival_of(held.logits)
    calibrated = survival_of(held.logits, temperatures, biases)
    before = reliability(raw, held.survived, seed)
    after = reliability(calibrated, held.survived, seed)
    gain, gain_error = _gain(held, raw, calibrated, seed)
    known = rounds.temperature[~np.isnan(rounds.temperature)]
    return Fit(
        method=method,
        calibration=Calibration(
            temperatures=tuple(round(float(t), 6) for t in temperatures),
            biases=tuple(round(float(b), 6) for b in biases) if method == "bias" else (),
            decode_temperature=float(known[0]) if len(known) else None,
            dataset=",".join(rounds.domains()),
            num_samples=len(train),
            ece_before=tuple(round(float(e), 6) for e in before.ece),
            ece_after=tuple(round(float(e), 6) for e in after.ece),
        ),
        before=before,
        after=after,
        gain=gain,
        gain_error=gain_error,
    )
