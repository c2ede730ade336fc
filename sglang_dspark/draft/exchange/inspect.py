"""Say what a drafter's checkpoint is:

    dspark draft inspect PATH

Owns the command. Which convention, for which target, gamma and heads, what is suspicious, and who
loads it. Reads every tensor once, one at a time. Status 1 where something is suspicious.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sglang_dspark.cli import Parser
from sglang_dspark.draft.exchange.loaders import loaders
from sglang_dspark.draft.exchange.suspicions import (
    Summary,
    of_config,
    of_target,
    of_weights,
    summary,
)
from sglang_dspark.draft.model.checkpoint import SHARED, load_drafter, read_config
from sglang_dspark.draft.model.conventions import CONVENTIONS, convention_of, drafter_folder
from sglang_dspark.draft.model.deepseek_v4.config import BundledConfig
from sglang_dspark.draft.model.deepseek_v4.drafter import is_wide
from sglang_dspark.draft.model.deepseek_v4.names import ENDS
from sglang_dspark.draft.model.recipes import AnyConfig
from sglang_dspark.draft.model.tensors import locate, read_raw
from sglang_dspark.files import read_json

_END_NAMES = {name: ours for names, ours in zip(ENDS, SHARED, strict=True) for name in names}


def target_ends(folder: Path) -> dict[str, Tensor]:
    """The target's embedding and lm_head by the drafter's names; tied ones stand for both."""
    places = locate(folder)
    found = {}
    for name, file in places.items():
        ours = _END_NAMES.get(name.removeprefix("language_model."))
        if ours is not None:
            found[ours] = read_raw(file, name)
    if SHARED[0] in found:
        found.setdefault(SHARED[1], found[SHARED[0]])
    return found


def depth_of(target: Path) -> int | None:
    """Layers of the target in this folder."""
    value = read_json(target / "config.json")
    text = value.get("text_config") or value if isinstance(value, dict) else {}
    layers = text.get("num_hidden_layers")
    return layers if isinstance(layers, int) else None


def own_tensors(drafter: torch.nn.Module) -> Iterator[Summary]:
    """Every tensor's summary, ends excluded."""
    for name, tensor in drafter.state_dict().items():
        if name not in SHARED and tensor.is_floating_point():
            yield summary(name, tensor)


def describe(config: AnyConfig, convention: str, own: list[Summary]) -> dict[str, Any]:
    """What it is, in the order in which it is told."""
    parameters = sum(int(torch.Size(one.shape).numel()) for one in own)
    big = [one for one in own if len(one.shape) > 1 and not is_wide(one.name)]
    kinds = sorted({str(one.dtype).removeprefix("torch.") for one in big})
    heads = f"Markov {config.head}" + (f" of rank {config.markov_rank}" * (config.markov_rank > 0))
    confidence = "confidence" if config.confident else "no confidence"
    return {
        "convention": CONVENTIONS[convention],
        "architecture": config.architecture,
        "for": f"{' or '.join(config.target_types)} of {config.num_target_layers} layers, hidden "
        f"{config.hidden_size}, vocabulary {config.vocab_size}",
        "gamma": config.gamma,
        "block_size": config.block_size,
        "layers": config.num_hidden_layers,
        "captured": list(config.target_layer_ids),
        "heads": f"{heads}, {confidence}",
        "mask_token_id": config.mask_token_id,
        "parameters": parameters,
        "dtype": " and ".join(kinds),
    }


