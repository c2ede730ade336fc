"""The pages hold what they promise: links, paths, commands and the reading list are real."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import sglang_dspark
import simulator
from sglang_dspark.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    file.relative_to(ROOT).as_posix()
    for file in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
)
ROOMS = ("sglang_dspark", "simulator", "traces", "analysis", "benchmarks", "tests", "docs")
NOUNS = ("cost-models", "policies", "slos", "acceptance", "traces", "mixtures")
"""What ``dspark list`` lists."""
FIVE_FILES = (
    "sglang_dspark/core/state.py",
    "sglang_dspark/core/decide.py",
    "sglang_dspark/runtime/worker/worker.py",
    "simulator/engine/kernel.py",
    "simulator/fleet/fleet.py",
)
"""The five-minute path."""

LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(rf"`((?:{'|'.join(ROOMS)})/[\w./-]*)`")
MODULE = re.compile(r"python -m ([\w.]+)")
DSPARK = re.compile(r"(?:^|`|&& )dspark ([a-z][^\n`#]*)", re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FIGURE = re.compile(r"\]\([^)]*\.png\)")


def text(page: str) -> str:
    """The page."""
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """What may stand behind ``#`` in a link to the page."""
    plain = (re.sub(r"[^\w\- ]", "", head.lower()) for head in HEADING.findall(page.read_text()))
    return {words.replace(" ", "-") for words in plain}


def broken_links(page: str) -> Iterator[str]:
    """Relative links of the page that lead nowhere."""
    for link in LINK.findall(text(page)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


def words_of(command: str) -> str:
    """What a line after ``dspark`` asks for: the longest known command, or its first word."""
    known = [known.words for known in COMMANDS if f"{command} ".startswith(f"{known.words} ")]
    return max(known, key=len, default=command.split()[0])


def known(command: str) -> bool:
    """Whether there is such a command."""
    words = words_of(command)
    if words == "list":
        return set(command.split()[1:2]) <= {*NOUNS, "|".join(NOUNS)}
    return words in {command.words for command in COMMANDS}


@pytest.mark.law
@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_paths_lead_somewhere(page: str) -> None:
    """Law: relative links, their anchors, and paths of this repository in backticks exist."""
    assert not list(broken_links(page))
    assert not [path for path in PATH.findall(text(page)) if not (ROOT / path).exists()]


@pytest.mark.law
@pytest.mark.parametrize("page", PAGES)
def test_commands_on_pages_exist(page: str) -> None:
    """Law: every ``dspark`` word and every module of ours behind ``python -m`` is there."""
    assert not [command for command in DSPARK.findall(text(page)) if not known(command)]
    ours = [name for name in MODULE.findall(text(page)) if name.split(".")[0] in ROOMS]
    assert not [name for name in ours if find_spec(name) is None]


@pytest.mark.law
def test_the_readme_is_a_door_and_not_a_ledger() -> None:
    """Law: 130 lines, one figure, and the two commands of a fresh machine."""
    readme = text("README.md")
    assert len(readme.splitlines()) <= 130
    assert len(FIGURE.findall(readme)) == 1
    assert "pip install -e . && python -m simulator.run traces/chat.jsonl\n" in readme
    assert "pip install nox && nox\n" in readme
    assert "pip install nox && nox\n" in text(".ci/run")


@pytest.mark.law
def test_the_index_lists_every_page() -> None:
    """Law: what lies in ``docs`` can be found from ``docs/index.md``."""
    linked = {link.partition("#")[0] for link in LINK.findall(text("docs/index.md"))}
    pages = {file.name for file in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert not pages - linked


@pytest.mark.law
@pytest.mark.parametrize("page", ["README.md", "docs/design.md"])
def test_pages_name_the_same_five_files_to_read(page: str) -> None:
    """Law: one reading list; the links of the list are the five files in their order."""
    links = [link.removeprefix("../") for link in LINK.findall(text(page))]
    sources = [link for link in links if link.endswith(".py")]
    assert tuple(sources) == FIVE_FILES


@pytest.mark.law
@pytest.mark.parametrize("package", [sglang_dspark, simulator], ids=lambda it: it.__name__)
def test_packages_name_the_same_five_files_to_read(package: object) -> None:
    """Law: the dotted names of the five stand in the docstring in their order."""
    names = [file.removesuffix(".py").replace("/", ".") for file in FIVE_FILES]
    places = [str(package.__doc__).find(f"``{name}``") for name in names]
    assert places[0] > -1
    assert places == sorted(places)


@pytest.mark.example
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("run chat --rate 5", True),
        ("draft train --target T", True),
        ("draft", False),
        ("simulate chat", False),
        ("list policies", True),
        ("list dinners", False),
    ],
)
def test_unknown_words_after_dspark_are_noticed(line: str, found: bool) -> None:
    """Example: what the check of pages takes for a command."""
    assert known(line) is found
