"""Files of one conversation a record: GitHub Copilot's agents, WEKA and SemiAnalysis cc-traces.

Knows when a call of an agent ended, so that the next one can wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from traces.importers import fields
from traces.importers.clock import Clock
from traces.importers.imported import CACHED, Imported
from traces.importers.readers import Record
from traces.importers.sources import Source
from traces.importers.texts import Advance
from traces.importers.used import Used
from traces.schema import Request

WEKA_BLOCK_TOKENS = 64
_GAPS_S = (0.05, 1000.0)
"""The median pause between an agent's calls is inside."""


def read_copilot(source: Source, *, on_bytes: Advance) -> Imported:
    """Sessions with ``turns[].llm_calls[]``: each call's start, duration and tokens."""
    imported = Imported(name=source.where, clock=Clock(owner="Copilot"))
    used = Used(
        imported.notes,
        ("timestamp", "duration_ms", "model", "tokens", "session_id", "date", "turns"),
    )
    for place, session in source.records(on_bytes=on_bytes):
        used.note(session)
        where = source.where(place)
        calls = [
            call
            for turn in _objects(where, session, "turns")
            for call in _objects(where, turn, "llm_calls")
        ]
        for number, call in enumerate(calls):
            used.note(call, "llm_calls.")
            _copilot_call(imported, where, place, session, call, number)
    return imported


def _copilot_call(
    imported: Imported, where: str, place: int, session: Record, call: Record, number: int
) -> None:
    spot = f"{where}: llm_calls[{number}]"
    if not call.get("tokens"):
        imported.notes["left out: calls without token counts, which failed"] += 1
        return
    counts = fields.inner(spot, call, "tokens")
    prompt = fields.tokens(spot, counts, "prompt")
    cached = fields.optional(spot, counts, "cached") or 0.0
    if cached > prompt:
        raise ValueError(
            f"{spot}: {cached:g} cached of {prompt} prompt tokens; prompt must count all of them: "
            "mend or remove the session"
        )
    if cached > 0:
        imported.notes[CACHED] += 1
    duration_ms = fields.optional(spot, call, "duration_ms")
    name = fields.name(session, "session_id") or where
    imported.keep(
        Request(
            request_id=f"{name}/{number}",
            arrival_s=imported.clock.read(spot, call, "timestamp"),
            prompt_tokens=prompt,
            output_tokens=fields.tokens(spot, counts, "completion"),
            session_id=name,
        ),
        place,
        lasted_s=math.nan if duration_ms is None else duration_ms / 1e3,
        model=fields.name(call, "model"),
    )


def read_weka(source: Source, *, asked: str | None, on_bytes: Advance) -> Imported:
    """Conversations with ``requests[]{t, in, out, hash_ids}``; times count from each one's start.

    Hashes are the conversation's own unless it says that their scope is global. What a subagent
    sends is a session beside its parent's. ``asked`` is ``--time-unit``.
    """
    imported = Imported(
        name=source.where, clock=Clock(unit="s", owner="WEKA", certain=True),
        block_tokens=WEKA_BLOCK_TOKENS, per_session=True,
    )  # fmt: skip
    used = Used(
        imported.notes,
        ("id", "requests", "block_size", "hash_id_scope", "models", "t", "in", "out", "hash_ids",
         "type", "model", "api_time", "think_time"),
    )  # fmt: skip
    gaps: list[float] = []
    conversations = 0
    numbers: dict[tuple[str, int | str], int] = {}
    for place, record in source.records(on_bytes=on_bytes):
        used.note(record)
        where = source.where(place)
        conversations += 1
        name = fields.name(record, "id") or f"c{conversations}"
        if "block_size" in record:
            _stated_size(imported, where, record)
        own = record.get("hash_id_scope") != "global"
        times: list[float] = []
        for number, (stream, call, base) in enumerate(_weka_calls(where, record)):
            used.note(call, "requests.")
            spot = f"{where}: requests[{number}]"
            session = f"{name}/{stream}" if stream else name
            imported.together[session] = name
            hashes = [
                numbers.setdefault((name if own else "", value), len(numbers))
                for value in fields.hashes(spot, call, "hash_ids")
            ]
            _weka_call(imported, spot, place, call, base, session, hashes)
            times.append(base + imported.clock.read(spot, call, "t"))
        gaps += np.diff(sorted(times)).tolist()
    if asked is None:
        _check_gaps(source, gaps)
    imported.per_session = conversations > 1
    beside = len(imported.together) - conversations
    if beside > 0:
        imported.notes["subagents: a session each, begun at its recorded time"] = beside
    return imported


def _weka_calls(where: str, record: Record) -> Iterator[tuple[str, Record, float]]:
    """(subagent, call, seconds to add to its t) of a conversation, in the file's order."""
    for call in _objects(where, record, "requests"):
        if call.get("type") != "subagent":
            yield "", call, 0.0
            continue
        inner = _objects(where, call, "requests")
        since = fields.optional(where, call, "t") or 0.0
        # Some producers count a subagent's calls from its marker, some from the conversation.
        relative = any((fields.optional(where, c, "t") or 0.0) < since for c in inner)
        stream = fields.name(call, "agent_id") or f"at {since:g}"
        for inside in inner:
            yield stream, inside, since if relative else 0.0


def _weka_call(
    imported: Imported,
    spot: str,
    place: int,
    call: Record,
    base: float,
    session: str,
    hashes: list[int],
) -> None:
    api_s = fields.optional(spot, call, "api_time")
    imported.keep(
        Request(
            request_id=f"{session}/{len(imported.requests)}",
            arrival_s=base + imported.clock.read(spot, call, "t"),
            prompt_tokens=fields.tokens(spot, call, "in"),
            output_tokens=fields.tokens(spot, call, "out"),
            session_id=session,
            delay_s=fields.optional(spot, call, "think_time"),
            prefix_hashes=[*hashes] or None,
        ),
        place,
        lasted_s=math.nan if api_s is None else api_s,
        model=fields.name(call, "model"),
    )


def _stated_size(imported: Imported, where: str, record: Record) -> None:
    size = fields.tokens(where, record, "block_size")
    if size < 1:
        raise ValueError(f"{where}: block_size {size} must be at least 1; mend the record")
    if imported.carries_blocks and size != imported.block_tokens:
        raise ValueError(
            f"{where}: block_size {size}, and {imported.block_tokens} above it; a trace has "
            "blocks of one size: convert the parts one by one"
        )
    imported.block_tokens = size
    imported.carries_blocks = True


def _check_gaps(source: Source, gaps: list[float]) -> None:
    gaps = [gap for gap in gaps if gap > 0]
    if not gaps:
        return
    median_s = float(np.median(gaps))
    if not _GAPS_S[0] <= median_s <= _GAPS_S[1]:
        raise ValueError(
            f"{source.paths[0]}: half of the pauses between an agent's calls are above "
            f"{median_s:g} s if t is in seconds, as WEKA documents; give --time-unit s, ms, us or "
            "ns"
        )


def _objects(where: str, record: Record, name: str) -> list[dict[str, Any]]:
    """A list of objects in the record; empty where it has none."""
    found = record.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(
            f"{where}: {name} {fields.shown(found)} must be a list of objects; mend or remove it"
        )
    return found
