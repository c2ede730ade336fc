"""``speculation_profile.json``: acceptance by position, as other tools publish and read it.

Version 1.0 as Model-Optimizer's ``specdec_bench`` writes it; Dynamo's mocker reads its conditional
rates, vLLM's synthetic sampler the marginal ones. Owns what a file must hold, and that its figures
agree with each other. Knows neither who measured nor who replays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.files import read_json

FILE = "speculation_profile.json"
VERSION = "1.0"
CONDITIONAL, MARGINAL = "conditional_accept_rates", "marginal_accept_rates"
_RATES_CLOSE, MEAN_CLOSE = 0.01, 0.04
"""Rates, and tokens a round, that differ by more are of two measurements."""


@dataclass(frozen=True, kw_only=True)
class SpeculationProfile:
    """What a file says."""

    conditional: tuple[float, ...]
    """Of draft token k given that those before it were accepted."""
    marginal: tuple[float, ...]
    """That the first k were all accepted."""
    length: float
    """Tokens a round, bonus counted."""

    @property
    def gamma(self) -> int:
        """Draft tokens a round."""
        return len(self.conditional)


def is_speculation_profile(value: Any) -> bool:
    """Whether a JSON value is one, measured or not yet."""
    return isinstance(value, dict) and (
        CONDITIONAL in value or MARGINAL in value or "specdec_bench" in str(value.get("note"))
    )


def read_profile(path: str | Path) -> SpeculationProfile:
    """A file's acceptance; ``ValueError`` where it was not measured or is of two minds."""
    return decode_profile(read_json(path), where=str(path))


def decode_profile(value: Any, *, where: str) -> SpeculationProfile:
    """The same of parsed JSON; errors begin with ``where``."""
    if not is_speculation_profile(value):
        raise ValueError(f"{where}: has neither {CONDITIONAL} nor {MARGINAL}; give a {FILE}")
    if value.get("measured") is False:
        raise ValueError(
            f"{where}: was not measured: its rates are still to come; run Model-Optimizer's "
            "specdec_bench and export again"
        )
    told = _rates(where, value, MARGINAL)
    conditional = _rates(where, value, CONDITIONAL) or _conditional(where, told)
    if not conditional:
        raise ValueError(f"{where}: has neither {CONDITIONAL} nor {MARGINAL}; measure again")
    survival = np.cumprod(conditional).tolist()
    if told:
        _check_marginal(where, told, survival)
    _check_length(where, value, len(conditional))
    length = _mean(where, value, 1.0 + sum(survival))
    return SpeculationProfile(
        conditional=tuple(conditional), marginal=tuple(told or survival), length=length
    )


def _rates(where: str, value: dict[str, Any], name: str) -> list[float]:
    found = value.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not found:
        raise ValueError(f"{where}: {name} is {found!r}; it must be a list of rates")
    for k, rate in enumerate(found, start=1):
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not number or not math.isfinite(rate) or not 0 <= rate <= 1:
            raise ValueError(
                f"{where}: {name} at position {k} is {rate!r}; it must be between 0 and 1: no more "
                "is accepted than drafted"
            )
    return [float(rate) for rate in found]


def _conditional(where: str, marginal: list[float]) -> list[float]:
    for k, (before, rate) in enumerate(zip([1.0, *marginal], marginal, strict=False), start=1):
        if rate > before:
            raise ValueError(
                f"{where}: {MARGINAL} at position {k} is {rate:g}, above the {before:g} before it; "
                "a prefix is accepted less often the longer it is"
            )
    pairs = zip(marginal, [1.0, *marginal], strict=False)
    return [rate / before if before else 0.0 for rate, before in pairs]


def _check_marginal(where: str, marginal: list[float], survival: list[float]) -> None:
    if len(marginal) != len(survival):
        raise ValueError(
            f"{where}: {len(marginal)} {MARGINAL} and {len(survival)} {CONDITIONAL}; they must be "
            "of the same positions: measure again"
        )
    for k, (given, implied) in enumerate(zip(marginal, survival, strict=True), start=1):
        if abs(given - implied) > _RATES_CLOSE:
            raise ValueError(
                f"{where}: {MARGINAL} at position {k} is {given:g}, and {CONDITIONAL} up to it "
                f"make {implied:.4g}; they disagree: measure again"
            )


def _check_length(where: str, value: dict[str, Any], gamma: int) -> None:
    for name in ("num_speculative_tokens", "block_size"):
        drafted = value.get(name)
        # A block holds the anchor token too.
        if isinstance(drafted, int) and drafted not in (gamma, gamma + (name == "block_size")):
            raise ValueError(
                f"{where}: {name} is {drafted}, and there are {gamma} rates; they disagree: give "
                "the profile of the drafter that is served"
            )


def _mean(where: str, value: dict[str, Any], implied: float) -> float:
    """Tokens a round: as stated, else as the rates make them."""
    mean = value.get("mean_accept_length", implied)
    if isinstance(mean, bool) or not isinstance(mean, int | float) or not math.isfinite(mean):
        raise ValueError(f"{where}: mean_accept_length is {mean!r}; give tokens a round")
    if abs(mean - implied) > MEAN_CLOSE:
        raise ValueError(
            f"{where}: mean_accept_length is {mean:g}, and the rates make {implied:.4g}; they "
            "disagree: measure again"
        )
    return float(mean)
