"""The models that can be composed: by a short name, by their name on the hub, by a ``config.json``.

Owns which configuration stands behind a name, and what a configuration must state. The
configurations themselves are the operator package's; a few are one of those with other numbers.
Knows no GPU and no operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_dspark.files import did_you_mean, read_json

NAMED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3-4b": (
        "Qwen3-4B",
        "Qwen/Qwen3-8B",
        {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
    ),
    "qwen3-8b": ("Qwen3-8B", "Qwen/Qwen3-8B", {}),
    "qwen3-14b": (
        "Qwen3-14B",
        "Qwen/Qwen3-8B",
        {
            "num_hidden_layers": 40,
            "hidden_size": 5120,
            "intermediate_size": 17408,
            "num_attention_heads": 40,
        },
    ),
    "qwen3-32b": ("Qwen3-32B", "Qwen/Qwen3-32B", {}),
    "qwen3-30b-a3b": ("Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B", {}),
    "gemma4-12b": (
        "Gemma4-12B",
        "nvidia/Gemma-4-31B-IT-NVFP4",
        {
            "num_hidden_layers": 48,
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 1,
        },
    ),
    "gemma4-26b-a4b": ("Gemma4-26B-A4B", "google/gemma-4-26B-A4B", {}),
    "llama-3.1-70b": ("Llama-3.1-70B", "meta-llama/Meta-Llama-3.1-70B", {}),
    "dsv4-flash": ("DeepSeek-V4-Flash", "deepseek-ai/DeepSeek-V4-Flash", {}),
    "dsv4-flash-fp8": ("DeepSeek-V4-Flash", "sgl-project/DeepSeek-V4-Flash-FP8", {}),
    "dsv4-pro": ("DeepSeek-V4-Pro", "deepseek-ai/DeepSeek-V4-Pro", {}),
    "dsv4-pro-fp8": ("DeepSeek-V4-Pro", "sgl-project/DeepSeek-V4-Pro-FP8", {}),
    "glm-5.2": ("GLM-5.2", "zai-org/GLM-5.2-FP8", {}),
    "glm-5.2-nvfp4": ("GLM-5.2", "nvidia/GLM-5.2-NVFP4", {}),
    "kimi-k3": ("Kimi-K3", "moonshotai/Kimi-K3", {}),
    "minimax-m3": ("MiniMax-M3", "MiniMaxAI/MiniMax-M3", {}),
    "minimax-m3-nvfp4": ("MiniMax-M3", "nvidia/MiniMax-M3-NVFP4", {}),
}
"""By short name: what reports call it, whose configuration it is, and the numbers that differ.

Gemma4-12B's is the 31B's with the numbers that give its published 11.95e9 weights.
"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One model."""

    label: str
    """What reports call it."""
    slug: str
    """What file names call it."""
    source: str
    """Where its configuration is from."""
    config: Mapping[str, Any] = field(repr=False)
    """Its ``config.json``."""
    hub: str = ""
    """Its name on the hub, where the configuration is that one's unchanged."""

    @property
    def text(self) -> Mapping[str, Any]:
        """The part of the configuration that describes the decoder."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    def whole(self, name: str) -> int:
        """A whole number of the configuration, at least 1. ``ValueError`` that names the field."""
        return whole_number(self.text, name, where=self.source)


def whole_number(config: Mapping[str, Any], name: str, *, where: str) -> int:
    """A field that must be there, whole and at least 1."""
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        said = "is missing" if name not in config else f"{value!r} is no whole number above 0"
        raise ValueError(f"{where}: {name} {said}; give the model's own config.json")
    return value


_NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")


def target_of(name: str, configs: Mapping[str, Path]) -> Target:
    """The target of a short name, of one of ``configs`` (hub name -> file) or of a file.

    ``ValueError`` with the nearest name when it is none of them, or naming the field that a
    configuration lacks.
    """
    if name in NAMED:
        label, base, changes = NAMED[name]
        config = read_json(configs[base])
        text = config.get("text_config", config)
        text.update(changes)
        if "num_hidden_layers" in changes and "layer_types" in text:
            text["layer_types"] = text["layer_types"][: changes["num_hidden_layers"]]
        if changes:
            config.pop("quantization_config", None)
        return Target(
            label=label,
            slug=name,
            source=f"config.json of {label}",
            config=config,
            hub="" if changes else base,
        )
    if name in configs:
        label = name.rpartition("/")[2]
        return _checked(
            Target(
                label=label, slug=label.lower(), source=f"config.json of {label}",
                config=read_json(configs[name]), hub=name,
            )
        )  # fmt: skip
    if Path(name).suffix != ".json" and not Path(name).is_file():
        raise ValueError(_unknown(name, [*NAMED, *configs]))
    config = read_json(name)
    if not isinstance(config, dict):
        raise ValueError(f"{name}: holds no object; give the model's own config.json")
    slug = Path(name).stem if Path(name).stem != "config" else Path(name).absolute().parent.name
    return _checked(Target(label=slug, slug=slug.lower(), source=name, config=config))


def _checked(target: Target) -> Target:
    for name in _NEEDED:
        target.whole(name)
    kinds = target.config.get("architectures")
    if not (isinstance(kinds, list) and kinds and isinstance(kinds[0], str)):
        raise ValueError(
            f"{target.source}: architectures is missing; give the model's own config.json"
        )
    return target


def _unknown(name: str, known: Iterable[str]) -> str:
    return (
        f"--model {name!r} is not known; {did_you_mean(name, known)}use one of "
        f"{', '.join(NAMED)}, a name on the hub that aiconfigurator-core knows, or a config.json"
    )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one replica is spread over GPUs, in SGLang's words."""

    tp: int = 1
    """GPUs of the replica."""
    ep: int = 1
    """Groups that share the experts out; the rest of ``tp`` cuts each expert."""
    dp: int = 1
    """Groups that attend to requests of their own (``--enable-dp-attention``)."""

    def __post_init__(self) -> None:
        for name in ("tp", "ep", "dp"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1")
        for name in ("ep", "dp"):
            if self.tp % getattr(self, name):
                raise ValueError(
                    f"--{name} {getattr(self, name)} must divide --tp {self.tp}, which counts all "
                    "GPUs of the replica"
                )

    @property
    def attention_tp(self) -> int:
        """GPUs that share the heads of one request."""
        return self.tp // self.dp

    def share(self, number: int) -> int:
        """What the fullest attention group has of ``number`` requests or tokens."""
        return -(-number // self.dp)
