"""The Triton kernels: equal to PyTorch by the interpreter, and compilable for the GPUs served."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent


def passes(*names: str, interpret: bool) -> None:
    """Run files in a process of their own: whether kernels are interpreted is settled at import."""
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, *words, *(str(HERE / name) for name in names)],
        env=environment,
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.law
def test_interpreted_kernels_equal_their_pytorch_versions() -> None:
    passes("interpreted_kernels.py", interpret=True)


@pytest.mark.law
def test_interpreted_kernels_move_the_bytes_that_are_told_of_them() -> None:
    passes("counted_bytes.py", interpret=True)


@pytest.mark.law
def test_every_kernel_compiles_without_a_gpu_and_stays_within_its_bounds() -> None:
    passes("machine_code.py", interpret=False)
