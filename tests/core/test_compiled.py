"""The disk cache of compiled functions: it notices edited callees and does without a folder."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numba
import pytest

from sglang_dspark.core import compiled as module
from sglang_dspark.core.compiled import _cache_folder, compiled


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package named ``toy_package`` with two source files, cached under ``tmp_path``."""
    package = tmp_path / "toy_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "callee.py").write_text("FACTOR = 2\n")
    imported = types.ModuleType("toy_package")
    imported.__file__ = str(package / "__init__.py")
    monkeypatch.setitem(sys.modules, "toy_package", imported)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    _cache_folder.cache_clear()
    yield package
    _cache_folder.cache_clear()


def folder_now() -> str | None:
    _cache_folder.cache_clear()
    return _cache_folder("toy_package")


@pytest.mark.example
def test_the_folder_is_writable_and_named_for_the_package(toy: Path) -> None:
    folder = folder_now()
    assert folder is not None
    assert Path(folder).is_dir()
    assert Path(folder).name.startswith("toy_package-")
    assert not list(Path(folder).iterdir())


@pytest.mark.example
def test_the_same_sources_share_a_folder(toy: Path) -> None:
    assert folder_now() == folder_now()


@pytest.mark.example
def test_editing_any_source_file_of_the_package_moves_the_folder(toy: Path) -> None:
    before = folder_now()
    (toy / "callee.py").write_text("FACTOR = 3\n")
    edited = folder_now()
    (toy / "deep").mkdir()
    (toy / "deep" / "new.py").write_text("pass\n")
    grown = folder_now()
    assert len({before, edited, grown}) == 3


@pytest.mark.example
def test_editing_another_file_moves_nothing(toy: Path) -> None:
    before = folder_now()
    (toy / "notes.json").write_text("{}")
    assert folder_now() == before


@pytest.mark.example
def test_editing_the_core_moves_every_packages_folder(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder_now()
    core = tmp_path / "core"
    core.mkdir()
    (core / "compiled.py").write_text("# an edited core\n")
    monkeypatch.setattr(module, "__file__", str(core / "compiled.py"))
    assert folder_now() != before


@pytest.mark.example
def test_without_a_writable_folder_functions_compile_all_the_same(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "a-file" / "cache"))
    assert folder_now() is None

    def double(x: float) -> float:
        return 2 * x

    double.__module__ = "toy_package"
    assert compiled(double)(21.0) == 42.0


@pytest.mark.example
def test_a_user_without_a_home_gets_no_folder(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setattr(Path, "home", homeless)
    assert folder_now() is None


@pytest.mark.example
def test_a_package_without_sources_gets_no_folder(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "toy_package", types.ModuleType("toy_package"))
    assert folder_now() is None


@pytest.mark.example
def test_numbas_own_setting_is_left_as_it_was(toy: Path) -> None:
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]

    @compiled
    def half(x: float) -> float:
        return x / 2

    assert before == numba.config.CACHE_DIR  # type: ignore[attr-defined]
    assert half(3.0) == 1.5
