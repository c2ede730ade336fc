"""What the steer lane's tests share: the trained pair, a warm process, plain answers.

Where SGLang is missing or has no DSPARK of its own, the tests that need it skip themselves. What
the serving tests of the worker lane know about servers and clients is used from there.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

HERE = Path(__file__).parent
STAND_IN = HERE / "stand_in"
sys.path.insert(0, str(HERE.parent / "runtime"))


def _has_built_in() -> bool:
    try:
        return Version(importlib.metadata.version("sglang")) >= Version("0.5.16")
    except importlib.metadata.PackageNotFoundError:
        return False


collect_ignore = (
    []
    if _has_built_in()
    else [
        "test_steer_serving.py",
        "test_steer_parity.py",
        "test_steer_failures.py",
        "test_steer_live.py",
        "test_steer_command.py",
    ]
)

if importlib.util.find_spec("torch") is None:
    collect_ignore.append("test_steer_decision.py")

if _has_built_in():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision for CUDA beside torch for CPUs
        importlib.import_module("torchvision")
    from servers import CPU_ENVIRONMENT, Nursery

    os.environ.update(CPU_ENVIRONMENT)  # before SGLang is imported here: parity asks its functions
    sys.path.insert(0, str(STAND_IN))
    from serving_scenes import Greedy, Pair, greedy_prompts, plain_answers

    class SteerNursery(Nursery):
        """Starts the process that has SGLang 0.5.21 and its stand-in for ``sgl_kernel``."""

        def __enter__(self) -> SteerNursery:
            path = os.pathsep.join([str(STAND_IN), str(HERE), os.environ.get("PYTHONPATH", "")])
            with open(self.folder / "nursery.log", "w") as log:
                self.process = subprocess.Popen(
                    [sys.executable, str(HERE / "steer_nursery.py")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, **CPU_ENVIRONMENT, "PYTHONPATH": path},
                )
            self.warm_s = self._answer()["warm_s"]
            return self

    @pytest.fixture(scope="session")
    def sglang() -> Any:
        """SGLang's own planner module."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(
                "sglang.srt.speculative.dspark_components.dspark_planner"
            )

    @pytest.fixture(scope="session")
    def pair() -> Pair:
        """The laptop run's target and drafter on templated text, made where they are missing."""
        from sglang_dspark.draft.demo import default_cache, trained_pair
        from sglang_dspark.draft.demo_recipe import laptop

        cache = os.environ.get("SGLANG_DSPARK_CACHE") or default_cache()
        target, drafter = trained_pair(laptop(), cache, corpus="templated")
        return Pair(target_folder=target, drafter_folder=drafter)

    @pytest.fixture(scope="session")
    def nursery(pair: Pair) -> Iterator[Nursery]:
        """One warm process for the whole session."""
        with SteerNursery(folder=Path(tempfile.mkdtemp(prefix="steer-"))) as warm:
            yield warm

    @pytest.fixture(scope="session")
    def greedy(pair: Pair, nursery: Nursery) -> Greedy:
        """60 prompts with what a server without speculation answers greedily."""
        prompts = greedy_prompts(pair, count=68)
        return plain_answers(pair, nursery, prompts, keep=60, new_tokens=48)
