"""The front door: what it lists, where it leads, and that both ways to a command are one."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_dspark import __version__, listing
from sglang_dspark.commands import COMMANDS, Command, holds, main
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.policy import parse_policy
from simulator.acceptance.load import load_acceptance
from simulator.slo import parse_slo
from tests.help_checks import check_help
from traces import load_trace
from traces.mixture import load_mixture

ROOT = Path(__file__).parent.parent
_HERE = [command for command in COMMANDS if not command.words.startswith("draft ")]


def words_of(command: Command) -> str:
    return command.words


@pytest.mark.law
@pytest.mark.parametrize("command", _HERE, ids=words_of)
def test_help_has_defaults_examples_and_a_page_and_no_design_notes(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    check_help(command, capsys)


@pytest.mark.law
@pytest.mark.parametrize("asked", [[], ["--help"], ["-h"]])
def test_the_door_lists_every_command_with_its_line(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked) == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.split("\n")]
    for command in COMMANDS:
        assert f"{command.words} {command.about}".split(maxsplit=2) in lines


@pytest.mark.example
@pytest.mark.parametrize(("group", "count"), [("traces", 6), ("draft", 9)])
@pytest.mark.parametrize("more", [[], ["--help"]])
def test_a_group_lists_its_own(
    group: str, count: int, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([group, *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == count
    assert all(line.startswith(f"  {group} ") for line in lines)


@pytest.mark.example
def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dspark {__version__}\n"


@pytest.mark.example
@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["rnu", "chat"], "'run'"),
        (["trace"], "'traces'"),
        (["describe", "chat"], "'traces describe'"),
        (["draft", "tarin"], "'draft train'"),
        (["lst"], "'list'"),
    ],
)
def test_an_unknown_word_is_one_sentence_with_the_near_one(
    words: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dspark: there is no command ")
    assert f"did you mean {near}?" in err
    assert err.count("\n") == 1


@pytest.mark.law
@pytest.mark.parametrize("package", ["simulator", "traces", "analysis"])
def test_a_package_run_as_a_module_prints_what_it_holds(package: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", package], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    within = [command for command in COMMANDS if command.path.startswith(f"{package}.")]
    lines = ended.stdout.splitlines()
    assert [line.split()[2] for line in lines] == [command.path for command in within]
    assert all(line.endswith(c.about) for line, c in zip(lines, within, strict=True))


@pytest.mark.example
def test_a_package_has_no_sub_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["traces", "describe"])
    assert holds("traces") == 2
    said = "traces: there is no command 'describe' here; python -m traces lists them\n"
    assert capsys.readouterr().err == said


@pytest.mark.law
def test_both_ways_print_the_same_and_go_by_the_name_they_were_called(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A command with an answer, and each with a flag that no command has."""
    import traces.describe

    assert main(["traces", "describe", "chat"]) == 0
    through_the_door = capsys.readouterr()
    assert traces.describe.main(["chat"]) == 0
    assert capsys.readouterr() == through_the_door
    for command in _HERE:
        assert main([*command.words.split(), "--no-such-flag"]) == 2
        door = capsys.readouterr().err
        assert command.main(["--no-such-flag"]) == 2
        path = capsys.readouterr().err
        assert door.startswith(f"dspark {command.words}: ")
        assert path == door.replace(f"dspark {command.words}: ", f"{command.path}: ")


@pytest.mark.example
@pytest.mark.parametrize("path", ["simulator.calibrate", "sglang_dspark.list", "sglang_dspark"])
def test_a_path_without_a_file_runs(path: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", path, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: ")


@pytest.mark.law
@pytest.mark.parametrize(
    "command",
    # Fitting calibrations needs no torch.
    [c for c in COMMANDS if c not in _HERE and c.words != "draft calibrate"],
    ids=words_of,
)
def test_a_drafter_command_without_torch_names_the_extra(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)  # Python's own way to say: not there
    for name in [name for name in sys.modules if name.startswith("sglang_dspark.draft")]:
        monkeypatch.delitem(sys.modules, name)
    asked = {"draft demo": ["--cache", "/no/such/folder"]}.get(command.words, ["--help"])
    assert command.main(asked) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"{command.path}: the package torch is not installed; pip install 'sglang-dspark[draft]' "
        "(in a checkout: pip install -e '.[draft]')\n"
    )


@pytest.mark.law
@pytest.mark.parametrize("kind", listing.KINDS)
def test_what_is_listed_can_be_named(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    load = {
        "cost-models": load_cost_model,
        "policies": parse_policy,
        "slos": parse_slo,
        "acceptance": load_acceptance,
        "traces": load_trace,
        "mixtures": load_mixture,
    }[kind]
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["list", kind, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line.split()[0] for line in lines] == ["name", *(row["name"] for row in found)]
    for row in found:
        load(row["name"])
        assert all(value not in ("", None) for value in row.values())


@pytest.mark.example
def test_what_a_row_says(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, line in {
        "cost-models": "h200-qwen3-8b-analytic analytic Qwen3-8B 1x H200 SXM 141GB none of its own",
        "policies": "none plain decoding, no draft",
        "slos": "interactive 500 30",
        "acceptance": "mtp1 1 MTP-1 of DeepSeek-V4-Pro chat 1.57, code 1.79, math 1.82",
        "traces": "chat 4695 31 1156 216 chat",
        "mixtures": "mixed 2.5 31 chat 0.5, code 0.3, math 0.2 Bursty, Diurnal, Gamma",
    }.items():
        assert main(["list", kind]) == 0
        assert line.split() in [row.split() for row in capsys.readouterr().out.splitlines()]


@pytest.mark.example
def test_an_unknown_kind_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "polices"]) == 2
    said = (
        "dspark list: nothing is called 'polices'; did you mean 'policies'? kinds: cost-models, "
        "policies, slos, acceptance, traces, mixtures\n"
    )
    assert capsys.readouterr().err == said


@pytest.mark.example
def test_a_short_path_can_be_imported_for_its_main() -> None:
    short = importlib.import_module("simulator.calibrate")
    assert short.main is importlib.import_module("simulator.fit.calibrate").main
