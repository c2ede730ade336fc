"""SGLang's own tables as they are measured: rising, falling, noisy, with an outlier."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_TOKENS = 120
"""About the largest step of the states that are asked about: prices matter at every size."""
SHAPES = ("rising", "falling", "noisy", "outlier", "dip")


def step_seconds(rng: np.random.Generator, sizes: NDArray[Any], shape: str) -> NDArray[Any]:
    """Seconds of a step of each size."""
    gaps = np.diff(sizes, prepend=0)
    rising = rng.uniform(0.001, 0.004) + np.cumsum(rng.exponential(6e-5, sizes.size) * gaps)
    if shape == "falling":
        return rising[::-1].copy()
    if shape == "noisy":
        return rising * rng.lognormal(0.0, 0.25, sizes.size)
    if shape == "outlier":
        rising[rng.integers(sizes.size)] *= 2.0
    if shape == "dip":
        first = rng.integers(sizes.size)
        rising[first : first + 4] *= 0.6
    return rising


def sps_file(rng: np.random.Generator, shape: str) -> dict[str, Any]:
    """What SGLang's profiler writes."""
    sizes = np.unique(rng.integers(1, MOST_TOKENS, rng.integers(2, 60)))
    seconds = step_seconds(rng, sizes, shape)
    return {
        "sample_batch_tokens": sizes.tolist(),
        "sample_steps_per_sec": (1.0 / seconds).tolist(),
        "max_batch_tokens": int(sizes[-1]),
    }


def additive_file(rng: np.random.Generator, shape: str) -> dict[str, Any]:
    """SGLang's additive table, with different probes on its two axes."""
    requests = np.unique(rng.integers(1, 48, rng.integers(1, 9)))
    tokens = np.unique(rng.integers(1, MOST_TOKENS, rng.integers(1, 60)))
    theta_s = step_seconds(rng, tokens, shape)
    alpha_s = step_seconds(rng, requests, shape) / 4
    return {
        "bias_seconds": float(rng.uniform(0.001, 0.01)),
        "bs_probes": requests.tolist(),
        "alpha_seconds": (alpha_s - alpha_s[0]).tolist() if shape == "rising" else alpha_s.tolist(),
        "m_probes": tokens.tolist(),
        "theta_seconds": theta_s.tolist(),
    }


FILES = {"sps": sps_file, "additive": additive_file}
"""By kind of table: a random file of a shape."""
