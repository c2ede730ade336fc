"""How every command of this project ends: results on stdout, one line on stderr when it cannot.

Owns exit statuses: 0 done, 2 wrong input (one sentence), 130 interrupted. Knows no command.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one sentence too; parse inside ``run_command``."""

    def error(self, message: str) -> NoReturn:
        """Raise ``ValueError`` instead of printing the whole usage."""
        raise ValueError(f"{message}; see --help")


def run_command(name: str, main: Callable[[], int | None]) -> int:
    """Run ``main`` and turn its failures into one line and an exit status.

    ``ValueError`` is wrong input: status 2. ``KeyboardInterrupt`` that ``main`` did not handle:
    130. Anything else is a defect of this project and keeps its traceback.
    """

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
