"""How every command of this project ends: results on stdout, one line on stderr when it cannot.

Owns exit statuses: 0 done, 2 wrong input (one sentence), 130 interrupted by Ctrl-C, 143 by SIGTERM.
Knows no command.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one sentence too; parse inside ``run_command``."""

    def error(self, message: str) -> NoReturn:
        """Raise ``ValueError`` instead of printing the whole usage."""
        raise ValueError(f"{message}; see --help")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM within the block are both ``KeyboardInterrupt``; yields those heard."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard  # only the main thread hears signals
        return

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set from Python


def run_command(name: str, main: Callable[[], int | None]) -> int:
    """Run ``main`` and turn its failures into one line and an exit status.

    ``ValueError`` is wrong input: status 2. SIGTERM is ``KeyboardInterrupt``, as Ctrl-C is, so that
    whatever cleans up after the one does after the other; where ``main`` does not handle it, or
    returns 130 because it did, the status is 128 and the signal's number. Anything else is a defect
    of this project and keeps its traceback.
    """
    with _signals() as heard:
        status = _run(name, main)
    if heard:
        exec("")  # else Python 3.11 kills itself by SIGINT if the signal came while it ran a string
    return 128 + heard[0] if heard and status == 130 else status


def _run(name: str, main: Callable[[], int | None]) -> int:
    def one_line(message: Warning | str, *_: object, **__: object) -> None:
        print(f"{name}: warning: {message}", file=sys.stderr)

    warnings.showwarning = one_line
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # What is still buffered must not fail once more at interpreter shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # the reader went away: a pager, head
            return 0
        print(f"{name}: stdout: {error.strerror}; free some and run again", file=sys.stderr)
        return 2
