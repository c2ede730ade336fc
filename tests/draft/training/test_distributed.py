"""Two processes with one global batch: torchrun and gloo on CPU, the result of one process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sglang_dspark.draft.training.train import main
from tests.draft.tiny_target import make_samples, make_target, start, train_settings
from tests.waiting import HUNG_S


@pytest.mark.law
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    target = make_target(tmp_path / "target")
    samples = make_samples(target, tmp_path / "samples.jsonl")
    checkpoints, reports = [], []
    for count in (1, 2):
        out = tmp_path / f"of_{count}"
        # Batches of 5: the processes get unequal shares.
        value = train_settings(target, samples, out, batch=5, micro_batch=2, epochs=3)
        settings = tmp_path / f"{count}.json"
        settings.write_text(json.dumps(value))
        if count == 1:
            main(["--config", str(settings)])
        else:
            flags = [
                "--standalone",
                "--nproc-per-node",
                "2",
                "-m",
                "sglang_dspark.draft.train",
            ]
            threads = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "GLOO_SOCKET_IFNAME": "lo"}
            process = start("torch.distributed.run", *flags, "--config", str(settings), **threads)
            output, _ = process.communicate(timeout=HUNG_S)
            assert process.returncode == 0, output
            assert output.count(f"{out}{os.sep}step_12") == 1
        checkpoints.append(load_file(out / "step_12" / "model.safetensors"))
        reports.append([json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()])
    one, two = checkpoints
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert len(reports[0]) == len(reports[1]) == 12
    for alone, shared in zip(*reports, strict=True):
        for name in ("total", "tv", "confidence", "accepted_length", "tokens", "blocks"):
            assert alone[name] == pytest.approx(shared[name], rel=1e-4), name
