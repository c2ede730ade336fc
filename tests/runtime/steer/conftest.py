"""What the steer lane's tests share: a warm process with SGLang's own DSPARK, and plain answers.

Where SGLang is missing or has no DSPARK of its own, the tests that need it are not collected. The
trained pair, servers and clients are the worker lane's (``tests.runtime``). ``sgl_kernel``, which
SGLang imports on a CPU too, is the stand-in of this folder: ``nox -s steer`` puts it on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from packaging.version import Version


def _has_built_in() -> bool:
    try:
        return Version(importlib.metadata.version("sglang")) >= Version("0.5.16")
    except importlib.metadata.PackageNotFoundError:
        return False


collect_ignore = (
    []
    if _has_built_in()
    else [
        "test_serving.py",
        "test_parity.py",
        "test_failures.py",
        "test_live.py",
        "test_command.py",
        "test_tables.py",
        "test_agreement.py",
    ]
)

if importlib.util.find_spec("torch") is None:
    collect_ignore.append("test_decision.py")

if _has_built_in():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision for CUDA beside torch for CPUs
        importlib.import_module("torchvision")
    from benchmarks.servers import CPU_ENVIRONMENT, unneeded_models
    from tests.runtime.servers import Nursery
    from tests.runtime.serving_scenes import Greedy, Pair, greedy_prompts, plain_answers

    os.environ.update(CPU_ENVIRONMENT)  # before SGLang is imported here: parity asks its functions

    @pytest.fixture(scope="session")
    def sglang() -> Any:
        """SGLang's own planner module."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(
                "sglang.srt.speculative.dspark_components.dspark_planner"
            )

    @pytest.fixture(scope="session")
    def scheduler() -> Any:
        """SGLang's own scheduler class."""
        # While it is imported, and not for the servers that are started from here.
        fewer = {"SGLANG_DISABLED_MODEL_ARCHS": unneeded_models({"qwen3"})}
        with warnings.catch_warnings(), mock.patch.dict(os.environ, fewer):
            warnings.simplefilter("ignore")
            return importlib.import_module("sglang.srt.managers.scheduler").Scheduler

    @pytest.fixture(scope="session")
    def nursery(pair: Pair) -> Iterator[Nursery]:
        """One warm process for the whole session."""
        folder = Path(tempfile.mkdtemp(prefix="steer-"))
        with Nursery(folder=folder, module="tests.runtime.steer.nursery") as warm:
            yield warm

    @pytest.fixture(scope="session")
    def greedy(pair: Pair, nursery: Nursery) -> Greedy:
        """60 prompts with what a server without speculation answers greedily."""
        prompts = greedy_prompts(pair, count=68)
        return plain_answers(pair, nursery, prompts, keep=60, new_tokens=48)
