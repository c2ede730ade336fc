"""The mixture file: what a synthetic trace is made of.

Owns the file's fields and their limits. Knows nothing of how times, lengths and sessions are drawn
(``traces.draws``, ``traces.sessions``). Unknown fields are errors.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec

from sglang_dspark.files import read_json
from traces.store import hint

_STRICT: dict[str, Any] = {"kw_only": True, "forbid_unknown_fields": True, "frozen": True}


def _within(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        raise ValueError(f"{name} {value} must be a number from {low:g} to {high:g}")


class Poisson(msgspec.Struct, tag="poisson", tag_field="process", **_STRICT):
    """Independent arrivals at one rate."""


class Gamma(msgspec.Struct, tag="gamma", tag_field="process", **_STRICT):
    """Renewal arrivals with Gamma gaps at one rate."""

    cv: float
    """Coefficient of variation of the gaps; 1 is Poisson."""

    def __post_init__(self) -> None:
        _within("cv", self.cv, 0.05, 20)


class Diurnal(msgspec.Struct, tag="diurnal", tag_field="process", **_STRICT):
    """A rate that swings as a sine."""

    amplitude: float
    """Swing relative to the mean rate, 0 to 1."""
    period_s: float
    peak_s: float
    """When the rate is highest for the first time."""
    cv: float = 1.0
    """Variation of the gaps at constant rate."""

    def __post_init__(self) -> None:
        _within("amplitude", self.amplitude, 0, 1)
        _within("period_s", self.period_s, 1)
        _within("peak_s", self.peak_s, 0)
        _within("cv", self.cv, 0.05, 20)


class Bursty(msgspec.Struct, tag="bursty", tag_field="process", **_STRICT):
    """Two rates that alternate, each for an exponential time (Markov-modulated)."""

    burst_share: float
    """Share of time in bursts."""
    burst_s: float
    """Mean length of a burst."""
    quiet_ratio: float = 0.0
    """Rate between bursts over the rate in them."""
    cv: float = 1.0
    """Variation of the gaps at constant rate."""

    def __post_init__(self) -> None:
        _within("burst_share", self.burst_share, 0.01, 0.99)
        _within("burst_s", self.burst_s, 0.01)
        _within("quiet_ratio", self.quiet_ratio, 0, 1)
        _within("cv", self.cv, 0.05, 20)


class Quantiles(msgspec.Struct, tag="quantiles", tag_field="kind", **_STRICT):
    """A measured distribution; ``traces.describe --json`` prints such tables."""

    table: list[tuple[float, float]]
    """(probability, value), from probability 0 to 1, linear in between."""

    def __post_init__(self) -> None:
        if len(self.table) < 2 or self.table[0][0] != 0 or self.table[-1][0] != 1:
            raise ValueError("a quantile table must run from probability 0 to 1")
        for (p, value), (q, above) in zip(self.table, self.table[1:], strict=False):
            if not p < q or not 0 <= value <= above < math.inf:
                raise ValueError(
                    f"quantile table: [{q}, {above}] after [{p}, {value}]; probabilities must "
                    "rise and values must not fall below 0 or the value before"
                )


class Lognormal(msgspec.Struct, tag="lognormal", tag_field="kind", **_STRICT):
    """A lognormal cut at ``most``."""

    median: float
    sigma: float
    """Standard deviation of the logarithm."""
    most: float

    def __post_init__(self) -> None:
        _within("median", self.median, 1e-3)
        _within("sigma", self.sigma, 0, 5)
        _within("most", self.most, self.median)


class Sessions(msgspec.Struct, **_STRICT):
    """Conversations: a follow-up's prompt is all that was said before, and new tokens."""

    follow_up_share: float
    """Probability that a turn is meant to be followed by another; 1 - 1 / mean turns."""
    gap_s: Quantiles | Lognormal
    """From one turn's arrival to the earliest arrival of the next."""
    new_tokens: Quantiles | Lognormal
    """What a follow-up adds to the conversation, as far as the drawn prompt lengths allow."""
    kept_output_share: float = 1.0
    """Part of an answer that stays in the conversation; chains of thought are usually dropped."""

    def __post_init__(self) -> None:
        _within("follow_up_share", self.follow_up_share, 0, 0.99)
        _within("kept_output_share", self.kept_output_share, 0, 1)


