"""What one line of a trace and its sidecar may hold.

Owns the two record types, their field names and the name of the sidecar. Knows nothing of files
(``traces.store``), of the columns a replay reads (``traces.columns``) or of where requests come
from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Request(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False
):
    """One request, one line of JSON; the first four fields are required.

    Laws, checked by ``traces.columns``: ``request_id`` is unique in its trace, ``arrival_s`` is
    finite, not negative and never below the line before, both token counts are at least 1,
    ``delay_s`` is finite, not negative and given only within a session.
    """

    request_id: str
    """Unique name."""
    arrival_s: float
    """Seconds from the start of the trace."""
    prompt_tokens: Int64
    """Tokens to prefill, a cached prefix included."""
    output_tokens: Int64
    """Tokens that the request generates; a simulator may read it, a policy may not."""
    domain: str | None = None
    """Kind of work, such as chat, code or math; acceptance depends on it."""
    session_id: str | None = None
    """Conversation the request is a turn of."""
    delay_s: float | None = None
    """Seconds that its client waits after the answer to its session's request before it: a replay
    sends it then, and ``arrival_s`` only says where it stands in the trace. Null: it comes at
    ``arrival_s``, whatever the server does. Without effect on the first request of a session."""
    prefix_hashes: list[int | str] | None = None
    """Hashes of the prompt's leading blocks of ``block_tokens`` (sidecar) tokens, in order.
    A hash stands for its block **and all tokens before it**, so equal hash means equal prefix."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: Int64 | None = None
    """The most tokens that it may generate, which admission reserves KV for; never below
    ``output_tokens``."""
    priority: Int64 | None = None
    """Higher is more urgent; 0 where not given."""
    slo: str | None = None
    """Name of the latency class that the request must meet."""


@dataclass(frozen=True, kw_only=True)
class TraceMeta:
    """The sidecar: where a trace came from, and what its numbers stand on."""

    source: str
    """What the requests were taken or generated from."""
    command: str
    """The command that made the file; run again, it makes the same bytes."""
    seed: int | None
    """Seed of every random draw behind the file; null when nothing was drawn."""
    sha256: str
    """Digest of the trace file, so that an edited file does not pass for this one."""
    block_tokens: int | None = None
    """Tokens per entry of ``prefix_hashes``; null where the trace has none."""
    statistics_from: list[str] | None = None
    """For generated traces: the measured traces that the statistics were taken from."""
    licence: str | None = None
    """Licence of the source."""
    notes: dict[str, int] | None = None
    """Rows of the source that were changed or left out: reason and count."""

    def __post_init__(self) -> None:
        if self.block_tokens is not None and self.block_tokens < 1:
            raise ValueError(f"block_tokens {self.block_tokens} must be at least 1")


def meta_path(path: str | Path) -> Path:
    """The sidecar of a trace: ``chat.jsonl`` has ``chat.meta.json``."""
    return Path(path).with_name(f"{trace_name(path)}.meta.json")


def trace_name(path: str | Path) -> str:
    """A trace is called by its file's name without ``.jsonl`` or ``.jsonl.gz``."""
    return Path(path).name.removesuffix(".gz").removesuffix(".jsonl")
