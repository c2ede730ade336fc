"""Whole-file reading and writing: one sentence per failure, nothing half-written.

Owns strict decoding of JSON into frozen dataclasses, the write-then-rename rule and the hint that a
misspelt name gets. Knows nothing of what the files mean. Every failure is a ``ValueError`` whose
text names the file, the value, the constraint and the remedy; ``sglang_dspark.cli`` turns it into
one line and exit status 2.
"""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import json
import math
import os
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

T = TypeVar("T")


def os_problem(action: str, path: str | Path, error: OSError) -> ValueError:
    """The sentence for a file the operating system refuses to open, read or write."""
    reason = error.strerror or str(error)
    return ValueError(f"{path}: cannot {action}: {reason}; check the path, its rights and the disk")


def read_text(path: str | Path) -> str:
    """The file's text. ``ValueError`` when it is missing, unreadable or not UTF-8."""
    try:
        return unpacked(path, Path(path).read_bytes()).decode("utf-8")
    except OSError as error:
        raise os_problem("read", path, error) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None


def unpacked(path: str | Path, data: bytes) -> bytes:
    """What a gzip file holds; other bytes as they are. ``ValueError`` where gzip is damaged."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip ({error}); copy the file again") from None


def read_json(path: str | Path) -> Any:
    """The file's JSON value; NaN, Infinity and what overflows to it are refused."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{path}: {constant} is not a JSON number; give a finite value")

    def finite(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(digits)

    try:
        return json.loads(read_text(path), parse_constant=refuse, parse_float=finite)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno}); mend it"
        ) from None


def read_record(path: str | Path, kind: type[T]) -> T:
    """The frozen dataclass ``kind`` decoded from a JSON file; unknown keys and wrong types fail."""
    return decode_record(read_json(path), kind, where=str(path))


def decode_record(value: Any, kind: type[T], *, where: str) -> T:
    """Decode parsed JSON into the dataclass ``kind``; errors begin with ``where``."""
    _refuse_unknown_keys(value, kind, where)
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _refuse_unknown_keys(value: Any, kind: Any, where: str) -> None:
    """msgspec drops unknown keys of dataclasses silently; here they are errors, at any depth."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = [k for k in arguments if dataclasses.is_dataclass(k)]
        kind = kinds[0] if len(kinds) == 1 else None
    if origin in (list, tuple) and isinstance(value, list) and arguments:
        for i, inner in enumerate(value):
            _refuse_unknown_keys(inner, arguments[0], f"{where}[{i}]")
    if origin is dict and isinstance(value, dict):
        for key, inner in value.items():
            _refuse_unknown_keys(inner, arguments[1], f"{where}: {key}")
    if not (dataclasses.is_dataclass(kind) and isinstance(value, dict)):
        return
    hints = typing.get_type_hints(kind)
    refuse_unknown(value, [field.name for field in dataclasses.fields(kind)], where)
    for key, inner in value.items():
        _refuse_unknown_keys(inner, hints[key], f"{where}: {key}")


def refuse_unknown(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    """``ValueError`` for the first of ``keys`` that is not ``known``; it begins with ``where``."""
    known = list(known)
    for key in keys:
        if key not in known:
            hint = did_you_mean(key, known) or f"known keys: {', '.join(known)}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint.rstrip()}")


def did_you_mean(name: str, known: Iterable[str], *, show: Callable[[str], str] = repr) -> str:
    """``did you mean 'NAME'? `` for the nearest known name, ready for what follows; else empty."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {show(near[0])}? " if near else ""


def refuse_onto_input(out: str | Path, *inputs: str | Path) -> None:
    """``ValueError`` where ``out`` is one of the files that are about to be read."""
    for given in inputs:
        if Path(out).exists() and Path(given).exists() and os.path.samefile(out, given):
            raise ValueError(f"{out}: is the input, and would be lost; give another name")


def refuse_replacing(path: str | Path, data: bytes, *, force: bool) -> None:
    """``ValueError`` where ``path`` holds something else than ``data``, unless ``force``."""
    goal = Path(path)
    try:
        other = not force and goal.is_file() and goal.read_bytes() != data
    except OSError as error:
        raise os_problem("read", path, error) from None
    if other:
        raise ValueError(f"{path}: exists and holds something else; give --force or another name")


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears under ``path`` only when the block ends well.

    Written beside its goal under a temporary name, flushed to disk, then renamed: a crash, an
    exception or a full disk leaves whatever stood there before.
    """
    goal = Path(path)
    temporary = goal.with_name(f"{goal.name}.tmp-{os.getpid()}")
    try:
        if goal.exists() and not goal.is_file():  # a rename onto /dev/null would replace the device
            raise ValueError(f"{path}: cannot write: not a plain file; give a file's path")
        encoding = None if "b" in mode else "utf-8"
        with open(temporary, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, goal)
    except OSError as error:
        raise os_problem("write", goal, error) from None
    finally:
        with suppress(OSError):  # it never came to be, for the reason already given
            temporary.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """Write a dataclass or plain value as indented JSON, keys in declared order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    with atomic_write(path) as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")


def write_sorted_json(path: str | Path, value: Any) -> None:
    """Write a plain value as transformers writes its config.json: keys sorted, two spaces."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def make_folder(path: str | Path) -> Path:
    """The folder, made with its parents when missing."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise os_problem("make the folder", path, error) from None
    return Path(path)
