"""The journal of a sweep: finished results on disk, so that an interrupted sweep goes on.

Owns the digest that tells whether two points are the same, and the lines. A line is one JSON
object with the digest of sources, function and point, and the pickled result: read only journals
that you wrote. Knows nothing of what a point means.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.files import os_problem

_ROOT = Path(__file__).parents[2]
_PLAIN = {bool, int, float, str, type(None)}
_SOURCES = ("sglang_dspark/core", "simulator", "traces")


@functools.cache
def source_digest() -> str:
    """Digest of every source file that a result depends on."""
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(_ROOT)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Equal for equal values in any process; dataclasses by their fields, arrays by their bytes.

    Caches that an object fills while it is used do not count. ``ValueError`` for what has no
    such digest.
    """
    return _digest(value, {}).hex()


def _digest(value: Any, seen: dict[int, bytes]) -> bytes:
    """``seen`` holds the digests of dataclasses by identity: points share traces and models."""
    known = seen.get(id(value))
    if known is not None:
        return known
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    digest = hashlib.sha256(f"{kind}\0".encode())
    if value is None or isinstance(value, bool | int | float | str | bytes | Path):
        digest.update(repr(value).encode())
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        array = np.ascontiguousarray(value)
        digest.update(f"{array.dtype.descr}{array.shape}\0".encode() + array.tobytes())
    elif isinstance(value, list | tuple) and all(type(item) in _PLAIN for item in value):
        digest.update(repr(list(value)).encode())  # a trace names its requests in such a list
    elif isinstance(value, list | tuple):
        for item in value:
            digest.update(_digest(item, seen))
    elif isinstance(value, dict):
        for key, item in value.items():
            digest.update(_digest(key, seen) + _digest(item, seen))
    elif isinstance(value, functools.partial):
        digest.update(_digest((value.func, value.args, value.keywords), seen))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            digest.update(_digest(getattr(value, field.name), seen))
        seen[id(value)] = digest.digest()
    elif callable(value) and hasattr(value, "__qualname__"):
        digest.update(f"{value.__module__}.{value.__qualname__}".encode())
    else:
        raise ValueError(f"a {kind} has no digest; make points of dataclasses, arrays and numbers")
    return digest.digest()


class Journal:
    """Results of one function by point, appended a line at a time."""

    def __init__(self, path: Path, work: Callable[[Any], Any], points: Sequence[Any]) -> None:
        self.path = path
        seen: dict[int, bytes] = {}
        base = _digest((source_digest(), work), seen)
        # ``points`` is held while ``seen`` is in use, so that no identity is given out twice.
        self._keys = [
            hashlib.sha256(base + _digest(point, seen)).hexdigest()[:32] for point in points
        ]

    def recorded(self) -> Iterator[tuple[int, Any]]:
        """(place, result) of every point that was finished before. Torn lines are skipped."""
        try:
            text = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise os_problem("read", self.path, error) from None
        places: dict[str, list[int]] = {}
        for i, key in enumerate(self._keys):
            places.setdefault(key, []).append(i)
        for line in text.split(b"\n"):
            try:
                entry = json.loads(line)
                found = places.pop(entry["point"], ())
                result = pickle.loads(base64.b64decode(entry["result"])) if found else None
            except (ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
                continue  # a line that a crash cut off, or that is none of ours
            for i in found:
                yield i, result

    def append(self, i: int, result: Any) -> None:
        """Write point ``i``'s result as one line, on disk before this returns."""
        data = base64.b64encode(pickle.dumps(result)).decode()
        line = json.dumps({"point": self._keys[i], "result": data}).encode() + b"\n"
        try:
            with open(self.path, "ab") as file:
                if file.tell() and not self._ends_a_line():
                    line = b"\n" + line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise os_problem("write", self.path, error) from None

    def _ends_a_line(self) -> bool:
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
