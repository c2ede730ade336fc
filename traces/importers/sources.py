"""Source files as records with places: JSON lines, JSON documents, CSV, Parquet, logs; gzip or not.

Owns what a file is made of and how to name a spot in it. Text is read line by line and Parquet in
batches, so that memory does not grow with the text beside the counts. Knows no format's fields.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec

from sglang_dspark.files import os_problem
from traces.importers.fields import Row, shown

Record = dict[str, Any]

SAMPLE_RECORDS = 50
"""Records that a format is told from."""
_HEAD_BYTES = 1 << 16
_BATCH_ROWS = 4096
_SPOT = 1 << 40
"""A place is the file's number times this, and the line or record in it."""
_PACKED = {
    b"PK\x03\x04": ("a zip archive", "unzip it"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unpack it with zstd -d"),
    b"BZh": ("bzip2", "unpack it with bunzip2"),
    b"\xfd7zXZ": ("xz", "unpack it with unxz"),
    b"version https://git-lfs": ("a Git LFS pointer, not the file", "fetch it with git lfs pull"),
    b"SQLite format 3": ("an SQLite database", "export the table as CSV"),
    b"\xd0\xcf\x11\xe0": ("a spreadsheet", "save it as CSV"),
}
_NO_NAME = re.compile(r"[:=\[\]{}]|.{80}")
"""What a line of a log has in it and the name of a column has not."""
_LOG_PREFIX = re.compile(r"^\[[^\]{}]*\]\s*(?=\{)")
NOT_JSON = (
    "passed over: log lines that are not JSON (sglang writes it with --log-requests-format json)"
)
CUT_OFF = "left out: the last line, which is cut off"

Advance = Callable[[int], None]


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
            name.lower() if "csv" in self._kinds else name: ours
            for name, ours in (renamed or {}).items()
        }
        self._rows = rows
        self.lenient = False
        """Whether lines of another kind are passed over and counted, as in a server's log."""
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
        with _text(self.paths[0], lambda read: None) as file:
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
        with _text(self.paths[0], lambda read: None) as file:
            return file.read(_HEAD_BYTES)

    def _read(
        self, path: Path, kind: str, columns: Sequence[str] | None, advance: Advance
    ) -> Iterator[tuple[int, Record]]:
        if kind in ("parquet", "arrow"):
            back = {new: old for old, new in self._renamed.items()}
            wanted = None if columns is None else [back.get(name, name) for name in columns]
            yield from _table(path, kind, wanted, advance)
        elif kind == "csv":
            yield from _csv(path, advance)
        elif kind == "lines":
            yield from self._lines(path, advance)
        else:
            yield from _document(path, kind, advance)

    def _lines(self, path: Path, advance: Advance) -> Iterator[tuple[int, Record]]:
        decode = msgspec.json.Decoder().decode
        seen = 0
        with _text(path, advance) as file:
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


def kind_of(path: Path) -> str:
    """What a file is made of. ``ValueError`` naming the remedy where it cannot be read as it is."""
    head = _head(path)
    for magic, (what, remedy) in _PACKED.items():
        if head.startswith(magic):
            raise ValueError(f"{path}: is {what}; {remedy}")
    if head[257:262] == b"ustar":
        raise ValueError(f"{path}: is a tar archive; unpack it and give the files in it")
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    with _text(path, lambda read: None) as file:
        text = file.read(_HEAD_BYTES)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: is empty; give a file with at least one request")
    begin = text.lstrip()
    if re.match(r"\[\s*(\{|\])", begin) or re.match(r"\[\s*$", lines[0]):
        return "document"
    if begin[0] == "{":
        return _one_object(path)
    if path.suffix in (".yaml", ".yml") or begin.startswith(("benchmarks:", "metadata:", "---\n")):
        return "yaml"
    if any(line.lstrip().startswith("{") or "] {" in line for line in lines):
        return "lines"
    names = lines[0].split(delimiter_of(lines[0]) or None)
    header = delimiter_of(lines[0]) and not any(_NO_NAME.search(name) for name in names)
    return "csv" if header else "lines"


def _one_object(path: Path) -> str:
    """A file that begins with an object: one on each line, or one over several lines."""
    with _text(path, lambda read: None) as file:
        lines = list(itertools.islice((line for line in file if line.strip()), 5))
    if _complete(lines[0]):
        return "lines"
    over_several = lines[0].strip() == "{" or not any(line[0] == "{" for line in lines[1:])
    return "document" if len(lines) > 1 and over_several else "lines"


def _complete(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def delimiter_of(header: str) -> str:
    """What stands between a header's names; empty where there is one name only."""
    counts = {mark: header.count(mark) for mark in (",", ";", "\t", "|")}
    most = max(counts, key=counts.__getitem__)
    return most if counts[most] else ""


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        if head.startswith(b"\x1f\x8b"):
            with _unpacking(path), gzip.open(path) as packed:
                return packed.read(512)
        return head
    except OSError as error:
        raise os_problem("read", path, error) from None


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip ({error}); copy the file again") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte 0x{error.object[error.start]:02x} is not {error.encoding.upper()}; "
            "save it as UTF-8"
        ) from None
    except UnicodeError as error:
        raise ValueError(f"{path}: {error}; save it as UTF-8") from None
    except OSError as error:
        raise os_problem("read", path, error) from None