class SystemPrompt(msgspec.Struct, **_STRICT):
    """Tokens that many conversations begin with."""

    tokens: int
    share: float
    """Conversations that begin with it, as far as their first prompt is longer."""

    def __post_init__(self) -> None:
        _within("tokens", self.tokens, 1, 10**6)
        _within("share", self.share, 0, 1)


class Domain(msgspec.Struct, **_STRICT):
    """One kind of work."""

    name: str
    share: float
    """Part of the trace's rate."""
    measured: str
    """Where each of the figures below comes from."""
    arrivals: Poisson | Gamma | Diurnal | Bursty
    prompt_tokens: Quantiles | Lognormal
    output_tokens: Quantiles | Lognormal
    sessions: Sessions | None = None
    system_prompts: list[SystemPrompt] = []
    temperature: list[tuple[float, float]] = []
    """(value, share) pairs; the rest of the requests give none."""
    priority: list[tuple[int, float]] = []
    slo: list[tuple[str, float]] = []

    def __post_init__(self) -> None:
        _within("share", self.share, 1e-6, 1)
        for field in ("temperature", "priority", "slo"):
            shares = [share for _, share in getattr(self, field)]
            if any(share < 0 for share in shares) or sum(shares) > 1 + 1e-9:
                raise ValueError(
                    f"{field}: shares {shares} must not be negative nor exceed 1 in all"
                )
        shares = [prompt.share for prompt in self.system_prompts]
        if sum(shares) > 1 + 1e-9:
            raise ValueError(f"system_prompts: shares {shares} exceed 1 in all")


class Mixture(msgspec.Struct, **_STRICT):
    """A whole synthetic trace."""

    statistics_from: list[str]
    """Measured traces behind the figures, with their source."""
    licence: str
    rate_req_s: float
    minutes: float
    domains: list[Domain]
    block_tokens: int | None = None
    """Tokens per prefix block; null: the trace carries no hashes."""

    def __post_init__(self) -> None:
        _within("rate_req_s", self.rate_req_s, 1e-3, 1e5)
        _within("minutes", self.minutes, 1e-2, 1e5)
        _within("rate_req_s * 60 * minutes", self.rate_req_s * 60 * self.minutes, 1, 2e7)
        if self.block_tokens is not None:
            _within("block_tokens", self.block_tokens, 1, 10**6)
        if not math.isclose(sum(d.share for d in self.domains), 1, abs_tol=1e-6):
            raise ValueError(f"domain shares {[d.share for d in self.domains]} must add up to 1")
        if len({d.name for d in self.domains}) < len(self.domains):
            raise ValueError("two domains have the same name; give each its own")
        for domain in self.domains:
            if domain.system_prompts and self.block_tokens is None:
                raise ValueError(f"{domain.name}: system_prompts need block_tokens; give it")


def shipped_mixtures() -> dict[str, Path]:
    """Name and file of the mixtures that come with this package."""
    folder = Path(__file__).parent / "mixtures"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def describe_shipped() -> list[dict[str, Any]]:
    """A row on each shipped mixture, for ``dspark list``."""
    mixtures = {name: load_mixture(name)[0] for name in shipped_mixtures()}
    return [
        {
            "name": name,
            "requests_per_s": mixture.rate_req_s,
            "minutes": mixture.minutes,
            "shares": {domain.name: domain.share for domain in mixture.domains},
            "arrivals": ", ".join(sorted({type(d.arrivals).__name__ for d in mixture.domains})),
        }
        for name, mixture in mixtures.items()
    ]


def load_mixture(name_or_path: str) -> tuple[Mixture, Path]:
    """A shipped mixture by name, or one's own by path; and the file it was read from."""
    shipped = shipped_mixtures()
    path = shipped.get(name_or_path, Path(name_or_path))
    if name_or_path not in shipped and not path.exists():
        raise ValueError(
            f"{name_or_path}: no such mixture file, nor a shipped one; {hint(path.stem, shipped)}"
        )
    try:
        return msgspec.convert(read_json(path), Mixture), path
    except msgspec.ValidationError as error:
        unknown = re.search(r"unknown field `(.*?)`", str(error))
        more = f"; {hint(unknown[1], _field_names())}" if unknown else "; correct the file"
        raise ValueError(f"{path}: {error}{more}") from None


def _field_names() -> list[str]:
    kinds = (Mixture, Domain, Sessions, SystemPrompt, Quantiles, Lognormal, Gamma, Diurnal, Bursty)
    return sorted({"process", "kind", *(n for kind in kinds for n in kind.__struct_fields__)})
