"""A sweep in local processes, each with a pipe of its own.

A killed process costs the point it had and nothing else: processes share no lock that it could
take along, which is why this is not ``concurrent.futures``, where one death breaks the pool. Knows
no simulation.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from simulator.sweep.sweep import Stop, begin_worker, do_point

MOST_DEATHS = 3
"""Processes that may die at one point before the sweep gives up."""
_LOOK_EVERY_S = 0.1

_UNITS, _RESULT, _ERROR, _CUT = range(4)
"""What a worker sends: (kind, value)."""


@dataclass(eq=False)
class _Worker:
    process: Any
    pipe: Connection
    point: int | None = None
    """What it is doing."""

    def give(self, message: int | None) -> None:
        """A point, or None: the end. A worker that is dead is found so when it is listened to."""
        with suppress(OSError):
            self.pipe.send(message)


class _Listening:
    """In a worker: the parent speaks during a point only to end the sweep."""

    def __init__(self, pipe: Connection) -> None:
        self.is_set = pipe.poll


def _serve(pipe: Connection, inherited: Sequence[Connection], points: Any, work: Any) -> None:
    """A worker's life: points in, results out, until told None or left alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C
    for other in inherited:
        other.close()  # else the pipes of a killed parent would stay open
    untold, told_at = 0, time.monotonic()

    def tell(units: int) -> None:
        nonlocal untold, told_at
        untold += units
        if untold and time.monotonic() - told_at > _LOOK_EVERY_S:
            pipe.send((_UNITS, untold))
            untold, told_at = 0, time.monotonic()

    begin_worker(points, work, tell, _Listening(pipe))
    with suppress(EOFError, OSError):
        while (i := pipe.recv()) is not None:
            message = _attempt(i)
            pipe.send((_UNITS, untold))
            untold = 0
            try:
                pipe.send(message)
            except (TypeError, AttributeError, ValueError) as error:  # it cannot be pickled
                pipe.send((_ERROR, TypeError(f"point {i}: {error}")))


def _attempt(i: int) -> tuple[int, Any]:
    try:
        return _RESULT, do_point(i)
    except KeyboardInterrupt:
        return _CUT, None
    except Exception as error:
        error.add_note("in a worker process:\n" + traceback.format_exc())
        return _ERROR, error


def run_in_processes(
    points: Sequence[Any],
    left: Sequence[int],
    work: Callable[[Any], Any],
    jobs: int,
    stop: Stop,
    finish: Callable[[int, Any], None],
    on_units: Callable[[int], None],
) -> None:
    """Do the points ``left``; ``finish`` takes each result, in whatever order they come."""
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    todo = list(reversed(left))
    deaths: Counter[int] = Counter()
    workers: list[_Worker] = []
    total = 0

    def hire() -> None:
        ours, theirs = context.Pipe()
        forked = context.get_start_method() == "fork"
        inherited = [ours, *(worker.pipe for worker in workers)] if forked else []
        process = context.Process(
            target=_serve, args=(theirs, inherited, points, work), daemon=True
        )
        process.start()
        theirs.close()
        workers.append(_Worker(process, ours))

    def bury(worker: _Worker) -> None:
        workers.remove(worker)
        worker.process.join()
        worker.pipe.close()
        if worker.point is None:
            return
        deaths[worker.point] += 1
        if deaths[worker.point] == MOST_DEATHS:
            raise ValueError(
                f"a worker process was killed {MOST_DEATHS} times at the same point; lower --jobs "
                "if memory is short"
            )
        todo.append(worker.point)

    def listen(worker: _Worker) -> None:
        nonlocal total
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            bury(worker)
            return
        if kind == _UNITS:
            total += value
            on_units(total)
            return
        if kind == _ERROR:
            raise value
        if kind == _RESULT:
            assert worker.point is not None
            finish(worker.point, value)
        worker.point = None

    try:
        ending = False
        while True:
            if stop.is_set() and not ending:
                ending = True
                todo.clear()
                for worker in workers:
                    worker.give(None)
            while todo and not ending and len(workers) < jobs:
                hire()
            for worker in workers:
                if todo and not ending and worker.point is None:
                    worker.point = todo.pop()
                    worker.give(worker.point)
            busy = {worker.pipe: worker for worker in workers if worker.point is not None}
            if not busy:
                return
            for pipe in wait(list(busy), timeout=_LOOK_EVERY_S):
                listen(busy[pipe])  # type: ignore[index]  # what waits are the keys
    finally:
        _dismiss(workers)


def _dismiss(workers: Sequence[_Worker]) -> None:
    """Let idle workers go, end those that are at a point."""
    for worker in workers:
        if worker.point is None:
            worker.give(None)
        else:
            worker.process.terminate()
    for worker in workers:
        worker.process.join()
        worker.pipe.close()
