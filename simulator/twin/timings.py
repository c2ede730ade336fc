"""What a client saw of a server, and the figures that are compared: measured ones.

Owns one request as it was seen, a stretch of traffic with its steps, and the way from either to
figures. Knows no fit and no simulation: ``replay`` fills the same figures from a simulated server.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_dspark.logs.records import StepRecord
from simulator.fit.served import Served

Floats = npt.NDArray[np.float64]

FIGURES = ("output_tok_s", "tpot_p50_ms", "ttft_p99_ms", "verified_tokens")
"""What the benchmark compares: tokens per second from the first arrival to the last token,
milliseconds as the client sees them, and tokens computed per request and step, the anchor
included."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request as its client saw it; seconds since the epoch."""

    rid: str
    domain: str = ""
    prompt_tokens: int
    prefix: tuple[int, ...]
    """Names of the prompt's leading blocks of its segment's ``block_tokens``; equal name, equal
    prompt up to there."""
    sent_s: float
    entry_s: float = float("nan")
    """When its first forward pass was formed; NaN where unknown."""
    first_s: float
    """NaN where unknown."""
    end_s: float
    output_tokens: int
    cached_tokens: int | None
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """One policy at one load for a while: what the client saw and what the server logged."""

    policy: str
    load: str
    third: int
    seen: list[Seen]
    """In order of arrival."""
    steps: list[StepRecord]
    block_tokens: int = 1


def served_of(segments: Sequence[Segment]) -> dict[str, Served]:
    """What the client knows of each request, for the fits."""
    return {
        one.rid: Served(
            domain=one.domain,
            cached_tokens=one.cached_tokens,
            output_tokens=one.output_tokens,
            entry_s=one.entry_s,
            first_s=one.first_s,
            on_step_clock=True,
        )
        for segment in segments
        for one in segment.seen
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Timings:
    """Requests and steps of one or several replays or recordings, pooled."""

    span_s: float
    """First arrival to last token, summed over the parts."""
    tokens: float
    ttft_s: Floats
    tpot_s: Floats
    """Of requests with at least two tokens."""
    computed_tokens: float
    """By the target in decode steps."""
    committed_tokens: float
    request_steps: float
    steps: float

    def figures(self) -> dict[str, float]:
        """``FIGURES`` and a few that explain them."""
        request_steps = max(self.request_steps, 1.0)
        return {
            "output_tok_s": self.tokens / self.span_s,
            "tpot_p50_ms": 1e3 * float(np.median(self.tpot_s)),
            "ttft_p99_ms": 1e3 * float(np.percentile(self.ttft_s, 99)),
            "verified_tokens": self.computed_tokens / request_steps,
            "ttft_p50_ms": 1e3 * float(np.median(self.ttft_s)),
            "ttft_p90_ms": 1e3 * float(np.percentile(self.ttft_s, 90)),
            "requests_per_step": self.request_steps / max(self.steps, 1.0),
            "tokens_per_request_step": self.committed_tokens / request_steps,
        }


def pooled(parts: Sequence[Timings]) -> Timings:
    """Several as one."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(Timings):
        values = [getattr(part, field.name) for part in parts]
        found[field.name] = (
            np.concatenate(values) if isinstance(values[0], np.ndarray) else float(sum(values))
        )
    return Timings(**found)


def measured(segment: Segment, first: int = 0) -> Timings:
    """What the client saw and the server logged, from request ``first`` on.

    Steps count from its arrival on, whomever they served.
    """
    seen = segment.seen[first:]
    since_s = seen[0].sent_s if first else -np.inf
    steps = [step for step in segment.steps if step.end_s - step.step_s >= since_s]
    ttft_s = np.array([one.first_s - one.sent_s for one in seen])
    return Timings(
        span_s=max(one.end_s for one in seen) - min(one.sent_s for one in seen),
        tokens=sum(one.output_tokens for one in seen),
        ttft_s=ttft_s[np.isfinite(ttft_s)],
        tpot_s=np.array(
            [
                (one.end_s - one.first_s) / (one.output_tokens - 1)
                for one in seen
                if one.output_tokens > 1 and np.isfinite(one.first_s)
            ]
        ),
        computed_tokens=sum(step.computed_tokens for step in steps),
        # Not what the steps accepted: the last one's may lie beyond the end of the text.
        committed_tokens=sum(one.output_tokens - 1 for one in seen),
        request_steps=sum(step.requests for step in steps),
        steps=len(steps),
    )
