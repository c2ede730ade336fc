"""A recording as ``speculation_profile.json``, and beside a published one.

Owns the way out and the comparison; what a file must hold is ``logs.speculation_profile``'s.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sglang_dspark.draft.evaluation.reliability import acceptance
from sglang_dspark.logs.rounds import Rounds
from sglang_dspark.logs.speculation_profile import VERSION, SpeculationProfile

_CLOSE = 0.02
"""specdec_bench's own tolerance between the mean and what the rates imply."""


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
