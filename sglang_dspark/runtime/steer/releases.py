"""Releases of SGLang that are only unpacked: what of them the steer lane would find changed.

    dspark check-sglang                     # the SGLang of this environment
    dspark check-sglang 0.5.23              # a release, fetched with pip
    dspark check-sglang sglang-0.5.23-py3-none-any.whl

Owns the reading of sources, which are never imported, and the command. ``releases.json`` is what it
said of every release since 0.5.16, and the table of ``docs/serving.md`` is made of it. Imports
neither SGLang nor torch.
"""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sglang_dspark.cli import Parser, run_command
from sglang_dspark.files import read_json, write_json
from sglang_dspark.runtime.steer.targets import ATTRIBUTES, PLANNER, TARGETS, VERIFIED, Target
from sglang_dspark.runtime.versions import FIRST_BUILT_IN, WORKER_VERSION

NAME = "sglang_dspark.runtime.steer.releases"
KNOWN = Path(__file__).with_name("releases.json")
_FETCH_S = 600


class Release:
    """Sources of a release: a folder that holds ``sglang``, or a wheel."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise ValueError(f"{path}: no such wheel or folder")
        self._root = zipfile.Path(path) if path.is_file() else path
        self._trees: dict[str, ast.Module] = {}
        self.version = self._version()

    def _version(self) -> str:
        for entry in self._root.iterdir():
            match = re.fullmatch(r"sglang-(.+)\.dist-info", entry.name)
            if match:
                return match[1]
        raise ValueError(f"{self._root}: holds no sglang-*.dist-info; give a wheel's content")

    def _tree(self, module: str) -> ast.Module:
        if module not in self._trees:
            *folders, name = module.split(".")
            place = self._root
            for folder in folders:
                place = place / folder
            source = place / f"{name}.py"
            if not source.exists():
                raise LookupError(f"no module {module}")
            self._trees[module] = ast.parse(source.read_text(encoding="utf-8"))
        return self._trees[module]

    def find(self, module: str, name: str) -> ast.FunctionDef | ast.ClassDef:
        """The definition, imports followed. ``LookupError`` when there is none."""
        first, _, rest = name.partition(".")
        for node in self._tree(module).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == first:
                return _member(node, rest) if rest else node
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if (alias.asname or alias.name) == first:
                        return self.find(node.module, f"{alias.name}.{rest}" if rest else first)
        raise LookupError(f"{module} has no {first}")

    def attributes(self, name: str) -> set[str]:
        """What objects of the class ``name`` of the planner's module have."""
        nodes = list(ast.walk(self.find(PLANNER, name)))
        methods = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        return methods | {
            node.attr
            for node in nodes
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        }


def _member(node: ast.FunctionDef | ast.ClassDef, name: str) -> ast.FunctionDef:
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == name:
            return child
    raise LookupError(f"{node.name} has no {name}")


def _written_parameters(node: ast.FunctionDef | ast.ClassDef) -> tuple[str, ...]:
    if isinstance(node, ast.ClassDef):  # a record: its annotated fields
        fields = [child.target for child in node.body if isinstance(child, ast.AnnAssign)]
        return tuple(field.id for field in fields if isinstance(field, ast.Name))
    every = node.args
    rest = [one for one in (every.vararg, every.kwarg) if one is not None]
    names = [one.arg for one in (*every.posonlyargs, *every.args, *every.kwonlyargs, *rest)]
    return tuple(name for name in names if name not in ("self", "cls"))


def _problem(release: Release, target: Target) -> str:
    """What is wrong with a target there; empty where nothing is."""
    try:
        return target.difference(_written_parameters(release.find(target.module, target.name)))
    except LookupError as error:
        return f"is missing: {error.args[0]}"


def differences(release: Release) -> list[str]:
    """Every target and attribute that the release lacks or has changed."""
    problems = [(target.name, _problem(release, target)) for target in TARGETS]
    found = [f"{name} {problem}" for name, problem in problems if problem]
    for name, attributes in ATTRIBUTES.items():
        try:
            missing = sorted(set(attributes) - release.attributes(name))
        except LookupError:
            missing = list(attributes)
        found += [f"{name} sets no {attribute}" for attribute in missing]
    return found


