"""``dspark check-sglang``: found in every listed release, missed when renamed or changed."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from sglang_dspark.runtime.steer import releases
from sglang_dspark.runtime.steer.releases import Release, differences, known, main, survey
from sglang_dspark.runtime.steer.targets import ATTRIBUTES, TARGETS, VERIFIED, Target

SERVING = Path(__file__).parents[1] / "docs" / "serving.md"


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
    assert differences(release) == []


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
    found = differences(write_release(tmp_path, **{before: after}))
    assert any(said in one for one in found), found


@pytest.mark.golden
def test_every_listed_release_has_what_is_hooked() -> None:
    found = known()
    assert [f"0.5.{n}" for n in range(16, 24)] == list(found)
    assert not any(row["differences"] for row in found.values())
    assert not any(releases.rewritten(row) for row in found.values())
    assert releases.table(found).count("as expected") == len(found)


def test_the_page_has_the_table_of_the_listed_releases() -> None:
    assert releases.table(known()) in SERVING.read_text()


@pytest.mark.example
def test_what_is_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such wheel"):
        Release(tmp_path / "missing.whl")
    with pytest.raises(ValueError, match="holds no sglang"):
        Release(tmp_path)


def test_a_release_that_decides_otherwise_is_named_by_the_function(tmp_path: Path) -> None:
    row = survey([write_release(tmp_path)])["9.9.9"]
    changed = releases.rewritten(row)
    assert "compute_verify_token_budget" in changed
    assert "compute_verify_token_budget" in releases.table({"9.9.9": row})
    assert "policy sglang" in releases.verdict("9.9.9", row)
    assert releases.rewritten(known()[VERIFIED]) == []


def test_the_command_reads_a_wheel_and_a_folder_and_says_what_can_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "unpacked"
    write_release(folder, **{"def compute_budget(": "def decide("})
    wheel = tmp_path / "sglang-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
        archive.writestr("sglang-9.9.9.dist-info/METADATA", "")
    for given in (folder, wheel):
        assert main([str(given)]) == 1
        shown = capsys.readouterr().out
        assert "compute_budget is missing" in shown
        assert "cannot be steered" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0.5.15.post1"], "worker lane"),
        (["0.5.2"], "no DSPARK to steer"),
        (["nowhere/sglang.whl"], "no such wheel"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_what_pip_cannot_fetch_is_said_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        said = "WARNING: slow\nERROR: No matching distribution found\n[notice] a new pip\n"
        return subprocess.CompletedProcess([], 1, "", said)

    monkeypatch.setattr(releases.subprocess, "run", fails)
    with pytest.raises(ValueError, match="ERROR: No matching distribution found"):
        releases.fetched("0.5.99", "nowhere")
