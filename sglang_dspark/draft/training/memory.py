"""What a training run needs in memory, told before its first step, and the micro-batch it allows.

Owns the estimate. Weights, gradients and optimiser state are exact; activations are what autograd
saves of a layer, counted from the shapes (within a fifth of what is measured,
``tests/draft/training/test_memory.py``); attention groups and loss pieces are their own modules'
bounds. Knows no training.

Shapes: as in ``model``; P trained numbers, I the MLP's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sglang_dspark.draft.model.deepseek_v4.config import BundledConfig
from sglang_dspark.draft.model.layers import MASK_ELEMENTS
from sglang_dspark.draft.model.recipes import AnyConfig
from sglang_dspark.draft.model.target import Target
from sglang_dspark.draft.training.config import TrainConfig
from sglang_dspark.draft.training.losses import PIECE_ELEMENTS

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Needed:
    """Bytes in one process, by what they are for."""

    target: int
    """The target's weights; 0 where states are read from a cache."""
    weights: int
    """The drafter's, its shared ends excluded, and their gradients in its own dtype."""
    optimiser: int
    """Float32 masters and moments, this process's part of them."""
    gradient: int
    """The float32 sum of gradients, whole."""
    states: int
    """Captured and last states, per sequence."""
    activations: int
    """What autograd saves of the layers, per sequence."""
    scratch: int
    """Loss pieces and one group's attention mask."""

    @property
    def fixed(self) -> int:
        """Bytes whatever the micro-batch."""
        return self.target + self.weights + self.optimiser + self.gradient + self.scratch

    @property
    def per_sequence(self) -> int:
        """Bytes that each sequence of a micro-batch adds."""
        return self.states + self.activations

    def total(self, micro_batch: int) -> int:
        """Bytes in all."""
        return self.fixed + micro_batch * self.per_sequence

    def allowed(self, available: int) -> int:
        """The largest micro-batch in ``available`` bytes; 0 where none fits."""
        return max(0, (available - self.fixed) // max(1, self.per_sequence))


def layer_bytes(config: AnyConfig, *, itemsize: int) -> int:
    """Bytes that autograd saves of one layer for each block token.

    Matrices' inputs and outputs in the model's dtype; the norms' float32 copies and results.
    """
    if isinstance(config, BundledConfig):
        return _stage_bytes(config, itemsize=itemsize)
    wide = config.num_attention_heads * config.head_dim
    narrow = config.num_key_value_heads * config.head_dim
    inner, hidden = config.intermediate_size, config.hidden_size
    plain = 4 * inner + 4 * wide + 4 * narrow + 2 * hidden
    normed = 2 * hidden + wide + narrow
    return itemsize * plain + (4 + itemsize) * normed


def _stage_bytes(config: BundledConfig, *, itemsize: int) -> int:
    """A stage of DeepSeek-V4: two mixings of n streams, attention over a window, the experts."""
    shape = config.stage_config
    wide = shape.num_attention_heads * shape.head_dim
    _, active = config.experts
    streams = shape.hc_mult * config.hidden_size
    low = shape.q_lora_rank + shape.o_groups * shape.o_lora_rank
    plain = 4 * wide + 2 * low + 4 * (active + 1) * shape.moe_intermediate_size
    plain += (active + 4) * config.hidden_size + 4 * streams
    window = config.sliding_window + config.block_size
    scores = 3 * 4 * shape.num_attention_heads * window
    keys = itemsize * window * shape.head_dim // config.block_size
    return itemsize * plain + 4 * (2 * streams + wide + 2 * config.hidden_size) + scores + keys


def needed(config: TrainConfig, drafter: Any, *, target_bytes: int, world: int = 1) -> Needed:
    """The estimate for one process of ``world``."""
    trained = [p for p in drafter.parameters() if p.requires_grad]
    shape: AnyConfig = drafter.config
    count = sum(p.numel() for p in trained)
    plain = all(p.dtype == torch.float32 for p in trained)
    itemsize = min(p.element_size() for p in trained)
    own = sum(p.numel() * p.element_size() for p in trained)
    part = -(-count // world)
    tokens = config.max_tokens
    anchors = min(shape.num_anchors, max(1, tokens - 1))
    block_tokens = anchors * shape.block_size
    # Where the model is float32 its weights are the masters, whole in every process.
    optimiser = 4 * part * (2 if plain else 3)
    layers = 1 if config.checkpoint_layers else shape.num_hidden_layers
    activations = block_tokens * layer_bytes(shape, itemsize=itemsize) * layers
    if config.checkpoint_layers:
        activations += block_tokens * shape.hidden_size * itemsize * shape.num_hidden_layers
    states = tokens * (len(shape.layers_captured) + 2) * shape.hidden_size * itemsize
    pieces = 5 * 4 * max(PIECE_ELEMENTS, shape.vocab_size)
    return Needed(
        target=target_bytes,
        weights=2 * own,
        optimiser=optimiser,
        gradient=4 * part * world,
        states=states,
        activations=activations,
        scratch=pieces + 4 * MASK_ELEMENTS + 2 * 4 * shape.vocab_size * shape.markov_rank,
    )


def available_bytes(device: torch.device) -> int | None:
    """Memory that this device has free; None where nobody can say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_allocated(device)
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def memory_report(config: TrainConfig, drafter: Any, target: Target, *, world: int = 1) -> str:
    """The sentence that a run begins with."""
    target_bytes = sum(p.numel() * p.element_size() for p in target.model.parameters())
    found = needed(config, drafter, target_bytes=target_bytes, world=world)
    parts = (
        f"target {_size(found.target)}, weights {_size(found.weights)}, optimiser "
        f"{_size(found.optimiser)}, gradient {_size(found.gradient)}, "
        f"{_size(found.per_sequence)} a sequence of {config.max_tokens} tokens"
    )
    said = f"memory: about {_size(found.total(config.micro_batch))} a process ({parts})"
    available = available_bytes(target.device)
    if available is None:
        return said
    allowed = found.allowed(available)
    said += f"; {_size(available)} are there, enough for micro_batch {allowed}"
    if allowed < config.micro_batch:
        remedy = "" if config.checkpoint_layers else ", set checkpoint_layers"
        said += f": lower micro_batch from {config.micro_batch}{remedy} or use more processes"
    return said


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB // 10 else f"{count / 2**20:.1f} MiB"
