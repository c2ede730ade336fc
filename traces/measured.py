"""``NAME.measured.jsonl``: what was measured of a recorded trace's requests, beside it.

One line per request of the trace, in its order, with the times and the counts that the schema has
no field for. Owns the record, the file's name and its lines. Knows no server and no request log
(``traces.recorded`` fills it, ``simulator.fit`` and ``simulator.twin`` read it).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from sglang_dspark.files import atomic_write, os_problem
from traces.schema import trace_name
from traces.store import find_trace


class Measured(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One request as it was served; null where the server did not say."""

    request_id: str
    """As in the trace."""
    finish: str
    """SGLang's reason: ``stop``, ``length`` or ``abort``."""
    streamed: bool
    """Whether the client asked for a stream; else its first token is the prefill's end."""
    queue_s: float | None
    """Seconds from its arrival until its first forward pass."""
    ttft_s: float | None
    """Seconds from its arrival to the first token."""
    tpot_s: float | None
    """Seconds per token after the first; null where there is no second one."""
    latency_s: float
    """Seconds from its arrival until the last token."""
    cached_tokens: int | None
    """Prompt tokens that were found in the prefix cache."""
    retractions: int
    """Times it lost its KV to others."""
    decode_steps: int | None
    """Steps that verified it."""
    prefill_s: float | None = None
    """Seconds from its first forward pass until its prefill's result was known."""
    received_s: float | None = None
    """When it arrived, on the clock of the step log; null in files of earlier releases."""


def measured_path(trace: str | Path) -> Path:
    """The sibling of a trace: ``live.jsonl`` has ``live.measured.jsonl``."""
    return Path(trace).with_name(f"{trace_name(trace)}.measured.jsonl")


def write_measured(path: Path, rows: Iterable[Measured]) -> None:
    """All lines or none."""
    encode = msgspec.json.Encoder().encode
    with atomic_write(path, "wb") as file:
        for row in rows:
            file.write(encode(row) + b"\n")


def read_measured(path: str | Path) -> dict[str, Measured]:
    """The lines by request. ``ValueError`` naming file, line and what is wrong."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise os_problem("read", path, error) from None
    decode = msgspec.json.Decoder(Measured).decode
    found: dict[str, Measured] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            row = decode(line)
        except msgspec.DecodeError as error:
            raise ValueError(
                f"{path}:{number}: {error}; give the file that python -m traces.record wrote "
                "beside the trace"
            ) from None
        found[row.request_id] = row
    return found


def beside(trace: str | Path) -> Path | None:
    """The measured file of a trace, by its file or its shipped name, where there is one."""
    path = measured_path(find_trace(trace))
    return path if path.is_file() else None
