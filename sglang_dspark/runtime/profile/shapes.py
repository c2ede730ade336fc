"""What a ragged forward costs beside a uniform one, where a server says which was which.

    ragged = max(floor, uniform(M) + step)
The floor and the step of the least summed relative error, over those that some point attains
exactly. Pure numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.schema import RaggedCost

Floats = npt.NDArray[np.float64]

LEAST_POINTS = 3
"""Of either shape: fewer tell no law."""


def fit_ragged(seconds: Sequence[float], uniform_s: Sequence[float]) -> tuple[RaggedCost, Floats]:
    """(The block, relative errors) of ragged points that would take ``uniform_s`` in one shape."""
    found_s, plain_s = np.array(seconds), np.array(uniform_s)
    floors = np.concatenate(([0.0], found_s))
    steps = np.unique(np.concatenate(([0.0], np.maximum(found_s - plain_s, 0.0))))
    shown = np.maximum(floors[:, None, None], plain_s + steps[:, None])
    errors = np.abs(shown / found_s - 1.0)
    floor, step = np.unravel_index(int(errors.sum(axis=2).argmin()), errors.shape[:2])
    block = RaggedCost(
        tiers_tokens=(),
        floor_s=float(floors[floor]),
        step_s=float(steps[step]),
        origin="measured",
        note=f"{found_s.size} points whose requests verified other lengths than all drafts, or "
        "than each other: outside the uniform graph",
    )
    return block, errors[floor, step]
