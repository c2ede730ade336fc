"""What of SGLang the steer lane hooks, calls or reads, and how each of it must look.

``python -m sglang_dspark.runtime.steer.targets WHEEL_OR_FOLDER ... [--write FILE]``

Owns the list, the check in a running process, and the check of a release that is only unpacked, by
reading its sources without importing them. ``releases.json`` is what the latter said of every
release since 0.5.16. Imports neither SGLang nor torch.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import pkgutil
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_dspark.cli import Parser, run_command
from sglang_dspark.files import write_json

COMPONENTS = "sglang.srt.speculative.dspark_components"
PLANNER = f"{COMPONENTS}.dspark_planner"
OBSERVERS = f"{COMPONENTS}.dspark_observability"
SCHEDULER = "sglang.srt.managers.scheduler"
VERIFIED = "0.5.21"
"""The release on which the lane's tests run."""
REMEDY = (
    f"install sglang=={VERIFIED} or another release that docs/serving.md lists, or set "
    "SGLANG_PLUGINS=none to run SGLang's own DSPARK"
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A function or class of SGLang."""

    module: str
    name: str
    parameters: tuple[str, ...]
    """Without self and cls; of a class, those of its construction."""
    exact: bool = True
    """Whether these are all; otherwise only the ones that a hook reads."""
    code: bool = False
    """Whether its body is part of SGLang's decision, which ``sglang`` equals."""

    @property
    def path(self) -> str:
        """Dotted, as the hook registry takes it."""
        return f"{self.module}.{self.name}"

    def difference(self, found: tuple[str, ...]) -> str:
        """What tells ``found`` from the expected parameters; empty when nothing does."""
        if self.exact and sorted(found) != sorted(self.parameters):
            return f"takes ({', '.join(found)}), not ({', '.join(self.parameters)})"
        missing = [name for name in self.parameters if name not in found]
        return f"takes no {', '.join(missing)}" if missing else ""


def _planner(name: str, *parameters: str, code: bool = False) -> Target:
    return Target(module=PLANNER, name=name, parameters=parameters, code=code)


_RESOLVED = ("resolved", "req_pool_indices_cpu")
_RELAYED = ("confidence", "generation", "req_pool_indices_cpu")
_CHOICE = ("confidence", "budget", "cfg")
INIT = Target(
    module=PLANNER,
    name="DSparkVerifyPlanner.__init__",
    parameters=("draft_model", "gamma", "model_runner", "device", "tp_rank"),
    exact=False,
)
CONTEXT = _planner("DSparkVerifyPlanner.prepare_verify_budget", "batch", "future_map")
CONTEXT_NOW = _planner(
    "DSparkVerifyPlanner.compute_budget_sync", "confidence", "prefix_lens", "req_pool_indices"
)
BUDGET_OF_STEP = _planner("DSparkVerifyPlanner._budget_from_resolved", *_RESOLVED, code=True)
BUDGET = _planner(
    "HostConfidenceBudgetPlanner.compute_budget", *_RELAYED, "current_generation", code=True
)
LAYOUT = Target(
    module=PLANNER,
    name="DSparkVerifyPlanner.schedule_layout",
    parameters=("confidence", "budget", "req_pool_indices"),
    exact=False,
)
LENGTHS = _planner("ScheduleVerifyLensTopk.execute", "args", "kwargs")
BEGIN = Target(module=OBSERVERS, name="DsparkStepObservers.begin_step", parameters=())
SEGMENT = Target(module=OBSERVERS, name="DsparkStepObservers.segment", parameters=("name",))
OBSERVE = Target(
    module=OBSERVERS,
    name="DsparkStepObservers.observe_verify_step",
    parameters=("reqs", "layout", "confidence", "prefix_lens", "correct_len"),
    exact=False,
)
PREFILL = Target(module=OBSERVERS, name="DsparkStepObservers.note_prefill_step", parameters=())
STATE = Target(module=SCHEDULER, name="Scheduler.get_internal_state", parameters=("recv_req",))

TARGETS = (
    INIT,
    CONTEXT,
    CONTEXT_NOW,
    BUDGET_OF_STEP,
    BUDGET,
    LAYOUT,
    LENGTHS,
    BEGIN,
    SEGMENT,
    OBSERVE,
    PREFILL,
    STATE,
    _planner("HostConfidenceBudgetPlanner._shift_to_lag", *_RELAYED, code=True),
    _planner("HostConfidenceBudgetPlanner._two_steps_prior_survival", "lagged_confidence",
             "lagged_generation", "current_generation", code=True),
    _planner("compute_verify_token_budget", "history_survival_probs", "sps_table", "cfg",
             code=True),
    _planner("ScheduleVerifyLensTopk.torch", *_CHOICE),
    _planner("VerifyBudgetDecision", "budget", "predicted_step_seconds", "predicted_theta"),
    Target(module="sglang.srt.speculative.ragged_verify", name="RaggedVerifyLayout",
           parameters=("verify_lens",), exact=False),
    Target(module="sglang.srt.managers.io_struct", name="GetInternalStateReqOutput",
           parameters=("internal_state",), exact=False),
)  # fmt: skip
"""Hooked first, then what is called or equalled."""

ATTRIBUTES = {
    "DSparkVerifyPlanner": (
        "_budget_planner", "_is_verify_all", "_schedule_cfg", "carries_confidence",
        "is_compact_mode", "lag_steps", "gamma", "device",
    ),
    "HostConfidenceBudgetPlanner": (
        "cfg", "sps_table", "forced_budget_frac", "last_decision", "lag_steps", "carry_steps",
    ),
}  # fmt: skip
"""What the hooks read or set of ``PLANNER``'s objects."""


def check(resolve: Callable[[str], Any] = pkgutil.resolve_name) -> None:
    """``ValueError`` naming the first target that this process's SGLang lacks or has changed."""
    for target in TARGETS:
        try:
            found = resolve(target.path)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"SGLang has no {target.path} ({error}); {REMEDY}") from None
        problem = target.difference(_live_parameters(found))
        if problem:
            raise ValueError(f"SGLang's {target.path} {problem}; {REMEDY}")


