"""A wheel, installed elsewhere: what it carries, and whose packages it finds beside it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from sglang_dspark.listing import KINDS

ROOT = Path(__file__).parent.parent
PACKAGES = ("sglang_dspark", "simulator", "traces", "analysis")
REMEDY = "pip install --force-reinstall --no-deps sglang-dspark"
_SITE = Path("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")


def pip(*arguments: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        env=os.environ | {"PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr


def environment(at: Path) -> Path:
    """An environment that sees this one's packages, without what is installed as editable."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(at)], check=True)
    seen = [path for path in sys.path if path.endswith("site-packages")]
    (at / _SITE / "seen.pth").write_text("\n".join(seen) + "\n")
    return at


def install(at: Path, wheel: Path, *flags: str) -> None:
    flags = ("--no-deps", "--no-compile", *flags)
    pip("--python", str(at / "bin" / "python"), "install", *flags, str(wheel))


def build(folder: Path) -> None:
    """The wheel and two environments: with it, and with another's ``traces`` over it."""
    source = folder / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source))
    wheel = next(folder.glob("*.whl"))
    install(environment(folder / "own"), wheel)
    install(environment(folder / "overwritten"), wheel)
    install(folder / "overwritten", foreign_wheel(folder / "foreign"))


def foreign_wheel(folder: Path) -> Path:
    """A distribution ``traces`` 0.7.0 with a package of that name, as there is one on the index."""
    folder.mkdir()
    path = folder / "traces-0.7.0-py3-none-any.whl"
    info = "traces-0.7.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("traces/__init__.py", "from traces.timeseries import TimeSeries\n")
        wheel.writestr("traces/timeseries.py", "class TimeSeries: ...\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: traces\nVersion: 0.7.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(
            f"{info}/RECORD",
            "".join(
                f"{name},,\n"
                for name in ("traces/__init__.py", "traces/timeseries.py", f"{info}/RECORD")
            ),
        )
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``build`` makes, once for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = shared / "wheel"
    with open(shared / "wheel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            build(folder)
    return folder


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    """A folder with another's ``analysis`` and ``simulator``, which say when they are run."""
    (tmp_path / "analysis").mkdir()
    for name in ("analysis/__init__.py", "simulator.py"):
        (tmp_path / name).write_text("print('foreign code was run')\n")
    return tmp_path


def call(at: Path, folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A command of an environment, in a folder."""
    program, *arguments = words
    return subprocess.run(
        [str(at / "bin" / program), *arguments],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | more,
        capture_output=True,
        text=True,
        timeout=1800,  # the first replay compiles, beside whatever else the machine does
    )


def check_refused(ended: subprocess.CompletedProcess[str], name: str, *says: str) -> None:
    """One sentence that begins with the name it was called by, status 2, nothing else."""
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr.startswith(f"{name}: ")
    assert ended.stderr.count("\n") == 1
    assert not [text for text in says if text not in ended.stderr], ended.stderr


@pytest.mark.law
def test_the_wheel_carries_every_file_of_the_packages(built: Path) -> None:
    carried = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    there = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in (".py", ".json", ".jsonl")
    }
    assert there <= carried
    assert {Path(name).name for name in carried if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert {"traces/chat.jsonl", "sglang_dspark/runtime/steer/releases.json"} <= there


@pytest.mark.law
def test_a_missing_package_is_looked_up_in_the_list_of_pyproject(built: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = {"": project["dependencies"], **project["optional-dependencies"]}
    body = "import json, sglang_dspark.extras as e; print(json.dumps(e.extras()))"
    known = json.loads(call(built / "own", built, "python", "-c", body).stdout)
    for extra, lines in stated.items():
        names = {re.split(r"[\[<>=]", line)[0].replace("-", "_") for line in lines}
        assert names == {name for name, brought_by in known.items() if brought_by == extra}
    assert (known["torch"], known["ray"], known["numpy"]) == ("draft", "cluster", "")


@pytest.mark.law
def test_names_and_both_ways_work_from_an_empty_folder(built: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        ended = call(built / "own", tmp_path, "dspark", "list", kind)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert len(ended.stdout.splitlines()) > 3
    door = call(built / "own", tmp_path, "dspark", "traces", "describe", "chat")
    path = call(built / "own", tmp_path, "python", "-m", "traces.describe", "chat")
    assert (door.returncode, door.stderr) == (0, "")
    assert door.stdout.startswith("chat: 4,695 requests ")
    assert (path.returncode, path.stdout, path.stderr) == (0, door.stdout, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.law
def test_a_replay_from_the_wheel_is_the_same_both_ways(built: Path, tmp_path: Path) -> None:
    flags = ["run", "chat", "--policy", "none", "--jobs", "1"]
    door = call(built / "own", tmp_path, "dspark", *flags, "--out", "door")
    assert door.returncode == 0, door.stderr
    path = call(built / "own", tmp_path, "python", "-m", "simulator.run", *flags[1:])
    assert path.returncode == 0, path.stderr
    assert door.stdout.replace(" door", " results/chat") == path.stdout
    for name in ("summary.json", "requests.parquet", "config.json"):
        first, second = (tmp_path / at / name for at in ("door", "results/chat"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.example
def test_a_console_script_does_not_see_what_lies_in_the_folder(built: Path, hidden: Path) -> None:
    ended = call(built / "own", hidden, "dspark", "traces", "describe", "chat")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.law
@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("sglang_dspark run chat", "dspark run"),
        ("sglang_dspark list traces", "dspark list"),
        ("sglang_dspark draft train", "dspark draft train"),
        ("traces", "traces"),
        ("traces.describe chat", "traces.describe"),
        ("sglang_dspark.draft.train", "sglang_dspark.draft.train"),
        ("sglang_dspark.runtime.step_log steps", "sglang_dspark.runtime.step_log"),
        ("sglang_dspark.runtime.profile --help", "sglang_dspark.runtime.profile"),
    ],
)
def test_what_hides_our_packages_is_named_and_not_run(
    words: str, name: str, built: Path, hidden: Path
) -> None:
    ended = call(built / "own", hidden, "python", "-m", *words.split())
    says = "hides this project's package 'simulator'; run from another folder"
    check_refused(ended, name, f"{hidden}/simulator.py", says)


@pytest.mark.example
@pytest.mark.parametrize("words", ["simulator.run chat", "simulator.tune chat", "simulator"])
def test_the_simulator_names_a_foreign_analysis(words: str, built: Path, hidden: Path) -> None:
    (hidden / "simulator.py").unlink()
    ended = call(built / "own", hidden, "python", "-m", *words.split())
    check_refused(ended, words.split()[0], f"{hidden}/analysis/__init__.py", "'analysis'")


@pytest.mark.example
def test_a_folder_on_pythonpath_is_seen_by_the_script_too(built: Path, hidden: Path) -> None:
    ended = call(built / "own", built, "dspark", "run", "chat", PYTHONPATH=str(hidden))
    check_refused(ended, "dspark run", f"{hidden}/simulator.py", "take its folder off PYTHONPATH")


@pytest.mark.example
def test_a_folder_without_code_hides_nothing(built: Path, tmp_path: Path) -> None:
    """Python takes a package on a later folder of the path before a bare folder on an earlier."""
    (tmp_path / "analysis").mkdir()
    ended = call(built / "own", tmp_path, "python", "-m", "traces.describe", "chat")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.example
def test_a_server_does_not_mind(built: Path, hidden: Path) -> None:
    """The plugin and the library load none of the three, whoever owns them."""
    body = """
import sys
import sglang_dspark.core, sglang_dspark.runtime.plugin, sglang_dspark.runtime.settings
import sglang_dspark.logs.step_log, sglang_dspark.runtime.metrics
assert not {"traces", "simulator", "analysis"} & set(sys.modules)
"""
    ended = call(built / "own", hidden, "python", "-c", body)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    ended = call(built / "overwritten", built, "python", "-c", body)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.law
@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("dspark run chat", "dspark run"),
        ("dspark traces describe chat", "dspark traces describe"),
        ("dspark list policies", "dspark list"),
        ("python -m simulator.run chat", "simulator.run"),
        ("python -m traces.describe chat", "traces.describe"),
        ("python -m analysis.compare results", "analysis.compare"),
    ],
)
def test_another_distribution_over_ours_is_named_with_its_remedy(
    words: str, name: str, built: Path, tmp_path: Path
) -> None:
    ended = call(built / "overwritten", tmp_path, *words.split())
    file = built / "overwritten" / _SITE / "traces" / "__init__.py"
    owner = "belongs to the distribution 'traces' and not to this project's package 'traces'"
    check_refused(ended, name, f"{file} {owner}; pip uninstall traces, then {REMEDY}")


@pytest.mark.example
def test_the_remedy_mends_it(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "overwritten" / _SITE, tmp_path / _SITE)
    at = environment(tmp_path)
    pip("--python", str(at / "bin" / "python"), "uninstall", "--yes", "traces")
    install(at, next(built.glob("*.whl")), "--force-reinstall")
    ended = call(at, tmp_path, "dspark", "traces", "describe", "chat")
    assert (ended.returncode, ended.stderr) == (0, "")
