"""A file's text, unpacked, and what it is: lines, a document, CSV, Parquet, Arrow or YAML.

Owns gzip, byte order marks and the count of bytes read, and the sentences for files that cannot be
read as they are. Knows no record.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sglang_dspark.files import os_problem

Advance = Callable[[int], None]
"""Hears how many more bytes were read."""

HEAD_BYTES = 1 << 16
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
    with open_text(path) as file:
        text = file.read(HEAD_BYTES)
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
    with open_text(path) as file:
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
        byte, encoding = error.object[error.start], error.encoding.upper()
        line = _first_undecodable(path)
        raise ValueError(
            f"{path}:{line}: byte 0x{byte:02x} is not {encoding}; save it as UTF-8"
            if line
            else f"{path}: byte 0x{byte:02x} is not {encoding}; save it as UTF-8"
        ) from None
    except UnicodeError as error:
        raise ValueError(f"{path}: {error}; save it as UTF-8") from None
    except OSError as error:
        raise os_problem("read", path, error) from None


def _first_undecodable(path: Path) -> int:
    """The first line that is not UTF-8; 0 where none is, or none can be told."""
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        lines = gzip.GzipFile(fileobj=raw) if packed else raw
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


@contextmanager
def open_text(path: Path, advance: Advance = lambda read: None) -> Iterator[IO[str]]:
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
