"""Hidden states on disk: safetensors shards, a checksum beside each, and an index when complete.

    dspark draft cache samples.jsonl --target TARGET --layers 0 1 2 --out cache

Owns the size before the start, the writing and its resume: a shard is finished once its checksum
file stands beside it, and is the same to the byte however often the run was killed. Under torchrun
(or with RANK and WORLD_SIZE set) every process makes its own shards; whichever ends last writes
the index. The format is ``cached``; training without any of this is ``states.Online``. Knows no
drafter.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from sglang_dspark.cli import Parser
from sglang_dspark.draft.data.cached import (
    FORMAT,
    CacheIndex,
    CacheSettings,
    Shard,
    record_path,
    shard_path,
    token_bytes,
)
from sglang_dspark.draft.data.fingerprint import file_sha256, model_fingerprint
from sglang_dspark.draft.data.samples import Sample, training_samples
from sglang_dspark.draft.data.states import check_vocabulary, padded, usable
from sglang_dspark.draft.model.target import Target
from sglang_dspark.files import atomic_write, make_folder, read_json, read_record, write_json


def plan_shards(samples: Sequence[Sample], *, shard_tokens: int) -> list[list[Sample]]:
    """The samples cut into shards; depends on nothing else, so a resume plans the same."""
    shards: list[list[Sample]] = [[]]
    tokens = 0
    for sample in samples:
        if tokens >= shard_tokens:
            shards.append([])
            tokens = 0
        shards[-1].append(sample)
        tokens += len(sample.tokens)
    return shards


def size_sentence(
    folder: Path, shards: Sequence[Sequence[Sample]], settings: CacheSettings, *, free: int
) -> str:
    """How large the cache will be; ``ValueError`` when what is still missing does not fit."""
    each = token_bytes(settings)
    tokens = [sum(len(sample.tokens) for sample in shard) for shard in shards]
    missing = sum(count for i, count in enumerate(tokens) if not record_path(folder, i).exists())
    # Spans, ends and headers: small beside the states, but a tiny disk counts every byte.
    needed = missing * each + 4096 * len(shards) + 64 * sum(len(shard) for shard in shards)
    sentence = (
        f"{sum(tokens):,} tokens of {each:,} bytes: {sum(tokens) * each / 1e9:.3f} GB in "
        f"{len(shards)} shards, {missing * each / 1e9:.3f} GB still to write, "
        f"{free / 1e9:.3f} GB free"
    )
    if needed > free:
        raise ValueError(
            f"{folder}: the disk is too small: {sentence}; free some space, give another folder, "
            "or train online from the samples without a cache"
        )
    return sentence


def _begin(folder: Path, settings: CacheSettings) -> None:
    path = folder / "settings.json"
    if not path.exists():
        if any(folder.glob("shard-*")):
            raise ValueError(f"{folder}: has shards but no settings.json; give an empty folder")
        write_json(path, settings)
        return
    before = read_record(path, CacheSettings)
    for name in CacheSettings.__dataclass_fields__:
        if getattr(before, name) != getattr(settings, name):
            raise ValueError(
                f"{folder}: was begun with {name} {getattr(before, name)!r}, now it is "
                f"{getattr(settings, name)!r}; give the same or an empty folder"
            )


def shard_bytes(target: Target, samples: Sequence[Sample], *, batch: int) -> bytes:
    """One shard's file."""
    captured: list[Tensor] = []
    hidden: list[Tensor] = []
    for first in range(0, len(samples), batch):
        rows = [sample.tokens for sample in samples[first : first + batch]]
        tokens_BS, mask_BS = padded(rows)
        hidden_BSD, captured_BSC = target.prefill(
            tokens_BS=tokens_BS.to(target.device), mask=mask_BS.to(target.device)
        )
        captured.append(captured_BSC.cpu()[mask_BS])
        hidden.append(hidden_BSD.cpu()[mask_BS])
    flat = [token for sample in samples for token in sample.tokens]
    return save(
        {
            "captured": torch.cat(captured),
            "hidden": torch.cat(hidden),
            "tokens": torch.tensor(flat, dtype=torch.int32),
            "ends": torch.tensor([len(s.tokens) for s in samples]).cumsum(0),
            "prompts": torch.tensor([len(s.prompt) for s in samples]),
        }
    )


