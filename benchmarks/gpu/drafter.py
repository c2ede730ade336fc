"""Train and time a drafter for a target of more than 100 M parameters, on one GPU in bf16.

    python -m benchmarks.gpu.drafter --out run

The target has the shape of a small Qwen3 and random weights (times do not depend on them). Runs the
project's own commands: answers, training, evaluation; then gathers tokens per second, peak memory
and the parts of a drafting round into ``run/gpu_drafter.json``, with the device they are of.
``--hidden 64 --layers 2 --steps 2`` tries the whole path on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sglang_dspark.draft.data.corpus import build_corpus
from sglang_dspark.draft.data.prompts import write_prompts
from sglang_dspark.draft.training.pretrain import TargetRecipe, save_target, small_qwen3
from sglang_dspark.files import make_folder, write_json

BATCH = 16


def command(module: str, *arguments: object) -> None:
    """One of the project's commands, in a process of its own."""
    words = [sys.executable, "-m", f"sglang_dspark.draft.{module}", *map(str, arguments)]
    subprocess.run(words, check=True)


def make_target(folder: Path, hidden: int, layers: int, prompts: int) -> int:
    """Write a random target and its prompts; return its number of parameters."""
    corpus = build_corpus("stdlib", prompts=prompts, seed=0)
    recipe = TargetRecipe(hidden=hidden, layers=layers)
    tokenizer = corpus.tokenizer
    model = small_qwen3(recipe, vocabulary=len(tokenizer), eos=tokenizer.eos_token_id)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    save_target(model.to(dtype), tokenizer, folder / "target")
    write_prompts(folder / "prompts.jsonl", corpus.prompts)
    return int(sum(p.numel() for p in model.parameters()))


def last_step(folder: Path) -> dict[str, Any]:
    """The last line of the training metrics."""
    return dict(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]))


def main() -> None:
    """Make, train, evaluate, gather."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    out = make_folder(given.out)
    samples = BATCH * given.steps
    parameters = make_target(out, given.hidden, given.layers, samples)
    target, data, run = out / "target", out / "samples.jsonl", out / "run"
    command("generate", out / "prompts.jsonl", "--target", target, "--out", data,
            "--max-tokens", 128, "--batch", 128)  # fmt: skip
    command("train", "--target", target, "--data", data, "--out", run, "--epochs", 1,
            "--batch", BATCH, "--micro-batch", BATCH)  # fmt: skip
    checkpoint = max(run.glob("step_*"), key=lambda path: int(path.name.split("_")[1]))
    command("evaluate", "--target", target, "--drafter", checkpoint, out / "prompts.jsonl",
            "-o", out / "eval", "--per-domain", min(128, samples), "--batch", 128,
            "--new-tokens", 64)  # fmt: skip
    rounds = json.loads((out / "eval" / "metrics.json").read_text())
    trained = last_step(run)
    parts = rounds["batch_round_ms"]
    found = {
        "command": f"python -m benchmarks.gpu.drafter --out run --hidden {given.hidden} "
        f"--layers {given.layers} --steps {given.steps}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "target_parameters": parameters,
        "train_tokens_per_s": trained["tokens_per_s"],
        "train_peak_bytes": trained.get("peak_bytes"),
        "batch": 128,
        "batch_round_ms": parts,
        "head_share_of_round": parts["draft_head"] / sum(parts.values()),
    }
    print(json.dumps(found, indent=1))
    write_json(out / "gpu_drafter.json", found)


if __name__ == "__main__":
    main()
