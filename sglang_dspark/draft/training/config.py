"""What a training run is: its settings, read from JSON, and which of them a resume must repeat.

Owns the record and its checks. Knows no tensors.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

KINDS = ("dspark", "dspark5", "dflash", "eagle3")
# Where things lie and how often they are written may change between two starts of a run; what the
# target and the samples are is compared by their digests.
_MAY_CHANGE = {"target", "data", "out", "save_every", "export_every", "tensorboard"}
_MAY_CHANGE |= {"checkpoint_layers"}  # recomputing gives the same numbers
_MAY_CHANGE |= {"start"}  # a digest of it is compared


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run; defaults are the paper's."""

    target: str
    """Folder of the target model."""
    data: str
    """Samples (JSONL: states are extracted online) or a folder that ``cache`` wrote."""
    out: str
    """Folder for checkpoints, metrics and the resume file."""
    kind: str = "dspark"
    """``dspark``; ``dspark5``: gamma 5 and 3 layers; ``dflash``: no heads, cross-entropy;
    ``eagle3``: autoregressive baseline."""
    start: str = ""
    """Checkpoint to begin from, of any convention (DFlash's too); empty: fresh weights."""
    drafter: dict[str, Any] = field(default_factory=dict)
    """Choices of ``recipes.dspark``: gamma, depth, markov_rank, markov_head_type, ..."""
    epochs: float = 10.0
    """Passes over the samples."""
    batch: int = 512
    """Sequences per optimiser step, over all processes."""
    micro_batch: int = 8
    """Sequences that one process holds at a time; gradients add up to the batch."""
    max_tokens: int = 4096
    """Sequences are cut to this length."""
    learning_rate: float = 6e-4
    """Peak."""
    warmup: float = 0.04
    """Share of the steps that warms up."""
    weight_decay: float = 0.0
    """AdamW's."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""
    clip: float = 1.0
    """Largest gradient norm."""
    ce: float | None = None
    """Weight of the cross-entropy; None: 0.1, or 1 for the baselines."""
    tv: float | None = None
    """Weight of the L1 distance; None: 0.9, or 0 for the baselines."""
    confidence: float | None = None
    """Weight of the confidence loss; None: 1, or 0 for the baselines."""
    decay: float | None = None
    """Slot k weighs exp(-k / decay); None: gamma, as the paper writes (DeepSpec's code: 4)."""
    seed: int = 0
    """Of weights, order and anchors."""
    save_every: int = 100
    """Steps between writes of the resume file."""
    export_every: int = 0
    """Steps between exported checkpoints; 0: only the last."""
    checkpoint_layers: bool = False
    """Recompute each layer in the backward pass: a layer's activations instead of all layers'."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the tensorboard package)."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: choose one of {', '.join(KINDS)}")
        for name in ("batch", "micro_batch", "max_tokens", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: give 1 or more")
        for name in ("epochs", "learning_rate", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} {value}: give a finite number above 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup {self.warmup}: give a share from 0 up to, not with, 1")
        for name in ("weight_decay", "export_every", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)}: give 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"betas {list(self.betas)}: give two numbers from 0 up to, not with, 1"
            )

    def lasting(self) -> dict[str, Any]:
        """The settings that a resumed run must share with its beginning, as plain JSON."""
        value = dataclasses.asdict(self)
        value["betas"] = list(self.betas)
        return {name: setting for name, setting in value.items() if name not in _MAY_CHANGE}


def check_same_run(before: dict[str, Any], now: dict[str, Any], *, where: str) -> None:
    """``ValueError`` for the first setting in which a resume differs from its beginning."""
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{where}: this run was begun with {name} {before.get(name)!r}, now it is "
                f"{now.get(name)!r}; give the same, or another out folder"
            )
