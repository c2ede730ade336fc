"""The help of the drafters' commands."""

from __future__ import annotations

import pytest

from sglang_dspark.commands import COMMANDS, Command
from tests.help_checks import check_help


@pytest.mark.law
@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if command.words.startswith("draft ")],
    ids=lambda command: command.words,
)
def test_help_has_defaults_examples_and_a_page_and_no_design_notes(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    check_help(command, capsys)