def inspected(
    path: str | Path, *, target: str | Path | None = None, block_size: int | None = None
) -> dict[str, Any]:
    """Everything that the command tells, as plain JSON."""
    folder = drafter_folder(path)
    value = read_json(folder / "config.json")
    convention = convention_of(value, where=str(folder / "config.json"))
    theirs = Path(target) if target is not None else None
    layers = None if theirs is None else depth_of(theirs)
    if layers is None:
        layers = _told_depth(value)
    config = read_config(folder, target_layers=layers)
    places = locate(folder)
    mine = {_END_NAMES[n]: (n, file) for n, file in places.items() if n in _END_NAMES}
    bundle = isinstance(config, BundledConfig) and any(n.startswith("layers.") for n in places)
    ends = target_ends(theirs) if theirs is not None else {}
    drafter = _loaded(folder, config, layers, ends)
    own = list(own_tensors(drafter))
    says = of_weights(own, config)
    special = read_json(theirs / "config.json") if theirs is not None else None
    says += of_config(config, block_size=block_size, special=special)
    if theirs is not None and not bundle:
        copies = {ours: read_raw(file, name) for ours, (name, file) in mine.items()}
        says += of_target(copies, ends)
    if any(name.endswith(".scale") for name in places):
        says.append("it is quantised: it is made plain on reading and cannot be trained in place")
    about = describe(config, convention, own)
    about["folder"] = str(folder)
    about["bundled_with_target"] = bundle
    about["suspicious"] = says
    about["loaders"] = [
        {"name": one.name, "loads": one.loads, "why": one.why}
        for one in loaders(config, convention, has_ends=len(mine) == len(SHARED))
    ]
    return about


def _told_depth(value: Any) -> int | None:
    """For a file that does not tell its target's depth: the least that its layers allow."""
    ids = value.get("aux_hidden_state_layer_ids") if isinstance(value, dict) else None
    if isinstance(ids, list) and ids and all(isinstance(i, int) for i in ids):
        return max(ids) + 1
    nested = value.get("dflash_config") if isinstance(value, dict) else None
    ids = nested.get("target_layer_ids") if isinstance(nested, dict) else None
    if ids is None and isinstance(value, dict):
        ids = value.get("target_layer_ids")
    if isinstance(ids, list) and ids and all(isinstance(i, int) for i in ids):
        return max(ids) + 2
    return None


def _loaded(
    folder: Path, config: AnyConfig, layers: int | None, ends: dict[str, Tensor]
) -> torch.nn.Module:
    """The drafter, its missing ends stood in for: they are not looked at."""
    places = locate(folder)
    lent = {}
    for names, ours in zip(ENDS, SHARED, strict=True):
        if not any(name in places for name in names):
            shape = (config.vocab_size, config.hidden_size)
            # One number seen as a matrix, where there is no target to lend its own.
            lent[ours] = ends.get(ours, torch.zeros(()).expand(shape))
    return load_drafter(folder, target_layers=layers, lent=lent)


def told(about: dict[str, Any]) -> str:
    """The report."""
    lines = [f"{about['folder']}"]
    for key in ("convention", "architecture", "for", "heads"):
        lines.append(f"  {key:<12} {about[key]}")
    lines.append(
        f"  {'shape':<12} gamma {about['gamma']} (block_size {about['block_size']}), "
        f"{about['layers']} layers, captures {about['captured']}, mask {about['mask_token_id']}"
    )
    lines.append(f"  {'weights':<12} {about['parameters']:,} of its own, {about['dtype']}")
    lines.append("loads in")
    for one in about["loaders"]:
        lines.append(f"  {'yes' if one['loads'] else 'no ':<4} {one['name']}: {one['why']}")
    if about["suspicious"]:
        lines.append("suspicious")
        lines += [f"  - {one}" for one in about["suspicious"]]
    else:
        lines.append("nothing suspicious")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(
        description="Say what a drafter's checkpoint is: its convention, its target, gamma and "
        "heads, what is suspicious about it, and who loads it. Status 1 where something is.",
        examples=["run/step_1000 --target TARGET", "DeepSeek-V4-Flash-DSpark --json"],
        page="docs/drafters.md",
    )
    parser.add_argument("path", help="checkpoint folder, or a target's with its drafter in it")
    parser.add_argument("--target", help="folder of its target, to compare with")
    parser.add_argument("--block-size", type=int, help="the flag that a server is started with")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    given = parser.parse_args(arguments)
    if given.block_size is not None and given.block_size < 1:
        raise ValueError(f"--block-size {given.block_size}: give 1 or more")
    about = inspected(given.path, target=given.target, block_size=given.block_size)
    print(json.dumps(about, indent=1) if given.json else told(about))
    return 1 if about["suspicious"] else 0