def decision_code(release: Release) -> dict[str, str]:
    """By name, a digest of each function that has a part in deciding budgets there; of one that is
    missing, an empty one."""
    found = {}
    for target in TARGETS:
        if target.code:
            try:
                text = ast.unparse(release.find(target.module, target.name))
                found[target.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
            except LookupError:
                found[target.name] = ""
    return found


def survey(releases: Iterable[Release]) -> dict[str, Any]:
    """What ``releases.json`` holds."""
    return {
        release.version: {
            "differences": differences(release),
            "decision_code": decision_code(release),
        }
        for release in releases
    }


def known() -> dict[str, Any]:
    """What was found of the releases that are listed."""
    found: dict[str, Any] = read_json(KNOWN)
    return found


def rewritten(row: Mapping[str, Any]) -> list[str]:
    """The deciding functions that are others than in the verified release."""
    verified = known()[VERIFIED]["decision_code"]
    return [name for name, digest in row["decision_code"].items() if digest != verified[name]]


def table(found: Mapping[str, Any]) -> str:
    """A survey as rows of a page."""
    lines = ["| SGLang | hook targets | its decision code |", "| --- | --- | --- |"]
    for version, row in found.items():
        state = "; ".join(row["differences"]) or "as expected"
        changed = rewritten(row)
        code = f"not as in {VERIFIED}: {', '.join(changed)}" if changed else f"as in {VERIFIED}"
        lines.append(f"| {version} | {state} | {'tested here' if version == VERIFIED else code} |")
    return "\n".join(lines)


def verdict(version: str, row: Mapping[str, Any]) -> str:
    """What a user can do with a release, in a sentence."""
    if row["differences"]:
        return (
            f"SGLang {version} cannot be steered; the plugin would refuse it at the start. Stay on "
            f"{VERIFIED}, or set SGLANG_PLUGINS=none to run its own DSPARK."
        )
    if rewritten(row):
        return (
            f"SGLang {version} can be steered. Its own budget is another than in {VERIFIED}: "
            "policy sglang, and what simulations say of it, is that of the older."
        )
    return f"SGLang {version} can be steered, and decides by itself as {VERIFIED} does."


def installed() -> Release:
    """SGLang's of this environment. ``ValueError`` where there is none."""
    try:
        there = metadata.distribution("sglang")
    except metadata.PackageNotFoundError:
        raise ValueError(
            "there is no SGLang in this environment; name a version, a wheel, or a folder that "
            "holds one"
        ) from None
    return Release(Path(str(there.locate_file(""))))


def fetched(version: str, folder: str) -> Release:
    """A release from the package index, by pip. ``ValueError`` where pip finds none."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--quiet", "--dest", folder, f"sglang=={version}"]  # fmt: skip
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_S)
    except subprocess.TimeoutExpired:
        raise ValueError(f"sglang {version}: not fetched in {_FETCH_S} s; give a wheel") from None
    wheels = sorted(Path(folder).glob("sglang-*.whl"))
    if run.returncode or not wheels:
        errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
        said = errors[-1] if errors else "pip said nothing of why"
        raise ValueError(f"sglang {version} was not fetched ({said}); give a wheel or its folder")
    return Release(wheels[0])


def _release(text: str, folder: str) -> Release:
    if re.fullmatch(r"\d+(\.\w+)+", text) and not Path(text).exists():
        if text == WORKER_VERSION:
            raise ValueError(f"SGLang {text} has no DSPARK of its own: the worker lane is for it")
        first, asked = (tuple(map(int, re.findall(r"\d+", v)[:3])) for v in (FIRST_BUILT_IN, text))
        if asked < first:
            raise ValueError(
                f"SGLang {text} has no DSPARK to steer; {FIRST_BUILT_IN} and later have, and "
                f"{WORKER_VERSION} is the worker lane's"
            )
        return fetched(text, folder)
    return Release(Path(text))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 1 when a release cannot be steered."""
    return run_command(NAME, lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(
        description="Check a release of SGLang for what the plugin hooks into its DSPARK, without "
        "running or importing it. Status 1 where something is missing or has changed.",
        examples=["", "0.5.23", "sglang-0.5.23-py3-none-any.whl"],
        page="docs/serving.md",
    )
    parser.add_argument(
        "release", nargs="*",
        help="a version, which pip fetches, a wheel, or a folder with sglang/ and its dist-info "
        "(default: the SGLang of this environment)",
    )  # fmt: skip
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the findings as JSON")
    given = parser.parse_args(argv)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="sglang-dspark-") as folder:
        for i, text in enumerate(given.release):
            found |= survey([_release(text, f"{folder}/{i}")])
        if not given.release:
            found = survey([installed()])
    if given.write is not None:
        write_json(given.write, found)
    print(table(found))
    for version, row in found.items():
        print(verdict(version, row))
    return 1 if any(row["differences"] for row in found.values()) else 0
