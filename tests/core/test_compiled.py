"""Compiled functions: what their disk cache notices, and that a part is what it is alone."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numba
import pytest

from sglang_dspark.core import compiled as module
from sglang_dspark.core.compiled import cache_folder, compiled, sources
from sglang_dspark.core.linking import NotCompiledError, from_cache_only
from tests.waiting import HUNG_S

ROOT = Path(__file__).parents[2]

CALLER = """
from sglang_dspark.core.compiled import compiled
from toy_package.callee import scaled

@compiled
def shifted(x):
    return scaled(x) + 1.0
"""
CALLEE = """
from sglang_dspark.core.compiled import compiled
from toy_package.constants import FACTOR

@compiled
def scaled(x):
    return FACTOR * x
"""


def forget() -> None:
    """As in a new process."""
    if module._spare_folder.cache_info().currsize:
        module._spare_folder().cleanup()
    for cached in (module.base_folder, module._spare_folder, module._imported, cache_folder):
        cached.cache_clear()


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """``caller`` imports ``callee``, which imports ``constants``; and a bystander."""
    package = tmp_path / "toy_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "caller.py").write_text(CALLER)
    (package / "callee.py").write_text(CALLEE)
    (package / "constants.py").write_text("FACTOR = 2.0\n")
    (package / "bystander.py").write_text("from toy_package.caller import shifted\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    forget()
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_package"]:
        del sys.modules[name]
    forget()


def load(name: str) -> ModuleType:
    return importlib.import_module(f"toy_package.{name}")


def folder_now(name: str = "caller") -> str | None:
    load(name)
    forget()
    return cache_folder(f"toy_package.{name}")


@pytest.mark.example
def test_the_folder_is_below_the_cache_and_named_for_the_module(toy: Path) -> None:
    folder = folder_now()
    assert folder is not None
    assert Path(folder).parent == toy.parent / "cache"
    assert Path(folder).name.startswith("toy_package.caller-")
    assert folder == folder_now()


@pytest.mark.law
@pytest.mark.parametrize("edited", ["caller.py", "callee.py", "constants.py"])
def test_editing_what_a_module_imports_directly_or_not_moves_its_folder(
    edited: str, toy: Path
) -> None:
    before = folder_now()
    (toy / edited).write_text((toy / edited).read_text() + "# edited\n")
    assert folder_now() != before


@pytest.mark.law
def test_editing_what_a_module_does_not_import_leaves_its_folder(toy: Path) -> None:
    before, of_callee = folder_now(), folder_now("callee")
    load("bystander")
    (toy / "bystander.py").write_text("# edited\n")
    (toy / "notes.json").write_text("{}")
    assert folder_now() == before
    (toy / "caller.py").write_text(CALLER + "# edited\n")
    assert folder_now("callee") == of_callee


@pytest.mark.law
def test_a_changed_callee_changes_what_a_new_process_computes(toy: Path) -> None:
    def computed() -> float:
        script = "from toy_package.caller import shifted; print(shifted(3.0))"
        paths = os.pathsep.join([str(toy.parent), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": paths}
        ended = subprocess.run(
            [sys.executable, "-c", script], env=environment, text=True, stdout=subprocess.PIPE,
            check=True,
        )  # fmt: skip
        return float(ended.stdout)

    assert computed() == 7.0
    (toy / "callee.py").write_text(CALLEE.replace("FACTOR * x", "FACTOR * x * x"))
    assert computed() == 19.0
    (toy / "constants.py").write_text("FACTOR = 5.0\n")
    assert computed() == 46.0


@pytest.mark.example
def test_the_kernel_is_compiled_again_for_its_own_rooms_alone() -> None:
    importlib.import_module("simulator.run")
    importlib.import_module("sglang_dspark.core.planner")
    files = {str(path.relative_to(ROOT)) for path in sources("simulator.engine.kernel")}
    assert files >= {
        "simulator/engine/kernel.py", "simulator/engine/decode.py", "simulator/engine/prefill.py",
        "simulator/engine/lifecycle.py", "simulator/engine/kv_cache.py",
        "simulator/acceptance/tables.py", "simulator/rng.py", "sglang_dspark/core/decide.py",
        "sglang_dspark/core/ranking.py", "sglang_dspark/core/costs/tables.py",
        "sglang_dspark/core/compiled.py",
    }  # fmt: skip
    rooms = ("simulator/engine/", "simulator/acceptance/tables.py", "simulator/rng.py")
    assert all(file.startswith((*rooms, "sglang_dspark/core/")) for file in files)
    assert "sglang_dspark/core/planner.py" not in files


@pytest.mark.example
def test_what_is_kept_is_loaded_and_what_is_not_is_refused_from_the_cache_alone(toy: Path) -> None:
    with from_cache_only(), pytest.raises(NotCompiledError):
        load("caller").shifted(3.0)
    assert load("caller").shifted(3.0) == 7.0
    again = compiled(load("caller").shifted.__wrapped__)
    with from_cache_only():
        assert again(3.0) == 7.0
        with pytest.raises(NotCompiledError):
            again(3)  # for whole numbers it was never compiled


@pytest.mark.law
@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.05, 0.2])
def test_a_signal_during_a_compilation_is_heard_at_its_end_and_loses_nothing(
    after_s: float, toy: Path
) -> None:
    """At whatever moment it comes: the last may well come when all is done."""
    shifted = load("caller").shifted
    shifted._part.compile((numba.float64,))  # numba itself has been imported and is ready
    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hear)

    def disturbed() -> None:
        threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT)).start()
        shifted(3.0)
        time.sleep(HUNG_S)

    try:
        with pytest.raises(KeyboardInterrupt):
            disturbed()
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]
    assert shifted(3.0) == 7.0


@pytest.mark.law
def test_a_part_gives_its_caller_the_bits_that_it_gives_python(toy: Path) -> None:
    for x in (0.1, -3.7e300, 1e-310, 7.0):
        assert load("caller").shifted(x) == load("callee").scaled(x) + 1.0


@pytest.mark.example
def test_parts_can_be_called_from_any_jitted_code(toy: Path) -> None:
    scaled = load("callee").scaled

    @numba.njit  # type: ignore[untyped-decorator]
    def twice(x: float) -> float:
        return scaled(scaled(x))  # type: ignore[no-any-return]

    assert twice(1.5) == 6.0


@pytest.mark.example
def test_without_a_folder_that_can_be_written_one_sentence_says_so_and_all_works(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "a-file" / "cache"))
    load("caller")
    forget()
    with pytest.warns(
        UserWarning, match="cannot be kept .Not a directory.*NUMBA_CACHE_DIR"
    ) as said:
        first, second = cache_folder("toy_package.caller"), cache_folder("toy_package.callee")
    assert len(said) == 1
    assert first
    assert second
    assert Path(first).parent == Path(second).parent
    assert load("caller").shifted(3.0) == 7.0
    spare = Path(first).parent
    assert list(spare.rglob("*.nbc"))
    forget()
    assert not spare.exists()


@pytest.mark.example
def test_a_user_without_a_home_is_told_too(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(UserWarning, match="cannot be kept .Could not determine home"):
        assert folder_now() is not None


@pytest.mark.example
def test_a_module_without_a_file_gets_no_folder(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "toy_package.console", ModuleType("toy_package.console"))
    assert sources("toy_package.console") == []
    assert folder_now("console") is None


@pytest.mark.example
def test_numbas_own_setting_is_left_as_it_was(toy: Path) -> None:
    load("caller").shifted(1.5)  # numba reads its environment anew when it compiles
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    assert load("callee").scaled(1.5) == 3.0
    assert before == numba.config.CACHE_DIR  # type: ignore[attr-defined]


@pytest.mark.example
def test_numba_is_imported_by_the_first_call_and_not_before() -> None:
    script = "import sys, simulator.run; print('numba' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, text=True, stdout=subprocess.PIPE,
        check=True,
    )  # fmt: skip
    assert ended.stdout == "False\n"
