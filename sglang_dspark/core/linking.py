"""numba's compiler, told to optimise a program once: as a whole, where Python enters it.

Left alone, numba optimises every function together with all that it calls, makes machine code of
it and wraps it for Python, and does so anew at each level of calls: seven times for a sort at the
bottom of the kernel, whose machine code is thrown away six times. Here a callee stays LLVM code (a
part) until an entry is compiled, into which it is linked. What an entry computes is the same: LLVM
never changes a floating-point result, with or without inlining.

Imports numba, which takes half a second: only ``sglang_dspark.core.compiled`` imports this, when
something is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba as _numba
from numba.core import compiler
from numba.core.codegen import JITCodeLibrary

from sglang_dspark.core.compiled import refuse_if_forbidden

numba: Any = _numba  # its stubs know neither the cache settings nor what njit keeps of a type


class _PartLibrary(JITCodeLibrary):
    """LLVM code that is optimised, and made machine code, only as part of what links it."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class _PartCompiler(compiler.Compiler):
    def __init__(
        self, typingctx: Any, targetctx: Any, library: Any, args: Any, return_type: Any,
        flags: Any, locals: Any,
    ) -> None:  # fmt: skip
        flags.no_compile = True
        part = library or _PartLibrary(targetctx.codegen(), "part")
        super().__init__(typingctx, targetctx, part, args, return_type, flags, locals)

    def compile_extra(self, func: Any) -> Any:
        # numba finds the code of a callee by its way in; nobody enters by this one.
        name = object().__dir__
        found = super().compile_extra(func)._replace(entry_point=name)
        self.state.targetctx.insert_user_function(name, found.fndesc, [found.library])
        return found


class _EntryCompiler(compiler.Compiler):
    def compile_extra(self, func: Any) -> Any:
        refuse_if_forbidden()
        return super().compile_extra(func)


def make_part(function: Callable[..., Any], *, forceinline: bool) -> Any:
    """``function`` for compiled callers alone."""
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "forceinline": forceinline}
    return numba.njit(pipeline_class=_PartCompiler, **options)(function)


def make_entry(function: Callable[..., Any], folder: str | None) -> Callable[..., Any]:
    """``function`` for callers in Python, kept in the folder where there is one."""
    options = {"pipeline_class": _EntryCompiler, "no_cfunc_wrapper": True}
    if folder is None:
        return numba.njit(**options)(function)
    Path(folder).mkdir(parents=True, exist_ok=True)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = folder
    try:
        return numba.njit(cache=True, **options)(function)
    finally:
        numba.config.CACHE_DIR = before
