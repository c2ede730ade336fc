"""A trace cut into windows, and what one window under one policy is worth.

Owns the split into windows to search on and windows held out, the judged part of a window, the
four figures read from it and the confidence interval of a gain over windows. Knows no search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.fleet.scenario import Outcome
from simulator.slo import Slo
from simulator.study.metrics import met_slo, request_times
from simulator.study.part import judged_part
from traces import Trace

Floats = npt.NDArray[np.float64]

MOST_WINDOWS = 32
LEAD_PARTS = 4
"""Parts of the trace, each as long as a window, that are replayed before a window."""
_TAIL_PARTS = 1  # replayed after it: else its last requests would see an emptying server
_FEWEST_WINDOWS = 4
_FEWEST_REQUESTS = 40


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """A stretch of a trace of which only the middle is judged."""

    trace: Trace
    """Lead-in, judged requests, tail."""
    first: int
    """Place of the first judged request."""
    end: int
    """Place after the last one."""


def cut_windows(trace: Trace, concurrency: Sequence[int] = ()) -> tuple[Window, ...]:
    """Consecutive windows of as many requests each, an even number of at most 32.

    Four parts of the same length before each window fill the system; the first four parts of the
    trace do only that. A window holds at least 40 requests, and half as many as the largest closed
    loop has clients, so that its lead-in turns every client over twice. ``ValueError`` when that
    leaves fewer than 4.
    """
    least = max(_FEWEST_REQUESTS, -(-max(concurrency, default=0) // 2))
    count = min(MOST_WINDOWS, len(trace) // least - LEAD_PARTS) // 2 * 2
    if count < _FEWEST_WINDOWS:
        raise ValueError(
            f"{trace.path}: {len(trace)} requests are too few for {_FEWEST_WINDOWS} windows of "
            f"{least} with their lead-in; give a longer trace"
            + (" or fewer clients" if concurrency else "")
        )
    edges = np.linspace(0, len(trace), count + LEAD_PARTS + 1).round().astype(int).tolist()
    windows = []
    for i in range(count):
        begin, first, end = edges[i], edges[i + LEAD_PARTS], edges[i + LEAD_PARTS + 1]
        tail = edges[min(i + LEAD_PARTS + 1 + _TAIL_PARTS, len(edges) - 1)]
        part = trace.part(begin, tail)
        windows.append(Window(trace=part, first=first - begin, end=end - begin))
    return tuple(windows)


def split(count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(search, held out): alternating windows, so that both see every hour of the trace."""
    return tuple(range(0, count, 2)), tuple(range(1, count, 2))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One window under one policy, lead-in and tail left out."""

    length_s: float
    """Seconds from the window's first arrival to its end."""
    throughput: float
    """Output tokens per second."""
    in_slo: float
    """Requests per second, by arrival, that met their objective."""
    speed: float
    """Median tokens per second of a user; 0 where no request has two tokens."""
    attainment: float
    """Share of requests that met their objective."""
    fewest_tokens: int
    """Of one decode step."""
    most_tokens: int
    """Of one decode step; below ``fewest_tokens`` where there was none."""
    most_requests: int
    """Of one decode step."""


def judge_window(outcome: Outcome, slo: Slo) -> Judged:
    """The figures of the requests that the outcome judges, and of the time they were sent in."""
    part = judged_part(outcome)
    length_s = max(part.duration_s, 1e-9)
    met = met_slo(outcome, slo)[part.judged]
    tpot = request_times(outcome.requests[part.judged])["tpot"]
    tpot = tpot[~np.isnan(tpot)]
    return Judged(
        length_s=length_s,
        throughput=part.counted("committed_tokens") / length_s,
        in_slo=float(met.sum()) / length_s,
        speed=float(np.median(1.0 / tpot)) if tpot.size else 0.0,
        attainment=float(met.mean()),
        fewest_tokens=int(part.after["least_tokens"].min()),
        most_tokens=int(part.after["most_tokens"].max()),
        most_requests=int(part.after["most_requests"].max()),
    )


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Ours over theirs as a fraction of theirs, with a 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def proven(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low > 0


Figures = Mapping[str, Floats]
"""[L, W] of each figure of ``Judged`` at L loads in W windows."""

_RATES = ("throughput", "in_slo")


def _amounts(figures: Figures, name: str) -> tuple[Floats, Floats]:
    """What is counted in each window and what it is divided by: seconds, or windows."""
    if name in _RATES:
        return figures[name] * figures["length_s"], figures["length_s"]
    return figures[name], np.ones_like(figures[name])


def overall(figures: Figures, name: str) -> Floats:
    """[L] the figure over all windows: all tokens by all seconds, or the mean of windows."""
    amount, base = _amounts(figures, name)
    return amount.sum(axis=1) / base.sum(axis=1)


def ratio(ours: Figures, theirs: Figures, name: str) -> float:
    """Ours over theirs, geometric mean over loads; 1 + ours where theirs is 0."""
    mine, other = overall(ours, name), overall(theirs, name)
    quotient = np.where(other > 0, mine / np.where(other > 0, other, 1.0), 1.0 + mine)
    return float(np.exp(np.log(np.maximum(quotient, 1e-12)).mean()))


def gain(ours: Figures, theirs: Figures, name: str) -> Gain:
    """``ratio`` - 1 with its interval, paired by window.

    A window moves the logarithm of the ratio by d = u_ours - u_theirs with u = (amount - R base) /
    (R mean base) and R the overall figure (the ratio estimator's linearisation), averaged over
    loads. The d get Student's t with W - 1 degrees of freedom. Windows that are busy under either
    policy add nothing: where ours is the same factor of theirs everywhere, the interval is a point.
    """
    moved = []
    for figures in (ours, theirs):
        amount, base = _amounts(figures, name)
        rate = overall(figures, name)[:, None]
        scale = np.where(rate > 0, rate, 1.0) * base.mean(axis=1, keepdims=True)
        moved.append((amount - rate * base) / scale)
    d = (moved[0] - moved[1]).mean(axis=0)
    from scipy.special import stdtrit  # slow to import, as in metrics

    half = float(stdtrit(d.size - 1, 0.975)) * float(d.std(ddof=1)) / math.sqrt(d.size)
    mean = ratio(ours, theirs, name)
    return Gain(mean=mean - 1, low=mean * math.exp(-half) - 1, high=mean * math.exp(half) - 1)
