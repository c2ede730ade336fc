"""Drafter checkpoints: ``config.json`` and ``model.safetensors`` in one folder.

Owns what makes a checkpoint acceptable. The layout is DeepSpec's ``save_pretrained``: its
checkpoints load here and ours load wherever its do; DeepSeek-V4's own is ``deepseek_v4``'s, reached
by the same calls. Knows no training state. Every refusal is one sentence that names the file and
the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sglang_dspark.draft.model.conventions import drafter_folder, read_dense_config
from sglang_dspark.draft.model.deepseek_v4.checkpoint import (
    load_bundled,
    read_bundled_config,
    save_alone,
)
from sglang_dspark.draft.model.deepseek_v4.config import BundledConfig, is_bundled
from sglang_dspark.draft.model.deepseek_v4.drafter import BundledDrafter
from sglang_dspark.draft.model.eagle import Eagle
from sglang_dspark.draft.model.model import Drafter
from sglang_dspark.draft.model.recipes import AnyConfig
from sglang_dspark.draft.model.target import Target
from sglang_dspark.draft.model.tensors import (
    WEIGHTS,
    check_finite,
    check_names,
    check_shape,
    locate,
    read_raw,
    shape_of,
    write_folder,
    write_weights,
)
from sglang_dspark.files import read_json

_VERIFIERS = ("verifier_lm_head.weight", "verifier_norm.weight")
"""The target's own, which speculators may save with a drafter."""

AnyDrafter = Drafter | Eagle | BundledDrafter

SHARED = ("embed_tokens.weight", "lm_head.weight")
"""Copies of the target's; a checkpoint may leave them out when the target is at hand."""


def read_config(folder: str | Path, *, target_layers: int | None = None) -> AnyConfig:
    """The config of a checkpoint folder, of whichever convention; ``ValueError`` if none.

    target_layers: depth of the target, for conventions that do not tell.
    """
    path = drafter_folder(folder)
    value: Any = read_json(path / "config.json")
    if is_bundled(value):
        return read_bundled_config(path)[0]
    where = str(path / "config.json")
    return read_dense_config(value, where=where, target_layers=target_layers)


def build_drafter(
    config: AnyConfig, *, embed: Tensor | None = None, lm_head: Tensor | None = None
) -> AnyDrafter:
    """A fresh drafter of the kind that the config describes."""
    if isinstance(config, BundledConfig):
        return BundledDrafter(config, embed=embed, lm_head=lm_head)
    kind = Eagle if config.family.autoregressive else Drafter
    return kind(config, embed=embed, lm_head=lm_head)


def drafter_for(config: AnyConfig, target: Target) -> AnyDrafter:
    """A fresh drafter that shares the target's embedding and lm_head, in the target's place."""
    check_target(config, target)
    drafter = build_drafter(config, embed=target.embed_weight, lm_head=target.lm_head_weight)
    return drafter.to(target.device)


def in_dtype(drafter: AnyDrafter, dtype: torch.dtype) -> AnyDrafter:
    """The drafter computing in ``dtype``; DeepSeek-V4's keeps wide what must be."""
    if isinstance(drafter, BundledDrafter):
        return drafter.narrow(dtype)
    return drafter.to(dtype=dtype)


def check_target(config: AnyConfig, target: Target, *, where: str = "drafter") -> None:
    """``ValueError`` unless the drafter's config was made for a target like this one."""
    pairs = {
        "hidden_size": (config.hidden_size, target.hidden_size),
        "vocab_size": (config.vocab_size, target.vocab_size),
        "num_target_layers": (config.num_target_layers, target.layers),
        "final_logit_softcapping": (config.softcap, target.softcap),
    }
    for key, (mine, theirs) in pairs.items():
        if mine != theirs:
            raise ValueError(
                f"{where}: {key} is {mine} but the target has {theirs}; "
                "use the target that the drafter was trained for"
            )
    if target.config.model_type not in config.target_types:
        raise ValueError(
            f"{where}: {config.architecture} is for {' or '.join(config.target_types)} "
            f"targets, not {target.config.model_type!r}; use the target it was trained for"
        )


