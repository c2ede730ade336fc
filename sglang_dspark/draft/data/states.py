"""Batches of the target's hidden states for training, from the running target or from a cache.

Owns which samples can be trained on and the two sources that answer ``batch`` alike: ``Online``
runs the target on the fly and needs no disk, ``Cached`` reads what ``cache`` wrote. Knows nothing
of anchors, losses or optimisers.

Shapes: B sequences, S tokens (padded on the right), D hidden, C = m*D captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sglang_dspark.draft.data.samples import Sample
from sglang_dspark.draft.model.target import Target


@dataclass(frozen=True, kw_only=True, eq=False)
class StateBatch:
    """Some sequences with their target's states; what lies beyond a length means nothing."""

    tokens_BS: Tensor
    """int64."""
    captured_BSC: Tensor
    """Raw outputs of the captured layers, concatenated."""
    hidden_BSD: Tensor
    """Final-normed states, from which the target's logits follow."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """One sample's extent, all that anchors depend on."""

    prompt_tokens: int
    """Tokens before the answer."""
    tokens: int
    """Tokens in all."""


class States(Protocol):
    """A source of training states, numbered from 0."""

    @property
    def spans(self) -> Sequence[Span]:
        """Extent of each sample."""

    @property
    def digest(self) -> str:
        """Tells one set of samples from another; a resume compares it."""

    def batch(self, numbers: Sequence[int]) -> StateBatch:
        """The states of the samples with these numbers."""


def usable(samples: Sequence[Sample], *, max_tokens: int, where: str | Path) -> list[Sample]:
    """The samples cut to ``max_tokens`` that still have two answer tokens, hence an anchor."""
    kept = []
    for sample in samples:
        response = sample.response[: max(0, max_tokens - len(sample.prompt))]
        if sample.prompt and len(response) >= 2:
            kept.append(
                Sample(
                    id=sample.id,
                    turn=sample.turn,
                    domain=sample.domain,
                    prompt=sample.prompt,
                    response=response,
                    finish=sample.finish,
                )
            )
    if not kept:
        raise ValueError(
            f"{where}: no sample has two answer tokens within max_tokens {max_tokens}; raise it"
        )
    return kept


def check_vocabulary(samples: Sequence[Sample], *, vocabulary: int, where: str | Path) -> None:
    """``ValueError`` for the first sample with a token that the target does not have."""
    for sample in samples:
        if max(sample.tokens) >= vocabulary:
            raise ValueError(
                f"{where}: sample {sample.id!r} has token {max(sample.tokens)}, the target's "
                f"vocabulary ends at {vocabulary - 1}; it was generated for another target"
            )


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(tokens [B, S], mask [B, S]) with zeros on the right."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


class Online:
    """States computed by the target when they are asked for. Disk: none; time: one prefill."""

    def __init__(self, target: Target, samples: Sequence[Sample], *, digest: str) -> None:
        self._target = target
        self._samples = list(samples)
        self._digest = digest

    @property
    def spans(self) -> Sequence[Span]:
        """Extent of each sample."""
        return [Span(prompt_tokens=len(s.prompt), tokens=len(s.tokens)) for s in self._samples]

    @property
    def digest(self) -> str:
        """Of the samples' file."""
        return self._digest

    def batch(self, numbers: Sequence[int]) -> StateBatch:
        """One prefill over the samples."""
        tokens_BS, mask_BS = padded([self._samples[number].tokens for number in numbers])
        device = self._target.device
        hidden_BSD, captured_BSC = self._target.prefill(
            tokens_BS=tokens_BS.to(device), mask=mask_BS.to(device)
        )
        return StateBatch(
            tokens_BS=tokens_BS.to(device), captured_BSC=captured_BSC, hidden_BSD=hidden_BSD
        )
