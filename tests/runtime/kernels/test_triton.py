"""The Triton kernels: equal to PyTorch by the interpreter, and compilable for the GPUs served."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
KERNELS = ("_bias", "_probabilities", "_draw", "_accept", "_next", "_survival", "_assign")


def run(*arguments: object, interpret: bool) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own: whether kernels are interpreted is settled at import."""
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
    )


@pytest.mark.law
def test_interpreted_kernels_equal_their_pytorch_versions() -> None:
    done = run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        HERE / "interpreted_kernels.py",
        interpret=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.example
def test_every_kernel_compiles_for_three_generations_without_a_gpu() -> None:
    """What the interpreter forgives, types and shapes above all, the compiler does not."""
    done = run("-m", "tests.runtime.kernels.compiled_kernels", 80, 90, 100, interpret=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for capability in (80, 90, 100):
        assert all(f"{capability} {name} " in done.stdout for name in KERNELS)
