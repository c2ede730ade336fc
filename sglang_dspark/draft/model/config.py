"""A drafter's configuration and its strict translation from and to ``config.json``.

Owns which keys there are, what values they may have, and the few traits in which target families
differ. Knows no tensors. The file is DeepSpec's: a copy of the target's text config, keys
flattened over it; keys that the drafter does not read are kept and written back verbatim, so that
any loader of the target's config still finds what it expects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sglang_dspark.draft.model.config_file import ConfigFile
from sglang_dspark.files import decode_record, read_json

HEADS = ("vanilla", "gated", "rnn")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
STATIC_ROPE = ("default", "linear", "proportional", "yarn", "llama3")
"""RoPE kinds whose frequencies do not depend on the length of the sequence at hand."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What differs between target families; a new family is one more of these."""

    architecture: str
    """``architectures[0]`` of the drafter's config.json."""
    text_model_types: tuple[str, ...]
    """``model_type`` values of the targets' text configs."""
    layer_types: tuple[str, ...]
    """``model_type`` values whose layers the drafter's are like; others' drafters say the first."""
    head_dim_key: str
    """Key of the attention head size."""
    activation_key: str
    """Key of the MLP's activation."""
    sandwich: bool
    """Norms after attention and around the MLP, a ``layer_scalar`` per layer."""
    scaled_embeddings: bool
    """Embeddings are multiplied by sqrt(hidden size)."""
    value_norm: bool
    """Values go through a scale-free RMSNorm."""
    unit_attention_scale: bool
    """Attention scale 1 instead of 1/sqrt(head size)."""
    norm_in_float32: bool
    """RMSNorm multiplies by its weight before, not after, it returns to the model's dtype."""
    autoregressive: bool = False
    """The Eagle3-style baseline (``eagle``): one layer, its own recurrence, no heads."""


QWEN3 = Family(
    architecture="Qwen3DSparkModel",
    text_model_types=("qwen3", "qwen3_moe", "llama", "gpt_oss"),
    layer_types=("qwen3",),
    head_dim_key="head_dim",
    activation_key="hidden_act",
    sandwich=False,
    scaled_embeddings=False,
    value_norm=False,
    unit_attention_scale=False,
    norm_in_float32=False,
)
GEMMA4 = Family(
    architecture="Gemma4DSparkModel",
    text_model_types=("gemma4_text", "gemma4_unified_text"),
    layer_types=("gemma4_text", "gemma4_unified_text"),
    head_dim_key="global_head_dim",
    activation_key="hidden_activation",
    sandwich=True,
    scaled_embeddings=True,
    value_norm=True,
    unit_attention_scale=True,
    norm_in_float32=True,
)
FAMILIES = {
    family.architecture: family
    for family in (
        QWEN3,
        GEMMA4,
        replace(QWEN3, architecture="Qwen3Eagle3Model", autoregressive=True),
        replace(GEMMA4, architecture="Gemma4Eagle3Model", autoregressive=True),
    )
}


