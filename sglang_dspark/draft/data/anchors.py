"""Which blocks a training step learns from, and the order of samples: draws without memory.

Owns the numbering of epochs, steps and micro-batches and the draw of anchors. Every draw is keyed
by (seed, epoch) or (seed, epoch, sample), so a step number is the whole random state: a resumed
run, or one cut over several processes, sees the same blocks. Knows no tensors but positions.

Shapes: B sequences, A anchors, K slots, N blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sglang_dspark.draft.data.states import Span

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole run's order, as a function of the step."""

    samples: int
    """Samples there are."""
    batch: int
    """Samples of one step, over all processes."""
    seed: int
    """Of order and anchors."""

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass; what is left over waits for another epoch's order."""
        return max(1, self.samples // self.batch)

    def numbers(self, step: int) -> tuple[int, list[int]]:
        """(epoch, sample numbers) of a step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(self.samples)
        return epoch, order[within * self.batch : (within + 1) * self.batch].tolist()


def draw_anchors(span: Span, *, count: int, seed: int, epoch: int, number: int) -> Ints:
    """Up to ``count`` distinct anchors of one sample, uniform, ascending.

    An anchor and the token after it are answer tokens: the anchor is known when a round starts,
    and the token after it is slot 0's label.
    """
    eligible = span.tokens - 1 - span.prompt_tokens
    if eligible <= count:
        return np.arange(span.prompt_tokens, span.tokens - 1)
    rng = np.random.default_rng([seed, 2, epoch, number])
    chosen = rng.choice(eligible, size=count, replace=False, shuffle=False)
    return np.sort(chosen) + span.prompt_tokens


def micro_batches(
    sizes: Sequence[int], *, micro_batch: int, rank: int, world: int
) -> list[list[int]]:
    """This process's share of a batch, as places in it, cut into micro-batches of like size.

    Sorted by ``sizes`` first, so that a micro-batch pads little and processes get alike amounts.
    """
    order = sorted(range(len(sizes)), key=lambda place: (-sizes[place], place))[rank::world]
    return [order[first : first + micro_batch] for first in range(0, len(order), micro_batch)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """A micro-batch's blocks: padded for the backbone, dense (N of them) for heads and loss."""

    anchor_index_BA: Tensor
    """Anchors, padded with the row's last so that they stay ascending."""
    real_BA: Tensor
    """False where padded; N of them are true."""
    index_NK: Tensor
    """Index of the token that each slot follows: anchor + k, kept inside the sample."""
    row_N: Tensor
    """Sequence of each block."""
    weights_NK: Tensor
    """1 where the slot's label lies inside the sample, else 0."""


def make_blocks(anchors: Sequence[Ints], spans: Sequence[Span], *, gamma: int) -> Blocks:
    """Lay out the anchors of a micro-batch's sequences."""
    most = max(len(row) for row in anchors)
    index = torch.tensor(np.stack([np.pad(row, (0, most - len(row)), "edge") for row in anchors]))
    real = torch.arange(most) < torch.tensor([len(row) for row in anchors])[:, None]
    row_N = real.nonzero()[:, 0]
    places_NK = index[real][:, None] + torch.arange(gamma)
    last_N1 = torch.tensor([span.tokens - 2 for span in spans])[row_N][:, None]
    return Blocks(
        anchor_index_BA=index,
        real_BA=real,
        index_NK=places_NK.minimum(last_N1),
        row_N=row_N,
        weights_NK=(places_NK <= last_N1).float(),
    )


def slot_counts(anchors: Sequence[Ints], spans: Sequence[Span], *, gamma: int) -> Ints:
    """[K] how many blocks have a label at each slot: what a batch's loss is divided by."""
    counts = np.zeros(gamma, dtype=np.int64)
    for row, span in zip(anchors, spans, strict=True):
        labels = np.minimum(span.tokens - 1 - row, gamma)
        counts += (labels[:, None] > np.arange(gamma)).sum(0)
    return counts