def save_drafter(drafter: AnyDrafter, folder: str | Path, *, include_shared: bool = True) -> None:
    """Write a checkpoint folder; it replaces one of that name and is never seen half-written.

    ``include_shared`` false leaves embedding and lm_head out: smaller, but DeepSpec and servers
    that do not share the target's want them.
    """
    if isinstance(drafter, BundledDrafter):
        save_alone(drafter, folder, include_shared=include_shared)
        return
    tensors = drafter_tensors(drafter, include_shared=include_shared)
    config = drafter.config

    def fill(temporary: Path) -> None:
        config.write(temporary)
        write_weights(temporary / WEIGHTS, tensors)

    write_folder(folder, fill)


def drafter_tensors(drafter: Drafter | Eagle, *, include_shared: bool) -> dict[str, Tensor]:
    """A dense drafter's tensors as they are written."""
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in drafter.state_dict().items()
        if include_shared or name not in SHARED
    }
    if include_shared and _same_storage(tensors):
        tensors[SHARED[1]] = tensors[SHARED[1]].clone()
    return tensors


def _same_storage(tensors: dict[str, Tensor]) -> bool:
    """A target with tied embeddings shares one tensor, which a file must hold twice."""
    embed, head = (tensors[name] for name in SHARED)
    return embed.untyped_storage().data_ptr() == head.untyped_storage().data_ptr()


def load_drafter(
    folder: str | Path,
    *,
    target: Target | None = None,
    share: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    target_layers: int | None = None,
    lent: Mapping[str, Tensor] | None = None,
) -> AnyDrafter:
    """Read and check a checkpoint folder, of whichever convention; in eval mode.

    target: checked against, and lender of embedding and lm_head where the files lack them, or in
    any case with ``share``. target_layers: the target's depth, for conventions that do not tell.
    lent: tensors for missing ones, where there is no target. dtype: None keeps each tensor's own,
    so that saving again gives the same bytes (bundled drafters: see ``load_bundled``).
    ``ValueError`` tells the first defect.
    """
    path = drafter_folder(folder)
    config = read_config(path, target_layers=target_layers if target is None else target.layers)
    if target is not None:
        check_target(config, target, where=str(path))
    if isinstance(config, BundledConfig):
        lender = lent or {}
        ends = None if target is None else (target.embed_weight, target.lm_head_weight)
        if ends is None and all(name in lender for name in SHARED):
            ends = (lender[SHARED[0]], lender[SHARED[1]])
        return load_bundled(path, ends=ends, share=share, dtype=dtype, device=device)
    with torch.device("meta"):
        drafter = build_drafter(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in drafter.state_dict().items()}
    places, stored = _known(locate(path), path)
    lend = dict(lent or {})
    if target is not None:
        lend = {SHARED[0]: target.embed_weight, SHARED[1]: target.lm_head_weight}
    used = {name: weight for name, weight in lend.items() if share or name not in places}
    check_names(
        path, wanted=set(wanted) - set(used), found=set(places) - set(used), lent=set(SHARED)
    )
    tensors = {
        name: _read(places[name], stored[name], shape, str(device))
        for name, shape in wanted.items()
        if name not in used
    }
    tensors = {name: t if dtype is None else t.to(dtype) for name, t in tensors.items()}
    tensors |= {name: weight.detach().to(device) for name, weight in used.items()}
    drafter.load_state_dict(tensors, assign=True)
    drafter.embed_tokens.requires_grad_(False)
    drafter.lm_head.requires_grad_(False)
    return drafter.eval()


def _known(places: dict[str, Path], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Our name -> file and -> name in it, without what other trainers keep beside the drafter.

    Some write ``model.`` before every name. A reduced vocabulary is refused.
    """
    for name in ("d2t", "t2d"):
        if name in places:
            raise ValueError(
                f"{folder}: tensor {name!r}: drafters of a reduced vocabulary are not supported"
            )
    stored = {name.removeprefix("model."): name for name in places}
    if len(stored) < len(places):
        raise ValueError(
            f"{folder}: some tensors are there twice, with and without model. before their names; "
            "save it again"
        )
    stored = {ours: theirs for ours, theirs in stored.items() if ours not in _VERIFIERS}
    return {ours: places[theirs] for ours, theirs in stored.items()}, stored


def _read(file: Path, name: str, shape: tuple[int, ...], device: str) -> Tensor:
    check_shape(file, name, shape_of(file, name), shape)
    tensor = read_raw(file, name, device)
    if not tensor.is_floating_point():
        raise ValueError(
            f"{file}: tensor {name!r} is {tensor.dtype}; quantised drafters do not load"
        )
    check_finite(file, name, tensor)
    return tensor
