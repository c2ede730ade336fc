"""The conventions that drafters' config.json files come in, read as one, and written back.

Owns which convention a file is of, and its translation to DeepSpec's flat keys; a file of two minds
is refused. Knows no tensors beyond the names that betray a reduced vocabulary. Sources:

- DeepSpec: flat keys, ``Qwen3DSparkModel`` and the like; slot k predicts the token after it.
- SGLang (``dflash_utils``, ``dspark_config``): ``DSparkDraftModel``, some keys in ``dflash_config``
  or ``dspark_config``, of which the second wins.
- speculators (vLLM's ``configs/speculators``): the layers' shape in ``transformer_layer_config``,
  captured layers counted from 1 in ``aux_hidden_state_layer_ids``.
- z-lab's DFlash: ``DFlashDraftModel``, ``sample_from_anchor`` false: slot k predicts its own token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_dspark.draft.model.config import FAMILIES, DrafterConfig, Family
from sglang_dspark.draft.model.deepseek_v4.config import is_bundled
from sglang_dspark.files import read_json

DEEPSPEC, GENERIC, SPECULATORS, DFLASH, BUNDLED = (
    "deepspec",
    "generic",
    "speculators",
    "dflash",
    "bundled",
)
CONVENTIONS = {
    DEEPSPEC: "DeepSpec: flat keys",
    GENERIC: "SGLang: DSparkDraftModel, keys in dflash_config",
    SPECULATORS: "speculators: keys in transformer_layer_config",
    DFLASH: "DFlash: no heads, slot 0 is the anchor itself",
    BUNDLED: "DeepSeek-V4: dspark_* keys in the target's own config",
}
SUBFOLDER = "dspark"
"""Where a target's folder may keep its drafter."""

_GENERIC_NAMES = ("DSparkDraftModel", "DSparkSpeculator")
_DFLASH_NAMES = ("DFlashDraftModel", "DFlashSpeculator")
_OTHERS = {
    "DSparkMiniMaxDraftModel": "for MiniMax targets",
    "LingDSparkModel": "for Ling targets",
    "K3DSparkModel": "for Kimi targets",
}
_NESTED = ("dflash_config", "dspark_config")
_NESTED_KEYS = (
    "block_size",
    "mask_token_id",
    "target_layer_ids",
    "num_target_layers",
    "markov_rank",
    "markov_head_type",
    "enable_confidence_head",
    "confidence_head_with_markov",
    "sample_from_anchor",
)
"""What may stand in a nested block; anything else there changes the model and is refused."""
_NESTED_NOTES = ("mask_token", "draft_arch", "source_speculators_model_type")
"""Said by some, read by none."""
_SPECULATORS_KEYS = (
    "speculators_model_type",
    "speculators_config",
    "speculators_version",
    "transformer_layer_config",
    "aux_hidden_state_layer_ids",
    "draft_vocab_size",
    "target_hidden_size",
    "use_aux_hidden_state",
    "max_anchors",
    "sliding_window_non_causal",
)

_DRAFTERS_OWN = (
    "markov_rank",
    "markov_head_type",
    "enable_confidence_head",
    "confidence_head_with_markov",
    "block_size",
    "mask_token_id",
    "num_anchors",
)
"""What speculators keeps beside the layers' shape."""


@dataclass(frozen=True, kw_only=True)
class Flat:
    """A config of any dense convention, in DeepSpec's keys."""

    convention: str
    """Of ``CONVENTIONS``."""
    value: dict[str, Any]
    """The flat object; ``num_target_layers`` may be missing."""


