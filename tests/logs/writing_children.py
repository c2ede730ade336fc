"""Processes that write a log and are hurt meanwhile: killed, or out of disk."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.waiting import HUNG_S, wait_until


def python(code: str) -> subprocess.Popen[str]:
    """A process that runs ``code`` beside the tests' packages."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def killed(process: subprocess.Popen[str], folder: Path, *, after_s: float) -> dict[int, float]:
    """Number and time of all that it said to have written, a while after its first part."""
    assert process.stdout is not None
    process.stdout.readline()
    wait_until(lambda: list(folder.glob("*.parquet")), process)
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    lines = process.communicate()[0].splitlines()[:-1]  # the last one may be cut
    return {int(number): float(at_s) for number, at_s in (line.split() for line in lines)}


def full_disk(size: int) -> str:
    """Code after which no file grows beyond so many bytes."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


def stopped(process: subprocess.Popen[str], folder: Path, *, log: str, told: int) -> int:
    """Records written by a process that printed ``written dropped reason`` in the end, having
    said once that its ``log`` stopped."""
    out, err = process.communicate(timeout=HUNG_S)
    assert process.returncode == 0, err
    count, dropped, reason = out.splitlines()[-1].split(" ", 2)
    assert int(count) + int(dropped) == told
    assert int(dropped) > 0
    assert "cannot write" in reason
    assert err.count(f"DSPARK {log} log stopped") == 1
    assert len(err.splitlines()) == 1
    assert not list(folder.glob("*.tmp-*"))
    return int(count)
