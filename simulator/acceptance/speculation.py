"""NVIDIA Model-Optimizer's ``speculation_profile.json`` as an acceptance profile.

Owns the checks that its figures agree with each other. It has rates per position and nothing of how
requests, rounds and confidences differ: every draft of a position is accepted with the same
probability, and the confidences are that probability, so that no policy can tell one draft from
another. Knows no draw (``simulator.acceptance.tables``).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from simulator.acceptance.profile import (
    SCHEMA_VERSION,
    DomainAcceptance,
    FittedProfile,
    Provenance,
)
from simulator.acceptance.tables import MAX_GAMMA

_CONDITIONAL, _MARGINAL = "conditional_accept_rates", "marginal_accept_rates"
_LENGTHS = ("num_speculative_tokens", "block_size")
_CLOSE = 0.01
"""Rates that differ by more are of two measurements."""
_LEAST, _MOST = 1e-4, 1 - 1e-4
"""A logit is finite: rates of 0 and 1 are read as these."""


def is_speculation_profile(value: Any) -> bool:
    """Whether a JSON value is one, measured or not yet."""
    return isinstance(value, dict) and (
        _CONDITIONAL in value or _MARGINAL in value or "specdec_bench" in str(value.get("note"))
    )


def speculation_profile(path: Path, value: dict[str, Any]) -> FittedProfile:
    """The profile of a parsed file. ``ValueError`` where it was not measured or disagrees."""
    if value.get("measured") is False:
        raise ValueError(
            f"{path}: was not measured: its rates are still to come; run Model-Optimizer's "
            "specdec_bench and export again"
        )
    marginal = _rates(path, value, _MARGINAL)
    conditional = _rates(path, value, _CONDITIONAL)
    if not conditional:
        conditional = _conditional(path, marginal)
    survival = np.cumprod(conditional)
    if marginal:
        _check_marginal(path, marginal, survival.tolist())
    gamma = len(conditional)
    if not 1 <= gamma <= MAX_GAMMA:
        raise ValueError(f"{path}: {gamma} rates; a profile has 1 to {MAX_GAMMA} positions")
    _check_length(path, value, gamma)
    _check_mean(path, value, 1.0 + float(survival.sum()))
    zeros = [0.0] * gamma
    clipped = np.clip(conditional, _LEAST, _MOST)
    domain = DomainAcceptance(
        mean_logit=np.log(clipped / (1 - clipped)).tolist(),
        request_sd=0.0,
        step_sd=0.0,
        step_correlation=0.0,
        token_sd=0.0,
        confidence_bias=zeros,
        confidence_scale=[1.0] * gamma,
        confidence_noise=zeros,
    )
    return FittedProfile(
        schema_version=SCHEMA_VERSION,
        name=path.stem,
        gamma=gamma,
        default_domain="all",
        command="",
        provenance=[
            Provenance(
                figure="conditional acceptance per position",
                origin="published",
                source=f"{path.name}, NVIDIA Model-Optimizer",
            ),
            Provenance(
                figure="spread of requests, rounds and confidences",
                origin="assumed",
                source="none: the file has averages only",
            ),
        ],
        domains={"all": domain},
        achieved={"all": {"accepted_length": [1.0 + float(survival.sum())]}},
    )


def _rates(path: Path, value: dict[str, Any], name: str) -> list[float]:
    found = value.get(name) or []
    if not isinstance(found, list):
        raise ValueError(f"{path}: {name} is {found!r}; it must be a list of rates")
    for k, rate in enumerate(found, start=1):
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not number or not math.isfinite(rate) or not 0 <= rate <= 1:
            raise ValueError(
                f"{path}: {name} at position {k} is {rate!r}; it must be between 0 and 1: no more "
                "is accepted than drafted"
            )
    return [float(rate) for rate in found]


def _conditional(path: Path, marginal: list[float]) -> list[float]:
    for k, (before, rate) in enumerate(zip([1.0, *marginal], marginal, strict=False), start=1):
        if rate > before:
            raise ValueError(
                f"{path}: {_MARGINAL} at position {k} is {rate:g}, above the {before:g} before it; "
                "a prefix is accepted less often the longer it is"
            )
    pairs = zip(marginal, [1.0, *marginal], strict=False)
    return [rate / before if before else 0.0 for rate, before in pairs]


def _check_marginal(path: Path, marginal: list[float], survival: list[float]) -> None:
    if len(marginal) != len(survival):
        raise ValueError(
            f"{path}: {len(marginal)} {_MARGINAL} and {len(survival)} {_CONDITIONAL}; they must be "
            "of the same positions: measure again"
        )
    for k, (given, implied) in enumerate(zip(marginal, survival, strict=True), start=1):
        if abs(given - implied) > _CLOSE:
            raise ValueError(
                f"{path}: {_MARGINAL} at position {k} is {given:g}, and {_CONDITIONAL} up to it "
                f"make {implied:.4g}; they disagree: measure again"
            )


def _check_length(path: Path, value: dict[str, Any], gamma: int) -> None:
    for name in _LENGTHS:
        drafted = value.get(name)
        # A block holds the anchor token too.
        if isinstance(drafted, int) and drafted not in (gamma, gamma + (name == "block_size")):
            raise ValueError(
                f"{path}: {name} is {drafted}, and there are {gamma} rates; they disagree: give "
                "the profile of the drafter that is served"
            )


def _check_mean(path: Path, value: dict[str, Any], implied: float) -> None:
    mean = value.get("mean_accept_length")
    if isinstance(mean, int | float) and abs(mean - implied) > 0.05 * implied:
        raise ValueError(
            f"{path}: mean_accept_length is {mean:g}, and the rates make {implied:.4g}; they "
            "disagree: measure again"
        )
