"""Reading and writing a bundled drafter: inside its target's checkpoint, or a folder of its own.

Owns what makes the ``mtp.*`` tensors acceptable, and the two layouts: a folder of its own has the
target's config.json with the ``dspark_*`` keys and one file of tensors, which SGLang takes as a
draft model's path; a bundle is the target's folder with the drafter in it. Quantised tensors are
made plain one by one as they are read. Knows no training state.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sglang_dspark.draft.model.deepseek_v4.config import KEYS, BundledConfig
from sglang_dspark.draft.model.deepseek_v4.drafter import BundledDrafter, is_wide
from sglang_dspark.draft.model.deepseek_v4.names import (
    PREFIX,
    Layout,
    default_layout,
    layout_of,
    plain_names,
    routing_in,
    stacks,
    stages_in,
)
from sglang_dspark.draft.model.deepseek_v4.quantised import is_quantised, plain
from sglang_dspark.draft.model.tensors import (
    WEIGHTS,
    check_finite,
    check_names,
    check_shape,
    locate,
    names_in,
    read_raw,
    write_folder,
    write_weights,
)
from sglang_dspark.files import read_json

OURS = ("embed_tokens.weight", "lm_head.weight")
"""The two ends' parameters."""
DRAFTER_FILE, TARGET_FILE = "model-dspark.safetensors", "model-target.safetensors"
"""Of a bundle: the drafter's tensors, and a target that was one file."""


class _Reader:
    """The drafter's tensors in a folder, each read once, plain and checked."""

    def __init__(self, places: Mapping[str, Path], *, dtype: torch.dtype | None, device: str):
        self.places, self.dtype, self.device = places, dtype, device
        self.seen: set[str] = set()

    def read(self, name: str, shape: tuple[int, ...], *, keep: bool = False) -> Tensor:
        """The tensor in the wanted shape; ``keep``: not narrowed to half precision."""
        file = self.places[name]
        tensor = read_raw(file, name, self.device)
        self.seen.add(name)
        where = f"{file}: tensor {name!r}"
        if name.endswith("tid2eid"):
            return self._table(tensor, shape, file, name)
        scale = name.removesuffix("weight") + "scale"
        if is_quantised(tensor):
            if not name.endswith(".weight") or scale not in self.places:
                raise ValueError(
                    f"{where} is {tensor.dtype} without a .scale; download the checkpoint again"
                )
            factors = read_raw(self.places[scale], scale, self.device)
            self.seen.add(scale)
            tensor = plain(tensor, factors, dtype=self.dtype or torch.float32, where=where)
        elif name.endswith(".weight") and scale in self.places:
            raise ValueError(f"{where} is {tensor.dtype} and has a .scale; which of them is right?")
        if not tensor.is_floating_point():
            raise ValueError(f"{where} is {tensor.dtype}; weights are floating-point numbers")
        check_shape(file, name, tuple(tensor.shape), shape)
        check_finite(file, name, tensor)
        if self.dtype is None or (keep and self.dtype.itemsize < 4):
            return tensor
        return tensor.to(self.dtype)

    def _table(self, table: Tensor, shape: tuple[int, ...], file: Path, name: str) -> Tensor:
        check_shape(file, name, tuple(table.shape), shape)
        if table.is_floating_point() or table.dtype == torch.bool:
            raise ValueError(f"{file}: tensor {name!r} is {table.dtype}; experts are whole numbers")
        return table

    def unread(self, names: set[str]) -> set[str]:
        """Of these, the ones that nobody asked for."""
        return names - self.seen


def read_bundled_config(folder: Path) -> tuple[BundledConfig, dict[str, Path]]:
    """(config with the stages' routing, places of all tensors) of a folder, both checked."""
    where = str(folder / "config.json")
    value = read_json(folder / "config.json")
    places = locate(folder)
    stages = stages_in(set(places), where=str(folder))
    config = BundledConfig.from_dict(value, where=where, routing=_routing(value, set(places)))
    if not stages:
        raise ValueError(
            f"{folder}: has {KEYS['block_size']} but no mtp.* tensors; download the checkpoint "
            "with its drafter"
        )
    if stages != list(range(config.stages)):
        raise ValueError(
            f"{folder}: has stages {stages}, but {KEYS['target_layer_ids']} "
            f"{list(config.target_layer_ids)} asks for {config.stages}, one a captured layer"
        )
    return config, places


