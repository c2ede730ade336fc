"""The figures that describe a trace: rate, burstiness, lengths, sessions, prefix reuse.

Owns their definitions. Knows nothing of how they are printed or drawn, nor of files. The length
quantiles it gives are the ones that a mixture file takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from traces.columns import Floats, Ints, Trace

PROBABILITIES = (
    0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999,
    1.0,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Token counts of one side of the requests."""

    mean: float
    p50: float
    p90: float
    p99: float
    total: int
    quantiles: list[tuple[float, float]]
    """(probability, tokens), as a mixture file takes them."""


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """When requests come. A Poisson process has CV 1 and every dispersion index 1."""

    span_s: float
    """First to last arrival."""
    rate_req_s: float | None
    """(N - 1) / span; null where all arrive at once."""
    interarrival_cv: float | None
    """Standard deviation of the gaps between arrivals over their mean."""
    dispersion: dict[str, float]
    """Variance over mean of the count per window of 1, 10 and 60 s; whole windows only."""
    busiest_10s: int
    """Most requests in one aligned window of 10 s."""
    mean_10s: float | None
    """Mean requests per 10 s."""


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """Conversations; requests without a session are outside all of it."""

    requests: int
    """Requests that belong to a session."""
    sessions: int
    turns_mean: float | None
    turns_max: int
    gap_p50_s: float | None
    """Median seconds between the arrivals of consecutive turns."""
    waiting: int
    """Turns that follow the answer before them by a delay, so that a slower server gets fewer."""


@dataclass(frozen=True, kw_only=True)
class PrefixReuse:
    """What a prefix cache that never evicts would find."""

    block_tokens: int
    blocks: int
    """Block references of all requests."""
    different_blocks: int
    hit_share: float | None
    """Full blocks that an earlier request brought in, over all that are listed; null without
    hashes. A partly filled last block is listed and never shared."""
    hit_tokens_share: float | None
    """Prompt tokens in those blocks over all prompt tokens; null without hashes."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """All figures of one trace."""

    trace: str
    sha256: str
    requests: int
    arrivals: Arrivals
    prompt_tokens: Lengths
    output_tokens: Lengths
    domains: dict[str, DomainShare]
    sessions: Sessions
    prefix: PrefixReuse
    slo: dict[str, int]
    """Requests per SLO class."""


@dataclass(frozen=True, kw_only=True)
class DomainShare:
    """One domain's part of a trace."""

    requests: int
    share: float
    prompt_tokens_mean: float
    output_tokens_mean: float


def statistics(trace: Trace) -> Statistics:
    """Every figure of a trace; deterministic, O(N log N)."""
    return Statistics(
        trace=trace.name,
        sha256=trace.sha256,
        requests=len(trace),
        arrivals=_arrivals(trace.arrival_s),
        prompt_tokens=_lengths(trace.prompt_tokens),
        output_tokens=_lengths(trace.output_tokens),
        domains=_domains(trace),
        sessions=_sessions(trace),
        prefix=_prefix(trace),
        slo={name: int((trace.slo == code).sum()) for code, name in enumerate(trace.slo_names)},
    )


def window_counts(arrival_s: Floats, window_s: float) -> Ints:
    """Requests per aligned window from the first arrival on, the last and partial one included."""
    return np.bincount(((arrival_s - arrival_s[0]) / window_s).astype(np.int64))


def first_seen(trace: Trace) -> npt.NDArray[np.bool_]:
    """Per entry of ``prefix_blocks``: True where no earlier request brought the block in.

    A prompt's partly filled last block is never shared, as in the engine: always True.
    """
    blocks = len(trace.prefix_blocks)
    row = np.repeat(np.arange(len(trace)), np.diff(trace.prefix_offsets))
    place = np.arange(blocks) - trace.prefix_offsets[row]
    full = np.flatnonzero((place + 1) * trace.block_tokens <= trace.prompt_tokens[row])
    fresh = np.ones(blocks, dtype=np.bool_)
    fresh[full] = False
    fresh[full[np.unique(trace.prefix_blocks[full], return_index=True)[1]]] = True
    return fresh


def _arrivals(arrival_s: Floats) -> Arrivals:
    span_s = float(arrival_s[-1] - arrival_s[0])
    gaps = np.diff(arrival_s)
    dispersion = {}
    for window_s in (1, 10, 60):
        whole = window_counts(arrival_s, window_s)[: int(span_s // window_s)]
        if len(whole) >= 2 and whole.sum():
            dispersion[f"{window_s}s"] = float(whole.var() / whole.mean())
    return Arrivals(
        span_s=span_s,
        rate_req_s=len(gaps) / span_s if span_s > 0 else None,
        interarrival_cv=float(gaps.std() / gaps.mean()) if span_s > 0 else None,
        dispersion=dispersion,
        busiest_10s=int(window_counts(arrival_s, 10).max()),
        mean_10s=10 * len(gaps) / span_s if span_s > 0 else None,
    )


def _lengths(tokens: Ints) -> Lengths:
    p50, p90, p99 = np.quantile(tokens, (0.5, 0.9, 0.99)).tolist()
    values = np.quantile(tokens, PROBABILITIES).round(1).tolist()
    return Lengths(
        mean=float(tokens.mean()),
        p50=p50,
        p90=p90,
        p99=p99,
        total=int(tokens.sum()),
        quantiles=list(zip(PROBABILITIES, values, strict=True)),
    )


def _domains(trace: Trace) -> dict[str, DomainShare]:
    found = {}
    for code, name in enumerate(trace.domain_names):
        rows = trace.domain == code
        if rows.any():
            found[name] = DomainShare(
                requests=int(rows.sum()),
                share=float(rows.mean()),
                prompt_tokens_mean=float(trace.prompt_tokens[rows].mean()),
                output_tokens_mean=float(trace.output_tokens[rows].mean()),
            )
    return found


def _sessions(trace: Trace) -> Sessions:
    rows = np.flatnonzero(trace.session >= 0)
    turns = np.bincount(trace.session[rows])
    turns = turns[turns > 0]
    order = rows[np.argsort(trace.session[rows], kind="stable")]
    same = np.diff(trace.session[order]) == 0
    gaps = np.diff(trace.arrival_s[order])[same]
    return Sessions(
        requests=len(rows),
        sessions=len(turns),
        turns_mean=float(turns.mean()) if len(turns) else None,
        turns_max=int(turns.max(initial=0)),
        gap_p50_s=float(np.median(gaps)) if len(gaps) else None,
        waiting=int((trace.follows >= 0).sum()),
    )


def _prefix(trace: Trace) -> PrefixReuse:
    blocks = len(trace.prefix_blocks)
    hits = int((~first_seen(trace)).sum())
    return PrefixReuse(
        block_tokens=trace.block_tokens,
        blocks=blocks,
        different_blocks=len(np.unique(trace.prefix_blocks)),
        hit_share=hits / blocks if blocks else None,
        hit_tokens_share=float(hits * trace.block_tokens / trace.prompt_tokens.sum())
        if blocks
        else None,
    )
