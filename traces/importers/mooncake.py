"""Mooncake's JSONL, AIPerf's mooncake_trace and GuideLLM's trace_synthetic: the same field names.

Knows that a hash stands for a block and all before it, the partly filled last block included, and
that GuideLLM writes its ``timestamp`` in seconds where the other two write milliseconds.
"""

from __future__ import annotations

import math

from traces.importers import fields
from traces.importers.clock import Clock
from traces.importers.imported import Imported
from traces.importers.sources import Source
from traces.importers.texts import Advance
from traces.importers.used import Used
from traces.schema import Request

BLOCK_TOKENS = 512
_USED = (
    "timestamp", "input_length", "output_length", "hash_ids", "session_id", "delay", "extra",
    "type",
)  # fmt: skip
_TEXT = ("text_input", "messages", "payload")


def read_mooncake(source: Source, *, guidellm: bool, on_bytes: Advance) -> Imported:
    """The requests of a Mooncake, AIPerf or GuideLLM trace file."""
    sample = source.sample()
    plain = not any(name in record for record in sample for name in ("hash_ids", "session_id"))
    if guidellm:
        clock = Clock(unit="s", owner="GuideLLM", shared=True)
    elif plain:
        owner = "AIPerf (GuideLLM documents seconds)"
        clock = Clock(unit="ms", owner=owner, shared=True, or_seconds=True)
    else:
        clock = Clock(unit="ms", owner="Mooncake", shared=True)
    imported = Imported(
        name=source.where, clock=clock, block_tokens=BLOCK_TOKENS, delay_unit="ms",
        accumulates=True,
    )  # fmt: skip
    used = Used(imported.notes, _USED)
    # Text fields are named once, so that Parquet files of prompts are not read whole.
    columns = [*_USED, *(name for name in _TEXT if any(name in record for record in sample))]
    for number, (place, record) in enumerate(source.records(columns, on_bytes=on_bytes)):
        used.note(record)
        imported.keep(_request(source, place, record, number, clock), place)
    return imported


def _request(
    source: Source, place: int, record: dict[str, object], number: int, clock: Clock
) -> Request:
    where = source.where(place)
    if fields.is_absent(record.get("input_length")):
        texts = [name for name in _TEXT if name in record]
        if texts:
            raise ValueError(
                f"{where}: {texts[0]} and no input_length: a trace holds token counts, not text; "
                "write input_length, the prompt's tokens with its chat template, into every row"
            )
    if fields.is_absent(record.get("output_length")):
        raise ValueError(
            f"{where}: no output_length: a trace needs the tokens that each request generates; "
            "write output_length into every row"
        )
    extra = record.get("extra")
    asked: dict[str, object] = extra if isinstance(extra, dict) else {}
    timed = not fields.is_absent(record.get("timestamp"))
    return Request(
        request_id=f"r{number}",
        arrival_s=clock.read(where, record, "timestamp") if timed else math.nan,
        prompt_tokens=fields.tokens(where, record, "input_length"),
        output_tokens=fields.tokens(where, record, "output_length"),
        session_id=fields.name(record, "session_id"),
        delay_s=fields.optional(where, record, "delay"),
        prefix_hashes=fields.hashes(where, record, "hash_ids") or None,
        temperature=fields.optional(where, asked, "temperature"),
        priority=fields.whole(where, asked, "priority"),
    )
