"""``compiled``: numba's njit with a disk cache that notices changes in called functions.

numba stamps a cached function with its own source file only, so a kernel would keep running the
old code of a callee in another file after an upgrade. Here the cache folder is named by a digest
of every source file of the function's package and of this one.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba as _numba

numba: Any = _numba  # its stubs know neither the cache settings nor what njit keeps of a type

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def _cache_folder(package: str) -> str | None:
    """A writable folder for this state of the sources; None where nothing can be kept."""
    own = getattr(sys.modules[package], "__file__", None)
    if own is None:
        return None  # a console or a namespace package: no sources to watch
    digest = hashlib.sha256(f"{numba.__version__} {sys.version}".encode())
    roots = {Path(__file__).parent}
    if package != "sglang_dspark":
        roots.add(Path(own).parent)
    for root in sorted(roots):
        for source in sorted(root.rglob("*.py")):
            digest.update(source.read_bytes())
    try:
        base = os.environ.get("NUMBA_CACHE_DIR") or Path.home() / ".cache" / "sglang-dspark"
        folder = Path(base) / f"{package}-{digest.hexdigest()[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None


def compiled(function: F) -> F:
    """Compile on first call, float semantics strict (same inputs, same bytes), cached on disk."""
    return _compile(function)


def inlined(function: F) -> F:
    """``compiled``, and pasted into its callers: for what takes large tuples of arrays and is hot.
    Their hundreds of words would be copied and their arrays counted as used at every call."""
    return _compile(function, forceinline=True)


def _compile(function: F, **options: bool) -> F:
    folder = _cache_folder(function.__module__.partition(".")[0])
    if folder is None:
        return cast(F, numba.njit(**options)(function))
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = folder
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    finally:
        numba.config.CACHE_DIR = before
