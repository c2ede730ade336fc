"""Random draws that come out the same on every machine: inverse distributions of uniforms.

Owns the streams, keyed by (seed, names), the length distributions and the arrival processes.
Knows nothing of sessions or files. Only PCG64's uniforms are drawn: numpy keeps those from release
to release, which it does not promise for its Gamma or normal draws.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from scipy import special

from traces.columns import Floats, Ints
from traces.mixture import Bursty, Diurnal, Gamma, Lognormal, Poisson, Quantiles

T = TypeVar("T")
Process = Poisson | Gamma | Diurnal | Bursty
Distribution = Quantiles | Lognormal


def stream(seed: int, *names: str) -> np.random.Generator:
    """An independent stream per name: what one part of a trace draws does not move another."""
    key = [seed, *(zlib.crc32(name.encode()) for name in names)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def values(distribution: Distribution, uniforms: Floats) -> Floats:
    """The distribution's inverse at each uniform."""
    if isinstance(distribution, Quantiles):
        probabilities, table = zip(*distribution.table, strict=True)
        return np.interp(uniforms, probabilities, table)
    # The clip keeps a uniform of exactly 0 from giving minus infinity.
    normal = special.ndtri(np.clip(uniforms, 1e-12, None))
    drawn: Floats = distribution.median * np.exp(distribution.sigma * normal)
    return np.minimum(drawn, distribution.most)


def lengths(distribution: Distribution, uniforms: Floats) -> Ints:
    """Token counts, at least 1."""
    return np.maximum(1, np.rint(values(distribution, uniforms))).astype(np.int64)


def choose(choices: Sequence[tuple[T, float]], uniforms: Floats) -> list[T | None]:
    """One value per uniform by its share; None for what the shares leave over."""
    edges = np.cumsum([share for _, share in choices])
    picked = np.searchsorted(edges, uniforms, side="right").tolist()
    return [choices[index][0] if index < len(choices) else None for index in picked]


def arrival_times(
    process: Process, *, rate_req_s: float, span_s: float, rng: np.random.Generator
) -> Floats:
    """Sorted arrival times in [0, span_s).

    A renewal process of unit rate is stretched by the inverse of the cumulative rate, which is
    normalised so that the mean rate is ``rate_req_s`` whatever bursts were drawn.
    """
    times, cumulative = _cumulative_rate(process, span_s, rng)
    total = rate_req_s * span_s
    gaps = _unit_gaps(1.0 if isinstance(process, Poisson) else process.cv, total, rng)
    operational = np.cumsum(gaps)
    operational = operational[operational < total]
    return np.interp(operational, cumulative * (total / cumulative[-1]), times)


def _unit_gaps(cv: float, total: float, rng: np.random.Generator) -> Floats:
    """Gaps of mean 1 that together certainly exceed ``total``."""
    shape = 1 / cv**2
    gaps = np.empty(0)
    while gaps.sum() <= total:
        uniforms = rng.random(math.ceil(total * 0.2) + 64)
        drawn = -np.log1p(-uniforms) if cv == 1 else special.gammaincinv(shape, uniforms) / shape
        gaps = np.concatenate([gaps, drawn])
    return gaps


def _cumulative_rate(
    process: Process, span_s: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """(times, integral of the relative rate up to them), both starting at 0."""
    if isinstance(process, Diurnal):
        times = np.linspace(0, span_s, max(2, math.ceil(span_s / process.period_s * 720) + 1))
        turn = 2 * math.pi / process.period_s
        swing = np.sin(turn * (times - process.peak_s)) + np.sin(turn * process.peak_s)
        return times, times + process.amplitude * swing / turn
    if isinstance(process, Bursty):
        quiet_s = process.burst_s * (1 - process.burst_share) / process.burst_share
        bursting = rng.random() < process.burst_share
        marks = [0.0]
        rates: list[float] = []
        # A span without any burst has no rate to normalise: go on until there was one.
        while marks[-1] < span_s or not any(rates):
            mean_s = process.burst_s if bursting else quiet_s
            marks.append(marks[-1] - mean_s * math.log1p(-rng.random()))
            rates.append(1.0 if bursting else process.quiet_ratio)
            bursting = not bursting
        times = np.array(marks)
        grown = np.concatenate([[0.0], np.cumsum(np.diff(times) * np.array(rates))])
        if times[-2] >= span_s:
            # The first burst came after the span: the whole draw is shrunk to fit.
            return times * (span_s / times[-1]), grown
        end = np.interp(span_s, times, grown)
        return np.append(times[:-1], span_s), np.append(grown[:-1], end)
    return np.array([0.0, span_s]), np.array([0.0, 1.0])