def _routing(value: Any, names: set[str]) -> tuple[str, ...]:
    ids = value.get(KEYS["target_layer_ids"]) if isinstance(value, dict) else None
    return routing_in(names, len(ids)) if isinstance(ids, list) else ()


def load_bundled(
    folder: str | Path,
    *,
    ends: tuple[Tensor, Tensor] | None = None,
    share: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> BundledDrafter:
    """Read and check a bundled drafter; in eval mode.

    ends: the target's embedding and lm_head, used where the files lack them, or in any case with
    ``share``. dtype: None keeps each tensor's own, or is bfloat16 where some are quantised; the
    matrices' widest goes for all of them. Norms, sinks and hyper-connections keep float32.
    """
    path = Path(folder)
    config, places = read_bundled_config(path)
    layout = layout_of(set(places), config, where=str(path))
    with torch.device("meta"):
        drafter = BundledDrafter(config.plain())
    shapes = {name: tuple(tensor.shape) for name, tensor in drafter.state_dict().items()}
    names = plain_names(config, layout)
    _check_promised(path, config, layout, set(places))
    if dtype is None and any(n.startswith(PREFIX) and n.endswith(".scale") for n in places):
        dtype = torch.bfloat16
    reader = _Reader(places, dtype=dtype, device=str(device))
    tensors: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        tensors[ours] = reader.read(theirs, shapes[ours], keep=is_wide(ours))
    for stack in stacks(config):
        rows, columns = shapes[stack.parameter][1:]
        tensors[stack.parameter] = _stacked(reader, stack.parts, rows, columns)
    for theirs, ours, lent in zip(layout.ends, OURS, ends or (None, None), strict=True):
        if lent is not None and (share or theirs not in places):
            tensors[ours] = lent.detach().to(device)
            continue
        check_names(path, wanted={theirs}, found={theirs} & set(places), lent={theirs})
        tensors[ours] = reader.read(theirs, shapes[ours])
    stray = reader.unread({name for name in places if name.startswith(PREFIX)})
    check_names(path, wanted=set(), found=stray, lent=set())
    _check_tables(path, config, tensors)
    drafter.load_state_dict(_widened(tensors), assign=True)
    drafter.embed_tokens.requires_grad_(False)
    drafter.lm_head.requires_grad_(False)
    drafter.layout = layout
    return drafter.eval()


def _stacked(
    reader: _Reader, parts: tuple[tuple[str, ...], ...], rows: int, columns: int
) -> Tensor:
    """One expert at a time into a stack, so that no more than one is held twice."""
    stack: Tensor | None = None
    for number, names in enumerate(parts):
        matrices = [reader.read(name, (rows // len(names), columns)) for name in names]
        expert = torch.cat(matrices) if len(matrices) > 1 else matrices[0]
        if stack is None:
            stack = expert.new_empty(len(parts), rows, columns)
        elif expert.dtype != stack.dtype:
            raise ValueError(
                f"{reader.places[names[0]]}: tensor {names[0]!r} is {expert.dtype}, experts before "
                f"it {stack.dtype}; save them alike"
            )
        stack[number] = expert
    assert stack is not None
    return stack


def _check_promised(path: Path, config: BundledConfig, layout: Layout, found: set[str]) -> None:
    """``ValueError`` for a tensor that config.json promises and the folder lacks."""
    wanted = set(plain_names(config, layout))
    wanted |= {name for stack in stacks(config) for names in stack.parts for name in names}
    check_names(path, wanted=wanted, found=found & wanted, lent=set())


def _check_tables(path: Path, config: BundledConfig, tensors: Mapping[str, Tensor]) -> None:
    experts, _ = config.experts
    for name, tensor in tensors.items():
        if name.endswith("tid2eid") and not (0 <= int(tensor.min()) <= int(tensor.max()) < experts):
            raise ValueError(
                f"{path}: {name} routes to expert {int(tensor.max())} of {experts}; "
                "config.json describes another model"
            )


def _is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether activations in the drafter's own dtype are multiplied with it."""
    inside = name.startswith(("layers.", "main_proj")) and not is_wide(name)
    return inside and tensor.is_floating_point() and tensor.ndim > 1


def _widened(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stages' matrices in one dtype: the widest among them."""
    kinds = {tensor.dtype for name, tensor in tensors.items() if _is_matrix(name, tensor)}
    widest = max(kinds, key=lambda kind: (kind.itemsize, kind == torch.bfloat16))
    return {n: t.to(widest) if _is_matrix(n, t) else t for n, t in tensors.items()}


# Writing.


def bundled_tensors(drafter: BundledDrafter, *, ends: bool) -> dict[str, Tensor]:
    """The drafter's tensors under the checkpoint's names; ``ends``: embedding and lm_head too."""
    layout = drafter.layout or default_layout(drafter.config)
    state = {name: tensor.detach().cpu() for name, tensor in drafter.state_dict().items()}
    tensors = {
        theirs: state[ours].contiguous()
        for theirs, ours in plain_names(drafter.config, layout).items()
    }
    for stack in stacks(drafter.config):
        for expert, names in zip(state[stack.parameter], stack.parts, strict=True):
            for name, matrix in zip(names, expert.chunk(len(names)), strict=True):
                tensors[name] = matrix.clone()
    if ends:
        tensors |= {
            theirs: state[ours].clone() for theirs, ours in zip(layout.ends, OURS, strict=True)
        }
    return tensors


def save_alone(drafter: BundledDrafter, folder: str | Path, *, include_shared: bool = True) -> None:
    """A folder of its own; it replaces one of that name and is never seen half-written."""

    def fill(temporary: Path) -> None:
        drafter.config.write(temporary)
        write_weights(temporary / WEIGHTS, bundled_tensors(drafter, ends=include_shared))

    write_folder(folder, fill)


def save_bundle(drafter: BundledDrafter, target: str | Path, folder: str | Path) -> None:
    """The target's checkpoint with this drafter in it, in place of one that it may have had.

    Files that stay as they are become hard links where the disk allows it, else copies.
    """
    source, goal = Path(target), Path(folder)
    if goal.exists() and goal.resolve() == source.resolve():
        raise ValueError(f"{goal}: is the target itself; give another folder for the bundle")
    quantised = read_json(source / "config.json").get("quantization_config")
    if quantised is not None:
        kind = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ValueError(
            f"{source}: is quantised ({kind}), and a server would take the drafter's plain weights "
            "for quantised ones; save the drafter as a folder of its own"
        )
    places = locate(source)
    kept: dict[str, str] = {}
    sizes = 0

    def fill(temporary: Path) -> None:
        nonlocal sizes
        weights = {file.name for file in places.values()}
        for entry in sorted(source.iterdir()):
            if entry.name in weights or entry.name in ("config.json", f"{WEIGHTS}.index.json"):
                continue
            _take(entry, temporary / entry.name)
        for file in sorted(set(places.values())):
            name = TARGET_FILE if file.name in (WEIGHTS, DRAFTER_FILE) else file.name
            mine = [n for n in names_in(file) if not n.startswith(PREFIX)]
            if not mine:
                continue
            if len(mine) == len(names_in(file)):
                _take(file, temporary / name)
            else:
                write_weights(temporary / name, {n: read_raw(file, n) for n in mine})
            kept.update(dict.fromkeys(mine, name))
        tensors = bundled_tensors(drafter, ends=False)
        write_weights(temporary / DRAFTER_FILE, tensors)
        kept.update(dict.fromkeys(tensors, DRAFTER_FILE))
        sizes = sum((temporary / name).stat().st_size for name in set(kept.values()))
        index = {"metadata": {"total_size": sizes}, "weight_map": dict(sorted(kept.items()))}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (temporary / f"{WEIGHTS}.index.json").write_text(text, encoding="utf-8")
        _bundle_config(source, drafter.config).write(temporary)

    write_folder(goal, fill)


def _bundle_config(source: Path, config: BundledConfig) -> BundledConfig:
    """The target's keys as they stand in its folder, with the drafter's."""
    value = read_json(source / "config.json")
    theirs = {k: v for k, v in value.items() if k not in KEYS.values()}
    mine = {k: v for k, v in config.to_dict().items() if k in KEYS.values()}
    return BundledConfig.from_dict(
        theirs | mine, where=str(source / "config.json"), routing=config.routing
    )


def _take(entry: Path, goal: Path) -> None:
    """A hard link where that works, else a copy; folders with all that is in them."""

    def link(source: str, to: str) -> None:
        try:
            os.link(os.path.realpath(source), to)
        except OSError:
            shutil.copy2(source, to)

    if entry.is_dir():
        shutil.copytree(entry, goal, copy_function=link)
    else:
        link(str(entry), str(goal))
