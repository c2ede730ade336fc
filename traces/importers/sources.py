"""Source files as records with places: one or several files of the same kind, read in order.

Owns how a spot in them is named, which records are read, and which lines are passed over. Text is
read line by line and Parquet in batches, so that memory does not grow with the text beside the
counts. Knows no format's fields.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from traces.importers.fields import Row
from traces.importers.readers import (
    Record,
    folded,
    json_object,
    read_csv,
    read_document,
    read_table,
)
from traces.importers.texts import HEAD_BYTES, Advance, delimiter_of, kind_of, open_text

SAMPLE_RECORDS = 50
"""Records that a format is told from."""
_SPOT = 1 << 40
"""A place is the file's number times this, and the line or record in it."""
_LOG_PREFIX = re.compile(r"^\[[^\]{}]*\]\s*(?=\{)")
NOT_JSON = (
    "passed over: log lines that are not JSON (sglang writes it with --log-requests-format json)"
)
CUT_OFF = "left out: the last line, which is cut off"


class Source:
    """One or several files of the same kind, read in order."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        renamed: dict[str, str] | None = None,
        rows: tuple[int, int | None] | None = None,
    ) -> None:
        """``renamed``: the files' names of fields to those that formats have; ``rows``: (first,
        end) of the records that are read, over all files."""
        self.paths = list(paths)
        self._kinds = [kind_of(path) for path in self.paths]
        # A CSV header's names are in small letters by then.
        self._renamed = {
            name if self._kinds[0] in ("lines", "document", "yaml") else name.lower(): ours
            for name, ours in (renamed or {}).items()
        }
        self._rows = rows
        self.lenient = False
        """Whether lines of another kind are passed over and counted, as in a server's log."""
        self.fold = False
        """Whether the names of fields are read in small letters, as those of tables are."""
        self.notes: dict[str, int] = {}
        """Lines that held no record, and how many."""

    def where(self, place: int) -> str:
        """FILE:LINE of a place, or FILE: record N where the file has no lines."""
        number, spot = divmod(place, _SPOT)
        path, kind = self.paths[number], self._kinds[number]
        return f"{path}:{spot}" if kind in ("csv", "lines") else f"{path}: record {spot}"

    def kinds(self) -> set[str]:
        """Of its files: csv, lines, document, parquet, arrow or yaml."""
        return set(self._kinds)

    def records(
        self, columns: Sequence[str] | None = None, *, on_bytes: Advance | None = None
    ) -> Iterator[tuple[int, Record]]:
        """(place, record) of every record; ``columns`` are all that is needed of each."""
        return itertools.islice(self._all(columns, on_bytes), *(self._rows or (None,)))

    def _all(
        self, columns: Sequence[str] | None, on_bytes: Advance | None
    ) -> Iterator[tuple[int, Record]]:
        for number, (path, kind) in enumerate(zip(self.paths, self._kinds, strict=True)):
            for spot, record in self._read(path, kind, columns, on_bytes or (lambda read: None)):
                if self.fold and not isinstance(record, Row):
                    record = folded(record)
                if self._renamed:
                    record = self._renaming(record)
                yield number * _SPOT + spot, record

    def _renaming(self, record: Record) -> Record:
        renamed = {self._renamed.get(name, name): value for name, value in record.items()}
        if not isinstance(record, Row):
            return renamed
        names = {self._renamed.get(name, name): theirs for name, theirs in record.header.items()}
        return Row(renamed, names)

    def names(self) -> set[str]:
        """The names in the first file's header, where it is a table."""
        if self._kinds[0] != "csv":
            return set()
        with open_text(self.paths[0]) as file:
            first = next((line for line in file if line.strip()), "")
        names = next(csv.reader([first], delimiter=delimiter_of(first)))
        return {self._renamed.get(name.strip().lower(), name.strip().lower()) for name in names}

    def sample(self) -> list[Record]:
        """The first records, as far as they can be read."""
        notes, self.notes, lenient = self.notes, {}, self.lenient
        self.lenient = True
        try:
            return [record for _, record in itertools.islice(self.records(), SAMPLE_RECORDS)]
        finally:
            self.notes, self.lenient = notes, lenient

    def head(self) -> str:
        """The first lines of the first file, as text; empty where it is not text."""
        if self._kinds[0] in ("parquet", "arrow"):
            return ""
        with open_text(self.paths[0]) as file:
            return file.read(HEAD_BYTES)

    def _read(
        self, path: Path, kind: str, columns: Sequence[str] | None, advance: Advance
    ) -> Iterator[tuple[int, Record]]:
        if kind in ("parquet", "arrow"):
            back = {new: old for old, new in self._renamed.items()}
            wanted = None if columns is None else [back.get(name, name) for name in columns]
            yield from read_table(path, kind, wanted, advance)
        elif kind == "csv":
            yield from read_csv(path, advance)
        elif kind == "lines":
            yield from self._lines(path, advance)
        else:
            yield from read_document(path, kind, advance)

    def _lines(self, path: Path, advance: Advance) -> Iterator[tuple[int, Record]]:
        decode = msgspec.json.Decoder().decode
        seen = 0
        with open_text(path, advance) as file:
            for number, line in enumerate(file, start=1):
                text = line.strip().strip("\x00")
                if not text:
                    continue
                if text[0] != "{" and self.lenient:
                    text = _LOG_PREFIX.sub("", text, count=1)
                    if not text.startswith("{"):
                        self._note(NOT_JSON)
                        continue
                try:
                    record = decode(text)
                    if not isinstance(record, dict):
                        raise msgspec.DecodeError
                except (msgspec.DecodeError, RecursionError):
                    if seen and not line.endswith(("\n", "\r")) and text[0] == "{":
                        self._note(CUT_OFF)
                        continue
                    record = json_object(f"{path}:{number}", text)
                seen += 1
                yield number, record

    def _note(self, reason: str) -> None:
        self.notes[reason] = self.notes.get(reason, 0) + 1
