"""How every command of this project ends: results on stdout, one line on stderr when it cannot.

Owns exit statuses: 0 done, 2 wrong input (one sentence), 130 interrupted by Ctrl-C, 143 by SIGTERM;
the look of every ``--help``; and the name that a command goes by, which is how it was called. Knows
no command.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import FrameType
from typing import Any, NoReturn

from sglang_dspark.extras import not_installed

_called_as: ContextVar[str] = ContextVar("called_as", default="")


def called_as(otherwise: str) -> str:
    """What begins this command's lines on stderr: ``dspark run``, or ``simulator.run``.

    The outermost ``run_command`` says it, so that one ``main`` serves both ways to call it.
    """
    return _called_as.get() or otherwise


def progress_bar(**settings: Any) -> Any:
    """A ``tqdm`` on stderr: ten times a second on a terminal, every ten seconds into a file."""
    from tqdm import tqdm

    interval_s = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(mininterval=interval_s, maxinterval=max(10.0, interval_s), **settings)


class _HelpFormatter(argparse.HelpFormatter):
    """Shows every default that is one, and never breaks a name at its hyphens."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        none = any(action.default is one for one in (None, False, argparse.SUPPRESS))
        silent = none or action.default == [] or not action.option_strings or "default" in text
        return text if silent else f"{text} (default: %(default)s)"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs are filled, blocks with indented lines are kept."""
        blocks = text.strip().split("\n\n")
        return "\n\n".join(
            block if "\n  " in block else textwrap.fill(block, width, break_on_hyphens=False)
            for block in blocks
        )


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one sentence too; make it inside ``run_command``.

    ``examples`` are the words after the command's name, ``page`` is where to read on.
    """

    def __init__(self, *, examples: Sequence[str] = (), page: str = "", **settings: Any) -> None:
        name = called_as("")
        if name:
            settings["prog"] = name if name.startswith("dspark ") else f"python -m {name}"
        super().__init__(**{"formatter_class": _HelpFormatter, **settings})
        blocks = [f"to read on: {page}"] if page else []
        if examples:
            lines = (f"  {self.prog} {words}".rstrip() for words in examples)
            blocks.insert(0, "\n".join(["examples:", *lines]))
        self.epilog = self.epilog or "\n\n".join(blocks)

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

    ``ValueError`` is wrong input: status 2. A package of an extra that is not installed: status 2.
    SIGTERM is ``KeyboardInterrupt``, as Ctrl-C is, so that whatever cleans up after the one does
    after the other; where ``main`` does not handle it, or returns 130 because it did, the status is
    128 and the signal's number. Anything else is a defect of this project and keeps its traceback.
    """
    name = called_as(name)
    context = copy_context()
    context.run(_called_as.set, name)
    with _signals() as heard:
        status = _run(name, lambda: context.run(main))
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
    except ModuleNotFoundError as error:
        sentence = not_installed(error)
        if not sentence:
            raise
        print(f"{name}: {sentence}", file=sys.stderr)
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
