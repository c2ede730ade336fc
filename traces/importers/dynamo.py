"""NVIDIA Dynamo's request traces: JSONL shards of events, one ``request_end`` for each request.

Knows the two places where releases put the counts: the event's ``request``, and ``replay`` in it.
"""

from __future__ import annotations

import math

from traces.importers import fields
from traces.importers.clock import UNITS, Clock
from traces.importers.imported import Imported
from traces.importers.readers import Record
from traces.importers.sources import Source
from traces.importers.tables import one_block_size
from traces.importers.texts import Advance
from traces.importers.used import Used
from traces.schema import Request

_USED = (
    "request_id", "request_received_ms", "trace_block_size", "input_length", "input_tokens",
    "input_sequence_hashes", "output_length", "output_tokens", "ttft_ms", "total_time_ms", "model",
    "replay", "x_request_id",
)  # fmt: skip


def read_dynamo(source: Source, *, on_bytes: Advance) -> Imported:
    """The requests of ``dynamo.request.trace.v1`` files; other events are passed over."""
    imported = Imported(
        name=source.where,
        clock=Clock(unit="ms", owner="request_received_ms", shared=True),
        carries_blocks=True,
    )
    used = Used(imported.notes, _USED)
    for place, event in source.records(on_bytes=on_bytes):
        where = source.where(place)
        if event.get("event_type", "request_end") != "request_end" or "request" not in event:
            imported.notes["passed over: other events"] += 1
            continue
        request = fields.inner(where, event, "request")
        used.note(request, "request.")
        if "replay" in request:
            request = request | fields.inner(where, request, "replay")
        context = event.get("agent_context")
        context = context if isinstance(context, dict) else {}
        if fields.name(context, "parent_session_id") is not None:
            imported.notes["not carried: agent_context.parent_session_id"] += 1
        _keep(imported, where, place, event, request, fields.name(context, "session_id"))
    return imported


def _keep(
    imported: Imported, where: str, place: int, event: Record, request: Record, session: str | None
) -> None:
    hashes = fields.hashes(where, request, "input_sequence_hashes")
    if hashes:
        one_block_size(imported, where, request, "trace_block_size")
    length = "input_length" if "input_length" in request else "input_tokens"
    output = "output_length" if "output_length" in request else "output_tokens"
    received = imported.clock.read(where, request, "request_received_ms")
    imported.keep(
        Request(
            request_id=fields.name(request, "request_id") or f"r{len(imported.requests)}",
            arrival_s=received,
            prompt_tokens=fields.tokens(where, request, length),
            output_tokens=fields.tokens(where, request, output),
            session_id=session,
            prefix_hashes=hashes or None,
        ),
        place,
        lasted_s=_lasted_s(where, event, request, received),
        model=fields.name(request, "model"),
    )


def _lasted_s(where: str, event: Record, request: Record, received_ms: float) -> float:
    """Until its last token: as it says, else until the event; NaN where neither can be."""
    total_ms = fields.optional(where, request, "total_time_ms")
    first_ms = fields.optional(where, request, "ttft_ms") or 0.0
    if total_ms is None:
        ended_ms = fields.optional(where, event, "event_time_unix_ms")
        total_ms = math.nan if ended_ms is None else ended_ms - received_ms
        # Some writers stamp the event with the request's own time.
        return total_ms * UNITS["ms"] if total_ms > first_ms else math.nan
    if first_ms > total_ms:
        raise ValueError(
            f"{where}: ttft_ms {first_ms:g} is above total_time_ms {total_ms:g}; mend or remove "
            "the line"
        )
    return total_ms * UNITS["ms"]
