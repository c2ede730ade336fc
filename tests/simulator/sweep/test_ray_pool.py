"""The same sweep on a Ray cluster: equal results, a killed worker's runs done again."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simulator.sweep.ray_pool import connected
from simulator.sweep.sweep import sweep
from tests.simulator.sweep.sweep_works import surroundings
from tests.waiting import HUNG_S, wait_until

ROOT = Path(__file__).parents[3]
SHOWN = ("summary.json", "config.json", "requests.parquet", "batches.parquet", "steps.parquet")

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='pip install -e ".[cluster]"'
)


def ray_workers(of: int) -> list[int]:
    """Descendants of process ``of`` that are performing a task of a Ray cluster."""
    parents: dict[int, int] = {}
    busy = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rsplit(")")[-1].split()[1]
            )
            if (folder / "cmdline").read_bytes().startswith(b"ray::_do_point"):
                busy.append(int(folder.name))
        except OSError:
            continue  # it ended while we looked

    def descends(pid: int) -> bool:
        return pid == of or (pid in parents and descends(parents[pid]))

    return [pid for pid in busy if descends(pid)]


@needs_ray
@pytest.mark.law
def test_a_cluster_that_loses_a_worker_gives_the_summary_of_one_process(tmp_path: Path) -> None:
    flags = [
        "--policy",
        "none",
        "--policy",
        "fixed",
        "--policy",
        "global",
        "--concurrency",
        "8,32",
        "--steps",
    ]
    flags = [sys.executable, "-m", "simulator.run", "traces/chat.jsonl", *flags]
    subprocess.run([*flags, "--jobs", "1", "--out", str(tmp_path / "here")], cwd=ROOT, check=True)
    cluster = subprocess.Popen(
        [*flags, "--jobs", "2", "--ray", "local", "--out", str(tmp_path / "away")],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: len(ray_workers(cluster.pid)) == 2, cluster)
    os.kill(ray_workers(cluster.pid)[0], signal.SIGKILL)
    _, errors = cluster.communicate(timeout=HUNG_S)
    assert cluster.returncode == 0, errors
    for name in SHOWN:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "away" / name).read_bytes()
    assert len(json.loads((tmp_path / "away" / "summary.json").read_text())["policies"]) == 6


@needs_ray
@pytest.mark.law
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_worker_starves_on_no_busy_core_and_compiles_no_kernel_again() -> None:
    """Ray's default is nice 15, and read-only arrays, which are another type to numba."""
    before = signal.getsignal(signal.SIGTERM)
    with connected("local", 1):
        assert signal.getsignal(signal.SIGTERM) is before
        found, _ = sweep([np.zeros(3), np.zeros(4)], surroundings, ray="local")
    assert found == [(True, os.nice(0))] * 2


@needs_ray
@pytest.mark.example
def test_a_cluster_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"--ray 127.0.0.1:1: no cluster answers \(.*refused\)"):
        sweep([1], abs, ray="127.0.0.1:1")


@pytest.mark.example
def test_without_the_package_the_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"--ray needs the package ray; install it"):
        sweep([1], abs, ray="local")
