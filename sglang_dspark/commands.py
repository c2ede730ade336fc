"""Every command once: its words after ``dspark``, the module that owns it, its ``python -m`` path.

A module that owns a command has ``main(argv)``, which returns its exit status or raises as
``sglang_dspark.cli.run_command`` expects, and is imported only when it is asked for.
Knows no command's flags.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from sglang_dspark.cli import run_command


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command."""

    words: str
    """What follows ``dspark``."""
    module: str
    """Where its ``main`` is."""
    path: str
    """What ``python -m`` takes: the module, its folder, or a shorter name without a file."""
    about: str
    """One line for the list of commands."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Import the module and run it; its exit status."""
        return run_command(self.path, lambda: importlib.import_module(self.module).main(argv))


def _command(words: str, module: str, about: str, path: str = "") -> Command:
    return Command(
        words=words, module=module, path=path or module.removesuffix(".command"), about=about
    )


_DRAFT = "sglang_dspark.draft"

COMMANDS: tuple[Command, ...] = (
    _command("run", "simulator.run", "replay a trace under competing budget policies"),
    _command("tune", "simulator.tune.command", "find a policy file, and whether to roll it out"),
    _command("capacity", "analysis.capacity.command", "report how many GPUs hold which traffic"),
    _command("compare", "analysis.compare", "draw result folders of run"),
    _command(
        "calibrate", "simulator.fit.calibrate", "fit prices and acceptance to a server's log",
        "simulator.calibrate",
    ),
    _command("profile", "sglang_dspark.runtime.profile.command", "measure a server's step costs"),
    _command(
        "step-log", "sglang_dspark.logs.step_log", "plan every logged step again",
        "sglang_dspark.runtime.step_log",
    ),
    _command("traces convert", "traces.convert", "public traces and server logs into a trace"),
    _command("traces synthesize", "traces.synthesize", "make a trace from a mixture"),
    _command("traces describe", "traces.describe", "say and draw what a trace is like"),
    _command("traces record", "traces.record", "record a running server"),
    _command("draft demo", f"{_DRAFT}.demo.command", "all stages below on a tiny model"),
    _command(
        "draft pretrain", f"{_DRAFT}.training.pretrain", "make a small target",
        f"{_DRAFT}.pretrain",
    ),
    _command(
        "draft generate", f"{_DRAFT}.data.generate", "let the target answer prompts",
        f"{_DRAFT}.generate",
    ),
    _command(
        "draft cache", f"{_DRAFT}.data.cache", "keep the target's hidden states",
        f"{_DRAFT}.cache",
    ),
    _command("draft train", f"{_DRAFT}.training.train", "train a drafter", f"{_DRAFT}.train"),
    _command(
        "draft evaluate", f"{_DRAFT}.evaluation.evaluate", "measure acceptance and confidences",
        f"{_DRAFT}.evaluate",
    ),
    _command(
        "draft calibrate", f"{_DRAFT}.evaluation.calibrate", "fit confidences to what was accepted",
        f"{_DRAFT}.calibrate",
    ),
)  # fmt: skip

_WITHOUT_A_FILE = {
    command.path: command
    for command in COMMANDS
    if command.path not in (command.module, command.module.removesuffix(".command"))
}


def run(words: str, argv: Sequence[str] | None = None) -> int:
    """Run the command called ``words``; its exit status."""
    return next(command for command in COMMANDS if command.words == words).main(argv)


class ShortPaths(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Lets ``python -m`` reach a command that lives deeper in its room by a shorter name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A module for each of the short names, None for everybody else's."""
        if fullname not in _WITHOUT_A_FILE:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def is_package(self, fullname: str) -> bool:
        """Never: what is below belongs to the rooms."""
        return False

    def get_source(self, fullname: str) -> str:
        """What ``python -m`` runs."""
        words = _WITHOUT_A_FILE[fullname].words
        return f"from sglang_dspark.commands import run\nraise SystemExit(run({words!r}))\n"


def install() -> None:
    """Make the short names known, once."""
    if not any(isinstance(finder, ShortPaths) for finder in sys.meta_path):
        sys.meta_path.append(ShortPaths())
