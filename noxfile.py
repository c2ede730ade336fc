"""One environment per suite: ``nox`` runs them all, ``nox -s tests`` one of them.

``nox -s steer_newest`` and ``nox -s peers`` run only where they are asked for: the one serves the
steer lane's tests on another release, the other measures and tests nothing.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nox

nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

_STAND_IN = Path(__file__).resolve().parent / "tests" / "runtime" / "steer" / "stand_in"
"""For the steer lane: SGLang imports ``sgl_kernel`` on a CPU too, and calls little of it."""

_QUIET_THREADS = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

_WARM_UP = (
    "from simulator.fleet.fleet import simulate\n"
    "from tests.simulator.replay_scenes import scenario, trace\n"
    "simulate(scenario('global', trace(4)))"
)


def _install(session: nox.Session, *packages: str) -> None:
    """Without pip's compiling of every file to bytecode: most of them are never imported."""
    session.install("--no-compile", *packages)


@contextmanager
def _beside(session: nox.Session, *command: str) -> Iterator[None]:
    """``command`` runs while the block does, and fails the session as any other."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(session.run, *command, env=_QUIET_THREADS)
        yield
        running.result()


@nox.session
def checks(session: nox.Session) -> None:
    """Format, lint, types and import contracts."""
    _install(session, "-e", ".[test]")
    with _beside(session, "python", "-c", _WARM_UP):  # kernels, for all sessions with this numba
        session.run("ruff", "format", "--check", ".")
        session.run("ruff", "check", ".")
        session.run("mypy")
        session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """The core, the traces, the simulator and the analysis; one test starts a Ray cluster."""
    _install(session, "-e", ".[test,cluster,operators]")
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
    _install(session, "-e", ".[test,draft]", "torch==2.13.0")
    with _beside(session, "mypy", "-p", "sglang_dspark.draft"):
        session.run("pytest", "-n", "2", "tests/draft", *session.posargs, env=_QUIET_THREADS)


def _needs_python_3_11(session: nox.Session) -> None:
    """The last torchvision that loads beside torch's CPU build has no wheels for later ones."""
    if sys.version_info[:2] != (3, 11):
        session.skip("SGLang on a CPU is set up for Python 3.11; run nox with that one")


@nox.session
def worker(session: nox.Session) -> None:
    """DSPARK inside SGLang 0.5.15.post1, served on the CPU; makes the laptop pair if need be."""
    _needs_python_3_11(session)
    _install(session, "-r", "requirements/sglang-0.5.15-cpu.txt", "-e", ".[test,draft]")
    _install(session, "--no-deps", "-r", "requirements/sglang-0.5.15-cpu-nodeps.txt")
    with _beside(session, "mypy", "-p", "sglang_dspark.runtime", "-p", "benchmarks"):
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
    _install_steered(session)
    _steer_tests(session, "tests/runtime/steer")


@nox.session(default=False)
def steer_newest(session: nox.Session) -> None:
    """Whether SGLang 0.5.23, the newest release, serves exactly under them too."""
    _install_steered(session)
    _install(session, "--no-deps", "-r", "requirements/sglang-0.5.23-over-0.5.21.txt")
    _steer_tests(session, "tests/runtime/steer/test_serving.py")


def _install_steered(session: nox.Session) -> None:
    _needs_python_3_11(session)
    _install(session, "-r", "requirements/sglang-0.5.21-cpu.txt", "-e", ".[test,draft]")
    _install(session, "--no-deps", "-r", "requirements/sglang-0.5.21-cpu-nodeps.txt")


def _steer_tests(session: nox.Session, which: str) -> None:
    session.run(
        "pytest",
        "-n",
        "2",
        "--dist",
        "loadfile",
        which,
        *session.posargs,
        env=_QUIET_THREADS | {"PYTHONPATH": str(_STAND_IN)},
    )


@nox.session(default=False)
def peers(session: nox.Session) -> None:
    """Requests per CPU-second beside Dynamo's replay: ``python -m benchmarks.peers``."""
    _install(session, "-r", "requirements/peers.txt", "-e", ".")
    _install(session, "--no-deps", "-r", "requirements/peers-nodeps.txt")
    session.run("python", "-m", "benchmarks.peers", *session.posargs, env=_QUIET_THREADS)