@dataclass(frozen=True, kw_only=True)
class DrafterConfig(ConfigFile):
    """Shape of one drafter. Field names are config.json's keys unless their text says otherwise."""

    architecture: str
    """``architectures[0]``: the family, see ``FAMILIES``."""
    model_type: str
    """The target's text model type; no loader may dispatch on it."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    """Of the full-attention layers (``num_global_key_value_heads`` where keys are values)."""
    head_dim: int
    """Of the full-attention layers (``global_head_dim`` for Gemma4)."""
    activation: str
    """``hidden_act`` or ``hidden_activation``: one of ``ACTIVATIONS``."""
    rms_norm_eps: float
    num_hidden_layers: int
    """Depth of the drafter."""
    num_target_layers: int
    """Depth of the target."""
    block_size: int
    """Slots in a block: gamma, or one more where the anchor's slot proposes nothing."""
    mask_token_id: int
    """Token of all slots but the first; below the vocabulary's size."""
    target_layer_ids: tuple[int, ...]
    """Captured layers: raw output of decoder layer L, -1 the embeddings, never the last layer."""
    num_anchors: int = 512
    """Blocks per training sequence; loaders require the key."""
    markov_rank: int = 256
    """Rank of the Markov head; 0: no head."""
    markov_head_type: str = "vanilla"
    """One of ``HEADS``; not written when there is no head."""
    enable_confidence_head: bool = True
    confidence_head_with_markov: bool = True
    """The confidence head sees the previous token's Markov embedding too."""
    sample_from_anchor: bool = True
    """Slot 0, the anchor's, predicts the token after it; false (DFlash's and many of speculators'
    drafters): slot k predicts its own token and slot 0 none. Not written when true."""
    target_text_config: Mapping[str, Any] = field(default_factory=dict)
    """Every other key of config.json, verbatim."""

    def __post_init__(self) -> None:
        self.family  # noqa: B018  an unknown architecture is told first
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of the "
                f"{self.num_key_value_heads} key/value heads; correct one of them"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head size {self.head_dim} is odd; rotary embeddings need an even one"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} is unknown; known: {', '.join(ACTIVATIONS)}"
            )
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(
                f"mask_token_id {self.mask_token_id} is outside the vocabulary of "
                f"{self.vocab_size}; choose an unused token below it"
            )
        if not self.sample_from_anchor and self.block_size < 2:
            raise ValueError("block_size 1 without sample_from_anchor proposes nothing; use 2")
        self._check_layers()
        self._check_heads()
        self._check_target_keys()

    def _check_layers(self) -> None:
        ids, last = self.target_layer_ids, self.num_target_layers - 1
        if not ids or len(set(ids)) != len(ids):
            raise ValueError(f"target_layer_ids {list(ids)} must be distinct and at least one")
        for layer in ids:
            if layer == last:
                raise ValueError(
                    f"target_layer_ids {list(ids)} captures the target's last layer {last}, whose "
                    "recorded state is already normed; capture an earlier one"
                )
            if not -1 <= layer < last:
                raise ValueError(
                    f"target_layer_ids {list(ids)}: layer {layer} does not exist in a target of "
                    f"{self.num_target_layers} layers; use -1 to {last - 1}"
                )

    def _check_heads(self) -> None:
        if self.family.autoregressive and (
            self.markov_rank or self.enable_confidence_head or self.num_hidden_layers != 1
        ):
            raise ValueError(
                f"{self.architecture} has one layer and no heads; set num_hidden_layers 1, "
                "markov_rank 0 and enable_confidence_head false"
            )
        if self.markov_rank < 0:
            raise ValueError(f"markov_rank is {self.markov_rank}; use 0 for no head")
        if self.markov_rank and self.markov_head_type not in HEADS:
            raise ValueError(
                f"markov_head_type {self.markov_head_type!r} is unknown; known: {', '.join(HEADS)}"
            )
        with_markov = self.enable_confidence_head and self.confidence_head_with_markov
        if with_markov and not self.markov_rank:
            raise ValueError(
                "confidence_head_with_markov needs a Markov head, but markov_rank is 0; "
                "give it a rank or set confidence_head_with_markov to false"
            )

    def _check_target_keys(self) -> None:
        extra = self.target_text_config
        for key in extra:
            if key in _WRITTEN or key == self.family.head_dim_key:
                raise ValueError(f"target_text_config repeats {key!r}, which has its own field")
        softcap = extra.get("final_logit_softcapping")
        if softcap is not None and not (_is_number(softcap) and softcap > 0):
            raise ValueError(f"final_logit_softcapping is {softcap!r}; it must be > 0 or null")
        for kind in extra.get("layer_types") or ():
            if kind != "full_attention":
                raise ValueError(
                    f"layer_types has {kind!r}; every layer of a drafter is full_attention"
                )
        if extra.get("tie_word_embeddings"):
            raise ValueError("tie_word_embeddings is true; a drafter stores both, set it to false")
        if self.family.sandwich and (
            extra.get("hidden_size_per_layer_input") or extra.get("enable_moe_block")
        ):
            raise ValueError(
                "hidden_size_per_layer_input and enable_moe_block must be 0 and false in a drafter"
            )
        kind = self.rope["rope_type"]
        if kind not in STATIC_ROPE:
            raise ValueError(
                f"rope_type {kind!r} is not supported; supported: {', '.join(STATIC_ROPE)}"
            )

    # What the rest of the package asks for.

    @property
    def family(self) -> Family:
        """Traits of the target family; ``ValueError`` when the architecture is unknown."""
        if self.architecture not in FAMILIES:
            raise ValueError(
                f"architecture {self.architecture!r} is unknown; known: {', '.join(FAMILIES)}"
            )
        return FAMILIES[self.architecture]

    @property
    def gamma(self) -> int:
        """Tokens proposed in a round: one a slot, or one fewer where the anchor's proposes none."""
        return self.block_size if self.sample_from_anchor else self.block_size - 1

    @property
    def layers_captured(self) -> tuple[int, ...]:
        """Captured target layers, in the order in which their states are concatenated."""
        return self.target_layer_ids

    @property
    def head(self) -> str:
        """``none``, ``vanilla``, ``gated`` or ``rnn``."""
        return self.markov_head_type if self.markov_rank else "none"

    @property
    def confident(self) -> bool:
        """Whether there is a confidence head."""
        return self.enable_confidence_head

    @property
    def with_markov(self) -> bool:
        """Whether the confidence reads the previous token's embedding."""
        return self.enable_confidence_head and self.confidence_head_with_markov

    @property
    def target_types(self) -> tuple[str, ...]:
        """``model_type`` of the targets it is for."""
        return self.family.text_model_types

    @property
    def softcap(self) -> float | None:
        """Of the base logits; the Markov bias is added after it."""
        return self.target_text_config.get("final_logit_softcapping")

    @property
    def keys_are_values(self) -> bool:
        """Values are the key projection's output; there is no v_proj."""
        return self.family.value_norm and bool(self.target_text_config.get("attention_k_eq_v"))

    @property
    def attention_bias(self) -> bool:
        """The attention's linear maps have biases."""
        return bool(self.target_text_config.get("attention_bias"))

    @property
    def initializer_range(self) -> float:
        """Standard deviation of fresh weights."""
        return float(self.target_text_config.get("initializer_range", 0.02))

    @property
    def rope(self) -> dict[str, Any]:
        """The full-attention layers' RoPE: at least ``rope_type`` and ``rope_theta``.

        Reads transformers 5's ``rope_parameters`` (flat, or one set for each kind of layer) and
        the older ``rope_theta`` with ``rope_scaling``.
        """
        extra = self.target_text_config
        stored = extra.get("rope_parameters") or extra.get("rope_scaling") or {}
        stored = stored.get("full_attention", stored)
        rope = {"rope_theta": extra.get("rope_theta"), **stored}
        rope["rope_type"] = stored.get("rope_type", stored.get("type", "default"))
        if not (_is_number(rope["rope_theta"]) and rope["rope_theta"] > 0):
            raise ValueError(
                f"rope_theta is {rope['rope_theta']!r}; give the target's rope_parameters"
            )
        return rope

    # Files.

    @classmethod
    def read(cls, path: str | Path) -> DrafterConfig:
        """The config in a checkpoint folder or a config.json. ``ValueError`` names the file."""
        file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
        return cls.from_dict(read_json(file), where=str(file))

    @classmethod
    def from_dict(cls, value: Any, *, where: str) -> DrafterConfig:
        """Decode config.json's object; errors begin with ``where``."""
        if not isinstance(value, dict):
            raise ValueError(f"{where}: a config is a JSON object, not {type(value).__name__}")
        names = value.get("architectures")
        if not (isinstance(names, list) and names and names[0] in FAMILIES):
            raise ValueError(
                f"{where}: architectures is {names!r}; its first must be one of "
                f"{', '.join(FAMILIES)}"
            )
        family = FAMILIES[names[0]]
        keys = _json_keys(family, bool(value.get("attention_k_eq_v")), value)
        record = {name: value[key] for name, key in keys.items() if key in value}
        for name, key in keys.items():
            if name in _REQUIRED and key not in value:
                raise ValueError(f"{where}: {key} is missing; a drafter's config must have it")
        if record.get("markov_rank") and "markov_head_type" not in record:
            raise ValueError(f"{where}: markov_head_type is missing, yet markov_rank is not 0")
        if record.get("enable_confidence_head") and "confidence_head_with_markov" not in record:
            raise ValueError(
                f"{where}: confidence_head_with_markov is missing, but there is a confidence head"
            )
        if not record.get("enable_confidence_head"):
            record.setdefault("confidence_head_with_markov", False)
        known = {*keys.values(), "architectures"}
        record |= {
            "architecture": names[0],
            "target_text_config": {k: v for k, v in value.items() if k not in known},
        }
        return decode_record(record, cls, where=where)

    def to_dict(self) -> dict[str, Any]:
        """config.json's object; ``from_dict`` of it equals this config."""
        extra = self.target_text_config
        value: dict[str, Any] = dict(extra)
        value["architectures"] = [self.architecture]
        keys = _json_keys(self.family, self.keys_are_values, extra)
        for name, key in keys.items():
            value[key] = getattr(self, name)
        value["target_layer_ids"] = list(self.target_layer_ids)
        value.setdefault("tie_word_embeddings", False)
        value.setdefault("layer_types", ["full_attention"] * self.num_hidden_layers)
        if not self.markov_rank:
            del value["markov_head_type"]
        if not self.enable_confidence_head:
            del value["confidence_head_with_markov"]
        if self.sample_from_anchor:
            del value["sample_from_anchor"]
        return value


_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_hidden_layers",
    "num_target_layers",
    "block_size",
    "num_anchors",
)
_RENAMED = {"architecture", "target_text_config", "activation", "head_dim", "num_key_value_heads"}
_WRITTEN = {f.name for f in fields(DrafterConfig)} - _RENAMED | {"architectures"}
_REQUIRED = {f.name for f in fields(DrafterConfig)} - {
    "architecture",
    "target_text_config",
    "markov_head_type",
    "confidence_head_with_markov",
    "sample_from_anchor",
}


def _json_keys(family: Family, keys_are_values: bool, value: Mapping[str, Any]) -> dict[str, str]:
    """Field name -> key of config.json, for the fields that have one."""
    keys = {f.name: f.name for f in fields(DrafterConfig) if f.name not in _RENAMED}
    keys["activation"] = family.activation_key
    keys["head_dim"] = family.head_dim_key
    keys["num_key_value_heads"] = "num_key_value_heads"
    if family.value_norm and keys_are_values:
        keys["num_key_value_heads"] = "num_global_key_value_heads"
    return keys


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
