"""Cost models by name or by file, SGLang's own tables among them.

Owns where the shipped ones are, what tells one kind of file from another, and what is refused or
said of a file as a whole. What is in one is ``model``'s.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from sglang_dspark.core.costs.bounds import MOST_STEP_S, refuse_outside
from sglang_dspark.core.costs.model import CostModel, decode_cost_model, from_sglang
from sglang_dspark.core.costs.sglang_files import decode_sglang_table, is_sglang_table
from sglang_dspark.core.costs.sglang_prices import falling
from sglang_dspark.files import did_you_mean, read_json

SHIPPED = Path(__file__).parents[2] / "cost_models"


def _refuse_unphysical(model: CostModel, path: Path) -> None:
    """``ValueError`` for times that no server takes, milliseconds for instance."""
    if model.table is not None:
        probes = zip(model.table.tokens, model.table.seconds, strict=True)
        for tokens, seconds in probes:
            refuse_outside(seconds, what=f"{path}: table: {seconds:g} at {tokens} tokens")
    if model.additive is not None:
        part = model.additive
        for end in (0, -1):
            seconds = part.bias_s + part.alpha_s[end] + part.theta_s[end]
            refuse_outside(
                seconds,
                what=f"{path}: additive: bias_s {part.bias_s:g}, alpha_s {part.alpha_s[end]:g} and "
                f"theta_s {part.theta_s[end]:g}",
            )
    lone = {
        "draft: seconds": model.draft.seconds[-1] if model.draft else 0.0,
        "host: step_s": model.host.step_s if model.host else 0.0,
        "overlapped: step_s": model.overlapped.step_s if model.overlapped else 0.0,
        "ragged: floor_s": model.ragged.floor_s if model.ragged else 0.0,
        "ragged: step_s": model.ragged.step_s if model.ragged else 0.0,
        "adaptive: step_s": model.adaptive.step_s if model.adaptive else 0.0,
    }
    for name, seconds in lone.items():
        if seconds > MOST_STEP_S:
            refuse_outside(seconds, what=f"{path}: {name} {seconds:g}")


def shipped_cost_models() -> list[str]:
    """Names of the cost models that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def describe_shipped() -> list[dict[str, Any]]:
    """A row on each shipped cost model, for ``dspark list``."""
    models = [load_cost_model(name) for name in shipped_cost_models()]
    return [
        {
            "name": model.name,
            "origin": model.provenance.origin,
            "model": model.provenance.model,
            "hardware": model.provenance.hardware,
            "acceptance": model.acceptance or "none of its own",
        }
        for model in models
    ]


def load_cost_model(name_or_path: str | Path) -> CostModel:
    """A shipped cost model by name, or any by its file's path, SGLang's own tables among them.

    A file is told by its content. ``ValueError`` naming the shipped ones when there is neither, or
    saying what is wrong with the file; a warning where SGLang's table falls as steps grow.
    """
    text = str(name_or_path)
    names = shipped_cost_models()
    if text in names:
        path = SHIPPED / f"{text}.json"
    elif Path(text).suffix == ".json" or Path(text).exists():
        path = Path(text)
    else:
        alike = [name for name in names if text and name.startswith(text)]
        hint = f"those that begin so: {', '.join(alike)}; " if alike else did_you_mean(text, names)
        raise ValueError(
            f"no cost model {text!r}; {hint}dspark list cost-models shows "
            "those that ship; or give a .json file"
        )
    value = read_json(path)
    # Results call a user's file what the user calls it.
    if is_sglang_table(value):
        return _load_sglang(value, path)
    if isinstance(value, dict) and "temperatures" in value:
        raise ValueError(
            f"{path}: holds a calibration and no prices; name it as 'calibration' in a policy file"
        )
    model = dataclasses.replace(decode_cost_model(value, where=str(path)), name=path.stem)
    _refuse_unphysical(model, path)
    return model


def _load_sglang(value: Any, path: Path) -> CostModel:
    table = decode_sglang_table(value, where=str(path))
    try:
        model = from_sglang(table, name=path.stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    drop = falling(table)
    if drop:
        warnings.warn(
            f"{path}: {drop}: such steps are priced like the slower one before them, while policy "
            f"sglang decides by the file as it is, like SGLang; if that is noise, measure again, "
            f"or give SGLang what dspark prices export {path} --to "
            f"{'sglang-sps' if model.sglang_sps else 'sglang-additive'} writes, which only rises",
            stacklevel=3,
        )
    return model
