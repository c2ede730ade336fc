"""Run stages once: in their order of need, two at a time, and not again when they are done.

Owns processes, the marks of finished stages and their times. A stage is done when its mark
exists, written after its command ended well; commands continue what an earlier start left. Knows
nothing of drafters.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sglang_dspark.draft.demo.recipe import Stage, last_checkpoint
from sglang_dspark.files import make_folder, read_json, read_text, write_json

_POLL_S = 0.1
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # contended threads are several times slower than one each
    "NUMBA_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def _mark(folder: Path, stage: Stage) -> Path:
    return folder / f"{stage.name}.done.json"


def stage_times(folder: Path, stages: Sequence[Stage]) -> dict[str, dict[str, float]]:
    """(wall and CPU seconds) of the finished ones."""
    marks = {stage.name: _mark(folder, stage) for stage in stages}
    return {name: read_json(mark) for name, mark in marks.items() if mark.exists()}


def needed(stages: Sequence[Stage], goals: Sequence[str]) -> list[Stage]:
    """The stages that ``goals`` rest on, in order; ``ValueError`` for an unknown goal."""
    names = {stage.name: stage for stage in stages}
    for goal in goals:
        if goal not in names:
            raise ValueError(f"no stage {goal!r}; there are {', '.join(names)}")
    wanted: set[str] = set()
    waiting = list(goals)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += names[name].needs
    return [stage for stage in stages if stage.name in wanted]


def _prepare(folder: Path, stage: Stage) -> list[str]:
    """Write its settings, clear what it would trip over; its arguments, ``last`` resolved."""
    for name in stage.replaces:
        shutil.rmtree(folder / name, ignore_errors=True)
    if stage.settings is not None:
        write_json(folder / stage.settings[0], stage.settings[1])
    return [
        str(last_checkpoint(folder / argument[: -len("/last")]).relative_to(folder))
        if argument.endswith("/last")
        else argument
        for argument in stage.arguments
    ]


def run_here(folder: Path, stages: Sequence[Stage], say: Callable[[str], object]) -> None:
    """One after the other in this process: for seconds-long stages, where starting costs more."""
    make_folder(folder)
    for stage in stages:
        if _mark(folder, stage).exists():
            continue
        arguments = _prepare(folder, stage)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        with (
            open(folder / f"{stage.name}.log", "w", encoding="utf-8") as log,
            contextlib.chdir(folder),
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            importlib.import_module(stage.module).main(arguments)
        _finish(folder, stage, time.perf_counter() - wall_s, time.process_time() - cpu_s, say)


def _finish(
    folder: Path, stage: Stage, wall_s: float, cpu_s: float, say: Callable[[str], object]
) -> None:
    write_json(_mark(folder, stage), {"wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2)})
    say(f"{stage.name}: {wall_s:.0f} s")


class _Running:
    """A stage's process."""

    def __init__(self, folder: Path, stage: Stage) -> None:
        self.stage, self.folder, self.start_s = stage, folder, time.perf_counter()
        # The command must be found from the cache folder, installed or not.
        root = str(Path(__file__).resolve().parents[3])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        with open(folder / f"{stage.name}.log", "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", stage.module, *_prepare(folder, stage)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
            )

    def finished(self) -> tuple[int, float] | None:
        """(exit status, CPU seconds) when it ended."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return self.process.returncode, usage.ru_utime + usage.ru_stime

    def stop(self) -> None:
        """End it; its command can go on another time."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()


def run_beside(
    folder: Path, stages: Sequence[Stage], say: Callable[[str], object], *, workers: int = 2
) -> None:
    """Up to ``workers`` stages at a time, each in its process with its output in ``NAME.log``.

    A stage that fails stops the others and raises ``ValueError`` with the end of its log.
    """
    make_folder(folder)
    done = {stage.name for stage in stages if _mark(folder, stage).exists()}
    waiting = [stage for stage in stages if stage.name not in done]
    running: list[_Running] = []
    try:
        while waiting or running:
            ready = [stage for stage in waiting if done.issuperset(stage.needs)]
            for stage in ready[: workers - len(running)]:
                waiting.remove(stage)
                running.append(_Running(folder, stage))
            time.sleep(_POLL_S)
            for one in list(running):
                ended = one.finished()
                if ended is None:
                    continue
                running.remove(one)
                if ended[0]:
                    raise _failure(folder, one.stage, ended[0])
                done.add(one.stage.name)
                _finish(folder, one.stage, time.perf_counter() - one.start_s, ended[1], say)
    finally:
        for one in running:
            one.stop()


def _failure(folder: Path, stage: Stage, status: int) -> ValueError:
    path: Any = folder / f"{stage.name}.log"
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    last = lines[-1] if lines else "no output"
    return ValueError(
        f"stage {stage.name} ended with status {status} ({last}); see {path}, then run again"
    )
