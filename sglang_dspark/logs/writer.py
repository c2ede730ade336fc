"""Records to a folder of Parquet parts: whole files only, bounded, off the serving threads.

Owns the queue, the thread, the rotation and the bound, and what is the same in every part: columns
and a JSON header in the file's metadata. Knows neither what a record is nor SGLang. Nothing here
may harm a server: ``PartWriter.observe`` never blocks and never raises, and a log that cannot be
written stops with one warning.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sglang_dspark.files import atomic_write, make_folder, os_problem

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MIB = 2**20
_MOST_PART_BYTES = 8 * _MIB
_PARTS = 8
"""A log holds at least this many parts, so that making room forgets an eighth of it at most."""
_GROUP = 32
"""Records encoded at once: each call has a fixed cost, and one of many would hold the interpreter
for milliseconds that a serving thread may want."""


class PartWriter(ABC, Generic[T]):
    """Writes records to ``folder`` on a thread of its own; ``limit_mb`` bounds what it keeps there.

    A part becomes visible, whole, when its first record is ``interval_s`` old or it holds an eighth
    of the limit (8 MiB at most): a killed server loses no more than that. Parts that earlier
    servers left in the folder count and are the first to go. When ``queue_records`` wait,
    further records are dropped and counted.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        prefix: str,
        title: str,
        limit_mb: int,
        interval_s: float,
        queue_records: int,
        poll_s: float,
    ) -> None:
        if limit_mb < 1:
            raise ValueError(f"{title} of {limit_mb} MiB must be at least 1 MiB; raise the limit")
        self.folder = Path(folder)
        self.written = 0
        """Records in visible parts, deleted ones included."""
        self.stopped = ""
        """Why nothing more is written; empty while the log is alive."""
        self._title = title
        self._pattern = part_pattern(prefix)
        self._leftover = re.compile(rf"{re.escape(prefix)}-.*\.parquet\.tmp-(\d+)$")
        self._limit_bytes = limit_mb * _MIB
        self._part_bytes = min(_MOST_PART_BYTES, self._limit_bytes // _PARTS)
        self._interval_s = interval_s
        self._queue_records = queue_records
        self._poll_s = poll_s
        self._queue: deque[T] = deque()
        # Two counters, one for each thread: += on a shared one would lose counts.
        self._refused = 0
        self._lost = 0
        self._batches: list[Any] = []
        self._pending = 0
        self._pending_bytes = 0
        self._due_s = math.inf
        self._parts: deque[tuple[Path, int]] = deque()
        self._kept_bytes = 0
        self._names = f"{prefix}-{time.time_ns() // 10**6:013d}-{os.getpid()}"
        self._serial = 0
        self._closing = threading.Event()
        name = f"dspark-{title.replace(' ', '-')}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @abstractmethod
    def encode(self, records: Sequence[T]) -> Any:
        """The records, at least one, as a ``pyarrow.RecordBatch``; called on the log's thread."""

    @abstractmethod
    def part_bytes(self, batches: Sequence[Any]) -> Any:
        """A whole file of these batches, in memory; called on the log's thread."""

    def look(self) -> None:
        """Called on the log's thread every ``poll_s``, before the queue is looked at."""

    @property
    def dropped(self) -> int:
        """Records that never reach the disk: refused when the queue was full, or lost later."""
        return self._refused + self._lost

    def observe(self, record: T) -> None:
        """Take the record, by reference; called on a serving thread."""
        # Appending is atomic, and the writer looks by itself: a lock or a wake-up would cost the
        # server more than everything else here.
        if self.stopped or len(self._queue) >= self._queue_records:
            self._refused += 1
        else:
            self._queue.append(record)

    def close(self) -> None:
        """Write what is pending and end the thread."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._open()
            while not self._closing.wait(self._poll_s):
                self.look()
                self._drain()
            self.look()
            self._drain(last=True)
            self._stop("closed")
        except Exception as error:
            # Whatever it is, the server goes on without a log.
            self._stop(str(error) or type(error).__name__)
            text = " ".join(self.stopped.splitlines())
            logger.warning(
                "DSPARK %s stopped, the server goes on without it: %s", self._title, text
            )

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        self._lost += len(self._queue) + self._pending
        self._queue.clear()
        self._batches.clear()
        self._pending = 0

    def _open(self) -> None:
        make_folder(self.folder)
        for path in self.folder.iterdir():
            leftover = self._leftover.fullmatch(path.name)
            if leftover and not _alive(int(leftover[1])):
                path.unlink(missing_ok=True)
        for path in sorted(self.folder.glob(self._pattern)):
            with suppress(FileNotFoundError):  # another writer's bound took it
                self._keep(path, path.stat().st_size)

    def _drain(self, *, last: bool = False) -> None:
        """Encode what waits, in whole groups until a part is due; write the part when it is."""
        if (self._queue or self._pending) and self._due_s == math.inf:
            self._due_s = time.monotonic() + self._interval_s
        due = last or time.monotonic() >= self._due_s
        while len(self._queue) >= _GROUP or (due and self._queue):
            count = min(len(self._queue), _GROUP)
            batch = self.encode([self._queue.popleft() for _ in range(count)])
            self._batches.append(batch)
            self._pending += count
            self._pending_bytes += batch.nbytes
            if self._pending_bytes >= self._part_bytes:
                self._write_part()
        if due:
            self._write_part()

    def _write_part(self) -> None:
        self._due_s = math.inf
        if not self._pending:
            return
        content = self.part_bytes(self._batches)
        if content.size <= self._limit_bytes:
            self._make_room(content.size)
            path = self.folder / f"{self._names}-{self._serial:06d}.parquet"
            with atomic_write(path, "wb") as file:
                file.write(content)
            self._keep(path, content.size)
            self._serial += 1
            self.written += self._pending
        else:
            self._lost += self._pending
        self._batches.clear()
        self._pending = self._pending_bytes = 0

    def _keep(self, path: Path, size: int) -> None:
        self._parts.append((path, size))
        self._kept_bytes += size

    def _make_room(self, size: int) -> None:
        while self._parts and self._kept_bytes + size > self._limit_bytes:
            path, freed = self._parts.popleft()
            path.unlink(missing_ok=True)
            self._kept_bytes -= freed


def _alive(pid: int) -> bool:
    """Whether the process that left a temporary file is another one that still runs."""
    if pid == os.getpid():  # in a container every server may have the same number
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def part_pattern(prefix: str) -> str:
    """What a log's parts are called."""
    return f"{prefix}-*.parquet"


def parts_in(folder: str | Path, *, prefix: str, title: str) -> list[Path]:
    """The parts, oldest first within each server's run. ``ValueError`` when there is none."""
    pattern = part_pattern(prefix)
    found = sorted(Path(folder).glob(pattern))
    if not found:
        raise ValueError(f"{folder}: no {title} here ({pattern}); give the folder of one")
    return found


def by_writer(
    folder: str | Path, *, prefix: str, title: str, read: Any
) -> Iterator[tuple[str, Any, Any]]:
    """Writer, header and records of every part, as ``read`` gives the latter two.

    A part that a running server's bound takes meanwhile is passed over.
    """
    for path in parts_in(folder, prefix=prefix, title=title):
        with suppress(FileNotFoundError):
            header, records = read(path)
            yield path.name.rpartition("-")[0], header, records


def parquet_bytes(batches: Sequence[Any], *, schema: Any, key: str, header: Any) -> Any:
    """The whole file in memory, so that its size is known before a byte is written."""
    text = json.dumps(header, allow_nan=False)
    table = pa.Table.from_batches(batches).combine_chunks()
    sink = pa.BufferOutputStream()
    # As the schema's own metadata the header would be stored twice, once in base64.
    with pq.ParquetWriter(
        sink, schema, compression="zstd", compression_level=1, store_schema=False
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({key: text})
    return sink.getvalue()


def read_parquet(
    path: Path, *, schemas: Mapping[int, Any], key: str, title: str
) -> tuple[Any, Mapping[str, Any]]:
    """The table and the header of one file of any version in ``schemas``, the newest last.

    ``ValueError`` naming the file when it is not one.

    ``FileNotFoundError`` passes: a running server may delete its oldest part meanwhile.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{path}: not a whole Parquet file ({reason}); remove it") from None
    except OSError as error:
        raise os_problem("read", path, error) from None
    text = (table.schema.metadata or {}).get(key.encode())
    if text is None:
        hyphened = title.replace(" ", "-")
        raise ValueError(f"{path}: has no {hyphened} header; give a folder that a server wrote")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: its header is damaged ({error}); remove it") from None
    found = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(found, int) or found not in schemas:
        newest = max(schemas)
        raise ValueError(f"{path}: schema_version {found!r} is not {newest}; record a new {title}")
    if table.schema.names != schemas[found].names:
        raise ValueError(f"{path}: its columns are not a {title}'s; remove the file")
    return table, value
