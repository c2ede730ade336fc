"""A cache of hidden states as it lies on disk, and reading it back.

Owns the format and every check of a cache that is read: format, target, layers, sizes, checksums.
Making one is ``cache``. Knows no drafter.

``index.json`` is there once the cache is complete. A shard holds T tokens of n samples end to end:
``captured`` [T, C] and ``hidden`` [T, D] in the target's dtype, ``tokens`` [T] int32, ``ends`` [n]
and ``prompts`` [n] int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sglang_dspark.draft.data.fingerprint import file_sha256
from sglang_dspark.draft.data.states import Span, StateBatch
from sglang_dspark.files import read_record

FORMAT = "dspark-states-1"


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """What a cache was made from; ``settings.json``, written before the first shard."""

    format: str
    """``FORMAT``."""
    target: str
    """Fingerprint of the target's folder."""
    samples: str
    """SHA-256 of the samples' file."""
    layers: tuple[int, ...]
    """Captured layers."""
    hidden_size: int
    """D."""
    dtype: str
    """Of the states: float32, bfloat16 or float16."""
    max_tokens: int
    """Samples are cut to this length."""
    shard_tokens: int
    """A shard is closed once it holds this many tokens."""
    batch: int
    """Sequences in one prefill."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One finished shard, as the index lists it."""

    file: str
    """Name within the cache's folder."""
    sha256: str
    """Of the whole file."""
    bytes: int
    """Its size."""
    spans: tuple[tuple[int, int], ...]
    """(prompt tokens, tokens) of each sample."""


@dataclass(frozen=True, kw_only=True)
class CacheIndex:
    """``index.json``, written when every shard is there."""

    settings: CacheSettings
    """What the cache was made from."""
    shards: tuple[Shard, ...]
    """In order of the samples."""


def token_bytes(settings: CacheSettings) -> int:
    """Bytes that one token takes: states and token number."""
    size: int = getattr(torch, settings.dtype).itemsize
    return (len(settings.layers) + 1) * settings.hidden_size * size + 4


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def record_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.json"


class Cached:
    """States read from a cache. A shard's checksum is verified when it is first touched."""

    def __init__(
        self,
        folder: str | Path,
        *,
        target: str | None = None,
        layers: Sequence[int] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """``target`` (a fingerprint) and ``layers``: what the trainer expects, checked."""
        self._folder = Path(folder)
        path = self._folder / "index.json"
        if not path.exists():
            raise ValueError(f"{folder}: no index.json, the cache is incomplete; run cache again")
        self.index = read_record(path, CacheIndex)
        settings = self.index.settings
        if settings.format != FORMAT:
            raise ValueError(f"{path}: format {settings.format!r}, this version reads {FORMAT!r}")
        if target is not None and target != settings.target:
            raise ValueError(
                f"{folder}: made for another target (fingerprint {settings.target[:12]}, yours "
                f"{target[:12]}); make a cache for this one"
            )
        if layers is not None and tuple(layers) != settings.layers:
            raise ValueError(
                f"{folder}: has layers {list(settings.layers)}, the drafter reads {list(layers)}; "
                "make a cache with those"
            )
        self._device = device
        self._places: list[tuple[int, int]] = []
        self._spans: list[Span] = []
        for number, shard in enumerate(self.index.shards):
            file = self._folder / shard.file
            if not file.exists() or file.stat().st_size != shard.bytes:
                raise ValueError(f"{file}: missing or not {shard.bytes} bytes; run cache again")
            start = 0
            for prompt, tokens in shard.spans:
                self._places.append((number, start))
                self._spans.append(Span(prompt_tokens=prompt, tokens=tokens))
                start += tokens
        self._open: dict[int, Any] = {}

    @property
    def spans(self) -> Sequence[Span]:
        """Extent of each sample."""
        return self._spans

    @property
    def digest(self) -> str:
        """Of the samples' file."""
        return self.index.settings.samples

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            shard = self.index.shards[number]
            file = self._folder / shard.file
            if file_sha256(file) != shard.sha256:
                raise ValueError(
                    f"{file}: its checksum differs from the index; delete it and "
                    f"{record_path(self._folder, number).name} and run cache again"
                )
            try:
                self._open[number] = safe_open(file, framework="pt", device=str(self._device))
            except SafetensorError as error:
                raise ValueError(f"{file}: not a safetensors file ({error}); remake it") from None
        return self._open[number]

    def batch(self, numbers: Sequence[int]) -> StateBatch:
        """The samples' states, padded with zeros."""
        rows: dict[str, list[Tensor]] = {"tokens": [], "captured": [], "hidden": []}
        for number in numbers:
            shard, start = self._places[number]
            stop = start + self._spans[number].tokens
            for name, parts in rows.items():
                parts.append(self._shard(shard).get_slice(name)[start:stop])
        joined = {
            name: torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
            for name, parts in rows.items()
        }
        return StateBatch(
            tokens_BS=joined["tokens"].long(),
            captured_BSC=joined["captured"],
            hidden_BSD=joined["hidden"],
        )
