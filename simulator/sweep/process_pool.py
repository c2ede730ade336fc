"""A sweep in local processes: ``ProcessPoolExecutor``, made anew when a death broke it.

A killed process costs the points that were in flight and nothing else. Which of them killed it
nobody can tell, so each is done again in a process of its own before the sweep goes on with many.
Knows no simulation.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from simulator.sweep.sweep import Stop, Watch, perform

MOST_DEATHS = 3
"""Processes that may die while a point is in flight before the sweep gives up. The first may have
been another point's fault; the others have no other point."""
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class _Share:
    """What the processes of a sweep share; without a lock, which a killed one would take along."""

    points: Sequence[Any]
    work: Callable[[Any], Any]
    units: Any
    """[points], each written by the process that has the point."""
    halted: Any
    """1 when the sweep is to end."""

    def do(self, i: int) -> Any:
        """Point ``i``, in a worker."""
        self.units[i] = 0  # a process may have died at it

        def tell(units: int) -> None:
            self.units[i] += units

        return perform(self.work, self.points[i], Watch(tell, lambda: bool(self.halted.value)))


_mine: ContextVar[_Share] = ContextVar("mine")
"""In a worker: its share."""


def _begin(share: _Share, leash: Connection, hand: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent hears them
    warnings.simplefilter("ignore")  # the parent has warned already
    hand.close()
    threading.Thread(target=_leave, args=(leash,), daemon=True).start()
    _mine.set(share)


def _leave(leash: Connection) -> None:
    """End this process, whatever it does, when the parent lets go of the leash or is killed."""
    with suppress(OSError):
        leash.poll(None)
    os._exit(1)


def _do(i: int) -> Any:
    return _mine.get().do(i)


@contextmanager
def _pool(context: Any, share: _Share, processes: int) -> Iterator[ProcessPoolExecutor]:
    """Its processes are gone at the end of the block, with what they were doing."""
    leash, hand = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        processes, mp_context=context, initializer=_begin, initargs=(share, leash, hand)
    )
    try:
        yield pool
    finally:
        hand.close()
        pool.shutdown()
        leash.close()


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
    # Forked children have the kernels that their parent compiled.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    share = _Share(
        points=points,
        work=work,
        units=context.RawArray("q", len(points)),
        halted=context.RawValue("b", 0),
    )
    told = 0

    def in_a_pool(queue: deque[int], processes: int) -> list[int]:
        """Do the points of ``queue``; returns those in flight when a process died."""
        nonlocal told
        flying: dict[Future[Any], int] = {}
        lost: list[int] = []
        with _pool(context, share, processes) as pool:
            while True:
                share.halted.value = stop.is_set()
                with suppress(BrokenProcessPool):  # then all that fly are lost too
                    while queue and len(flying) < processes and not (lost or stop.is_set()):
                        future = pool.submit(_do, queue[0])
                        flying[future] = queue.popleft()
                if not flying:
                    return lost
                ended, _ = wait(flying, _LOOK_EVERY_S, FIRST_COMPLETED)
                units = sum(share.units)
                if units != told:
                    on_units(told := units)
                for future in ended:
                    i, error = flying.pop(future), future.exception()
                    if error is None:
                        finish(i, future.result())
                    elif isinstance(error, BrokenProcessPool):
                        lost.append(i)
                    elif not isinstance(error, KeyboardInterrupt):
                        raise error

    todo, suspects = deque(left), deque[int]()
    deaths: Counter[int] = Counter()
    while (todo or suspects) and not stop.is_set():
        if suspects:
            lost = in_a_pool(deque([suspects.popleft()]), 1)
        else:
            lost = in_a_pool(todo, min(jobs, len(todo)))
        deaths.update(lost)
        suspects.extend(lost)
        if MOST_DEATHS in deaths.values():
            raise ValueError(
                f"a worker process was killed {MOST_DEATHS} times at the same point; lower --jobs "
                "if memory is short"
            )
