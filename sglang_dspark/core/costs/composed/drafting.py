"""Drafters, and the seconds of one block of gamma tokens for each of R requests.

Three kinds, each priced with the tables that the target is priced with:

- ``dspark``: dense layers of their own, all gamma slots at once, the fusion of the captured layers,
  the target's head, then one Markov head of the drafter's rank per token
- ``stages``: the same with layers like the target's instead of dense ones, as DeepSeek-V4 ships
- ``mtp``: one layer like the target's and its head, gamma times in sequence

Attention is priced at R requests without a context; what a context adds is told apart. Knows no
file of prices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sglang_dspark.core.costs.composed.operators import Operators, Priced
from sglang_dspark.core.costs.composed.step import attention, body, sampling
from sglang_dspark.core.costs.composed.targets import Target, whole_number
from sglang_dspark.files import read_json

KINDS = ("dspark", "stages", "mtp")
GAMMA, STAGES_GAMMA = 7, 5
_DEPTH, _STAGES, _RANK, _CAPTURED = 5, 3, 256, 5
_SHORT = 128
_HEAD_WIDTH = 128


@dataclass(frozen=True, kw_only=True)
class DraftPlan:
    """Which drafter is priced."""

    kind: str
    gamma: int
    layers: int
    """Of its own; of ``mtp`` those of one pass."""
    captured: int = 0
    """Target layers whose states are fused into its input."""
    rank: int = 0
    """Of the Markov head; 0 without one."""
    dense: Target | None = None
    """Of ``dspark``: its layers as a model."""
    note: str = ""

    def __post_init__(self) -> None:
        if self.gamma < 1:
            raise ValueError(f"--gamma {self.gamma} must be at least 1; --drafter none drafts none")


def plan_of(choice: str, gamma: int | None, target: Target) -> DraftPlan | None:
    """The drafter that ``--drafter`` names for this target; None for ``none``.

    Empty is the target's usual one: three ``stages`` for DeepSeek-V4, DSpark's five dense layers
    else. ``ValueError`` for what is neither a kind nor a drafter's ``config.json``, or lacks a
    field.
    """
    if choice == "none":
        return None
    if not choice:
        choice = "stages" if ships_stages(target) else "dspark"
    if choice == "mtp":
        return DraftPlan(
            kind="mtp", gamma=_or(gamma, GAMMA), layers=1, note="one layer of the target per token"
        )
    if choice == "stages":
        return DraftPlan(
            kind="stages", gamma=_or(gamma, STAGES_GAMMA), layers=_STAGES, captured=_STAGES,
            rank=_RANK, note="three layers like the target's, rank 256",
        )  # fmt: skip
    if choice == "dspark":
        return DraftPlan(
            kind="dspark", gamma=_or(gamma, GAMMA), layers=_DEPTH, captured=_CAPTURED, rank=_RANK,
            dense=_like(target), note="five dense layers of the target's width, rank 256",
        )  # fmt: skip
    if not choice.endswith(".json"):
        raise ValueError(
            f"--drafter {choice!r} is not known; use one of {', '.join(KINDS)}, none, or a "
            "drafter's config.json"
        )
    return _from_config(choice, gamma)


def ships_stages(target: Target) -> bool:
    """Whether the target's checkpoint brings a drafter of three layers like its own."""
    return "DeepseekV4" in str(target.config.get("architectures"))


def _or(gamma: int | None, otherwise: int) -> int:
    return otherwise if gamma is None else gamma


def _like(target: Target) -> Target:
    """Dense layers of the target's width, its heads and feed-forward where it has such.

    Else heads of 128, as many as the width holds rounded up to a power of two (so that they can be
    cut), 8 for keys and values, and a feed-forward of three widths.
    """
    text, hidden = target.text, target.whole("hidden_size")
    gqa = {"head_dim", "num_key_value_heads"} <= set(text) and "kv_lora_rank" not in text
    gqa = gqa and "compress_ratios" not in text
    wide = text.get("intermediate_size") or 0
    shape = {
        "head_dim": text["head_dim"] if gqa else _HEAD_WIDTH,
        "num_attention_heads": text["num_attention_heads"] if gqa else _heads(hidden),
        "num_key_value_heads": text["num_key_value_heads"] if gqa else 8,
        "intermediate_size": wide if isinstance(wide, int) and wide >= 2 * hidden else 3 * hidden,
    }
    return _dense(hidden=hidden, vocabulary=target.whole("vocab_size"), depth=_DEPTH, **shape)


