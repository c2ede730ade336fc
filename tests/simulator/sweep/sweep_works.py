"""Functions for sweeps to perform, importable by the workers of any executor."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulator.sweep.sweep import advance


@dataclass(frozen=True, kw_only=True)
class Point:
    """A number to square."""

    number: int
    diary: Path
    """A folder that remembers every attempt."""
    dies: int = 0
    """Attempts that kill their process."""

    def attempts(self) -> int:
        return len(list(self.diary.glob(f"{self.number}-*")))

    def attempt(self) -> None:
        """Note in the diary who tries."""
        entry = self.diary / f"{self.number}-{self.attempts()}"
        part = entry.with_name(f"part of {entry.name}")
        part.write_text(str(os.getpid()))
        part.rename(entry)


def processes(diary: Path) -> set[int]:
    """Those that have attempted a point."""
    return {int(entry.read_text()) for entry in diary.glob("[0-9]*-*")}


def square(point: Point) -> int:
    """The square, after as many deaths as the point asks for."""
    tried = point.attempts()
    point.attempt()
    if tried < point.dies:
        os.kill(os.getpid(), signal.SIGKILL)
    advance(10)
    return point.number**2


def refuse_three(point: Point) -> int:
    """The square of anything but 3."""
    if point.number == 3:
        raise ValueError("3 is not squared here")
    return point.number**2


def surroundings(array: np.ndarray) -> tuple[bool, int]:
    """Whether the array may be written to, and this process's niceness."""
    return array.flags.writeable, os.nice(0)


def wait_for_the_end(point: Point) -> str:
    """Returns when the sweep is told to end, with what it has."""
    point.attempt()
    if point.number == 0:
        return "whole"
    try:
        while True:
            advance(1)
            time.sleep(0.01)
    except KeyboardInterrupt:
        return "partial"
