"""The fitted acceptance profile: a JSON file of parameters per domain, with where they come from.

Owns the file format, its checks and the step from domain names to dense tables. Knows neither how
the numbers were fitted (``simulator.acceptance.published.fit``) nor how they are drawn
(``simulator.acceptance.tables``, which states the law the parameters belong to).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sglang_dspark.files import decode_record, read_json
from simulator.acceptance.tables import (
    KIND_FITTED,
    MAX_GAMMA,
    AcceptanceTables,
    FloatArray,
    sigmoid_table,
)
from simulator.rng import normal_table

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where one figure of a profile comes from."""

    figure: str
    """What it is, e.g. "conditional acceptance per position"."""
    origin: Literal["published", "assumed", "measured"]
    """published: printed or drawn by others; measured: by this project; assumed: by no one."""
    source: str
    """Document and figure, or the reason for an assumption."""


@dataclass(frozen=True, kw_only=True)
class DomainAcceptance:
    """Parameters of the acceptance process in one domain; lists run over the K positions."""

    mean_logit: list[float]
    """Mean of the true logit at each position."""
    request_sd: float
    """Spread between requests, logits."""
    step_sd: float
    """Spread between the rounds of a request, logits."""
    step_correlation: float
    """Correlation of neighbouring rounds' states, -1 < rho < 1."""
    token_sd: float
    """Spread between the positions of a round, logits."""
    confidence_bias: list[float]
    """Added to the raw confidence logit."""
    confidence_scale: list[float]
    """Factor of the raw confidence logit, > 0."""
    confidence_noise: list[float]
    """Sd of what the confidence head cannot see, logits, >= 0."""

    def check(self, gamma: int, where: str) -> None:
        """``ValueError`` naming the first value that cannot be."""
        for name in ("mean_logit", "confidence_bias", "confidence_scale", "confidence_noise"):
            values: list[float] = getattr(self, name)
            if len(values) != gamma:
                raise ValueError(
                    f"{where}: {name} has {len(values)} values; give gamma = {gamma} of them"
                )
            low = 0.0 if name == "confidence_noise" else -math.inf
            for k, value in enumerate(values, start=1):
                _require(where, f"{name} at position {k}", value, low, math.inf)
        for k, value in enumerate(self.confidence_scale, start=1):
            if value <= 0:
                raise ValueError(
                    f"{where}: confidence_scale at position {k} is {value}; it must be > 0"
                )
        for name in ("request_sd", "step_sd", "token_sd"):
            _require(where, name, getattr(self, name), 0.0, math.inf)
        if not -1.0 < self.step_correlation < 1.0:
            raise ValueError(
                f"{where}: step_correlation is {self.step_correlation}; it must lie inside (-1, 1)"
            )


@dataclass(frozen=True, kw_only=True)
class FittedProfile:
    """An acceptance profile whose every domain follows the fitted law."""

    schema_version: int
    """Version of this format: 1."""
    name: str
    """What ``--acceptance`` calls it."""
    gamma: int
    """Draft positions per round, 1..15."""
    default_domain: str
    """The domain that requests without a domain, or of an unlisted one, are drawn from."""
    command: str
    """The command that made the file."""
    provenance: list[Provenance]
    """Every figure with its origin."""
    domains: dict[str, DomainAcceptance]
    """Parameters by domain name."""
    achieved: dict[str, dict[str, list[float]]]
    """By domain: the figures the parameters reproduce, by quadrature."""

    def tables(self, domain_names: Sequence[str]) -> AcceptanceTables:
        """Dense tables aligned with a trace's domain names; warns once about unlisted domains."""
        unlisted = [name for name in domain_names if name not in self.domains]
        if unlisted:
            warn_unlisted(self.name, unlisted, self.default_domain, list(self.domains))
        names = [n if n in self.domains else self.default_domain for n in domain_names]
        rows = [self.domains[name] for name in (*names, self.default_domain)]
        return AcceptanceTables(
            kind=KIND_FITTED,
            gamma=self.gamma,
            mean_logit=_column([row.mean_logit for row in rows]),
            request_sd=_column([row.request_sd for row in rows]),
            step_sd=_column([row.step_sd for row in rows]),
            step_correlation=_column([row.step_correlation for row in rows]),
            token_sd=_column([row.token_sd for row in rows]),
            confidence_bias=_column([row.confidence_bias for row in rows]),
            confidence_scale=_column([row.confidence_scale for row in rows]),
            confidence_noise=_column([row.confidence_noise for row in rows]),
            normal=normal_table(),
            sigmoid=sigmoid_table(),
            log_logits=np.zeros((0, self.gamma)),
            log_accepted=np.zeros(0, np.int64),
            log_first_round=np.zeros(1, np.int64),
            log_request=np.zeros(0, np.int64),
            log_tokens=np.zeros(0, np.int64),
            log_position=np.zeros(0, np.int64),
            log_first_request=np.zeros(len(rows) + 1, np.int64),
            log_last_position=0.0,
        )


def read_fitted_profile(path: Path) -> FittedProfile:
    """The profile in a JSON file; ``ValueError`` names the file, the place and the remedy."""
    value = read_json(path)
    if isinstance(value, dict):
        domains = value.get("domains")
        for name, domain in domains.items() if isinstance(domains, dict) else ():
            decode_record(domain, DomainAcceptance, where=f"{path}: domains.{name}")
        provenance = value.get("provenance")
        for i, entry in enumerate(provenance if isinstance(provenance, list) else ()):
            decode_record(entry, Provenance, where=f"{path}: provenance[{i}]")
    profile = decode_record(value, FittedProfile, where=str(path))
    if profile.schema_version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema_version is {profile.schema_version}; this version reads "
            f"{SCHEMA_VERSION}"
        )
    if not 1 <= profile.gamma <= MAX_GAMMA:
        raise ValueError(f"{path}: gamma is {profile.gamma}; it must be 1..{MAX_GAMMA}")
    if profile.default_domain not in profile.domains:
        raise ValueError(
            f"{path}: default_domain {profile.default_domain!r} is not among the domains "
            f"({', '.join(profile.domains) or 'none'}); name one of them"
        )
    for name, parameters in profile.domains.items():
        parameters.check(profile.gamma, f"{path}: domains.{name}")
    return profile


def warn_unlisted(profile: str, unlisted: list[str], default: str, known: list[str]) -> None:
    """The one warning about domains that a profile has no figures for."""
    warnings.warn(
        f"acceptance profile {profile} has no domain {', '.join(unlisted)} "
        f"(it has {', '.join(known)}); drawing from {default}",
        stacklevel=3,
    )


def _column(values: list[float] | list[list[float]]) -> FloatArray:
    return np.array(values, dtype=np.float64)


def _require(where: str, name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{where}: {name} is {value}; it must be a finite number >= {low:g}")
