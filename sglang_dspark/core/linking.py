"""numba's compiler, told to optimise a program once: as a whole, where Python enters it.

Left alone, numba optimises every function together with all that it calls, makes machine code of
it and wraps it for Python, and does so anew at each level of calls: seven times for a sort at the
bottom of the kernel, whose machine code is thrown away six times. Here a callee stays LLVM code (a
part) until an entry is compiled, into which it is linked. What an entry computes is the same: LLVM
never changes a floating-point result, with or without inlining.

Imports numba, which takes half a second: import this only where something is about to be called.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numba as _numba
from numba.core import compiler
from numba.core.codegen import JITCodeLibrary

numba: Any = _numba  # its stubs know neither the cache settings nor what njit keeps of a type


_from_cache_only: ContextVar[bool] = ContextVar("from_cache_only", default=False)


_OPTIONS = {"no_cfunc_wrapper": True, "_nrt": False}
"""Nobody enters by C. And nothing is allocated, so that no array's users need counting: numba would
count, at every call, those of all arrays in a tuple, which took most of a replay's time."""


class NotCompiledError(Exception):
    """A function would have to be compiled, where ``from_cache_only`` forbids it."""


@contextmanager
def from_cache_only() -> Iterator[None]:
    """Within the block nothing is compiled: ``NotCompiledError`` instead."""
    before = _from_cache_only.set(True)
    try:
        yield
    finally:
        _from_cache_only.reset(before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that Python hears wait for the end of the block: what one raises in the midst of
    numba is lost in a call-back of LLVM's, and the function with it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    waiting: list[int] = []
    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if callable(handler := signal.getsignal(number))
    }
    for number in before:
        signal.signal(number, lambda heard, _: waiting.append(heard))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in waiting:
            signal.raise_signal(late)


class _PartLibrary(JITCodeLibrary):
    """LLVM code that is optimised, and made machine code, only as part of what links it."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()  # type: ignore[no-untyped-call]
        self._finalized = True


class _PartCompiler(compiler.Compiler):
    def __init__(
        self, typingctx: Any, targetctx: Any, library: Any, args: Any, return_type: Any,
        flags: Any, locals: Any,
    ) -> None:  # fmt: skip
        flags.no_compile = True
        part = library or _PartLibrary(targetctx.codegen(), "part")  # type: ignore[no-untyped-call]
        super().__init__(  # type: ignore[no-untyped-call]
            typingctx, targetctx, part, args, return_type, flags, locals
        )

    def compile_extra(self, func: Any) -> Any:
        # numba finds the code of a callee by its way in; nobody enters by this one.
        name = object().__dir__
        found = super().compile_extra(func)  # type: ignore[no-untyped-call]
        found = found._replace(entry_point=name)
        self.state.targetctx.insert_user_function(name, found.fndesc, [found.library])
        return found


class _EntryCompiler(compiler.Compiler):
    def compile_extra(self, func: Any) -> Any:
        if _from_cache_only.get():
            raise NotCompiledError
        return super().compile_extra(func)  # type: ignore[no-untyped-call]


def make_part(function: Callable[..., Any], *, forceinline: bool) -> Any:
    """``function`` for compiled callers alone."""
    options = {**_OPTIONS, "no_cpython_wrapper": True, "forceinline": forceinline}
    return numba.njit(pipeline_class=_PartCompiler, **options)(function)


def make_entry(function: Callable[..., Any], folder: str | None) -> Any:
    """``function`` for callers in Python, kept in the folder where there is one."""
    options = {**_OPTIONS, "pipeline_class": _EntryCompiler}
    if folder is None:
        entry = numba.njit(**options)(function)
    else:
        Path(folder).mkdir(parents=True, exist_ok=True)
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = folder
        try:
            entry = numba.njit(cache=True, **options)(function)
        finally:
            numba.config.CACHE_DIR = before
    disturbed = entry.compile

    def compile_undisturbed(types: Any) -> Any:
        with _undisturbed():
            return disturbed(types)

    entry.compile = compile_undisturbed
    return entry


def for_types_of(entry: Any, examples: tuple[Any, ...]) -> Callable[..., Any]:
    """The machine code of an entry for arguments of the examples' types, compiled if need be."""
    return entry.compile(tuple(numba.typeof(example) for example in examples))