def write_cache(
    folder: str | Path,
    *,
    target: Target,
    samples: Sequence[Sample],
    settings: CacheSettings,
    announce: Callable[[str], None],
    rank: int = 0,
    world: int = 1,
    free_bytes: int | None = None,
    quiet: bool = False,
) -> bool:
    """Write what is missing of this process's shards; True when the cache is complete.

    ``announce`` gets the size before the first byte is written. ``free_bytes`` stands in for the
    disk's free space.
    """
    folder = make_folder(folder)
    check_vocabulary(samples, vocabulary=target.vocab_size, where=folder)
    shards = plan_shards(samples, shard_tokens=settings.shard_tokens)
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    announce(size_sentence(folder, shards, settings, free=free))
    _begin(folder, settings)
    mine = range(rank, len(shards), world)
    with tqdm(total=len(mine), desc="shards", disable=quiet) as bar:
        for number in mine:
            record = record_path(folder, number)
            if not record.exists():
                data = shard_bytes(target, shards[number], batch=settings.batch)
                path = shard_path(folder, number)
                with atomic_write(path, "wb") as file:
                    file.write(data)
                spans = tuple((len(s.prompt), len(s.tokens)) for s in shards[number])
                digest = hashlib.sha256(data).hexdigest()
                shard = Shard(file=path.name, sha256=digest, bytes=len(data), spans=spans)
                write_json(record, shard)
            bar.update()
    records = [record_path(folder, number) for number in range(len(shards))]
    if not all(record.exists() for record in records):
        return False
    done = tuple(read_record(record, Shard) for record in records)
    write_json(folder / "index.json", CacheIndex(settings=settings, shards=done))
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(
        description="Keep the target's hidden states of training samples on disk, for trainings "
        "that then need no target. Killed, the same command goes on.",
        examples=["samples.jsonl --target TARGET --layers 0 1 2 --out cache"],
        page="docs/serving.md",
    )
    parser.add_argument("samples", metavar="SAMPLES", help="JSONL of draft generate")
    parser.add_argument("--target", required=True, help="folder of the target")
    parser.add_argument("--out", required=True, help="folder; continued when it exists")
    parser.add_argument("--layers", type=int, nargs="+", help="captured layers of the drafter")
    parser.add_argument("--drafter", help="config.json to take the layers from instead")
    parser.add_argument("--max-tokens", type=int, default=4096, help="cut samples to this")
    parser.add_argument("--shard-tokens", type=int, default=65_536, help="in one file")
    parser.add_argument("--batch", type=int, default=8, help="sequences in one prefill")
    disable_progress_bar()  # type: ignore[no-untyped-call]  # of transformers' loading
    given = parser.parse_args(arguments)
    for name in ("max_tokens", "shard_tokens", "batch"):
        if getattr(given, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(given, name)}: give 1 or more")
    if (given.layers is None) == (given.drafter is None):
        raise ValueError("give either --layers or --drafter")
    layers = tuple(given.layers or read_json(given.drafter).get("target_layer_ids", ()))
    samples = usable(
        training_samples(given.samples), max_tokens=given.max_tokens, where=given.samples
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    target = Target.from_pretrained(given.target, capture=layers, device=device)
    settings = CacheSettings(
        format=FORMAT,
        target=model_fingerprint(given.target),
        samples=file_sha256(given.samples),
        layers=layers,
        hidden_size=target.hidden_size,
        dtype=str(target.dtype).removeprefix("torch."),
        max_tokens=given.max_tokens,
        shard_tokens=given.shard_tokens,
        batch=given.batch,
    )
    complete = write_cache(
        given.out,
        target=target,
        samples=samples,
        settings=settings,
        announce=lambda sentence: print(f"{given.out}: {sentence}", file=sys.stderr, flush=True),
        rank=int(os.environ.get("RANK", 0)),
        world=int(os.environ.get("WORLD_SIZE", 1)),
    )
    print(f"{given.out}: {'complete' if complete else 'waiting for other processes'}")
    return 0
