"""Where a run's results go: one run a folder, and no earlier result lost without a word.

Owns the choice of the folder and its lock. A lock is the operating system's, on the folder itself:
it ends with the process that holds it and leaves no file. Knows nothing of what is written.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sglang_dspark.files import make_folder, os_problem, read_json

_CONFIG = "config.json"
_MOST_FOLDERS = 1000


@contextmanager
def claimed(out: str | None, default: Path, config: Any, *, force: bool) -> Iterator[Path]:
    """The folder for the results of ``config`` (a dataclass), this process's within the block.

    ``out`` is taken as it is: ``ValueError`` where another run is writing there, or where it holds
    the result of another configuration, unless ``force``. Without ``out`` it is ``default``, or the
    first of ``default-2``, ``default-3``, ... where neither is so.
    """
    for number in range(1, _MOST_FOLDERS + 1):
        path = Path(out) if out else default
        if not out and number > 1:
            path = default.with_name(f"{default.name}-{number}")
        problem = ""
        with _locked(make_folder(path), fcntl.LOCK_EX) as free:
            if not free:
                problem = "another run is writing there; give another --out"
            elif not force and (key := _other(path, config)):
                problem = f"another run, with another {key}, is kept there; give --force or --out"
            else:
                yield path
                return
        if out:
            raise ValueError(f"{path}: {problem}")
    raise ValueError(f"{default}: {_MOST_FOLDERS} results beside each other; give --out")


@contextmanager
def settled(path: str | Path) -> Iterator[None]:
    """Read a result folder whole: ``ValueError`` while a run is writing there."""
    if not Path(path).is_dir():
        yield  # whoever reads says what is missing
        return
    with _locked(Path(path), fcntl.LOCK_SH) as free:
        if not free:
            raise ValueError(f"{path}: a run is writing its results there; wait until it is done")
        yield


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[bool]:
    """Whether the lock was to be had; it is held within the block."""
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise os_problem("open", folder, error) from None
    try:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks: as before there were any
            pass
        yield True
    finally:
        os.close(file)


def _other(path: Path, config: Any) -> str | None:
    """The first key in which the result in ``path`` differs; None for the same run or no result."""
    if not (path / _CONFIG).exists():
        return None
    try:
        there = read_json(path / _CONFIG)
    except ValueError:
        return _CONFIG
    ours = json.loads(json.dumps(dataclasses.asdict(config)))
    aside = {"provenance"}  # what may differ between two configurations of the same run
    if _digest(ours) and _digest(there):  # a trace is its requests, not its name
        if _digest(ours) != _digest(there):
            return "trace"
        aside.add("trace")
    keys = [key for key in {**ours, **there} if key not in aside]
    return next((key for key in keys if ours.get(key) != there.get(key)), None)


def _digest(config: dict[str, Any]) -> str | None:
    """Of the trace that was replayed, where it is written down."""
    found = config.get("provenance")
    return found.get("trace_sha256") if isinstance(found, dict) else None