def _heads(hidden: int) -> int:
    return 1 << (-(-hidden // _HEAD_WIDTH) - 1).bit_length()


def _dense(*, hidden: int, vocabulary: int, depth: int, **shape: int) -> Target:
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16",
        "hidden_size": hidden, "vocab_size": vocabulary, "num_hidden_layers": depth,
        "max_position_embeddings": 32768, "tie_word_embeddings": False, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": 1000000, **shape,
    }  # fmt: skip
    return Target(label="drafter", slug="drafter", source="the drafter's config", config=config)


def _from_config(path: str, gamma: int | None) -> DraftPlan:
    """The drafter of a ``config.json``, as DeepSpec and SGLang write it."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds no object; give a drafter's config.json")
    for inner in ("dflash_config", "dspark_config"):
        nested: Mapping[str, Any] = value.get(inner) or {}
        value = {**value, **nested}
    wide = "global_head_dim" if value.get("global_head_dim") else "head_dim"

    def whole(name: str) -> int:
        return whole_number(value, name, where=path)

    depth, captured = whole("num_hidden_layers"), value.get("target_layer_ids") or []
    dense = _dense(
        hidden=whole("hidden_size"), vocabulary=whole("vocab_size"), depth=depth,
        head_dim=whole(wide), num_attention_heads=whole("num_attention_heads"),
        num_key_value_heads=whole("num_key_value_heads"),
        intermediate_size=whole("intermediate_size"),
    )  # fmt: skip
    return DraftPlan(
        kind="dspark",
        gamma=gamma if gamma is not None else whole("block_size"),
        layers=depth,
        captured=len(captured),
        rank=whole("markov_rank") if value.get("markov_rank") else 0,
        dense=dense,
        note=f"{depth} dense layers as in {path}",
    )


def block(
    plan: DraftPlan, target: Operators, dense: Operators | None
) -> Callable[[int], list[Priced]]:
    """Of R: the operators of one block, over contexts that are empty."""
    vocabulary = target.target.whole("vocab_size")
    hidden = target.target.whole("hidden_size")
    cut = target.layout.attention_tp

    def layers(tokens: int, requests: int) -> list[Priced]:
        whose = dense or target
        share = plan.layers / whose.layers
        ops = body(whose, tokens, head=False) + attention(whose, requests, _SHORT)
        return [one._replace(seconds=one.seconds * share) for one in ops]

    def product(name: str, rows: int, wide: int, deep: int) -> Priced:
        return target.gemm(name, rows=target.layout.share(rows), wide=wide, deep=deep)

    def once(tokens: int, requests: int) -> list[Priced]:
        head = product("draft_head", tokens, -(-vocabulary // cut), hidden)
        return [*layers(tokens, requests), head]

    def of(requests: int) -> list[Priced]:
        if plan.kind == "mtp":
            one_token = [*once(requests, requests), sampling(target, requests)]
            return [one._replace(seconds=one.seconds * plan.gamma) for one in one_token]
        tokens = requests * plan.gamma
        found = once(tokens, requests)
        if plan.captured:
            found.append(product("draft_fusion", tokens, hidden, plan.captured * hidden))
        per_token = [sampling(target, requests)]
        if plan.rank:
            bias = product("draft_markov", requests, -(-vocabulary // cut), plan.rank)
            per_token.append(bias)
        return found + [one._replace(seconds=one.seconds * plan.gamma) for one in per_token]

    return of


def weights_bytes(plan: DraftPlan, target: Operators, dense: Operators | None) -> float:
    """Over all GPUs; embedding and head are the target's."""
    vocabulary = target.target.whole("vocab_size")
    hidden = target.target.whole("hidden_size")
    heads = 2 * vocabulary * plan.rank + plan.captured * hidden * hidden
    if dense is None:
        layers = plan.layers / target.layers * target.weights_bytes
    else:
        layers = max(dense.weights_bytes - 2 * vocabulary * hidden * 2, 0.0)
    return layers + 2.0 * heads


def kv_bytes(plan: DraftPlan, target: Operators, dense: Operators | None) -> float:
    """Per token of context, over all GPUs that hold it; a window of DeepSeek-V4's is left out."""
    if plan.kind == "stages":
        return 0.0
    if dense is None:
        return plan.layers / target.layers * target.kv_bytes
    return dense.kv_bytes
