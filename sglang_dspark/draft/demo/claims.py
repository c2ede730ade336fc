"""The paper's claims next to what a laptop run measured, each with its standard error.

Owns the list of claims, how each is tested and what counts as reproduced. Reads logs; runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sglang_dspark.draft.evaluation.calibration_fit import Fit
from sglang_dspark.draft.evaluation.reliability import (
    Acceptance,
    acceptance,
    reliability,
    survival_of,
    threshold_sweep,
)
from sglang_dspark.logs.rounds import Rounds

ENOUGH = 3.0
"""Standard errors that a difference must exceed."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One line of the report."""

    says: str
    """What the paper claims."""
    paper: str
    """Its figures."""
    measured: str
    """Ours, with standard errors where there are any."""
    reproduced: bool


def _difference(one: Acceptance, other: Acceptance) -> tuple[float, float]:
    """(one - other, its standard error) of the accepted length."""
    gap = float(one.length.value - other.length.value)
    return gap, float(np.hypot(one.length.error, other.length.error))


def _longer(says: str, paper: str, one: Acceptance, other: Acceptance) -> Claim:
    gap, error = _difference(one, other)
    share = 100 * gap / float(other.length.value)
    return Claim(
        says=says,
        paper=paper,
        measured=f"{one.length.value:.3f} against {other.length.value:.3f}: {gap:+.3f} +- "
        f"{error:.3f} ({gap / error:.1f} se, {share:+.1f} %)",
        reproduced=gap > ENOUGH * error,
    )


def gap_slope(one: Acceptance, other: Acceptance) -> tuple[float, float]:
    """(slope, standard error) of the conditional acceptances' gap over position, weighted."""
    gap = one.conditional.value - other.conditional.value
    error = np.hypot(one.conditional.error, other.conditional.error)
    keep = np.isfinite(gap) & np.isfinite(error) & (error > 0)
    if keep.sum() < 2:
        return float("nan"), float("nan")
    weight, place = error[keep] ** -2, np.flatnonzero(keep).astype(np.float64)
    centred = place - (weight * place).sum() / weight.sum()
    spread = (weight * centred**2).sum()
    return float((weight * centred * gap[keep]).sum() / spread), float(spread**-0.5)


def _grows(one: Acceptance, other: Acceptance) -> Claim:
    slope, error = gap_slope(one, other)
    gap = one.conditional.value - other.conditional.value
    shown = " ".join(f"{value:+.3f}" for value in gap)
    return Claim(
        says="the Markov head's gain in conditional acceptance grows with position",
        paper="DFlash falls from .885 to .828 (math), DSpark only from .905 to .882",
        measured=f"gap by position {shown}; slope {slope:+.4f} +- {error:.4f} per position",
        reproduced=slope > ENOUGH * error,
    )


def _calibrated(fits: list[Fit], temperature: float, corpus: str) -> Claim:
    best = max(fits, key=lambda one: one.gain)
    raw, after = best.before.ece.mean(), best.after.ece.mean()
    each = "; ".join(
        f"{one.method} {100 * one.after.ece.mean():.2f} % ({one.gain:.1f} +- {one.gain_error:.1f} "
        "times better)"
        for one in fits
    )
    return Claim(
        says=f"calibration repairs confidences (mean ECE, {corpus} at T={temperature:g}, held out)",
        paper="ECE 5.7 / 8.2 / 5.8 / 3.3 % raw, 2.0 / 1.7 / 0.8 / 0.4 % after STS",
        measured=f"raw {100 * raw:.2f} % (noise floor {100 * best.before.ece_floor.mean():.2f} %); "
        f"{each}",
        reproduced=bool(raw >= 3 * after),
    )


def _overconfident(fits: list[Fit], corpus: str) -> Claim:
    before = fits[0].before
    return Claim(
        says=f"raw confidences are miscalibrated where decoding matches training ({corpus}, T=1)",
        paper="ECE 3.3 to 8.2 % by position",
        measured=f"ECE {100 * before.ece.min():.2f} to {100 * before.ece.max():.2f} % by position, "
        f"noise floor {100 * before.ece_floor.mean():.2f} % on average",
        reproduced=bool(before.ece.mean() > 3 * before.ece_floor.mean()),
    )


