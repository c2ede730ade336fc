"""Alibaba's Bailian (Qwen) traces: JSONL of chats that name their parents.

Knows that times are seconds, blocks 16 tokens, and an ``input_length`` the whole context.
"""

from __future__ import annotations

from traces.importers import fields
from traces.importers.clock import Clock
from traces.importers.imported import Imported
from traces.importers.sources import Source
from traces.importers.texts import Advance
from traces.importers.used import Used
from traces.schema import Request

BLOCK_TOKENS = 16
_USED = (
    "chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "turn", "hash_ids",
)  # fmt: skip


def read_bailian(source: Source, *, on_bytes: Advance) -> Imported:
    """The requests of a Bailian file; a session is called by its first chat."""
    imported = Imported(
        name=source.where, clock=Clock(unit="s", owner="Bailian"), block_tokens=BLOCK_TOKENS
    )
    used = Used(imported.notes, _USED)
    parents: dict[str, str | None] = {}
    chats: list[str] = []
    for place, record in source.records(_USED, on_bytes=on_bytes):
        used.note(record)
        where = source.where(place)
        chat = fields.name(record, "chat_id")
        if chat is None:
            raise ValueError(f"{where}: no chat_id; mend or remove the row")
        parent = fields.name(record, "parent_chat_id")
        parents[chat] = None if parent == "-1" else parent
        kept = len(imported.requests)
        imported.keep(
            Request(
                request_id=f"r{len(chats)}",
                arrival_s=imported.clock.read(where, record, "timestamp"),
                prompt_tokens=fields.tokens(where, record, "input_length"),
                output_tokens=fields.tokens(where, record, "output_length"),
                prefix_hashes=fields.hashes(where, record, "hash_ids") or None,
            ),
            place,
        )
        if len(imported.requests) > kept:
            chats.append(chat)
    roots: dict[str, str] = {}
    for request, chat in zip(imported.requests, chats, strict=True):
        request.session_id = _root(chat, parents, roots)
    lost = sum(1 for parent in parents.values() if parent is not None and parent not in parents)
    if lost:
        imported.notes["turns whose parent is not in the file: a session of their own"] = lost
    return imported


def _root(chat: str, parents: dict[str, str | None], known: dict[str, str]) -> str:
    """The first chat of its conversation, as far as the file has it."""
    path = []
    at = chat
    while at not in known:
        path.append(at)
        parent = parents.get(at)
        if parent is None or parent not in parents or parent in path:
            known[at] = at
            break
        at = parent
    for step in path:
        known[step] = known[at]
    return known[chat]
