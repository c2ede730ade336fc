"""One executor for every sweep: in this process, in local processes, or on a Ray cluster.

Owns order, retries, Ctrl-C and the journal's use. Knows nothing of what a point is: ``work`` is
any picklable function of one point. Studies, the tuner and the planner all run on it; processes
are in ``simulator.sweep.process_pool``, the cluster in ``simulator.sweep.ray_pool``, the journal in
``simulator.sweep.journal``.
"""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from simulator.sweep.journal import Journal

P = TypeVar("P")
R = TypeVar("R")
Counting = Callable[[int], None]

at_work: dict[str, Any] = {}
"""Where points are done: the function and points of this sweep, ``tell`` and ``stop``."""


def advance(units: int) -> None:
    """Called by ``work`` when ``units`` more of its point are done; outside a sweep, nothing.

    Raises ``KeyboardInterrupt`` when the sweep is to end. ``work`` may catch it and return what it
    has: such a partial result is kept, but never written to the journal.
    """
    if at_work:
        at_work["tell"](units)
        if at_work["stop"].is_set():
            raise KeyboardInterrupt


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
    ``jobs`` workers). A worker that dies is replaced and its points done again; ``ValueError``
    when workers keep dying. An exception of ``work`` ends the sweep and is raised here.
    ``journal`` names a file to which finished results are appended and from which those of equal
    points are taken. After Ctrl-C, points that were not done are None.

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
    """Set by Ctrl-C; a second Ctrl-C is an ordinary ``KeyboardInterrupt``."""

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
    """Turn the first Ctrl-C within the block into a flag, so that no bookkeeping is torn."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread hears signals
        return
    before = signal.getsignal(signal.SIGINT)

    def hear(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)
        if stop.raises:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hear)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


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

    outer = dict(at_work)
    at_work.update(tell=tell, stop=stop)
    try:
        for i in left:
            finish(i, work(points[i]))
            if stop.is_set():
                return
    except KeyboardInterrupt:
        if not stop.is_set():
            raise
    finally:
        at_work.clear()
        at_work.update(outer)


def begin_worker(points: Any, work: Any, tell: Any, stop: Any) -> None:
    """What a process needs before its first point."""
    warnings.simplefilter("ignore")  # the parent has warned already
    at_work.update(points=points, work=work, tell=tell, stop=stop)


def do_point(i: int) -> Any:
    """Point ``i`` of the sweep this worker was begun for."""
    advance(0)  # nothing is begun after Ctrl-C
    return at_work["work"](at_work["points"][i])
