"""Kill -9 during answers, cache and training: what is resumed ends as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_dspark.draft.data.cache import main as cache
from sglang_dspark.draft.data.fingerprint import file_sha256
from sglang_dspark.draft.data.generate import main as generate
from sglang_dspark.draft.training.train import main as train
from tests.draft.tiny_target import generate_arguments, make_target, start, train_settings
from tests.waiting import HUNG_S


def kill_when(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """SIGKILL as soon as ``reached``; a process that ends by itself tests nothing."""
    deadline = time.monotonic() + HUNG_S
    while not reached():
        output = process.stdout.read() if process.poll() is not None and process.stdout else ""
        assert process.poll() is None, f"ended before the kill: {output}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -9


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def settings_file(folder: Path, target: Path, data: Path) -> str:
    value = train_settings(target, data, folder / "run", epochs=40, save_every=7)
    path = folder / "train.json"
    path.write_text(json.dumps(value))
    return str(path)


@pytest.mark.law
def test_a_pipeline_killed_in_every_stage_ends_in_the_same_checkpoint(tmp_path: Path) -> None:
    target = make_target(tmp_path / "target")
    whole = pipeline(tmp_path / "whole", target, killed=False)
    assert pipeline(tmp_path / "broken", target, killed=True) == whole


def pipeline(folder: Path, target: Path, *, killed: bool) -> list[str]:
    """Digests of answers, cache and final checkpoint, each stage killed once and resumed."""
    folder.mkdir()
    samples, shards, metrics = (
        folder / name for name in ("samples.jsonl", "cache", "run/metrics.jsonl")
    )
    store = [str(samples), "--target", str(target), "--out", str(shards)]
    store += ["--layers", "0", "1", "2", "--shard-tokens", "30", "--batch", "1"]
    settings = ["--config", settings_file(folder, target, shards)]
    stages: list[tuple[str, list[str], Callable[[list[str]], int], Callable[[], bool]]] = [
        (
            "generate",
            generate_arguments(target, samples, max_tokens=60),
            generate,
            lambda: lines(samples) >= 4,
        ),
        ("cache", store, cache, lambda: len(list(shards.glob("*.json"))) > 3),
        ("train", settings, train, lambda: lines(metrics) > 30),
    ]
    final = folder / "run" / "step_240" / "model.safetensors"
    for name, arguments, resume, reached in stages:
        if killed:
            kill_when(start(f"sglang_dspark.draft.{name}", *arguments), reached)
            assert not final.exists()
        resume(arguments)
    reports = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [report["step"] for report in reports] == list(range(1, 241))
    return [file_sha256(path) for path in (samples, shards / "index.json", final)]
