"""Hook targets: found in every listed release, and missed when renamed or changed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_dspark.runtime.steer import targets
from sglang_dspark.runtime.steer.targets import ATTRIBUTES, TARGETS, Release, Target


def write_release(root: Path, **changes: str) -> Release:
    """A release's sources that have every target; ``changes`` replaces text in them."""
    modules: dict[str, dict[str, list[Target]]] = {}
    for target in TARGETS:
        first, _, rest = target.name.partition(".")
        modules.setdefault(target.module, {}).setdefault(first, []).append(target)
    for module, members in modules.items():
        lines = []
        for name, found in members.items():
            if "." not in found[0].name and name[0].isupper():
                lines += [f"class {name}:", *(f"    {p}: int" for p in found[0].parameters)]
            elif "." not in found[0].name:
                lines += [f"def {name}(*, {', '.join(found[0].parameters)}): ..."]
            else:
                lines += [f"class {name}:"]
                if name in ATTRIBUTES:
                    lines += ["    def setup(self):"]
                    lines += [f"        self.{one} = 1" for one in ATTRIBUTES[name]]
                for target in found:
                    rest = target.name.partition(".")[2]
                    given = "".join(f", {p}" for p in target.parameters)
                    lines += [f"    def {rest}(self{given}): ..."]
        text = "\n".join(lines)
        for before, after in changes.items():
            text = text.replace(before, after)
        path = root / Path(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "sglang-9.9.9.dist-info").mkdir()
    return Release(root)


@pytest.mark.example
def test_a_release_with_every_target_is_as_expected(tmp_path: Path) -> None:
    release = write_release(tmp_path)
    assert release.version == "9.9.9"
    assert targets.differences(release) == []


@pytest.mark.example
@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("def compute_budget(", "def decide(", "compute_budget is missing"),
        ("current_generation): ...", "pool): ...", "current_generation"),
        ("self.forced_budget_frac", "self.forced", "sets no forced_budget_frac"),
        ("correct_len", "accepted", "takes no correct_len"),
        ("class VerifyBudgetDecision", "class Decision", "VerifyBudgetDecision is missing"),
    ],
)
def test_a_changed_release_is_named(tmp_path: Path, before: str, after: str, said: str) -> None:
    found = targets.differences(write_release(tmp_path, **{before: after}))
    assert any(said in one for one in found), found


@pytest.mark.example
def test_a_process_without_a_target_is_refused() -> None:
    def resolve(path: str) -> Any:
        raise AttributeError("no such thing")

    with pytest.raises(ValueError, match=r"SGLang has no .*; install sglang==0\.5\.21"):
        targets.check(resolve)


@pytest.mark.example
def test_a_process_with_another_signature_is_refused() -> None:
    def resolve(path: str) -> Any:
        return SimpleNamespace if path.endswith("Decision") else lambda self, *, other: None

    with pytest.raises(ValueError, match="takes no draft_model"):
        targets.check(resolve)


@pytest.mark.golden
def test_every_listed_release_has_what_is_hooked() -> None:
    committed = Path(targets.__file__).with_name("releases.json")
    found = json.loads(committed.read_text(encoding="utf-8"))
    assert [f"0.5.{n}" for n in range(16, 24)] == list(found)
    assert not any(row["differences"] for row in found.values())
    assert len({row["decision_code"] for row in found.values()}) == 1
    assert targets.table(found).count("as expected") == len(found)


@pytest.mark.example
def test_what_is_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such wheel"):
        Release(tmp_path / "missing.whl")
    with pytest.raises(ValueError, match="holds no sglang"):
        Release(tmp_path)
