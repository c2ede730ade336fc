"""Every folder says what is in it: a package's docstring is its table of contents."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sglang_dspark", "simulator", "traces", "analysis", "benchmarks")
FOLDERS = sorted(
    file.parent.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for file in (ROOT / package).rglob("__init__.py")
)
SOURCES = sorted(
    file for package in (*PACKAGES, "tests") for file in (ROOT / package).rglob("*.py")
)

ENTRY = re.compile(r"^- ``(\w+)``: \S", re.MULTILINE)
"""A line of the contents: a name, and a few words on what it owns."""


def docstring(file: Path) -> str:
    """The file's docstring, empty where it has none."""
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def held(folder: Path) -> list[str]:
    """The modules and sub-packages of a folder."""
    modules = [file.stem for file in folder.glob("*.py") if not file.stem.startswith("__")]
    return sorted(modules + [file.parent.name for file in folder.glob("*/__init__.py")])


@pytest.mark.law
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_package_lists_all_that_it_holds_once_and_nothing_else(folder: str) -> None:
    """Law: the entries of the docstring are the modules and sub-packages of the folder."""
    listed = ENTRY.findall(docstring(ROOT / folder / "__init__.py"))
    assert sorted(listed) == held(ROOT / folder)


@pytest.mark.law
def test_every_folder_of_modules_is_a_package() -> None:
    """Law: beside every module there is an ``__init__.py``, or the contents could be evaded."""
    folders = {file.parent for file in SOURCES}
    alone = {
        folder.relative_to(ROOT) for folder in folders if not (folder / "__init__.py").exists()
    }
    assert not alone


@pytest.mark.law
def test_every_module_begins_by_saying_what_it_is() -> None:
    """Law: a file without a docstring, also in the tests, is one nobody can place."""
    silent = [file.relative_to(ROOT).as_posix() for file in SOURCES if not docstring(file)]
    assert not silent
