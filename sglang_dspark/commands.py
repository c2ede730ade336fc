"""The front door: every command once, by its words after ``dspark`` and its ``python -m`` path.

    dspark                         what there is
    dspark run chat                the same as python -m simulator.run chat

A module that owns a command has ``main(argv)``, which returns its exit status or raises as
``sglang_dspark.cli.run_command`` expects, and is imported only when it is asked for.
Knows no command's flags.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from sglang_dspark.cli import run_command
from sglang_dspark.own_names import check_names, command_begun

DOOR = "dspark"


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

    def main(self, argv: Sequence[str] | None = None, *, called_as: str = "") -> int:
        """Import the module and run it, if our packages are where it looks; its exit status."""

        def run() -> int:
            check_names()
            status: int = importlib.import_module(self.module).main(argv)
            return status

        return run_command(called_as or self.path, run)


def _command(words: str, module: str, about: str, path: str = "") -> Command:
    return Command(
        words=words, module=module, path=path or module.removesuffix(".command"), about=about
    )


_DRAFT = "sglang_dspark.draft"

GROUPS: dict[str, tuple[Command, ...]] = {
    "Simulate and plan": (
        _command("run", "simulator.run", "replay a trace under competing policies"),
        _command("tune", "simulator.tune.command", "find a policy, and whether to roll it out"),
        _command("capacity", "analysis.capacity.command", "how many GPUs hold which traffic"),
        _command("compare", "analysis.compare", "draw the results of run on one page"),
    ),
    "Traces": (
        _command("traces convert", "traces.convert", "make a trace of a public one or a log"),
        _command("traces synthesize", "traces.synthesize", "make a trace from a mixture"),
        _command("traces cut", "traces.cut", "take a part, merge traces, make one busier"),
    _command("traces describe", "traces.describe", "say and draw what a trace is like"),
        _command("traces export", "traces.export", "write a trace as CSV, for Mooncake or AIPerf"),
        _command("traces record", "traces.record", "record a running server"),
    ),
    "Learn from a server": (
        _command(
            "profile", "sglang_dspark.runtime.profile.command", "measure what its steps cost"
        ),
        _command(
            "calibrate", "simulator.fit.calibrate", "fit costs and acceptance to its step log",
            "simulator.calibrate",
        ),
        _command("twin", "simulator.twin.command", "say how far a replay of your server is right"),
        _command(
            "check-sglang", "sglang_dspark.runtime.steer.releases",
            "say whether a release of SGLang can be steered", "sglang_dspark.check_sglang",
        ),
        _command(
            "step-log", "sglang_dspark.logs.step_log", "plan every logged step again",
            "sglang_dspark.runtime.step_log",
        ),
    ),
    "Prices": (
        _command(
            "prices build", "sglang_dspark.core.costs.composed.command",
            "compose a step's cost of operators timed one by one", "sglang_dspark.prices",
        ),
        _command(
            "prices calibrate", "simulator.fit.bench.command",
            "correct a cost model by benchmarks, and say how far it may be off",
        ),
        _command(
            "prices from-server", "simulator.fit.from_server",
            "take a server's engine settings, from itself or its command",
        ),
        _command(
            "prices export", "sglang_dspark.price_export",
            "write a cost model as SGLang's own table",
        ),
    ),
    "Drafters": (
        _command("draft demo", f"{_DRAFT}.demo.command", "all of these on a tiny model"),
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
        _command(
            "draft inspect", f"{_DRAFT}.exchange.inspect", "say what a checkpoint is",
            f"{_DRAFT}.inspect",
        ),
        _command(
            "draft convert", f"{_DRAFT}.exchange.convert", "write one in another convention",
            f"{_DRAFT}.convert",
        ),
        _command("draft train", f"{_DRAFT}.training.train", "train a drafter", f"{_DRAFT}.train"),
        _command(
            "draft evaluate", f"{_DRAFT}.evaluation.evaluate", "measure what is accepted",
            f"{_DRAFT}.evaluate",
        ),
        _command(
            "draft calibrate", f"{_DRAFT}.evaluation.calibrate",
            "fit confidences to what was accepted", f"{_DRAFT}.calibrate",
        ),
    ),
    "Names": (
        _command(
            "list", "sglang_dspark.listing", "cost models, policies, SLOs and whatever has a name",
            "sglang_dspark.list",
        ),
    ),
}  # fmt: skip

COMMANDS = tuple(command for group in GROUPS.values() for command in group)

_WITHOUT_A_FILE = {
    command.path: command
    for command in COMMANDS
    if command.path not in (command.module, command.module.removesuffix(".command"))
}


def run(words: str, argv: Sequence[str] | None = None) -> int:
    """Run the command called ``words``; its exit status."""
    return next(command for command in COMMANDS if command.words == words).main(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """``dspark``: find the command and run it, or print which there are."""
    words = list(sys.argv[1:] if argv is None else argv)
    for command in COMMANDS:
        own = command.words.split()
        if words[: len(own)] == own:
            return command.main(words[len(own) :], called_as=f"{DOOR} {command.words}")
    return run_command(DOOR, lambda: _without_a_command(words))


def _without_a_command(words: list[str]) -> None:
    if words[:1] == ["--version"]:
        print(f"{DOOR} {sys.modules['sglang_dspark'].__version__}")
        return
    group, rest = words[:1], words[1:]
    if group and not any(command.words.startswith(f"{group[0]} ") for command in COMMANDS):
        group, rest = [], words
    within = [command for command in COMMANDS if command.words.split()[:-1] == group or not group]
    if rest and rest[0] not in ("-h", "--help"):
        known = {command.words for command in within}
        known |= {words.split()[0] for words in known}
        wanted = " ".join([*group, rest[0]])
        near = difflib.get_close_matches(wanted, sorted(known), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no command {wanted!r}; {hint}see {DOOR} --help")
    print(_all_commands() if not group else _lines([(c.words, c) for c in within]))


def _lines(shown: Sequence[tuple[str, Command]], width: int = 0) -> str:
    width = width or max(len(name) for name, _ in shown)
    return "\n".join(f"  {name:<{width}}  {command.about}" for name, command in shown)


def _all_commands() -> str:
    width = max(len(command.words) for command in COMMANDS)
    groups = [
        f"{title}:\n{_lines([(command.words, command) for command in group], width)}"
        for title, group in GROUPS.items()
    ]
    usage = f"usage: {DOOR} COMMAND ...   ({DOOR} COMMAND --help says what it takes)"
    return "\n\n".join([usage, *groups])


def holds(package: str) -> int:
    """``python -m traces`` and the like: print the commands in ``package``; the exit status."""

    def main() -> None:
        if sys.argv[1:] and sys.argv[1] not in ("-h", "--help"):
            raise ValueError(
                f"there is no command {sys.argv[1]!r} here; python -m {package} lists them"
            )
        within = [command for command in COMMANDS if command.path.startswith(f"{package}.")]
        print(_lines([(f"python -m {command.path}", command) for command in within]))

    return run_command(package, main)


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
        """What ``python -m`` runs; imported, it has the command's ``main``."""
        command = _WITHOUT_A_FILE[fullname]
        return (
            "if __name__ == '__main__':\n"
            "    from sglang_dspark.commands import run\n"
            f"    raise SystemExit(run({command.words!r}))\n"
            f"from {command.module} import main\n"
        )


def install() -> None:
    """Make the short names known, once; end a ``python -m`` that would run foreign packages."""
    if not any(isinstance(finder, ShortPaths) for finder in sys.meta_path):
        sys.meta_path.append(ShortPaths())
    path = command_begun()
    if path and path != "sglang_dspark":  # the front door checks what it is asked for
        status = run_command(path, check_names)
        if status:
            raise SystemExit(status)
