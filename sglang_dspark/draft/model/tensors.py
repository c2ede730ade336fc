"""Checkpoint folders: where each tensor is, reading one, and a folder that appears whole.

Owns safetensors and the rename. Knows no model: what a folder must hold is its reader's. Every
refusal is one sentence that names the file and the remedy.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sglang_dspark.files import make_folder, os_problem, read_json

WEIGHTS = "model.safetensors"


def locate(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index of a sharded checkpoint or the one file's header."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        value: Any = read_json(index)
        names = value.get("weight_map") if isinstance(value, dict) else None
        if not isinstance(names, dict):
            raise ValueError(f"{index}: no weight_map; download the checkpoint again")
        return {name: folder / str(file) for name, file in names.items()}
    return dict.fromkeys(names_in(folder / WEIGHTS), folder / WEIGHTS)


def names_in(file: Path) -> list[str]:
    """The tensors of one file, from its header."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise unreadable(file, error) from None


def read_raw(file: Path, name: str, device: str = "cpu") -> Tensor:
    """A tensor as it is stored."""
    try:
        with safe_open(file, framework="pt", device=device) as tensors:
            tensor: Tensor = tensors.get_tensor(name)
            return tensor
    except (OSError, SafetensorError) as error:
        raise unreadable(file, error) from None


def shape_of(file: Path, name: str) -> tuple[int, ...]:
    """A tensor's shape, from the header."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return tuple(tensors.get_slice(name).get_shape())
    except (OSError, SafetensorError) as error:
        raise unreadable(file, error) from None


def check_shape(file: Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """``ValueError`` unless they are equal."""
    if found != wanted:
        raise ValueError(
            f"{file}: tensor {name!r} has shape {list(found)}, config.json asks for "
            f"{list(wanted)}; config.json describes another model"
        )


def check_finite(file: Path, name: str, tensor: Tensor) -> None:
    """``ValueError`` for NaN or infinity."""
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{file}: tensor {name!r} has NaN or infinite weights; use an earlier checkpoint"
        )


def check_names(folder: Path, *, wanted: set[str], found: set[str], lent: set[str]) -> None:
    """``ValueError`` for a tensor too many or too few; ``lent``: what a target would lend."""
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing and set(missing) <= lent:
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


def write_weights(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file, flushed to disk."""
    # The metadata is transformers': with it both write the same bytes.
    save_file(dict(tensors), file, metadata={"format": "pt"})
    _flush(file)


def write_folder(folder: str | Path, fill: Callable[[Path], None]) -> None:
    """A folder that ``fill`` fills; it replaces one of that name and is never half-written."""
    goal = Path(folder)
    make_folder(goal.parent)
    temporary = goal.with_name(f".{goal.name}.tmp-{os.getpid()}")
    old = goal.with_name(f".{goal.name}.old-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        fill(temporary)
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


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unreadable(file: Path, error: Exception) -> ValueError:
    """The sentence for a file that is missing, forbidden or no safetensors file."""
    if isinstance(error, FileNotFoundError) or not file.exists():
        return ValueError(f"{file}: no such file; a checkpoint has config.json and {WEIGHTS}")
    if isinstance(error, OSError):
        return os_problem("read", file, error)
    return ValueError(
        f"{file}: not a complete safetensors file ({error}); download or save the checkpoint again"
    )
