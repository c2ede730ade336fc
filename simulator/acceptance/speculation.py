"""NVIDIA Model-Optimizer's ``speculation_profile.json`` as an acceptance profile.

What a file must hold is ``sglang_dspark.logs.speculation_profile``'s. It has rates per position
and nothing of how requests, rounds and confidences differ: every draft of a position is accepted
with the same probability, and the confidences are that probability, so that no policy can tell one
draft from another. Knows no draw (``simulator.acceptance.tables``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.logs.speculation_profile import decode_profile
from simulator.acceptance.profile import (
    SCHEMA_VERSION,
    DomainAcceptance,
    FittedProfile,
    Provenance,
)
from simulator.acceptance.tables import MAX_GAMMA

_LEAST, _MOST = 1e-4, 1 - 1e-4
"""A logit is finite: rates of 0 and 1 are read as these."""


def replayable(value: Any, path: Path) -> FittedProfile:
    """The profile of a parsed file. ``ValueError`` where it was not measured or disagrees."""
    found = decode_profile(value, where=str(path))
    if found.gamma > MAX_GAMMA:
        raise ValueError(f"{path}: {found.gamma} rates; a profile has 1 to {MAX_GAMMA} positions")
    gamma, zeros = found.gamma, [0.0] * found.gamma
    clipped = np.clip(found.conditional, _LEAST, _MOST)
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
        achieved={"all": {"accepted_length": [found.length]}},
    )
