"""AIPerf's ``profile_export.jsonl``: one record for each request that it sent.

Knows that times are nanoseconds since 1970, and that a user's turns share ``x_correlation_id``.
"""

from __future__ import annotations

import math
from typing import Any

from traces.importers import fields
from traces.importers.benchmarks import FAILED
from traces.importers.clock import UNITS, Clock
from traces.importers.imported import Imported
from traces.importers.readers import Record
from traces.importers.sources import Source
from traces.importers.texts import Advance
from traces.schema import Request


def read_aiperf_records(source: Source, *, on_bytes: Advance) -> Imported:
    """The requests of an AIPerf run that were answered, its warm-up left out."""
    clock = Clock(unit="ns", owner="request_start_ns", shared=True)
    imported = Imported(name=source.where, clock=clock)
    turns: dict[str, int] = {}
    for place, record in source.records(on_bytes=on_bytes):
        where = source.where(place)
        metadata = fields.inner(where, record, "metadata")
        if metadata.get("benchmark_phase", "profiling") != "profiling":
            imported.notes["left out: the benchmark's warm-up"] += 1
        elif not fields.is_absent(record.get("error")):
            imported.notes[FAILED] += 1
        else:
            request, lasted_s = _request(where, metadata, record, clock)
            if request.session_id is not None:
                turns[request.session_id] = turns.get(request.session_id, 0) + 1
            imported.keep(request, place, lasted_s=lasted_s)
    for request in imported.requests:
        if turns.get(request.session_id or "") == 1:
            request.session_id = None  # every request has a user; of one turn it is no session
    return imported


def _request(where: str, metadata: Record, record: Record, clock: Clock) -> tuple[Request, float]:
    metrics = fields.inner(where, record, "metrics")
    began = clock.read(where, metadata, "request_start_ns")
    ended = fields.optional(where, metadata, "request_end_ns")
    if ended is not None and ended < began:
        raise ValueError(
            f"{where}: request_end_ns {ended:.0f} is before request_start_ns {began:.0f}; mend or "
            "remove the line"
        )
    output = "output_sequence_length"
    request = Request(
        request_id=fields.name(metadata, "x_request_id") or where,
        arrival_s=began,
        prompt_tokens=_tokens(where, metrics, "input_sequence_length"),
        output_tokens=_tokens(
            where, metrics, output if output in metrics else "output_token_count"
        ),
        session_id=fields.name(metadata, "x_correlation_id"),
    )
    return request, math.nan if ended is None else (ended - began) * UNITS["ns"]


def _tokens(where: str, metrics: Record, name: str) -> int:
    value: Any = fields.given(where, metrics, name)
    counted = value if isinstance(value, dict) else {"value": value}
    return fields.tokens(f"{where}: {name}", counted, "value")
