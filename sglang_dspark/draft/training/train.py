"""Train a drafter: DSpark, or the DFlash and Eagle3 baselines.

    python -m sglang_dspark.draft.train --target TARGET --data samples.jsonl --out run
    torchrun --nproc-per-node 2 -m sglang_dspark.draft.train --config train.json

Owns the command: which target, data and drafter a run is made of, and the processes it spans. The
loop is ``loop``. Stopped or killed, the same command goes on where it was: the final weights
are those of an uninterrupted run, to the bit on CPU with the same number of processes and threads.
bf16 with float32 masters on CUDA, float32 on CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from sglang_dspark.cli import Parser
from sglang_dspark.draft.data.answers import load_tokenizer
from sglang_dspark.draft.data.cached import Cached
from sglang_dspark.draft.data.fingerprint import file_sha256, model_fingerprint
from sglang_dspark.draft.data.samples import training_samples
from sglang_dspark.draft.data.states import Online, States, check_vocabulary, usable
from sglang_dspark.draft.model import recipes
from sglang_dspark.draft.model.checkpoint import drafter_for, in_dtype, save_drafter
from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.draft.model.conventions import drafter_folder
from sglang_dspark.draft.model.deepseek_v4.config import KEYS, MODEL_TYPE
from sglang_dspark.draft.model.recipes import AnyConfig
from sglang_dspark.draft.model.target import Target
from sglang_dspark.draft.training.config import KINDS, TrainConfig
from sglang_dspark.draft.training.loop import Place, Trainer
from sglang_dspark.draft.training.losses import DFLASH, LossMix
from sglang_dspark.draft.training.memory import memory_report
from sglang_dspark.draft.training.warm_start import warm_start
from sglang_dspark.files import decode_record, read_json

_FLAGS: dict[str, tuple[type, str]] = {
    "target": (str, "folder of the target model"),
    "data": (str, "samples of draft generate, or a folder of draft cache"),
    "out": (str, "folder for checkpoints, metrics and the resume file"),
    "kind": (str, "of drafter"),
    "epochs": (float, "passes over the samples"),
    "batch": (int, "sequences in a step, over all processes"),
    "micro_batch": (int, "sequences that one process holds at a time"),
    "learning_rate": (float, "its peak"),
    "seed": (int, "of weights, order and anchors"),
    "save_every": (int, "steps between writes of the resume file"),
}
"""Settings with a flag of their own: type, and what the help says."""


@contextmanager
def processes(device: torch.device) -> Iterator[Place]:
    """The process group that torchrun's environment describes, or a single process."""
    if "WORLD_SIZE" not in os.environ:
        yield Place()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Place(rank=dist.get_rank(), world=dist.get_world_size())
        dist.barrier()
    finally:
        dist.destroy_process_group()


def choose_device() -> torch.device:
    """This process's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def drafter_config(config: TrainConfig, target: Target) -> AnyConfig:
    """The drafter's shape: the recipe for the target's config with the run's choices."""
    choices = dict(config.drafter)
    # As it stands in the file, not as transformers writes it: DeepSeek-V4's drafter takes it over.
    theirs = read_json(Path(config.target) / "config.json")
    if "mask_token_id" not in choices:
        mask = load_tokenizer(config.target).mask_token_id
        if mask is None:
            mask = theirs.get(KEYS["mask_token_id"])
        if mask is None:
            raise ValueError(
                f"{config.target}: its tokenizer has no mask token; give mask_token_id in drafter"
            )
        choices["mask_token_id"] = mask
    anchors = choices.pop("num_anchors", DrafterConfig.num_anchors)
    make: Callable[..., AnyConfig] = getattr(recipes, config.kind)
    whole = theirs if theirs.get("model_type") == MODEL_TYPE else target.config.to_dict()
    try:
        shape = make(whole, **choices)
    except TypeError as error:
        raise ValueError(f"drafter: {error}; give choices of recipes.{make.__name__}") from None
    return dataclasses.replace(shape, num_anchors=anchors)


