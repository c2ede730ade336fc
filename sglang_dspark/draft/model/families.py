"""Kinds of target models: the few traits in which they differ, one record each.

Owns which targets can be captured and decoded. A new one is one more ``TargetFamily`` here, and
``tests/draft/model/test_target.py`` run over a small random one; whether a drafter can be made for
it is ``config.FAMILIES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_dspark.draft.model.target_cache import CompressedCache, TargetCache


@dataclass(frozen=True, kw_only=True)
class TargetFamily:
    """What ``Target`` asks of a kind of model."""

    model_types: tuple[str, ...]
    """``model_type`` of the text configs."""
    attention: str = "sdpa"
    """Implementation that it is loaded with; ``eager`` where there are sinks."""
    masks_by_layer: bool = False
    """Its decoder takes one mask for each of ``layer_types``, else one for all."""
    streams: bool = False
    """Layers give several streams [B, S, n, D]; what is captured is their mean."""
    last_layer: bool = False
    """The last layer may be captured: drafters of this kind read its raw output."""
    least_tokens: int = 1
    """Fewest tokens of one forward with a cache; shorter ones are padded."""
    cache: type[TargetCache] = TargetCache
    """What decodes it."""


FAMILIES = (
    TargetFamily(model_types=("qwen3",), masks_by_layer=True),
    TargetFamily(model_types=("gemma4_text", "gemma4_unified_text"), masks_by_layer=True),
    TargetFamily(model_types=("qwen3_moe",)),
    TargetFamily(model_types=("llama",)),
    TargetFamily(model_types=("gpt_oss",), attention="eager", masks_by_layer=True),
    # A compressor of one token would leave out its mask.
    TargetFamily(
        model_types=("deepseek_v4",),
        attention="eager",
        streams=True,
        last_layer=True,
        least_tokens=2,
        cache=CompressedCache,
    ),
)


def text_model_type(config: Any) -> Any:
    """The text model's ``model_type`` in a config.json's object."""
    if not isinstance(config, dict):
        return None
    text = config.get("text_config")
    return (text if isinstance(text, dict) else config).get("model_type")


def family_of(model_type: Any, *, where: str = "target") -> TargetFamily:
    """The family of a text model; ``ValueError`` says what adding one takes."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise ValueError(
        f"{where}: target model_type {model_type!r} is not supported; supported: {known}. To add "
        "it, describe it by a TargetFamily in sglang_dspark/draft/model/families.py and run "
        "tests/draft/model/test_target.py over a small one"
    )
