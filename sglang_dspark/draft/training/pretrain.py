"""A small Qwen3 or DeepSeek-V4 target, trained from nothing on a laptop corpus.

    python -m sglang_dspark.draft.pretrain stdlib --out target --prompts-out prompts.jsonl

Owns the target's size and its next-token training. Knows nothing of drafters: what it writes is an
ordinary Hugging Face folder (weights, config, tokenizer) that transformers and servers load.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from sglang_dspark.cli import Parser
from sglang_dspark.draft.data.corpus import CORPORA, Corpus, build_corpus
from sglang_dspark.draft.data.prompts import write_prompts
from sglang_dspark.draft.model.recipes import laptop_target, laptop_v4_target
from sglang_dspark.files import make_folder


@dataclass(frozen=True, kw_only=True)
class TargetRecipe:
    """Size and training of a small target."""

    hidden: int = 128
    """Hidden size; the rest of the shape follows, see ``recipes.laptop_target``."""
    layers: int = 4
    """Decoder layers."""
    window_tokens: int = 256
    """Length of a training window; generation should stay within it."""
    batch: int = 16
    """Windows per step."""
    steps: int = 1000
    """Optimiser steps."""
    learning_rate: float = 4e-3
    """Peak of the cosine schedule, after 4 % warm-up."""
    seed: int = 0
    """Seed of weights and data order."""
    family: str = "qwen3"
    """One of ``FAMILIES``."""


FAMILIES = ("qwen3", "deepseek_v4")
"""Targets that can be made; DeepSeek-V4's has its own five layers, see ``laptop_v4_target``."""


def small_target(recipe: TargetRecipe, *, vocabulary: int, eos: int) -> Any:
    """A randomly initialised target of the recipe's family, float32."""
    make = small_qwen3 if recipe.family == "qwen3" else small_deepseek_v4
    return make(recipe, vocabulary=vocabulary, eos=eos)


def small_deepseek_v4(recipe: TargetRecipe, *, vocabulary: int, eos: int) -> Any:
    """A randomly initialised DeepSeek-V4 of every kind of layer; its tables are drawn."""
    torch.manual_seed(recipe.seed)
    config = DeepseekV4Config(
        **laptop_v4_target(vocab_size=vocabulary, hidden=recipe.hidden),
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    family: Any = DeepseekV4ForCausalLM  # typed in some releases of transformers only
    model = family(config)
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):
            draws = torch.rand(len(table), config.n_routed_experts)
            table.copy_(draws.topk(table.shape[1]).indices)
    return model


def small_qwen3(recipe: TargetRecipe, *, vocabulary: int, eos: int) -> Any:
    """A randomly initialised Qwen3 of the recipe's size; tied embeddings, float32."""
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        **laptop_target(vocab_size=vocabulary, hidden=recipe.hidden, layers=recipe.layers),
        # Narrow layers: with the usual 0.02 a few hundred steps go by before attention wakes up,
        # in this model and in the drafters, which take over its config.
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    return Qwen3ForCausalLM(config)  # type: ignore[no-untyped-call,unused-ignore]


def _windows(
    tokens: NDArray[np.int64], recipe: TargetRecipe, rng: np.random.Generator
) -> torch.Tensor:
    span = recipe.window_tokens + 1
    starts = rng.integers(0, len(tokens) - span, size=recipe.batch)
    return torch.from_numpy(np.stack([tokens[start : start + span] for start in starts]))


def _optimisers(model: Any, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms.

    There are only a few hundred steps, in which AdamW alone learns far less.
    """
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        end = any(part in name for part in ("embed_tokens", "lm_head"))
        (others if end or parameter.ndim != 2 else matrices).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]


def train_target(corpus: Corpus, recipe: TargetRecipe, *, quiet: bool = False) -> tuple[Any, float]:
    """A target trained on the corpus, and the mean loss (nats per token) of its last steps."""
    if len(corpus.tokens) <= recipe.window_tokens + 1:
        raise ValueError(
            f"corpus {corpus.name}: {len(corpus.tokens)} tokens do not fill a window of "
            f"{recipe.window_tokens}; raise documents or lower window_tokens"
        )
    model = small_target(
        recipe, vocabulary=len(corpus.tokenizer), eos=corpus.tokenizer.eos_token_id
    ).train()
    optimisers = _optimisers(model, recipe.learning_rate)
    rng = np.random.default_rng([recipe.seed, 1])
    warm = max(1, math.ceil(0.04 * recipe.steps))
    losses: list[float] = []
    with tqdm(total=recipe.steps, desc=f"target {corpus.name}", disable=quiet) as bar:
        for step in range(recipe.steps):
            ramp = (step + 1) / warm
            decay = 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)
            for group in (group for optimiser in optimisers for group in optimiser.param_groups):
                group["lr"] = recipe.learning_rate * min(ramp, decay)
            tokens = _windows(corpus.tokens, recipe, rng)
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            losses.append(loss.item())
            bar.update()
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return model.eval(), float(np.mean(losses[-max(1, recipe.steps // 20) :]))


def save_target(model: Any, tokenizer: Any, folder: str | Path) -> Path:
    """Write weights, config and tokenizer to ``folder``; it appears whole or not at all."""
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder}: exists already; give a new folder or remove this one")
    temporary = make_folder(folder.with_name(f"{folder.name}.tmp-{os.getpid()}"))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    defaults = TargetRecipe()
    parser = Parser(
        description="Train a small target from nothing on a laptop corpus; it becomes an "
        "ordinary Hugging Face folder that transformers and servers load.",
        examples=["stdlib --out target --prompts-out prompts.jsonl"],
        page="docs/serving.md",
    )
    parser.add_argument("corpus", choices=CORPORA, help="what it learns to write")
    parser.add_argument("--out", required=True, help="folder to write the target to")
    parser.add_argument(
        "--family", choices=FAMILIES, default=defaults.family, help="kind of the target"
    )
    parser.add_argument("--steps", type=int, default=defaults.steps, help="of training")
    parser.add_argument("--prompts-out", help="JSONL to write unseen prompts to")
    parser.add_argument("--prompts", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of corpus and weights")
    given = parser.parse_args(arguments)
    if given.steps < 1 or given.prompts < 1:
        raise ValueError(f"--steps {given.steps} --prompts {given.prompts}: give 1 or more")
    if Path(given.out).exists():
        raise ValueError(f"--out {given.out}: exists already; give a new folder or remove this one")
    disable_progress_bar()  # type: ignore[no-untyped-call]  # of transformers' loading
    started = time.process_time()
    corpus = build_corpus(given.corpus, prompts=given.prompts, seed=given.seed)
    recipe = TargetRecipe(steps=given.steps, seed=given.seed, family=given.family)
    model, loss = train_target(corpus, recipe)
    save_target(model, corpus.tokenizer, given.out)
    if given.prompts_out:
        write_prompts(given.prompts_out, corpus.prompts)
    print(f"{given.out}: loss {loss:.3f} nats per token, {time.process_time() - started:.0f} CPU-s")
    return 0