def _ranks(rounds: Rounds, corpus: str) -> Claim:
    found = reliability(survival_of(rounds.logits), rounds.survived).auc
    return Claim(
        says=f"confidences rank prefixes by their survival (AUC, {corpus})",
        paper=".818 / .812 / .864 / .907 at positions 1 / 3 / 5 / 7",
        measured=" / ".join(f"{value:.3f}" for value in found[::2]),
        reproduced=bool(np.nanmin(found) > 0.75),
    )


def _threshold(rounds: Rounds, corpus: str) -> Claim:
    sweep = threshold_sweep(rounds, np.array([0.0, 0.5, 0.9]))
    return Claim(
        says=f"a confidence threshold trades length for acceptance rate ({corpus})",
        paper="rate 45.7 to 95.7 % (chat) as the threshold rises to 0.9",
        measured="rate "
        + ", ".join(
            f"{100 * rate:.1f} % at {t:g}"
            for t, rate in zip(sweep.thresholds, sweep.rate, strict=True)
        )
        + f"; {sweep.committed[0]:.2f}, {sweep.committed[1]:.2f}, {sweep.committed[2]:.2f} tokens",
        reproduced=bool(sweep.rate[2] > sweep.rate[0] + 0.2),
    )


def _overhead(batch_round_ms: Mapping[str, float]) -> Claim:
    share = batch_round_ms["draft_head"] / sum(batch_round_ms.values())
    return Claim(
        says="the sequential head costs next to nothing",
        paper="0.2 to 1.3 % of a round at batch 128 on a GPU",
        measured=f"{100 * share:.1f} % of a round on this CPU, sampling of the drafts included",
        reproduced=share < 0.02,
    )


def claims(
    *,
    rounds: Mapping[str, Rounds],
    fits: Mapping[str, Mapping[float, list[Fit]]],
    batch_round_ms: Mapping[str, float],
) -> list[Claim]:
    """Every claim that the logs can speak to.

    ``rounds``: by ``CORPUS-DRAFTER-T1`` (see ``recipe.evaluation_name``); ``fits``: corpus ->
    decode temperature -> methods, of DSpark; ``batch_round_ms``: of one DSpark evaluation.
    """
    found = []
    for corpus, by_temperature in fits.items():
        lengths = {
            name.split("-", 1)[1].rsplit("-T", 1)[0]: acceptance(log)
            for name, log in rounds.items()
            if name.startswith(f"{corpus}-") and name.endswith("-T1")
        }
        dspark = lengths["dspark"]
        if "no-markov" in lengths:
            found += [
                _longer(
                    f"the Markov head lengthens accepted drafts ({corpus}; same backbone and loss)",
                    "no figure for the head alone",
                    dspark,
                    lengths["no-markov"],
                ),
                _grows(dspark, lengths["no-markov"]),
            ]
        for name, title, figures in (
            ("dflash", "DFlash", "+16.3 / 18.4 / 18.3 % for 4B / 8B / 14B"),
            ("eagle3", "Eagle3", "+30.9 / 26.7 / 30.0 % for 4B / 8B / 14B"),
        ):
            if name in lengths:
                says = f"DSpark accepts longer drafts than {title} ({corpus})"
                found.append(_longer(says, figures, dspark, lengths[name]))
        log = rounds[f"{corpus}-dspark-T1"]
        found += [_ranks(log, corpus), _threshold(log, corpus)]
        for temperature, methods in by_temperature.items():
            if temperature == 1.0:
                found.append(_overconfident(methods, corpus))
            else:
                found.append(_calibrated(methods, temperature, corpus))
    return [*found, _overhead(batch_round_ms)]


def report(found: list[Claim]) -> str:
    """As a person reads it."""
    lines = []
    for claim in found:
        lines += [
            f"{'reproduced    ' if claim.reproduced else 'NOT reproduced'}  {claim.says}",
            f"    paper     {claim.paper}",
            f"    measured  {claim.measured}",
        ]
    count = sum(claim.reproduced for claim in found)
    return "\n".join(
        [*lines, f"{count} of {len(found)} claims reproduced; +- is one standard error"]
    )
