"""``compiled``: numba's njit in two roles, with a disk cache that notices what changed below.

A function called from Python is compiled on its own and kept on disk; called from compiled code it
is a part of its caller (``sglang_dspark.core.linking``). numba stamps a cached function with its
own source file only, so a kernel would keep running the old code of a callee in another file after
an upgrade: here the folder of a function is named by a digest of all that it can call, which is its
file, the files of our packages that this one imports, and so on.

numba is imported by the first call: a command that compiles nothing does not wait for it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGES = ("sglang_dspark", "simulator", "traces", "analysis", "benchmarks")
"""Whose files are watched, beside those of the function's own package."""


@functools.cache
def _imported(path: Path, package: str) -> frozenset[str]:
    """Names of modules, or of things in modules, that the file imports at its top."""
    names: set[str] = set()
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return frozenset(names)


def sources(module: str) -> list[Path]:
    """The files that code of the module can come from: its own, and of our packages what it
    imports. Empty for a module without a file, as in a console."""
    watched = {*_PACKAGES, module.partition(".")[0]}
    todo, found = [module], dict[str, Path | None]()
    while todo:
        name = todo.pop()
        if name in found or name.partition(".")[0] not in watched:
            continue
        loaded = sys.modules.get(name)  # what is imported at the top of a file has been loaded
        file = getattr(loaded, "__file__", None)
        found[name] = Path(file) if file else None
        if file:
            todo += _imported(Path(file), getattr(loaded, "__package__", None) or "")
    return sorted(path for path in found.values() if path) if found.get(module) else []


@functools.cache
def base_folder() -> Path | None:
    """Where compiled code is kept: a folder that can be written, if need be for this process only,
    which the first call warns of; None where there is not even that."""
    base = None
    try:
        base = Path(os.environ.get("NUMBA_CACHE_DIR") or Path.home() / ".cache" / "sglang-dspark")
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=base):
            return base
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        reason = getattr(error, "strerror", None) or str(error)
        warnings.warn(
            f"{base or '~/.cache'}: compiled code cannot be kept ({reason}), so every start "
            "compiles again; set NUMBA_CACHE_DIR to a folder that can be written",
            stacklevel=2,
        )
    try:
        return Path(_spare_folder().name)
    except OSError:
        return None


@functools.cache
def _spare_folder() -> tempfile.TemporaryDirectory[str]:
    """Lives as long as this process; its children find the code there."""
    return tempfile.TemporaryDirectory(prefix="sglang-dspark-")


@functools.cache
def cache_folder(module: str) -> str | None:
    """The folder of the module's functions in this state of their sources; None for none."""
    files = sources(module)
    base = base_folder() if files else None
    if base is None:
        return None
    from importlib.metadata import version  # slow to import

    digest = hashlib.sha256(f"{version('numba')} {sys.version}".encode())
    for path in files:
        digest.update(path.read_bytes())
    return str(base / f"{module}-{digest.hexdigest()[:16]}")


class _Compiled:
    """A function as Python and as other compiled functions see it."""

    def __init__(self, function: Callable[..., Any], forceinline: bool) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._forceinline = forceinline

    @functools.cached_property
    def _entry(self) -> Callable[..., Any]:
        from sglang_dspark.core.linking import make_entry  # numba takes half a second to import

        return make_entry(self._function, cache_folder(self._function.__module__))

    @functools.cached_property
    def _part(self) -> Any:
        from sglang_dspark.core.linking import make_part

        return make_part(self._function, forceinline=self._forceinline)

    @property
    def _numba_type_(self) -> Any:
        """What compiled code takes this for."""
        return self._part._numba_type_

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._entry(*arguments, **named)

    def bound(self, examples: tuple[Any, ...]) -> Callable[..., Any]:
        from sglang_dspark.core.linking import for_types_of

        return for_types_of(self._entry, examples)


def compiled(function: F) -> F:
    """Compile on first call, float semantics strict (same inputs, same bytes), cached on disk.

    The function makes no array: it writes into those that it is given.
    """
    return cast(F, _Compiled(function, forceinline=False))


def inlined(function: F) -> F:
    """``compiled``, and pasted into its callers: for what takes large tuples of arrays and is hot.
    Their hundreds of words would be copied at every call."""
    return cast(F, _Compiled(function, forceinline=True))


def bound(function: F, *examples: Any) -> F:
    """A compiled function for arguments of the types that the examples have, by position.

    numba looks at the types of all arguments at every call; for the kernel's hundred arrays that
    takes longer than most steps. Here it looks once. ``TypeError`` for an array of another type,
    but of numbers and their order the caller has to be sure.
    """
    return cast(F, cast(Any, function).bound(examples))