def _live_parameters(found: Any) -> tuple[str, ...]:
    names = tuple(inspect.signature(found).parameters)
    return tuple(name for name in names if name not in ("self", "cls"))


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


def differences(release: Release) -> list[str]:
    """Every target and attribute that the release lacks or has changed."""
    found = []
    for target in TARGETS:
        try:
            problem = target.difference(
                _written_parameters(release.find(target.module, target.name))
            )
        except LookupError as error:
            problem = f"is missing: {error.args[0]}"
        if problem:
            found.append(f"{target.name} {problem}")
    for name, attributes in ATTRIBUTES.items():
        try:
            missing = sorted(set(attributes) - release.attributes(name))
        except LookupError:
            missing = list(attributes)
        found += [f"{name} sets no {attribute}" for attribute in missing]
    return found


def decision_code(release: Release) -> str:
    """A digest of the code that decides budgets there; empty when a part of it is missing."""
    digest = hashlib.sha256()
    for target in TARGETS:
        if target.code:
            try:
                digest.update(ast.unparse(release.find(target.module, target.name)).encode())
            except LookupError:
                return ""
    return digest.hexdigest()[:16]


def survey(releases: Iterable[Release]) -> dict[str, Any]:
    """What ``releases.json`` holds."""
    return {
        release.version: {
            "differences": differences(release),
            "decision_code": decision_code(release),
        }
        for release in releases
    }


def table(found: dict[str, Any]) -> str:
    """A survey as rows of a page."""
    verified = found.get(VERIFIED, {}).get("decision_code")
    lines = ["| SGLang | hook targets | its decision code |", "| --- | --- | --- |"]
    for version, row in found.items():
        state = "; ".join(row["differences"]) or "as expected"
        if version == VERIFIED:
            code = "tested here"
        elif verified is None or not row["decision_code"]:
            code = "unknown"
        else:
            code = f"{'as' if row['decision_code'] == verified else 'not as'} in {VERIFIED}"
        lines.append(f"| {version} | {state} | {code} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check releases; status 1 when one has changed."""
    parser = Parser(
        prog="python -m sglang_dspark.runtime.steer.targets",
        description="Check unpacked releases of SGLang for what the steer lane hooks.",
    )
    parser.add_argument("release", nargs="+", type=Path, help="a wheel, or a folder with sglang/")
    parser.add_argument("--write", type=Path, help="write the findings to this .json file")
    given = parser.parse_args(arguments)
    found = survey(Release(path) for path in given.release)
    if given.write is not None:
        write_json(given.write, found)
    print(table(found))
    return 1 if any(row["differences"] for row in found.values()) else 0


if __name__ == "__main__":
    raise SystemExit(run_command("sglang_dspark.runtime.steer.targets", main))
