"""Drafter checkpoints: ``config.json`` and ``model.safetensors`` in one folder.

Owns what makes a checkpoint acceptable and that a folder appears whole or not at all. The layout
is DeepSpec's ``save_pretrained``: its checkpoints load here and ours load wherever its do. Knows
no training state. Every refusal is one sentence that names the file and the remedy.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.draft.model.eagle import Eagle
from sglang_dspark.draft.model.model import Drafter
from sglang_dspark.draft.model.target import Target
from sglang_dspark.files import make_folder, os_problem, read_json

SHARED = ("embed_tokens.weight", "lm_head.weight")
"""Copies of the target's; a checkpoint may leave them out when the target is at hand."""
WEIGHTS = "model.safetensors"


def build_drafter(
    config: DrafterConfig, *, embed: Tensor | None = None, lm_head: Tensor | None = None
) -> Drafter | Eagle:
    """A fresh drafter of the kind that the config's architecture names."""
    kind = Eagle if config.family.autoregressive else Drafter
    return kind(config, embed=embed, lm_head=lm_head)


def drafter_for(config: DrafterConfig, target: Target) -> Drafter | Eagle:
    """A fresh drafter that shares the target's embedding and lm_head, in the target's place."""
    check_target(config, target)
    drafter = build_drafter(config, embed=target.embed_weight, lm_head=target.lm_head_weight)
    return drafter.to(target.device)


def check_target(config: DrafterConfig, target: Target, *, where: str = "drafter") -> None:
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
    if target.config.model_type not in config.family.text_model_types:
        raise ValueError(
            f"{where}: {config.architecture} is for {' or '.join(config.family.text_model_types)} "
            f"targets, not {target.config.model_type!r}; use the target it was trained for"
        )


def save_drafter(
    drafter: Drafter | Eagle, folder: str | Path, *, include_shared: bool = True
) -> None:
    """Write a checkpoint folder; it replaces one of that name and is never seen half-written.

    ``include_shared`` false leaves embedding and lm_head out: smaller, but DeepSpec and servers
    that do not share the target's want them.
    """
    goal = Path(folder)
    make_folder(goal.parent)
    temporary = goal.with_name(f".{goal.name}.tmp-{os.getpid()}")
    old = goal.with_name(f".{goal.name}.old-{os.getpid()}")
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in drafter.state_dict().items()
        if include_shared or name not in SHARED
    }
    if include_shared and _same_storage(tensors):
        tensors[SHARED[1]] = tensors[SHARED[1]].clone()
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        drafter.config.write(temporary)
        # The metadata is transformers': with it both write the same bytes.
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        _flush(temporary / WEIGHTS)
        _flush(temporary)
        if goal.exists():
            goal.rename(old)
        temporary.rename(goal)
        _flush(goal.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise os_problem("write the checkpoint", goal, error) from None
    except SafetensorError as error:
        raise ValueError(f"{goal}: cannot write the weights: {error}; free some disk") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _same_storage(tensors: dict[str, Tensor]) -> bool:
    """A target with tied embeddings shares one tensor, which a file must hold twice."""
    embed, head = (tensors[name] for name in SHARED)
    return embed.untyped_storage().data_ptr() == head.untyped_storage().data_ptr()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_drafter(
    folder: str | Path,
    *,
    target: Target | None = None,
    share: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Drafter | Eagle:
    """Read and check a checkpoint folder; in eval mode.

    target: checked against, and lender of embedding and lm_head where the files lack them, or in
    any case with ``share``. dtype: None keeps each tensor's own, so that saving again gives the
    same bytes. ``ValueError`` tells the first defect.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{path}: no such checkpoint folder; give one with config.json in it")
    config = DrafterConfig.read(path)
    if target is not None:
        check_target(config, target, where=str(path))
    with torch.device("meta"):
        drafter = build_drafter(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in drafter.state_dict().items()}
    places = _locate(path)
    lent: dict[str, Tensor] = {}
    if target is not None:
        lend = {SHARED[0]: target.embed_weight, SHARED[1]: target.lm_head_weight}
        lent = {name: weight for name, weight in lend.items() if share or name not in places}
    _check_names(path, wanted=set(wanted) - set(lent), found=set(places) - set(lent))
    tensors = {
        name: _read(places[name], name, shape, str(device))
        for name, shape in wanted.items()
        if name not in lent
    }
    tensors = {name: t if dtype is None else t.to(dtype) for name, t in tensors.items()}
    tensors |= {name: weight.detach().to(device) for name, weight in lent.items()}
    drafter.load_state_dict(tensors, assign=True)
    drafter.embed_tokens.requires_grad_(False)
    drafter.lm_head.requires_grad_(False)
    return drafter.eval()


def _locate(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index of a sharded checkpoint or the one file's header."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        value: Any = read_json(index)
        names = value.get("weight_map") if isinstance(value, dict) else None
        if not isinstance(names, dict):
            raise ValueError(f"{index}: no weight_map; download the checkpoint again")
        return {name: folder / str(file) for name, file in names.items()}
    file = folder / WEIGHTS
    try:
        with safe_open(file, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), file)
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from None


def _check_names(folder: Path, *, wanted: set[str], found: set[str]) -> None:
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing and set(missing) <= set(SHARED):
        raise ValueError(
            f"{folder}: tensor {missing[0]!r} is missing; give the target, whose copy will be used"
        )
    if missing:
        raise ValueError(
            f"{folder}: tensor {missing[0]!r} is missing ({len(missing)} in all); "
            "its config.json promises it, so convert or download the checkpoint again"
        )
    if extra:
        raise ValueError(
            f"{folder}: tensor {extra[0]!r} is unexpected ({len(extra)} in all); "
            "config.json describes another model"
        )


def _read(file: Path, name: str, shape: tuple[int, ...], device: str) -> Tensor:
    try:
        with safe_open(file, framework="pt", device=device) as tensors:
            found = tuple(tensors.get_slice(name).get_shape())
            if found != shape:
                raise ValueError(
                    f"{file}: tensor {name!r} has shape {list(found)}, config.json asks for "
                    f"{list(shape)}; config.json describes another model"
                )
            tensor: Tensor = tensors.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from None
    if not tensor.is_floating_point():
        raise ValueError(
            f"{file}: tensor {name!r} is {tensor.dtype}; quantised drafters do not load"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{file}: tensor {name!r} has NaN or infinite weights; use an earlier checkpoint"
        )
    return tensor


def _unreadable(file: Path, error: Exception) -> ValueError:
    if isinstance(error, FileNotFoundError) or not file.exists():
        return ValueError(f"{file}: no such file; a checkpoint has config.json and {WEIGHTS}")
    if isinstance(error, OSError):
        return os_problem("read", file, error)
    return ValueError(
        f"{file}: not a complete safetensors file ({error}); download or save the checkpoint again"
    )