def convention_of(value: Any, *, where: str) -> str:
    """Which of ``CONVENTIONS`` a config.json's object follows; ``ValueError`` if none."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: a config is a JSON object, not {type(value).__name__}")
    if is_bundled(value):
        return BUNDLED
    kind = value.get("speculators_model_type")
    if kind is not None:
        if kind not in ("dspark", "dflash"):
            raise ValueError(f"{where}: speculators_model_type {kind!r} is no DSpark drafter")
        return SPECULATORS
    names = value.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name in FAMILIES:
        return DEEPSPEC
    if name in _GENERIC_NAMES:
        return GENERIC
    if name in _DFLASH_NAMES:
        return DFLASH
    if name in _OTHERS:
        raise ValueError(f"{where}: {name} is {_OTHERS[name]}, which are not supported")
    if isinstance(name, str) and name.endswith(("ForCausalLM", "ForConditionalGeneration")):
        raise ValueError(
            f"{where}: {name} is a target without a drafter in it (no dspark_* keys, no "
            f"{SUBFOLDER}/); give the drafter's folder"
        )
    known = (*FAMILIES, *_GENERIC_NAMES, *_DFLASH_NAMES)
    raise ValueError(
        f"{where}: architectures is {names!r}; its first must be one of {', '.join(known)}"
    )


def drafter_folder(path: str | Path) -> Path:
    """The folder itself, or the ``dspark/`` in a target's folder."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such checkpoint folder; give one with config.json in it")
    inner = folder / SUBFOLDER
    if (inner / "config.json").is_file():
        value = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        try:
            convention_of(value, where=str(folder))
        except ValueError:
            return inner
        raise ValueError(
            f"{folder}: is a drafter and has another in {SUBFOLDER}/; give the folder of one"
        )
    return folder


def flat_config(value: Mapping[str, Any], *, where: str) -> Flat:
    """Any dense convention in DeepSpec's keys; ``ValueError`` for two minds about one of them."""
    convention = convention_of(value, where=where)
    if convention == BUNDLED:
        raise ValueError(f"{where}: a bundled drafter has no flat config")
    flat = dict(value)
    if convention == SPECULATORS:
        flat = _from_speculators(flat, where)
    _unnest(flat, where)
    if convention in (GENERIC, SPECULATORS, DFLASH):
        flat["architectures"] = [_family(flat, where).architecture]
        _fill(flat)
    if flat.get("sample_from_anchor") is None:
        flat.pop("sample_from_anchor", None)
        if convention == DFLASH or value.get("speculators_model_type") == "dflash":
            flat["sample_from_anchor"] = False
    return Flat(convention=convention, value=flat)


def _family(flat: Mapping[str, Any], where: str) -> Family:
    kind = flat.get("model_type")
    for family in FAMILIES.values():
        if kind in family.layer_types and not family.autoregressive:
            return family
    known = ", ".join(t for f in FAMILIES.values() if not f.autoregressive for t in f.layer_types)
    name = flat.get("architectures", ["a drafter"])[0]
    raise ValueError(f"{where}: {name} of model_type {kind!r} is unknown; known: {known}")


def _from_speculators(value: dict[str, Any], where: str) -> dict[str, Any]:
    """The layers' shape and the drafter's keys side by side; layers counted from 0."""
    shape = value.get("transformer_layer_config")
    if not isinstance(shape, dict):
        raise ValueError(f"{where}: transformer_layer_config is missing; save it with speculators")
    if "hidden_size" not in shape or "num_hidden_layers" not in shape:
        raise ValueError(
            f"{where}: transformer_layer_config is cut short (it has {', '.join(shape)}); "
            "write it in full"
        )
    ids = value.get("aux_hidden_state_layer_ids")
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise ValueError(f"{where}: aux_hidden_state_layer_ids is {ids!r}; give a list of layers")
    vocabulary, reduced = shape.get("vocab_size"), value.get("draft_vocab_size")
    if reduced is not None and reduced != vocabulary:
        raise ValueError(
            f"{where}: draft_vocab_size {reduced} of {vocabulary}: drafters of a reduced "
            "vocabulary are not supported"
        )
    wide = value.get("target_hidden_size")
    if wide is not None and wide != shape["hidden_size"]:
        raise ValueError(
            f"{where}: target_hidden_size {wide} and hidden_size {shape['hidden_size']}: drafters "
            "of another width than their target's are not supported"
        )
    flat = {**shape, **{k: v for k, v in value.items() if k not in _SPECULATORS_KEYS}}
    flat["target_layer_ids"] = [i - 1 for i in ids]
    return flat


