"""A tiny random Qwen3 with tokenizer and prompts, where data and training tests start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sglang_dspark.draft.data.corpus import Corpus, build_corpus
from sglang_dspark.draft.data.generate import main as generate
from sglang_dspark.draft.data.prompts import write_prompts
from sglang_dspark.draft.training.pretrain import TargetRecipe, save_target, small_qwen3

ROOT = Path(__file__).resolve().parents[2]
RECIPE = TargetRecipe(hidden=64, layers=4)


def tiny_corpus(prompts: int = 24) -> Corpus:
    return build_corpus("templated", prompts=prompts, vocabulary=320, documents=200)


def make_target(folder: Path, *, seed: int = 0) -> Path:
    """A target folder, with ``prompts.jsonl`` beside it."""
    corpus = tiny_corpus()
    recipe = TargetRecipe(hidden=RECIPE.hidden, layers=RECIPE.layers, seed=seed)
    model = small_qwen3(recipe, vocabulary=320, eos=corpus.tokenizer.eos_token_id)
    save_target(model, corpus.tokenizer, folder)
    write_prompts(folder.parent / "prompts.jsonl", corpus.prompts)
    return folder


def make_samples(target: Path, path: Path, *, max_tokens: int = 24) -> Path:
    """Samples of the target for the prompts beside it."""
    generate(generate_arguments(target, path, max_tokens=max_tokens))
    return path


def generate_arguments(target: Path, out: Path, *, max_tokens: int = 24) -> list[str]:
    prompts = str(target.parent / "prompts.jsonl")
    sizes = ["--max-tokens", str(max_tokens), "--batch", "4"]
    return [prompts, "--target", str(target), "--out", str(out), *sizes]


def train_settings(target: Path, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a run that takes a second or two."""
    value: dict[str, Any] = {
        "target": str(target),
        "data": str(data),
        "out": str(out),
        "drafter": {"depth": 1, "markov_rank": 8, "gamma": 4, "num_anchors": 6},
        "epochs": 4,
        "batch": 4,
        "micro_batch": 4,
        "max_tokens": 128,
        "learning_rate": 3e-3,
    }
    return value | changes


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """``python -m`` something of this project in its own process."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
