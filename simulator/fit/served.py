"""What is known of a request beside its steps: from its trace and the file measured beside it.

Owns the record, and the way from the two files to it. Knows no step log and no fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from traces import read_requests
from traces.measured import Measured, beside, read_measured


@dataclass(frozen=True, kw_only=True)
class Served:
    """What is known of a request beside its steps."""

    domain: str = ""
    cached_tokens: int | None = None
    """Prompt tokens that the prefix cache spared it; None where nobody says."""
    output_tokens: int = 0
    """Length of its answer; 0 where unknown."""
    entry_s: float = math.nan
    """When its first forward pass was formed, on any clock; tells prefill steps apart."""
    first_s: float = math.nan
    """When its first token was there, on the same; does so where ``entry_s`` is unknown."""
    on_step_clock: bool = False
    """Whether that clock is the step log's."""


NO_ONE = Served()


@dataclass(frozen=True, kw_only=True)
class ServedLog:
    """All that two files tell."""

    requests: dict[str, Served]
    """By SGLang's request id."""
    measured: Path | None
    """The file of measured times; None where there was none."""


def read_served(trace: str, measured: str | None = None) -> ServedLog:
    """What a trace and its ``.measured.jsonl`` tell of each request.

    The latter is looked for beside the trace unless it is named. ``ValueError`` naming what is
    wrong with either, and when no request is in both.
    """
    path = Path(measured) if measured else beside(trace)
    requests, _ = read_requests(trace)
    rows = read_measured(path) if path else {}
    if path and not any(request.request_id in rows for request in requests):
        raise ValueError(
            f"{path}: holds no request of {trace}; give the file that was written with the trace"
        )
    return ServedLog(
        requests={
            request.request_id: _served(
                request.domain or "",
                request.output_tokens,
                request.arrival_s,
                rows.get(request.request_id),
            )
            for request in requests
        },
        measured=path,
    )


def _served(domain: str, output_tokens: int, arrival_s: float, row: Measured | None) -> Served:
    if row is None:
        return Served(domain=domain, output_tokens=output_tokens)
    clock = row.received_s is not None
    at_s = row.received_s if row.received_s is not None else arrival_s
    return Served(
        domain=domain,
        cached_tokens=row.cached_tokens,
        output_tokens=output_tokens,
        entry_s=math.nan if row.queue_s is None else at_s + row.queue_s,
        first_s=math.nan if row.ttft_s is None else at_s + row.ttft_s,
        on_step_clock=clock,
    )
