"""What a drafter would have had accepted, from rounds that a policy cut short.

A round verified to length l shows its accepted run only up to l, and l was chosen from the
confidences: rounds that look good are verified further, so the plain share of accepted tokens among
the verified ones flatters every position. But the logits of **all** drafted positions are logged,
verified or not, and they are what the policy chose by. Hence the correction:

1. P(token k accepted | prefix accepted, logits) is fitted on the rounds verified to k or beyond
   whose prefix was accepted: given the logits, being verified says nothing more.
2. It is integrated over the logits of all rounds; beyond a round's length its survival is the
   product of those probabilities.

The model is a logistic regression, one for all positions with an intercept and a slope of each
position's own shrunk towards the common ones. It sees the position's logit (bent at three knots),
the survival before it, the round's later logits and the mean logit of the request's rounds: the
paths by which a budget from stale confidences can pick rounds.

It fails where a position is never verified (``identified``) and extrapolates where only other
logits were (``extrapolated``). Both say what an exploration share would have to show.

Shapes: N rounds, K draft positions, P parameters. Knows no file and no clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, log_expit

from sglang_dspark.core.compiled import compiled
from simulator.rng import round_key, uniform, word

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LEAST_ROUNDS = 100
"""Rounds that must have been verified to a position, prefix accepted, to say it is identified."""

_SUPPORT = (1.0, 99.0)
"""Percentiles of the verified rounds' score between which a position counts as seen."""
_KNOTS = (15.0, 50.0, 85.0)
_RIDGE_COMMON = 1e-3
_RIDGE_OWN = 4.0
_NEWTON_STEPS = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class CensoredRounds:
    """Logged rounds in any order; rows with nothing drafted are left out by whoever reads them."""

    request: Ints
    """[N] number of the request."""
    step: Ints
    """[N] number of the round within its request."""
    domain: Ints
    """[N] code of the request's domain; all 0 when unknown."""
    logits: Floats
    """[N, K] raw confidence logits of all drafted positions, finite."""
    verified: Ints
    """[N] draft tokens that the target saw."""
    accepted: Ints
    """[N] of them accepted, in order."""

    def __post_init__(self) -> None:
        rounds, gamma = self.logits.shape
        for name in ("request", "step", "domain", "verified", "accepted"):
            if getattr(self, name).shape != (rounds,):
                raise ValueError(f"{name} must have one entry for each of {rounds} rounds")
        if not np.isfinite(self.logits).all():
            raise ValueError("a logit is not finite; leave out rounds with nothing drafted")
        if ((self.accepted < 0) | (self.accepted > self.verified)).any():
            raise ValueError("a round has more tokens accepted than verified; mend the log")
        if (self.verified > gamma).any():
            raise ValueError(f"a round is verified beyond its {gamma} drafted tokens; mend the log")

    @property
    def gamma(self) -> int:
        """K."""
        return int(self.logits.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class CensoredFit:
    """The corrected acceptance of a set of rounds; [K] unless said otherwise."""

    conditional: Floats
    """Probability that token k is accepted given its prefix was, over all rounds."""
    standard_error: Floats
    """Of ``conditional``: requests resampled, model refitted."""
    plain: Floats
    """The flattering ratio among the verified rounds; NaN where none was verified."""
    shown: Ints
    """Rounds that show position k: verified to it, prefix accepted."""
    identified: Bools
    """Whether those are enough; elsewhere the model goes on as at the other positions."""
    extrapolated: Floats
    """Share of the rounds that reach position k but whose logits none of those shown had."""
    probability: Floats
    """[N, K] fitted P(token k accepted | prefix accepted), every round."""

    def runs(self, rounds: CensoredRounds, *, seed: int) -> Ints:
        """[N] accepted tokens out of the whole block: as logged where the round shows it, else
        continued by the fitted probabilities with numbers keyed by (seed, request, step)."""
        runs = rounds.accepted.copy()
        cut = (runs == rounds.verified) & (runs < rounds.gamma)
        _continue_runs(seed, cut, rounds.request, rounds.step, self.probability, runs)
        return runs


@compiled
def _continue_runs(
    seed: int, cut_N: Bools, request_N: Ints, step_N: Ints, probability_NK: Floats, runs_N: Ints
) -> None:
    for n in range(cut_N.size):
        if cut_N[n]:
            key = round_key(seed, request_N[n], step_N[n])
            k = runs_N[n]
            while k < probability_NK.shape[1] and uniform(word(key, k)) < probability_NK[n, k]:
                k += 1
            runs_N[n] = k


def _features(rounds: CensoredRounds) -> Floats:
    """[N, K, P] what the probability of each position may depend on."""
    z = rounds.logits
    count, gamma = z.shape
    sure = log_expit(z)
    before = np.concatenate((np.zeros((count, 1)), np.cumsum(sure, axis=1)[:, :-1]), axis=1)
    tail = np.cumsum(z[:, ::-1], axis=1)[:, ::-1]
    later = np.where(
        np.arange(gamma) < gamma - 1,
        (tail - z) / np.maximum(gamma - 1 - np.arange(gamma), 1),
        z.mean(axis=1, keepdims=True),
    )
    _, owner = np.unique(rounds.request, return_inverse=True)
    own = (np.bincount(owner, z.mean(axis=1)) / np.bincount(owner))[owner]
    _, domain = np.unique(rounds.domain, return_inverse=True)
    common = [z, *(np.maximum(z - knot, 0.0) for knot in np.percentile(z, _KNOTS))]
    common += [before, later, np.broadcast_to(own[:, None], z.shape)]
    common += [
        np.broadcast_to((domain == code).astype(float)[:, None], z.shape)
        for code in range(1, int(domain.max()) + 1)
    ]
    stacked = np.stack(common, axis=2)
    flat = stacked.reshape(-1, stacked.shape[2])
    spread = np.where(flat.std(axis=0) > 1e-9, flat.std(axis=0), 1.0)
    scaled = (stacked - flat.mean(axis=0)) / spread
    at = np.broadcast_to(np.eye(gamma), (count, gamma, gamma))
    return np.concatenate((np.ones((count, gamma, 1)), scaled, at, at * scaled[:, :, :1]), axis=2)


def _ridge(columns: int, gamma: int) -> Floats:
    """[P] penalties: next to none on what positions share, some on what each has of its own."""
    penalty = np.full(columns, _RIDGE_COMMON)
    penalty[columns - 2 * gamma :] = _RIDGE_OWN
    return penalty


def _fit_logistic(
    x_NP: Floats, y_N: Floats, weight_N: Floats, penalty_P: Floats, start_P: Floats
) -> Floats:
    """Newton's method on the penalised likelihood, which is concave."""
    beta = start_P.copy()
    for _ in range(_NEWTON_STEPS):
        p = expit(x_NP @ beta)
        gradient = x_NP.T @ (weight_N * (y_N - p)) - penalty_P * beta
        curvature = (x_NP * (weight_N * np.maximum(p * (1 - p), 1e-6))[:, None]).T @ x_NP
        step = np.linalg.solve(curvature + np.diag(penalty_P), gradient)
        beta += np.clip(step, -4.0, 4.0)
        if np.abs(step).max() < 1e-7:
            break
    return beta


def _conditional(survival_NK: Floats, weight_N: Floats) -> Floats:
    """[K] ratios of the weighted survivors of neighbouring positions."""
    alive = weight_N @ survival_NK
    return alive / np.maximum(np.concatenate(([weight_N.sum()], alive[:-1])), 1e-300)


def _survival(rounds: CensoredRounds, probability_NK: Floats) -> Floats:
    """[N, K] probability that the run reaches k: 0 or 1 where shown, fitted beyond."""
    column = np.arange(1, rounds.gamma + 1)
    kept = rounds.accepted[:, None] >= column
    hidden = (rounds.accepted == rounds.verified)[:, None] & (column > rounds.verified[:, None])
    survival: Floats = np.cumprod(np.where(hidden, probability_NK, kept), axis=1, dtype=np.float64)
    return survival


def fit_censored(rounds: CensoredRounds, *, resamples: int = 40, seed: int = 0) -> CensoredFit:
    """Correct the rounds' censoring. ``ValueError`` when no round was verified at all."""
    gamma = rounds.gamma
    column = np.arange(1, gamma + 1)
    shown_NK = (rounds.verified[:, None] >= column) & (rounds.accepted[:, None] >= column - 1)
    kept_NK = rounds.accepted[:, None] >= column
    shown = shown_NK.sum(axis=0)
    if not shown[0]:
        raise ValueError("no round was verified at all; nothing says what would be accepted")
    features = _features(rounds)
    rows, where = np.nonzero(shown_NK)
    x, y = features[rows, where], kept_NK[rows, where].astype(float)
    penalty = _ridge(x.shape[1], gamma)
    flat = features.reshape(-1, x.shape[1])

    def estimate(weight_N: Floats, start: Floats) -> tuple[Floats, Floats, Floats]:
        beta = _fit_logistic(x, y, weight_N[rows], penalty, start)
        probability = expit(flat @ beta).reshape(-1, gamma)
        return beta, probability, _conditional(_survival(rounds, probability), weight_N)

    ones = np.ones(len(rounds.request))
    beta, probability, conditional = estimate(ones, np.zeros(x.shape[1]))
    _, owner = np.unique(rounds.request, return_inverse=True)
    rng = np.random.default_rng(seed)
    spread = [
        estimate(rng.poisson(1.0, int(owner.max()) + 1)[owner].astype(float), beta)[2]
        for _ in range(resamples)
    ]
    with np.errstate(invalid="ignore"):
        plain = (kept_NK & shown_NK).sum(axis=0) / np.where(shown, shown, np.nan)
    return CensoredFit(
        conditional=conditional,
        standard_error=np.std(spread, axis=0, ddof=1) if resamples > 1 else np.full(gamma, np.nan),
        plain=plain,
        shown=shown,
        identified=shown >= LEAST_ROUNDS,
        extrapolated=_extrapolated(rounds, shown_NK, probability),
        probability=probability,
    )


def _extrapolated(rounds: CensoredRounds, shown_NK: Bools, probability_NK: Floats) -> Floats:
    """Share of what reaches k whose fitted probability lies outside those of the rounds shown."""
    survival = _survival(rounds, probability_NK)
    reach = np.concatenate((np.ones((len(survival), 1)), survival[:, :-1]), axis=1)
    share = np.ones(rounds.gamma)
    for k in np.flatnonzero(shown_NK.any(axis=0)):
        low, high = np.percentile(probability_NK[shown_NK[:, k], k], _SUPPORT)
        outside = (probability_NK[:, k] < low) | (probability_NK[:, k] > high)
        # Of the rounds shown themselves 2 % lie outside by definition.
        share[k] = (reach[:, k] @ outside) / max(reach[:, k].sum(), 1e-300)
    return np.maximum(share - (100.0 - _SUPPORT[1] + _SUPPORT[0]) / 100.0, 0.0)
