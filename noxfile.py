"""One environment per suite: ``nox`` runs them all, ``nox -s tests`` one of them."""

import sys
from pathlib import Path

import nox

nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

_STAND_IN = Path(__file__).resolve().parent / "tests" / "runtime" / "steer" / "stand_in"
"""For the steer lane: SGLang imports ``sgl_kernel`` on a CPU too, and calls little of it."""

_QUIET_THREADS = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@nox.session
def checks(session: nox.Session) -> None:
    """Format, lint, types and import contracts."""
    session.install("-e", ".[test]")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """The core, the traces, the simulator and the analysis; one test starts a Ray cluster."""
    session.install("-e", ".[test,cluster]")
    session.run(
        "pytest",
        "-n",
        "2",
        "--ignore=tests/draft",
        "--ignore=tests/runtime",
        *session.posargs,
        env=_QUIET_THREADS,
    )


@nox.session
def draft(session: nox.Session) -> None:
    """The drafter: model, data, training, decoding, evaluation, calibration."""
    # The newest torch whose CPU build needs no CUDA libraries where one is at hand.
    session.install("-e", ".[test,draft]", "torch==2.13.0")
    session.run("mypy", "-p", "sglang_dspark.draft")
    session.run("pytest", "-n", "2", "tests/draft", *session.posargs, env=_QUIET_THREADS)


def _needs_python_3_11(session: nox.Session) -> None:
    """The last torchvision that loads beside torch's CPU build has no wheels for later ones."""
    if sys.version_info[:2] != (3, 11):
        session.skip("SGLang on a CPU is set up for Python 3.11; run nox with that one")


@nox.session
def worker(session: nox.Session) -> None:
    """DSPARK inside SGLang 0.5.15.post1, served on the CPU; makes the laptop pair if need be."""
    _needs_python_3_11(session)
    session.install("-r", "requirements/sglang-0.5.15-cpu.txt", "-e", ".[test,draft]")
    session.install("--no-deps", "-r", "requirements/sglang-0.5.15-cpu-nodeps.txt")
    session.run("mypy", "-p", "sglang_dspark.runtime", "-p", "benchmarks")
    session.run(
        "pytest",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "tests/runtime",
        "--ignore=tests/runtime/steer",
        *session.posargs,
        env=_QUIET_THREADS,
    )


@nox.session
def steer(session: nox.Session) -> None:
    """The built-in DSPARK of SGLang 0.5.21 under this project's policies, served on the CPU."""
    _needs_python_3_11(session)
    session.install("-r", "requirements/sglang-0.5.21-cpu.txt", "-e", ".[test,draft]")
    session.install("--no-deps", "-r", "requirements/sglang-0.5.21-cpu-nodeps.txt")
    session.run(
        "pytest",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "tests/runtime/steer",
        *session.posargs,
        env=_QUIET_THREADS | {"PYTHONPATH": str(_STAND_IN)},
    )
