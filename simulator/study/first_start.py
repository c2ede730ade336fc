"""``warm_up``: the kernel is there before anything begins; compiled once, loaded ever after.

What has to be compiled is compiled in a process of its own, which writes the disk cache that this
one loads: LLVM holds a process for many seconds, in which it hears no Ctrl-C, and the other can be
ended at once. Owns that wait. Knows no command and prints nothing.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sglang_dspark.core.policy import NoSpeculation, PolicyFile
from simulator.fleet.config import FleetConfig
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Scenario

EXPECTED_S = 30
"""Seconds that a quiet core takes to compile all; see benchmarks/results/first_start.json."""

_COMPILING = "compiling the engine, once"
_LOOK_EVERY_S = 0.1


def shown_on(bar: Any) -> Callable[[float], None]:
    """What a command gives for ``on_wait`` to show the wait on its ``tqdm``."""

    def on_wait(seconds: float) -> None:
        begins = not str(bar.desc).startswith(_COMPILING)  # said at once, in a file too
        text = f"{_COMPILING}: {seconds:.0f} s of about {EXPECTED_S} s"
        bar.set_description_str(text, refresh=begins)
        bar.update(0)

    return on_wait


def warm_up(scenario: Scenario, on_wait: Callable[[float], None] = lambda seconds: None) -> None:
    """Load the kernel, compiled if need be, before workers are forked: children inherit it.

    ``on_wait`` hears how long it has waited, several times a second. Ends the other process when it
    is interrupted.
    """
    from sglang_dspark.core.linking import NotCompiledError, from_cache_only  # imports numba

    try:
        with from_cache_only():
            _use_all(scenario)
    except NotCompiledError:
        _compile_apart(scenario, on_wait)
        _use_all(scenario)


def _use_all(scenario: Scenario) -> None:
    """Every compiled function of a replica, in an open and in a closed loop."""
    shortest = int(scenario.trace.prompt_tokens.argmin())  # fits, if any does
    for concurrency in (None, 1):
        simulate(
            dataclasses.replace(
                scenario,
                trace=scenario.trace.part(shortest, shortest + 1),
                judged=None,
                policy=PolicyFile(policy=NoSpeculation()),
                belief=None,
                concurrency=concurrency,
                replicas=1,
                fleet=FleetConfig(),
            )
        )


def _compile_apart(scenario: Scenario, on_wait: Callable[[float], None]) -> None:
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    process = context.Process(target=_compile, args=(scenario,), daemon=True)
    started = time.monotonic()
    process.start()
    try:
        while process.is_alive():
            on_wait(time.monotonic() - started)
            process.join(_LOOK_EVERY_S)
    finally:
        process.kill()
        process.join()


def _compile(scenario: Scenario) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # so does it warn
    with suppress(Exception):  # the parent meets it as well
        _use_all(scenario)
