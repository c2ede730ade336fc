"""One part of a request log: a Parquet file with one row per request that a server answered.

Owns the record, the columns and the header. Holds no text and no token ids: a prompt is known by
its length and by keyed hashes of its leading blocks, equal where the tokens up to there are equal
and, since the key is never written, telling nothing else. Knows neither SGLang nor torch, no clock
and no thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sglang_dspark.files import decode_record
from sglang_dspark.logs.writer import by_writer, parquet_bytes, read_parquet

Ints = npt.NDArray[np.int64]

SCHEMA_VERSION = 2
PREFIX, TITLE = "requests", "request log"
BLOCK_TOKENS = 64
"""Tokens of a hashed block: a multiple of every page size in use up to 64, as a replay needs."""
_HEADER_KEY = "sglang_dspark.request_log"

_SCALARS = {
    "request_id": pa.string(),
    "arrival_s": pa.float64(),
    "prompt_tokens": pa.int64(),
    "output_tokens": pa.int64(),
    "cached_tokens": pa.int64(),
    "finish": pa.string(),
    "streamed": pa.bool_(),
    "starting": pa.bool_(),
    "queue_s": pa.float64(),
    "ttft_s": pa.float64(),
    "latency_s": pa.float64(),
    "retractions": pa.int64(),
    "decode_steps": pa.int64(),
    "session_id": pa.string(),
    "temperature": pa.float64(),
    "priority": pa.int64(),
    "max_new_tokens": pa.int64(),
    "prefill_s": pa.float64(),
}
_HASHES = ("prefix_hashes", pa.list_(pa.int64()))
SCHEMA = pa.schema([*_SCALARS.items(), _HASHES])
_NEW_IN_2 = ("max_new_tokens", "prefill_s")
_OLDER = {1: pa.schema([*((n, k) for n, k in _SCALARS.items() if n not in _NEW_IN_2), _HASHES])}
"""What earlier releases wrote; a record of theirs knows nothing of the columns that came later."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestRecord:
    """One request, from its arrival to its last token. None: the server did not say."""

    request_id: str
    """SGLang's."""
    arrival_s: float
    """When the server received it, on the clock of ``time.time()``."""
    prompt_tokens: int
    """Tokens of the prompt, a cached prefix included."""
    output_tokens: int
    """Tokens generated; 0 when it was aborted before the first."""
    cached_tokens: int | None
    """Prompt tokens whose KV was in the prefix cache."""
    finish: str
    """SGLang's reason: ``stop``, ``length`` or ``abort``."""
    streamed: bool
    """Whether the client asked for a stream."""
    starting: bool
    """Whether the server was still starting: its own warm-up requests are."""
    queue_s: float | None
    """Seconds from arrival until its first forward pass."""
    ttft_s: float | None
    """Seconds from arrival to the first token: when it was ready for the client of a stream, or
    when the prefill's result was known for one who waits for the whole answer."""
    latency_s: float
    """Seconds from arrival until the last token was ready for the client."""
    retractions: int
    """Times it lost its KV to others."""
    decode_steps: int | None
    """Steps that verified it, in a server that speculates."""
    session_id: str | None
    """Conversation, where the client named one."""
    temperature: float | None
    """Of the sampling."""
    priority: int | None
    """As given."""
    max_new_tokens: int | None = None
    """The most tokens it may generate, which admission reserves KV for."""
    prefill_s: float | None = None
    """Seconds from its first forward pass until its prefill's result was known."""
    prefix_hashes: Ints
    """Of the prompt's whole leading blocks of ``BLOCK_TOKENS``, in order; empty when unknown."""

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None where there is no second one."""
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.latency_s - self.ttft_s) / (self.output_tokens - 1)


@dataclass(frozen=True, kw_only=True)
class RequestHeader:
    """What a part says about the log that it belongs to."""

    block_tokens: int
    """Tokens of a hashed block."""
    versions: dict[str, str]
    """Of the software that served."""
    schema_version: int = SCHEMA_VERSION
    """Of the columns."""
    dropped: int = 0
    """Requests the writer had dropped before this part ended."""


def prefix_hashes(tokens: Any, *, key: bytes, root: str = "", block: int = BLOCK_TOKENS) -> Ints:
    """A hash for each whole block of ``tokens``, of its tokens and all before them.

    ``root`` tells apart what never shares a prefix though the tokens are equal: adapters and
    tenants. Equal keys, roots and prefixes give equal hashes; without the key nothing can be
    looked up.
    """
    count = len(tokens) // block
    data = memoryview(np.asarray(tokens[: count * block], dtype=np.int32).tobytes())
    size = 4 * block
    running = blake2b(root.encode(), digest_size=8, key=key)
    hashes = []
    for at in range(0, count * size, size):
        running.update(data[at : at + size])
        hashes.append(running.copy().digest())
    return np.frombuffer(b"".join(hashes), dtype=np.int64)


def encode(records: Sequence[RequestRecord]) -> Any:
    """The records, at least one, as a ``pyarrow.RecordBatch`` of ``SCHEMA``."""
    columns = [
        pa.array([getattr(record, name) for record in records], kind)
        for name, kind in _SCALARS.items()
    ]
    offsets = np.zeros(len(records) + 1, dtype=np.int32)
    np.cumsum([len(record.prefix_hashes) for record in records], out=offsets[1:])
    values = np.concatenate([record.prefix_hashes for record in records])
    columns.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int64())))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def part_bytes(batches: Sequence[Any], header: RequestHeader) -> Any:
    """A whole file of these batches, in memory."""
    return parquet_bytes(batches, schema=SCHEMA, key=_HEADER_KEY, header=dataclasses.asdict(header))


def read_part(path: Path) -> tuple[RequestHeader, Iterator[RequestRecord]]:
    """The header and the requests of one file. ``ValueError`` naming it when it is not one."""
    table, value = read_parquet(
        path, schemas={**_OLDER, SCHEMA_VERSION: SCHEMA}, key=_HEADER_KEY, title=TITLE
    )
    return decode_record(value, RequestHeader, where=f"{path}: header"), _records(table)


def _records(table: Any) -> Iterator[RequestRecord]:
    for row in table.to_pylist():
        hashes = np.array(row.pop("prefix_hashes"), dtype=np.int64)
        yield RequestRecord(prefix_hashes=hashes, **row)


@dataclass(frozen=True, kw_only=True)
class RequestLogRead:
    """All that a folder holds."""

    records: list[RequestRecord]
    """By arrival."""
    block_tokens: int
    """Of the hashes."""
    dropped: int
    """Requests that the writers say they dropped."""


def read_requests(folder: str | Path) -> RequestLogRead:
    """Every request in the folder. ``ValueError`` when there is none or a file is not a part."""
    records: list[RequestRecord] = []
    dropped: dict[str, int] = {}
    blocks: set[int] = set()
    for writer, header, part in by_writer(folder, prefix=PREFIX, title=TITLE, read=read_part):
        dropped[writer] = header.dropped  # each part states the writer's sum so far
        blocks.add(header.block_tokens)
        records.extend(part)
    if len(blocks) > 1:
        raise ValueError(
            f"{folder}: its parts hash blocks of {sorted(blocks)} tokens; keep one kind of part"
        )
    records.sort(key=lambda record: record.arrival_s)
    return RequestLogRead(records=records, block_tokens=blocks.pop(), dropped=sum(dropped.values()))
