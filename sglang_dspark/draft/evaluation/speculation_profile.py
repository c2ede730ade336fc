"""``speculation_profile.json``: acceptance as other tools publish and read it.

Owns the file, both ways. Version 1.0 as Model-Optimizer's ``specdec_bench`` writes it and Dynamo's
mocker (conditional rates) and vLLM's synthetic sampler (marginal ones) read it. A file whose
numbers contradict one another is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.draft.evaluation.reliability import acceptance
from sglang_dspark.files import read_json
from sglang_dspark.logs.rounds import Rounds

FILE = "speculation_profile.json"
VERSION = "1.0"
_CLOSE = 0.02
"""Its own tolerance between the mean and what the rates imply."""


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


def profile_of(rounds: Rounds, *, drafter: str, target: str, block_size: int) -> dict[str, Any]:
    """The file's object for a recording, fully verified."""
    found = acceptance(rounds)
    marginal = [round(float(v), 6) for v in np.atleast_1d(found.survival.value)]
    conditional, before = [], 1.0
    for value in marginal:
        conditional.append(round(value / before, 6) if before else 0.0)
        before = value
    lengths, counts = np.unique(rounds.accepted + 1, return_counts=True)
    length = round(float(found.length.value), 6)
    requests = [
        float((part.accepted + 1).mean())
        for part in (rounds.where(rounds.request == r) for r in np.unique(rounds.request))
    ]
    parts = {d: acceptance(rounds.where(rounds.domain == d)) for d in rounds.domains()}
    implied = 1 + sum(marginal)
    return {
        "schema_version": VERSION,
        "measured": True,
        "method": "dspark",
        "draft_checkpoint": {"id": drafter},
        "target_model": {"id": target},
        "num_speculative_tokens": rounds.gamma,
        "block_size": block_size,
        "max_supported_k": rounds.gamma,
        "verification_method": "longest_prefix",
        "conditional_accept_rates": conditional,
        "marginal_accept_rates": marginal,
        "mean_accept_length": length,
        "mean_accept_length_per_request": round(float(np.mean(requests)), 6),
        "accept_length_model": "measured_per_k",
        "accept_length_by_k": {str(rounds.gamma): length},
        "acceptance_length_histogram": {
            str(int(n)): int(count) for n, count in zip(lengths, counts, strict=True)
        },
        "per_category": {
            domain: {"mean_accept_length": round(float(part.length.value), 6)}
            for domain, part in parts.items()
        },
        "measurement_conditions": {
            "requests": found.requests,
            "temperature": [t if math.isfinite(t) else None for t in rounds.temperatures()],
        },
        "validation": {
            "mean_consistency": {
                "implied_mean_accept_length": round(implied, 6),
                "reported_mean_accept_length": length,
                "abs_delta": round(abs(implied - length), 6),
                "tolerance": _CLOSE,
                "passed": abs(implied - length) <= _CLOSE,
            },
            "marginal_monotonicity": {"passed": True, "violations": []},
        },
    }


def read_profile(path: str | Path) -> SpeculationProfile:
    """A file's acceptance; ``ValueError`` where it is a stub or of two minds."""
    value = read_json(path)
    if not isinstance(value, Mapping) or "conditional_accept_rates" not in value:
        raise ValueError(f"{path}: no conditional_accept_rates; give a {FILE}")
    if value.get("measured") is False:
        raise ValueError(f"{path}: measured is false, a stub; measure it first")
    conditional = _rates(path, value, "conditional_accept_rates")
    steps = value.get("num_speculative_tokens", len(conditional))
    if steps != len(conditional):
        raise ValueError(
            f"{path}: num_speculative_tokens is {steps}, but there are {len(conditional)} "
            "conditional_accept_rates; make them agree"
        )
    block = value.get("block_size")
    if isinstance(block, int) and steps > block:
        raise ValueError(
            f"{path}: {steps} speculative tokens of a block of {block}; measure within the block"
        )
    marginal = tuple(float(v) for v in np.cumprod(conditional))
    if "marginal_accept_rates" in value:
        told = _rates(path, value, "marginal_accept_rates")
        if (
            len(told) != len(marginal)
            or max(abs(a - b) for a, b in zip(told, marginal, strict=True)) > _CLOSE
        ):
            raise ValueError(
                f"{path}: marginal_accept_rates {list(told)} are not the products of "
                "conditional_accept_rates; which of them is right?"
            )
        marginal = told
    length = value.get("mean_accept_length", 1 + sum(marginal))
    if not isinstance(length, int | float) or abs(length - 1 - sum(marginal)) > 2 * _CLOSE:
        raise ValueError(
            f"{path}: mean_accept_length is {length!r}, its rates imply {1 + sum(marginal):.3f}; "
            "one of them is wrong"
        )
    return SpeculationProfile(conditional=conditional, marginal=marginal, length=float(length))


def _rates(path: str | Path, value: Mapping[str, Any], key: str) -> tuple[float, ...]:
    rates = value.get(key)
    if not isinstance(rates, list) or not rates:
        raise ValueError(f"{path}: {key} is {rates!r}; give a list of rates")
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ValueError(f"{path}: {key} has {rate!r}; rates are from 0 to 1")
    return tuple(float(rate) for rate in rates)


def compared(rounds: Rounds, published: SpeculationProfile) -> str:
    """Measured beside published, and whether they agree within 3 standard errors."""
    if published.gamma > rounds.gamma:
        raise ValueError(
            f"the profile has {published.gamma} draft tokens, the drafter {rounds.gamma}; it is "
            "another drafter's"
        )
    found = acceptance(rounds)
    kept = found.survival.value[: published.gamma]
    mine = 1 + float(kept.sum())
    error = float(found.length.error)
    apart = abs(mine - published.length)
    verdict = "agree" if apart <= 3 * error + _CLOSE else "differ"
    return (
        f"published {published.length:.2f} tokens a round, measured {mine:.2f}+-{error:.2f}: they "
        f"{verdict}"
    )
