"""Begin from another checkpoint's weights: a DFlash backbone, or an earlier drafter.

Owns which weights are taken over: the whole backbone, and heads of the same shape; others stay as
fresh ones. A backbone of another shape is refused. Knows no training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sglang_dspark.draft.model.checkpoint import SHARED, load_drafter
from sglang_dspark.draft.model.target import Target

_HEADS = ("markov_head.", "confidence_head.")


def warm_start(drafter: Any, path: str | Path, target: Target) -> list[str]:
    """Take over the weights at ``path``; returns the heads' tensors that stay fresh."""
    other = load_drafter(path, target=target, share=True)
    theirs, mine = other.state_dict(), drafter.state_dict()
    if tuple(other.config.layers_captured) != tuple(drafter.config.layers_captured):
        raise ValueError(
            f"{path}: captures layers {list(other.config.layers_captured)}, this run "
            f"{list(drafter.config.layers_captured)}; set target_layer_ids in drafter to the former"
        )
    fresh = []
    with torch.no_grad():
        for name, tensor in mine.items():
            if name in SHARED:
                continue
            same = name in theirs and theirs[name].shape == tensor.shape
            if same:
                tensor.copy_(theirs[name])
            elif name.startswith(_HEADS):
                fresh.append(name)
            else:
                found = list(theirs[name].shape) if name in theirs else "none"
                raise ValueError(
                    f"{path}: {name} has shape {found}, this run's drafter {list(tensor.shape)}; "
                    "give drafter the depth and width of the checkpoint"
                )
    extra = sorted(n for n in theirs if n not in mine and not n.startswith(_HEADS))
    if extra:
        raise ValueError(
            f"{path}: has {extra[0]!r}, which this run's drafter has not; give drafter its depth"
        )
    return fresh