def _unnest(flat: dict[str, Any], where: str) -> None:
    """Move what ``dflash_config`` and ``dspark_config`` hold to the top; the second wins."""
    nested: dict[str, Any] = {}
    for block in _NESTED:
        inner = flat.pop(block, None)
        if inner is None:
            continue
        if not isinstance(inner, dict):
            raise ValueError(f"{where}: {block} is {inner!r}; it must be an object")
        for key, entry in inner.items():
            if key in _NESTED_NOTES:
                continue
            if key not in _NESTED_KEYS:
                raise ValueError(
                    f"{where}: {block}.{key} is not supported; known: {', '.join(_NESTED_KEYS)}"
                )
            nested[key] = entry
    for key, entry in nested.items():
        mine = flat.get(key)
        if mine is not None and mine != entry:
            raise ValueError(
                f"{where}: {key} is {mine!r}, but {entry!r} in a nested block; make them agree"
            )
        flat[key] = entry


def _fill(flat: dict[str, Any]) -> None:
    """What these conventions leave out because their loaders have a default for it."""
    flat.setdefault("num_anchors", DrafterConfig.num_anchors)
    flat.setdefault("markov_rank", 0)
    flat.setdefault("enable_confidence_head", False)
    if flat["markov_rank"]:
        flat.setdefault("markov_head_type", "vanilla")
    if flat["enable_confidence_head"]:
        flat.setdefault("confidence_head_with_markov", flat["markov_rank"] > 0)
    if "head_dim" not in flat and isinstance(flat.get("num_attention_heads"), int):
        flat["head_dim"] = flat.get("hidden_size", 0) // max(1, flat["num_attention_heads"])


def read_dense_config(
    value: Mapping[str, Any], *, where: str, target_layers: int | None = None
) -> DrafterConfig:
    """A dense drafter's config of any convention. ``target_layers``: for files that do not say."""
    flat = flat_config(value, where=where).value
    if flat.get("num_target_layers") is None:
        if target_layers is None:
            raise ValueError(
                f"{where}: does not say how many layers its target has; give the target"
            )
        flat["num_target_layers"] = target_layers
    return DrafterConfig.from_dict(flat, where=where)


# Writing.


def written(config: DrafterConfig, convention: str) -> dict[str, Any]:
    """config.json's object in a convention; ``ValueError`` where it cannot say what this is."""
    flat = config.to_dict()
    if convention == DEEPSPEC:
        if not config.sample_from_anchor:
            raise ValueError(
                "DeepSpec's drafters predict from the anchor's slot, this one does not "
                "(sample_from_anchor false); write it as generic or speculators"
            )
        return flat
    if config.family.autoregressive or config.family.sandwich:
        raise ValueError(f"{config.architecture} has no {convention} convention; use deepspec")
    if convention == GENERIC:
        flat["architectures"] = [_GENERIC_NAMES[0]]
        keys = ("block_size", "mask_token_id", "target_layer_ids")
        flat["dflash_config"] = {key: flat.pop(key) for key in keys}
        flat["block_size"] = config.block_size
        return flat
    if convention == SPECULATORS:
        return _to_speculators(config, flat)
    raise ValueError(f"cannot write a dense drafter as {convention}")


def _to_speculators(config: DrafterConfig, flat: dict[str, Any]) -> dict[str, Any]:
    if config.head not in ("vanilla", "none"):
        raise ValueError(f"speculators' Markov head is vanilla, this one is {config.head}")
    value: dict[str, Any] = {key: flat.pop(key) for key in _DRAFTERS_OWN if key in flat}
    flat.pop("target_layer_ids")
    flat.pop("architectures")
    # Not speculators' key, but without it nobody can tell how deep the target was.
    value["num_target_layers"] = flat.pop("num_target_layers")
    value["sample_from_anchor"] = config.sample_from_anchor
    flat.pop("sample_from_anchor", None)
    return {
        "architectures": [_GENERIC_NAMES[0]],
        "speculators_model_type": "dspark",
        "aux_hidden_state_layer_ids": [i + 1 for i in config.target_layer_ids],
        "draft_vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
        "transformer_layer_config": flat,
        "speculators_config": {
            "algorithm": "dspark",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {"proposal_type": "greedy", "speculative_tokens": config.gamma},
            ],
            "verifier": {"architectures": [], "name_or_path": None},
        },
        **value,
    }