@contextmanager
def _text(path: Path, advance: Advance) -> Iterator[IO[str]]:
    """The file's text, unpacked, without a byte order mark; ``advance`` hears of bytes read."""
    with _unpacking(path), open(path, "rb") as raw:
        counted = io.BufferedReader(_Counted(raw, advance), 1 << 18)
        packed = counted.peek(2)[:2] == b"\x1f\x8b"
        binary: Any = gzip.GzipFile(fileobj=counted) if packed else counted
        if packed:
            binary = io.BufferedReader(binary, 1 << 18)
        mark = binary.peek(2)[:2]
        encoding = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with io.TextIOWrapper(binary, encoding=encoding, newline=None) as text:
            yield text


class _Counted(io.RawIOBase):
    """A raw file that tells how many bytes were read of it."""

    def __init__(self, raw: IO[bytes], advance: Advance) -> None:
        self._raw = raw
        self._advance = advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        self._advance(len(data))
        return len(data)


def _csv(path: Path, advance: Advance) -> Iterator[tuple[int, Record]]:
    """Rows under a header, whose names are stripped and in small letters."""
    with _text(path, advance) as file:
        before, first = next(((i, line) for i, line in enumerate(file) if line.strip()), (0, ""))
        mark = delimiter_of(first)
        reader = csv.reader(itertools.chain([first], file), delimiter=mark, strict=True)
        comma = re.compile(r"-?\d+,\d+") if mark != "," else None
        try:
            written = [name.strip() for name in next(reader)]
            while not written[-1]:
                written.pop()  # a comma at the end of every line
            written = [name or f"column {i}" for i, name in enumerate(written, start=1)]
            header = [name.lower() for name in written]
            names = dict(zip(header, written, strict=True))
            repeated = next((name for name in header if header.count(name) > 1), None)
            if repeated is not None:
                raise ValueError(f"{path}:1: two columns {repeated!r}; rename one")
            for row in reader:
                where = f"{path}:{before + reader.line_num}"
                if not any(value.strip() for value in row):
                    continue
                while len(row) > len(header) and not row[-1].strip():
                    row.pop()
                if len(row) != len(header):
                    raise ValueError(
                        f"{where}: {len(row)} values under {len(header)} columns; "
                        "mend or remove the row"
                    )
                values = [value.strip() for value in row]
                if comma:  # decimal commas come with other delimiters
                    values = [v.replace(",", ".") if comma.fullmatch(v) else v for v in values]
                yield before + reader.line_num, Row(zip(header, values, strict=True), names)
        except csv.Error as error:
            raise ValueError(
                f"{path}:{before + reader.line_num}: not valid CSV ({error}); mend the row"
            ) from None


def _table(
    path: Path, kind: str, columns: Sequence[str] | None, advance: Advance
) -> Iterator[tuple[int, Record]]:
    """Rows of a Parquet or Arrow file, batch by batch, only the columns needed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    try:
        with path.open("rb") as raw:
            if kind == "parquet":
                file = pq.ParquetFile(raw)
                names, rows = file.schema_arrow.names, file.metadata.num_rows
                kept = names if columns is None else [name for name in names if name in columns]
                batches = file.iter_batches(_BATCH_ROWS, columns=kept)
            else:
                reader = pa.ipc.open_file(raw)
                names = reader.schema.names
                kept = names if columns is None else [name for name in names if name in columns]
                rows = 0
                batches = (
                    reader.get_batch(i).select(kept) for i in range(reader.num_record_batches)
                )
            number = 0
            for batch in batches:
                for record in batch.to_pylist():
                    number += 1
                    # A column of numbers with gaps holds NaN where pandas wrote it.
                    yield number, {k: v for k, v in record.items() if not _is_gap(v)}
                advance(int(size * len(batch) / rows) if rows else 0)
    except pa.ArrowException as error:
        problem = str(error).splitlines()[0]
        raise ValueError(f"{path}: damaged {kind} ({problem}); copy the file again") from None
    except OSError as error:
        if error.errno is None:
            raise ValueError(f"{path}: damaged {kind} ({error}); copy the file again") from None
        raise os_problem("read", path, error) from None


def _is_gap(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _document(path: Path, kind: str, advance: Advance) -> Iterator[tuple[int, Record]]:
    """The objects of a JSON array, or objects one after another, or one YAML document."""
    with _text(path, advance) as file:
        text = file.read()
    values = _yaml(path, text) if kind == "yaml" else _json_values(path, text)
    number = 0
    for value in values:
        for record in value if isinstance(value, list) else [value]:
            number += 1
            if not isinstance(record, dict):
                raise ValueError(
                    f"{path}: record {number}: {shown(record)} is not an object; mend or remove it"
                )
            yield number, record


def _json_values(path: Path, text: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    text = text.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{error.lineno}: not valid JSON ({error.msg}); mend it"
            ) from None
        except (ValueError, RecursionError):
            raise ValueError(f"{path}: nested too deep or a number too long; mend it") from None
        yield value
        while at < len(text) and text[at] in " \r\n\t,":
            at += 1


def _yaml(path: Path, text: str) -> list[Any]:
    try:
        import yaml
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: is YAML, which needs the package pyyaml; install it, or write JSON"
        ) from None
    try:
        return [yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))]
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{path}: not valid YAML ({problem}); mend it") from None


def json_object(where: str, line: str) -> Record:
    """The object on a line. Infinity and NaN pass: servers write them beside the counts."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not valid JSON ({error.msg}); mend or remove the line"
        ) from None
    except (ValueError, RecursionError):  # also Python's limit on the digits of a number
        raise ValueError(
            f"{where}: nested too deep or a number too long; mend or remove the line"
        ) from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {shown(record)} is not a JSON object; mend or remove the line")
    return record
