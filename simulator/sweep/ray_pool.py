"""A sweep on a Ray cluster: the only module that imports ray, and only when asked to.

Ray places, retries and cancels the tasks; this module hands them out and collects the results.
Every node needs the same release of this project installed, which is checked. Knows no simulation.
"""

from __future__ import annotations

import pickle
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from simulator.sweep.journal import source_digest
from simulator.sweep.sweep import Stop, Watch, perform

LOCAL = "local"
_RETRIES = 3
_STARTS = 4
_LOOK_EVERY_S = 0.1

_FULL_PRIORITY = {"env_vars": {"RAY_worker_niceness": "0"}}
"""Ray's workers run at nice 15 otherwise: on cores that are busy with anything else a sweep gets a
thirtieth of them. Among Ray's own tasks nothing changes: each has its core by Ray's accounts."""


def _load_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ValueError(
            '--ray needs the package ray; install it with pip install -e ".[cluster]"'
        ) from None
    return ray


def _knock(address: str) -> None:
    """``OSError`` unless something listens at HOST:PORT, where Ray would end the whole process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def connected(address: str | None, jobs: int) -> Iterator[None]:
    """Sweeps within the block share one connection to the cluster at ``address``.

    ``local`` starts a cluster of ``jobs`` workers for as long as the block lasts. Nothing happens
    without an address, or within another such block.
    """
    ray = _load_ray() if address is not None else None
    if ray is None or ray.is_initialized():
        yield
        return
    assert address is not None
    settings: dict[str, Any] = {
        "log_to_driver": False, "logging_level": "error", "runtime_env": _FULL_PRIORITY,
    }  # fmt: skip
    if address == LOCAL:
        settings |= {"address": LOCAL, "num_cpus": jobs, "include_dashboard": False}
    else:
        settings |= {"address": address}
    try:
        _knock(address)
        with _sigterm_kept():
            _begin(ray, settings)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"--ray {address}: no cluster answers ({reason}); give its address, or local"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _begin(ray: Any, settings: dict[str, Any]) -> None:
    """Ray gives a node of its own 30 s to start; where the cores are busy that may not do."""
    for start in range(1, _STARTS + 1):
        try:
            ray.init(**settings)
            return
        except Exception as error:  # Ray raises no narrower one
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if start == _STARTS:
                raise RuntimeError(str(error)) from None


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself where it is begun; the command is to hear it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _do_point(held: bytes, i: int, sources: str) -> tuple[Any, int]:
    """In a worker: (result, units) of point ``i``. ``held`` is all points and the work, pickled."""
    if source_digest() != sources:
        raise ValueError(
            "a Ray worker has other sources of this project than the command; install the same "
            "release on every node"
        )
    warnings.simplefilter("ignore")  # the command has warned already
    points, work = pickle.loads(held)
    total = 0

    def tell(units: int) -> None:
        nonlocal total
        total += units

    # Ray itself interrupts the task.
    return perform(work, points[i], Watch(tell, lambda: False)), total


def run_on_ray(
    points: Sequence[Any],
    left: Sequence[int],
    work: Callable[[Any], Any],
    address: str,
    jobs: int,
    stop: Stop,
    finish: Callable[[int, Any], None],
    on_units: Callable[[int], None],
) -> None:
    """Do the points ``left``; ``finish`` takes each result. What runs at ``stop`` is dropped."""
    ray = _load_ray()
    with connected(address, jobs):
        # Pickled here: out of Ray's own pickles arrays come read-only, which is another type to
        # numba, and every worker would compile all kernels again.
        held = ray.put(pickle.dumps((list(points), work)))
        task = ray.remote(_do_point).options(num_cpus=1, max_retries=_RETRIES)
        running = {task.remote(held, i, source_digest()): i for i in left}
        total = 0
        while running and not stop.is_set():
            ended, _ = ray.wait(list(running), timeout=_LOOK_EVERY_S)
            for reference in ended:
                i = running.pop(reference)
                result, units = _outcome(ray, reference)
                total += units
                on_units(total)
                finish(i, result)
        for reference in running:
            ray.cancel(reference)


def _outcome(ray: Any, reference: Any) -> tuple[Any, int]:
    """A finished task's result; what ``work`` raised is raised as it was."""
    errors = ray.exceptions
    try:
        found: tuple[Any, int] = ray.get(reference)
    except errors.RayTaskError as error:
        raise error.cause from None
    except errors.RayError as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"a Ray worker was lost {_RETRIES + 1} times on the same point ({reason}); look at "
            "its memory and the cluster's logs"
        ) from None
    return found
