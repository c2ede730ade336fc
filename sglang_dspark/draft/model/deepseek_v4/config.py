"""Configuration of DeepSeek-V4's bundled drafter: the ``dspark_*`` keys of its target's config.

Owns which keys there are, what they may be, and what of a newer release is refused. Every other
key is the target's, kept and written back verbatim, so that whatever loads the target still does.
Knows no tensors. Source: SGLang's ``dspark_config``, DeepSeek's published configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sglang_dspark.draft.model.config_file import ConfigFile
from sglang_dspark.files import decode_record, read_json

MODEL_TYPE = "deepseek_v4"
ARCHITECTURE = "DeepseekV4ForCausalLM"

KEYS = {
    "block_size": "dspark_block_size",
    "mask_token_id": "dspark_noise_token_id",
    "target_layer_ids": "dspark_target_layer_ids",
    "markov_rank": "dspark_markov_rank",
    "markov_head_type": "dspark_markov_head_type",
    "n_routed_experts": "dspark_n_routed_experts",
    "num_experts_per_tok": "dspark_num_experts_per_tok",
    "enable_confidence_head": "enable_confidence_head",
    "confidence_head_with_markov": "confidence_head_with_markov",
    "sample_from_anchor": "sample_from_anchor",
}
"""Field -> key of config.json."""

_REQUIRED = ("block_size", "mask_token_id", "target_layer_ids", "markov_rank")
_OPTIONAL = (
    "markov_head_type",
    "n_routed_experts",
    "num_experts_per_tok",
    "enable_confidence_head",
    "confidence_head_with_markov",
    "sample_from_anchor",
)

_NEWER = {
    "hc_pre_from_prev_sublayer": "streams collapsed with the previous sublayer's weights",
    "engram_layer_ids": "engram layers",
    "kv_source_layers": "keys and values shared between layers",
    "index_source_layers": "indexers shared between layers",
    "vision_n_layers": "a vision tower",
}
"""Keys of V4.1 -> what they mean, which is not implemented here."""


def is_bundled(value: Any) -> bool:
    """Whether a config.json's object carries a bundled drafter, supported or not."""
    nested = "dspark_config"  # a block that other conventions have
    return isinstance(value, Mapping) and any(
        key.startswith("dspark_") and key != nested for key in value
    )