def loss_mix(config: TrainConfig) -> LossMix:
    """The kind's objective with the run's weights."""
    base = LossMix() if config.kind in ("dspark", "dspark5") else DFLASH
    given = {name: getattr(config, name) for name in ("ce", "tv", "confidence")}
    return dataclasses.replace(base, **{k: v for k, v in given.items() if v is not None})


def open_states(config: TrainConfig, drafter: AnyConfig, target: Target) -> States:
    """The cache, or the samples with the target running online."""
    if Path(config.data).is_dir():
        return Cached(
            config.data,
            target=model_fingerprint(config.target),
            layers=drafter.layers_captured,
            device=target.device,
        )
    samples = usable(training_samples(config.data), max_tokens=config.max_tokens, where=config.data)
    check_vocabulary(samples, vocabulary=target.vocab_size, where=config.data)
    target.capture(drafter.layers_captured)
    return Online(target, samples, digest=file_sha256(config.data))


def build_drafter(config: TrainConfig, shape: AnyConfig, target: Target) -> Any:
    """A fresh drafter around the target's embeddings; the same for the same seed."""
    torch.manual_seed(config.seed)
    return in_dtype(drafter_for(shape, target), target.dtype).train()


def train(config: TrainConfig, *, quiet: bool = False) -> Path:
    """Run or continue ``config``; returns the final checkpoint's folder."""
    device = choose_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with processes(device) as place:
        target = Target.from_pretrained(config.target, dtype=dtype, device=device)
        shape = drafter_config(config, target)
        drafter = build_drafter(config, shape, target)
        identity = {"target": model_fingerprint(config.target)}
        if config.start:
            warm_start(drafter, config.start, target)
            identity["start"] = model_fingerprint(drafter_folder(config.start))
        states = open_states(config, shape, target)
        identity["samples"] = states.digest
        drafter.checkpointing = config.checkpoint_layers
        about = memory_report(config, drafter, target, world=place.world)
        del target  # with a cache only the embedding and lm_head stay, which the drafter shares
        trainer = Trainer(
            config,
            drafter=drafter,
            states=states,
            mix=loss_mix(config),
            identity=identity,
            place=place,
            export=lambda folder: save_drafter(drafter, folder),
        )
        return trainer.run(quiet=quiet or place.rank > 0, about=about)


def read_config(given: argparse.Namespace) -> TrainConfig:
    """The file's settings, with the flags that were given over them."""
    value: dict[str, Any] = {}
    if given.config:
        value = read_json(given.config)
        if not isinstance(value, dict):
            raise ValueError(f"{given.config}: expected a JSON object of settings; mend it")
    value |= {name: getattr(given, name) for name in _FLAGS if getattr(given, name) is not None}
    where = given.config or "settings"
    for name in ("target", "data", "out"):
        if name not in value:
            raise ValueError(f"{where}: {name} is missing; give --{name} or put it in the file")
    return decode_record(value, TrainConfig, where=where)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(
        description="Train a drafter: DSpark, or the DFlash and Eagle3 baselines. Stopped or "
        "killed, the same command goes on where it was. Under torchrun it spans several GPUs.",
        examples=[
            "--target TARGET --data samples.jsonl --out run",
            "--config train.json --kind dflash --out baseline",
        ],
        page="docs/serving.md",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="JSON with these and more; flags go over it"
    )
    for name, (kind, about) in _FLAGS.items():
        default = TrainConfig.__dataclass_fields__[name].default
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            choices=KINDS if name == "kind" else None,
            help=about if default is dataclasses.MISSING else f"{about} (default: {default})",
        )
    disable_progress_bar()  # type: ignore[no-untyped-call]  # of transformers' loading
    config = read_config(parser.parse_args(arguments))
    folder = train(config)
    if int(os.environ.get("RANK", 0)) == 0:
        print(folder)
    return 0
