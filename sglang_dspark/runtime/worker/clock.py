"""Times the parts of a round without stopping the device: events on CUDA, the clock elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class PhaseClock:
    """Seconds of each named part of one round; read them when the round's results are known."""

    def __init__(self, device: str) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._marks: dict[str, tuple[Any, Any]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what runs inside; parts of one name must not repeat within a round."""
        start = self._mark()
        yield
        self._marks[name] = (start, self._mark())

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, name: str) -> float:
        """Duration of a part; 0.0 when it did not run."""
        start, end = self._marks.get(name, (0.0, 0.0))
        if not isinstance(start, float):
            end.synchronize()
            return float(start.elapsed_time(end)) / 1000
        return float(end - start)