@dataclass(frozen=True, kw_only=True)
class BundledConfig(ConfigFile):
    """One bundled drafter; ``KEYS`` has the names that its fields have in config.json."""

    block_size: int
    """gamma: tokens proposed in a round, also slots in a block."""
    mask_token_id: int
    """Token of the slots 1..gamma-1."""
    target_layer_ids: tuple[int, ...]
    """Layers whose output is captured, the last one too; there are as many stages as layers."""
    markov_rank: int
    """Rank of the Markov head; 0: no head (servers want one)."""
    markov_head_type: str | None = None
    """``vanilla`` or absent."""
    n_routed_experts: int | None = None
    """Of the stages; absent or 0: the target's."""
    num_experts_per_tok: int | None = None
    """Of the stages; absent or 0: the target's."""
    enable_confidence_head: bool | None = None
    """Absent: there is one."""
    confidence_head_with_markov: bool | None = None
    """The confidence reads the previous token's embedding too; absent: with a Markov head."""
    sample_from_anchor: bool | None = None
    """Slot 0 proposes; absent: it does. False is another convention and refused."""
    num_anchors: int = 512
    """Blocks per training sequence; not in config.json."""
    routing: tuple[str, ...] = ()
    """``moe`` or ``hash_moe`` of each stage, told by the tensors; empty: all ``moe``."""
    target_config: Mapping[str, Any] = field(default_factory=dict)
    """Every other key of config.json, verbatim."""

    def __post_init__(self) -> None:
        self._check_release()
        for key in _NEEDED:  # transformers would take those of V4-Flash for what is missing
            self._of_target(key)
        for name in ("block_size", "num_anchors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{_key(name)} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(
                f"{KEYS['mask_token_id']} {self.mask_token_id} is outside the vocabulary of "
                f"{self.vocab_size}; choose an unused token below it"
            )
        self._check_layers()
        self._check_heads()
        self._check_experts()
        if self.routing and len(self.routing) != self.stages:
            raise ValueError(f"{len(self.routing)} stages' routing for {self.stages} stages")
        self.stage_config  # noqa: B018  what transformers refuses is told now

    def _check_release(self) -> None:
        kind = self.target_config.get("model_type")
        newer = [key for key in _NEWER if self.target_config.get(key)]
        if kind == "deepseek_v41" or newer:
            what = ", ".join(_NEWER[key] for key in newer) or "its own blocks"
            raise ValueError(
                f"model_type {kind!r} is DeepSeek-V4.1 ({what}), which is not supported; "
                "serve its drafter with SGLang 0.5.23 or later, which needs no training here"
            )
        if kind != MODEL_TYPE:
            raise ValueError(
                f"model_type {kind!r} with dspark_* keys is no {MODEL_TYPE} checkpoint; other "
                "targets' drafters have flat keys, see dspark draft inspect"
            )

    def _check_layers(self) -> None:
        key, ids = KEYS["target_layer_ids"], self.target_layer_ids
        if not ids or len(set(ids)) != len(ids):
            raise ValueError(f"{key} {list(ids)} must be distinct and at least one")
        for layer in ids:
            if not 0 <= layer < self.num_target_layers:
                raise ValueError(
                    f"{key} {list(ids)}: layer {layer} does not exist in a target of "
                    f"{self.num_target_layers} layers; use 0 to {self.num_target_layers - 1}"
                )
        ratios = self.target_config.get("compress_ratios")
        if ratios is not None:
            tail = list(ratios)[self.num_target_layers :]
            if any(tail):
                raise ValueError(
                    f"compress_ratios ends in {tail} beyond the target's layers; a drafter's "
                    "stages are not compressed, so these must be 0"
                )

    def _check_heads(self) -> None:
        if self.sample_from_anchor is False:
            raise ValueError(
                "sample_from_anchor is false: its slot 0 proposes nothing and every prediction is "
                "shifted by one, which would be accepted at a length of 1 here; train it again "
                "with the anchor's slot"
            )
        if self.markov_rank < 0:
            raise ValueError(f"{KEYS['markov_rank']} is {self.markov_rank}; use 0 for no head")
        if self.markov_head_type not in (None, "vanilla"):
            raise ValueError(
                f"{KEYS['markov_head_type']} {self.markov_head_type!r}: a bundled drafter's Markov "
                "head is vanilla; servers know no other"
            )
        if self.with_markov and not self.markov_rank:
            raise ValueError(
                "confidence_head_with_markov needs a Markov head, but "
                f"{KEYS['markov_rank']} is 0; set it to false"
            )

    def _check_experts(self) -> None:
        experts, active = self.experts
        if not 1 <= active <= experts:
            raise ValueError(
                f"{active} active of {experts} routed experts; correct "
                f"{KEYS['num_experts_per_tok']} or {KEYS['n_routed_experts']}"
            )

    def _of_target(self, key: str) -> int:
        value = self.target_config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{key} is {value!r}; the target's config must have it, at least 1")
        return value

    # What the rest of the package asks for, under the names that other drafters use.

    @property
    def architecture(self) -> str:
        """Of the checkpoint: the target's own."""
        return ARCHITECTURE

    @property
    def target_types(self) -> tuple[str, ...]:
        """``model_type`` of the targets it is for."""
        return (MODEL_TYPE,)

    @property
    def model_type(self) -> str:
        """The target's."""
        return MODEL_TYPE

    @property
    def vocab_size(self) -> int:
        """The target's."""
        return self._of_target("vocab_size")

    @property
    def hidden_size(self) -> int:
        """The target's."""
        return self._of_target("hidden_size")

    @property
    def num_target_layers(self) -> int:
        """Depth of the target."""
        return self._of_target("num_hidden_layers")

    @property
    def sliding_window(self) -> int:
        """Context tokens that a block sees."""
        return self._of_target("sliding_window")

    @property
    def stages(self) -> int:
        """Layers of the drafter."""
        return len(self.target_layer_ids)

    num_hidden_layers = stages

    @property
    def gamma(self) -> int:
        """Tokens proposed in a round."""
        return self.block_size

    @property
    def layers_captured(self) -> tuple[int, ...]:
        """Captured target layers, in the order in which their states are concatenated."""
        return self.target_layer_ids

    @property
    def experts(self) -> tuple[int, int]:
        """(routed, active) experts of a stage."""
        return (
            self.n_routed_experts or self._of_target("n_routed_experts"),
            self.num_experts_per_tok or self._of_target("num_experts_per_tok"),
        )

    @property
    def head(self) -> str:
        """``none`` or ``vanilla``."""
        return "vanilla" if self.markov_rank else "none"

    @property
    def confident(self) -> bool:
        """Whether there is a confidence head."""
        return self.enable_confidence_head is not False

    @property
    def with_markov(self) -> bool:
        """Whether the confidence reads the previous token's embedding."""
        given = self.confidence_head_with_markov
        return self.confident and (self.markov_rank > 0 if given is None else given)

    @property
    def softcap(self) -> None:
        """The target's logits are not capped."""
        return None

    @property
    def initializer_range(self) -> float:
        """Standard deviation of fresh weights."""
        return float(self.target_config.get("initializer_range", 0.02))

    @cached_property
    def stage_config(self) -> Any:
        """transformers' config of the stages: sliding layers, as many as are captured.

        ``ValueError`` for whatever transformers does not accept.
        """
        from transformers import DeepseekV4Config

        experts, active = self.experts
        value = {k: v for k, v in self.target_config.items() if k not in _NOT_OF_STAGES}
        value |= {
            "num_hidden_layers": self.stages,
            "layer_types": ["sliding_attention"] * self.stages,
            "mlp_layer_types": list(self.routing or ["moe"] * self.stages),
            "n_routed_experts": experts,
            "num_experts_per_tok": active,
        }
        try:
            config = DeepseekV4Config(**value)
        except Exception as error:  # huggingface_hub's strict errors derive from Exception alone
            reason = " ".join(str(error).split())
            raise ValueError(f"transformers refuses the target's config: {reason}") from None
        rope: Any = dict(config.rope_parameters or {})["main"]
        if rope["rope_type"] != "default":
            raise ValueError(
                f"rope_type {rope['rope_type']!r} of the sliding layers is not supported; it must "
                "be default"
            )
        if config.num_attention_heads % config.o_groups:
            raise ValueError(
                f"num_attention_heads {config.num_attention_heads} is no multiple of o_groups "
                f"{config.o_groups}; correct one of them"
            )
        # The grouped product wants rows of whole 16 bytes, in half precision too.
        aligned = config.hidden_size % 8 == 0 and config.moe_intermediate_size % 8 == 0
        config._experts_implementation = "grouped_mm" if aligned else "eager"
        return config

    def plain(self) -> BundledConfig:
        """Without what says how the target's files are quantised: a loaded drafter's are not."""
        kept = {k: v for k, v in self.target_config.items() if k not in _QUANTISATION}
        return replace(self, target_config=kept)

    # Files.

    @classmethod
    def read(cls, path: str | Path) -> BundledConfig:
        """The config in a checkpoint folder or a config.json. ``ValueError`` names the file."""
        file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
        return cls.from_dict(read_json(file), where=str(file))

    @classmethod
    def from_dict(cls, value: Any, *, where: str, routing: tuple[str, ...] = ()) -> BundledConfig:
        """Decode config.json's object; errors begin with ``where``."""
        if not isinstance(value, dict):
            raise ValueError(f"{where}: a config is a JSON object, not {type(value).__name__}")
        for name in _REQUIRED:
            if value.get(KEYS[name]) is None:
                raise ValueError(
                    f"{where}: {KEYS[name]} is missing; a bundled drafter's config must have it"
                )
        known = set(KEYS.values())
        for key in value:
            if key.startswith("dspark_") and key not in known:
                raise ValueError(
                    f"{where}: {key} is not known and would change what the drafter is; "
                    f"known: {', '.join(sorted(k for k in known if k.startswith('dspark_')))}"
                )
        record = {name: value[key] for name, key in KEYS.items() if value.get(key) is not None}
        record |= {
            "routing": list(routing),
            # A key that is null says nothing, and is written back as it was.
            "target_config": {k: v for k, v in value.items() if k not in known or v is None},
        }
        return decode_record(record, cls, where=where)

    def to_dict(self) -> dict[str, Any]:
        """config.json's object; absent keys stay absent."""
        value = dict(self.target_config)
        for name in (*_REQUIRED, *_OPTIONAL):
            if getattr(self, name) is not None:
                value[KEYS[name]] = getattr(self, name)
        value[KEYS["target_layer_ids"]] = list(self.target_layer_ids)
        return value


_NEEDED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "q_lora_rank",
    "o_lora_rank",
    "o_groups",
    "sliding_window",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_experts_per_tok",
    "hc_mult",
)
_QUANTISATION = {"quantization_config", "expert_dtype"}
_NOT_OF_STAGES = _QUANTISATION | {
    "layer_types",
    "compress_ratios",
    "compress_rates",
    "compress_rate_csa",
    "compress_rate_hca",
    "mlp_layer_types",
    "num_hash_layers",
    "architectures",
    "transformers_version",
    "auto_map",
}


def _key(name: str) -> str:
    return KEYS.get(name, name)
