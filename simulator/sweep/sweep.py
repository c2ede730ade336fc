"""One executor for every sweep: in this process, in local processes, or on a Ray cluster.

Owns order, retries, the journal's use, and Ctrl-C, which SIGTERM is the same as. Knows nothing of
what a point is: ``work`` is any picklable function of one point. Studies, the tuner and the planner
all run on it; processes are in ``simulator.sweep.process_pool``, the cluster in
``simulator.sweep.ray_pool``, the journal in ``simulator.sweep.journal``.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

from simulator.sweep.journal import Journal

P = TypeVar("P")
R = TypeVar("R")
Counting = Callable[[int], None]


@dataclass(frozen=True)
class Watch:
    """How the work of a point and its sweep hear of each other."""

    tell: Counting
    stopped: Callable[[], bool]


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)
"""That of the point at work here."""


def perform(work: Callable[[P], R], point: P, watch: Watch) -> R:
    """``work(point)`` under ``watch``; ``KeyboardInterrupt`` where the sweep is to end already."""
    before = _watch.set(watch)
    try:
        advance(0)
        return work(point)
    finally:
        _watch.reset(before)


def advance(units: int) -> None:
    """Called by ``work`` when ``units`` more of its point are done; outside a sweep, nothing.

    Raises ``KeyboardInterrupt`` when the sweep is to end. ``work`` may catch it and return what it
    has: such a partial result is kept, but never written to the journal.
    """
    watch = _watch.get()
    if watch is not None:
        watch.tell(units)
        if watch.stopped():
            raise KeyboardInterrupt


def heed(_: int) -> None:
    """The ``on_progress`` of a simulation that tells no units: it ends when the sweep is to."""
    advance(0)


def sweep(
    points: Sequence[P],
    work: Callable[[P], R],
    *,
    jobs: int = 1,
    ray: str | None = None,
    journal: Path | None = None,
    on_done: Counting = lambda finished: None,
    on_units: Counting = lambda units: None,
) -> tuple[list[R | None], bool]:
    """``[work(p) for p in points]``, and whether Ctrl-C cut it short; the same by any executor.

    ``jobs`` local processes, or the Ray cluster at the address ``ray`` (``local`` starts one of
    ``jobs`` workers). A worker that dies is replaced and what was in flight done again;
    ``ValueError`` when workers keep dying at a point. An exception of ``work`` ends the sweep and
    is raised here. ``journal`` names a file to which finished results are appended and from which
    those of equal points are taken. After Ctrl-C, points that were not done are None.

    ``on_done`` hears how many points are done, ``on_units`` how many units in all ``work`` has
    told ``advance`` of. Compile kernels before (``simulator.study.first_start``): children
    inherit them.
    """
    if jobs < 1:
        raise ValueError(f"--jobs {jobs} must be at least 1")
    results: list[R | None] = [None] * len(points)
    done = [False] * len(points)
    kept = Journal(journal, work, points) if journal else None
    for i, result in kept.recorded() if kept else ():
        results[i], done[i] = result, True
    left = [i for i in range(len(points)) if not done[i]]
    on_done(len(points) - len(left))
    with _interruption() as stop:

        def finish(i: int, result: R) -> None:
            results[i], done[i] = result, True
            if kept and not stop.is_set():
                kept.append(i, result)
            on_done(sum(done))

        if not left:
            pass
        elif ray is not None:
            from simulator.sweep.ray_pool import run_on_ray

            run_on_ray(points, left, work, ray, jobs, stop, finish, on_units)
        elif min(jobs, len(left)) == 1:
            stop.raises = True
            _run_here(points, left, work, stop, finish, on_units)
        else:
            from simulator.sweep.process_pool import run_in_processes

            run_in_processes(points, left, work, min(jobs, len(left)), stop, finish, on_units)
        return results, stop.is_set()


class Stop:
    """Set by Ctrl-C or SIGTERM; the second one finds whoever heard them before the sweep."""

    def __init__(self) -> None:
        self.raises = False
        """True where the points are done in this process: Ctrl-C interrupts the point too."""
        self._was_set = False

    def is_set(self) -> bool:
        """Whether the sweep is to end."""
        return self._was_set

    def set(self) -> None:
        """End the sweep."""
        self._was_set = True


@contextmanager
def _interruption() -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM within the block into a flag, so that no bookkeeping is
    torn. Who heard it before hears of it, too, but its exception waits for the sweep's end."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread hears signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def hear(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore()
        handler = before[signal.Signals(number)]
        try:
            if callable(handler):
                handler(number, frame)
        except KeyboardInterrupt:
            if stop.raises:
                raise
        if stop.raises:
            raise KeyboardInterrupt

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, hear)
    try:
        yield stop
    finally:
        restore()


def _run_here(
    points: Sequence[P],
    left: Sequence[int],
    work: Callable[[P], R],
    stop: Stop,
    finish: Callable[[int, R], None],
    on_units: Counting,
) -> None:
    total = 0

    def tell(units: int) -> None:
        nonlocal total
        total += units
        on_units(total)

    try:
        for i in left:
            finish(i, perform(work, points[i], Watch(tell, stop.is_set)))
            if stop.is_set():
                return
    except KeyboardInterrupt:
        if not stop.is_set():
            raise
