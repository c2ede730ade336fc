"""What recorded rounds say of a drafter: acceptance by position, and how far to trust confidences.

Owns the definitions and their standard errors. Rounds of one request resemble each other, so every
standard error takes the request as the unit (ratio estimate over clusters). Knows no model.

- prefix survival at k: share of rounds whose first k draft tokens were all accepted (DeepSpec calls
  it accept_rate@k); conditional acceptance at k: survival at k over survival at k - 1.
- accepted length: tokens committed per round, the bonus token counted.
- ECE, AUC and Brier compare the product of the first k confidences with the prefix mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import rankdata

from sglang_dspark.logs.rounds import Floats, Ints, Rounds

ECE_BINS = 20
_FLOOR_DRAWS = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A figure with its standard error; both the same shape."""

    value: Floats
    error: Floats
    """NaN where one request is all there is."""


def ratio(*, above: Floats, below: Floats, cluster: Ints) -> Estimate:
    """sum(above) / sum(below) along axis 0, with the clusters' standard error.

    ``above`` and ``below`` are [N] or [N, K]; rows of one ``cluster`` [N] are not independent.
    """
    codes = np.unique(cluster, return_inverse=True)[1]
    count = int(codes.max()) + 1 if len(codes) else 0
    over = np.zeros((count, *above.shape[1:]))
    under = np.zeros((count, *below.shape[1:]))
    np.add.at(over, codes, above)
    np.add.at(under, codes, below)
    total = under.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = over.sum(axis=0) / total
        spread = ((over - value * under) ** 2).sum(axis=0)
        scale = count / (count - 1) if count > 1 else np.nan
        error = np.sqrt(scale * spread) / total
    return Estimate(value=value, error=error)


@dataclass(frozen=True, kw_only=True, eq=False)
class Acceptance:
    """How much of its drafts a drafter gets accepted."""

    rounds: int
    requests: int
    length: Estimate
    """Tokens committed per round, bonus counted."""
    survival: Estimate
    """[K]"""
    conditional: Estimate
    """[K]"""


def acceptance(rounds: Rounds) -> Acceptance:
    """The three figures over all rounds given."""
    mask = rounds.survived.astype(np.float64)
    before = np.concatenate([np.ones((len(rounds), 1)), mask[:, :-1]], axis=1)
    one = np.ones(len(rounds))
    cluster = rounds.request
    return Acceptance(
        rounds=len(rounds),
        requests=len(np.unique(cluster)),
        length=ratio(above=one + rounds.accepted, below=one, cluster=cluster),
        survival=ratio(above=mask, below=np.ones_like(mask), cluster=cluster),
        conditional=ratio(above=mask, below=before, cluster=cluster),
    )


def survival_of(
    logits: Floats, temperatures: npt.ArrayLike = 1.0, biases: npt.ArrayLike = 0.0
) -> Floats:
    """[N, K] predicted prefix survival: products of sigmoid(z_k / T_k + b_k)."""
    confidence = expit(logits / np.asarray(temperatures) + np.asarray(biases))
    survival: Floats = confidence.cumprod(axis=1)
    return survival


def _bins(predicted: Floats) -> Ints:
    bins: Ints = np.minimum((predicted * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    return bins


def ece(predicted: Floats, happened: Floats, weights: Floats | None = None) -> float:
    """Expected calibration error over 20 equal bins of ``predicted`` [N]; a fraction."""
    weights = np.ones(len(predicted)) if weights is None else weights
    gap = np.bincount(_bins(predicted), weights * (happened - predicted), minlength=ECE_BINS)
    return float(np.abs(gap).sum() / weights.sum())


def ece_floor(predicted: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """(mean, 95th percentile) of the ECE that perfect confidences show by chance alone.

    Outcomes are drawn from the predictions themselves, as many as were recorded.
    """
    bins, drawn = _bins(predicted), np.empty(_FLOOR_DRAWS)
    for i in range(_FLOOR_DRAWS):
        gap = (rng.random(len(predicted)) < predicted) - predicted
        drawn[i] = np.abs(np.bincount(bins, gap, minlength=ECE_BINS)).sum() / len(predicted)
    return float(drawn.mean()), float(np.quantile(drawn, 0.95))


def auc(predicted: Floats, happened: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve, ties counted half; NaN when all outcomes agree."""
    wins = int(happened.sum())
    losses = len(happened) - wins
    if not wins or not losses:
        return float("nan")
    ranks = rankdata(predicted)
    return float((ranks[happened].sum() - wins * (wins + 1) / 2) / (wins * losses))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """How good predicted prefix survivals are; [K] each, fractions."""

    auc: Floats
    ece: Floats
    ece_floor: Floats
    """What perfect confidences would show on average with as many rounds."""
    ece_floor_95: Floats
    """What they would exceed one time in twenty."""
    brier: Floats
    """Mean squared error."""
    brier_floor: Floats
    """The mean squared error if every prediction were exactly right: mean of a (1 - a)."""

    @property
    def at_floor(self) -> bool:
        """Whether the mean ECE is no worse than perfect confidences' own noise."""
        return bool(self.ece.mean() <= self.ece_floor_95.mean())


def reliability(predicted: Floats, survived: npt.NDArray[np.bool_], seed: int = 0) -> Reliability:
    """Per position, of predicted survivals [N, K] against the prefix mask [N, K]."""
    rng = np.random.default_rng(seed)
    columns = range(predicted.shape[1])
    happened = survived.astype(np.float64)
    floors = np.array([ece_floor(predicted[:, k], rng) for k in columns])
    return Reliability(
        auc=np.array([auc(predicted[:, k], survived[:, k]) for k in columns]),
        ece=np.array([ece(predicted[:, k], happened[:, k]) for k in columns]),
        ece_floor=floors[:, 0],
        ece_floor_95=floors[:, 1],
        brier=((predicted - happened) ** 2).mean(axis=0),
        brier_floor=(predicted * (1 - predicted)).mean(axis=0),
    )


def reliability_curve(predicted: Floats, happened: Floats) -> tuple[Floats, Floats, Ints]:
    """(mean prediction, share that happened, count) of each of the 20 bins; NaN where empty."""
    bins = _bins(predicted)
    count = np.bincount(bins, minlength=ECE_BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bins, predicted, minlength=ECE_BINS) / count
        share = np.bincount(bins, happened, minlength=ECE_BINS) / count
    return mean, share, count


@dataclass(frozen=True, kw_only=True, eq=False)
class ThresholdSweep:
    """What verifying up to the first confidence below a threshold does (paper 4.3.3)."""

    thresholds: Floats
    committed: Floats
    """Tokens committed per round, bonus counted."""
    verified: Floats
    """Tokens verified per round, anchor counted."""

    @property
    def rate(self) -> Floats:
        """Committed over verified tokens: the paper's acceptance rate."""
        return self.committed / self.verified


def threshold_sweep(rounds: Rounds, thresholds: Floats) -> ThresholdSweep:
    """Replayed on the log: the threshold looks only at confidences, so it changes no outcome."""
    confidence = expit(rounds.logits)
    committed, verified = [], []
    for threshold in thresholds:
        lengths = (confidence >= threshold).cumprod(axis=1).sum(axis=1)
        committed.append(1.0 + np.minimum(lengths, rounds.accepted).mean())
        verified.append(1.0 + lengths.mean())
    return ThresholdSweep(
        thresholds=np.asarray(thresholds),
        committed=np.array(committed),
        verified=np.array(verified),
    )
