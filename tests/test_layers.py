"""What a plain import loads: the light packages stay free of the heavy ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import HUNG_S

HEAVY = ("torch", "sglang", "transformers", "aiconfigurator_core")


def loaded_by(*packages: str) -> set[str]:
    """Top-level names in ``sys.modules`` after importing everything in ``packages``."""
    root = Path(__file__).parent.parent
    body = f"""
import importlib, pkgutil, sys
for name in {packages!r}:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    ended = subprocess.run(
        [sys.executable, "-c", body],
        env={**os.environ, "PYTHONPATH": str(root)},
        text=True,
        capture_output=True,
        check=False,
        timeout=HUNG_S,
    )
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


@pytest.mark.example
def test_the_core_loads_numpy_and_numba_and_nobody_above_it() -> None:
    loaded = loaded_by("sglang_dspark.core")
    assert {"numpy", "numba"} <= loaded
    assert not loaded & {*HEAVY, "simulator", "traces", "analysis", "matplotlib", "simpy"}


@pytest.mark.example
def test_the_simulator_and_the_traces_load_no_framework() -> None:
    loaded = loaded_by("simulator", "traces")
    assert {"simulator", "traces", "simpy"} <= loaded
    assert not loaded & {*HEAVY, "analysis"}


@pytest.mark.example
def test_the_simulator_draws_nothing() -> None:
    loaded = loaded_by("simulator")
    assert "simulator" in loaded
    assert "matplotlib" not in loaded


@pytest.mark.example
def test_the_analysis_loads_no_framework() -> None:
    loaded = loaded_by("analysis")
    assert "analysis" in loaded
    assert not loaded & set(HEAVY)
