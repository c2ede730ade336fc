"""What every command's ``--help`` must say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sglang_dspark.commands import Command

ROOT = Path(__file__).parent.parent
DESIGN_WORDS = ("Owns", "Knows no", "``", "default: None", "default: [])")


def check_help(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """It speaks to users, says every flag's meaning, and its examples and page are there."""
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"], called_as=f"dspark {command.words}")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert said.startswith(f"usage: dspark {command.words} ")
    assert not [word for word in DESIGN_WORDS if word in said]
    options, _, rest = said.partition("\nexamples:\n")
    examples, _, page = rest.partition("\n\nto read on: ")
    lines = examples.split("\n")
    assert lines
    assert all(line.startswith(f"  dspark {command.words}") for line in lines)
    assert set(re.findall(r" (--[\w-]+)", examples)) <= set(re.findall(r"(--[\w-]+)", options))
    pages = re.findall(r"docs/\w+\.md", page)
    assert pages
    assert all((ROOT / name).is_file() for name in pages)
    silent = re.findall(r"^  (?:-\w, )?--[\w-]+(?: [A-Z_]+)?$(?!\n {20,}\S)", options, re.MULTILINE)
    assert not silent, f"no word on {silent}"
