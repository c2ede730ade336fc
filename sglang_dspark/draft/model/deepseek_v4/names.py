"""The bundled checkpoint's tensor names and ours, and how its experts are stacked.

Owns the correspondence, both ways. Knows neither files nor dtypes. A stage's tensors begin with
``mtp.{stage}.``; a drafter's experts are two stacked tensors, a checkpoint's three matrices each.

Shapes: e experts, I their width, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sglang_dspark.draft.model.deepseek_v4.config import BundledConfig

PREFIX = "mtp."

_STAGE = {
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.q_norm.weight": "self_attn.q_a_norm.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wkv.weight": "self_attn.kv_proj.weight",
    "attn.kv_norm.weight": "self_attn.kv_norm.weight",
    "attn.wo_a.weight": "self_attn.o_a_proj.weight",
    "attn.wo_b.weight": "self_attn.o_b_proj.weight",
    "attn.attn_sink": "self_attn.sinks",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    "ffn.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
    **{f"hc_attn_{part}": f"attn_hc.{part}" for part in ("fn", "base", "scale")},
    **{f"hc_ffn_{part}": f"ffn_hc.{part}" for part in ("fn", "base", "scale")},
}
_ROUTER = {
    "moe": ("ffn.gate.bias", "mlp.gate.e_score_correction_bias"),
    "hash_moe": ("ffn.gate.tid2eid", "mlp.gate.tid2eid"),
}
_FIRST = {name: name for name in ("main_proj.weight", "main_norm.weight")}
_LAST = {
    "norm.weight": "norm.weight",
    **{f"hc_head_{part}": f"hc_head.hc_{part}" for part in ("fn", "base", "scale")},
}
_MARKOV = {True: ("embed", "head"), False: ("markov_w1", "markov_w2")}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a checkpoint may write in two ways; kept, so that saving gives the same names."""

    heads_stage: int
    """Stage that the heads are stored with."""
    short_markov: bool
    """``markov_head.embed`` and ``.head`` instead of ``.markov_w1`` and ``.markov_w2``."""
    ends: tuple[str, str] = ("embed.weight", "head.weight")
    """Names of embedding and lm_head."""


ENDS = (
    ("embed.weight", "model.embed_tokens.weight", "embed_tokens.weight"),
    ("head.weight", "lm_head.weight"),
)
"""Names that the target's embedding and lm_head go by."""


def default_layout(config: BundledConfig) -> Layout:
    """As released: heads with the last stage."""
    return Layout(heads_stage=config.stages - 1, short_markov=False)


def layout_of(names: set[str], config: BundledConfig, *, where: str) -> Layout:
    """How the checkpoint with these tensors writes what may be written in two ways."""
    stages = sorted({int(n.split(".")[1]) for n in names if "_head." in n and _is_stage(n)})
    if len(stages) > 1:
        raise ValueError(
            f"{where}: its heads are on stages {stages}; they must be on one, so save it again"
        )
    kinds = {
        short
        for short, parts in _MARKOV.items()
        for part in parts
        if any(n.endswith(f".markov_head.{part}.weight") for n in names)
    }
    if len(kinds) > 1:
        raise ValueError(
            f"{where}: its Markov head has names of both conventions ({', '.join(_MARKOV[True])} "
            f"and {', '.join(_MARKOV[False])}); keep one"
        )
    embed, head = (next((n for n in ours if n in names), ours[0]) for ours in ENDS)
    return Layout(
        heads_stage=stages[0] if stages else config.stages - 1,
        short_markov=True in kinds,
        ends=(embed, head),
    )


def _is_stage(name: str) -> bool:
    parts = name.split(".", 2)
    return len(parts) == 3 and parts[0] == "mtp" and parts[1].isdigit()


def stages_in(names: set[str], *, where: str) -> list[int]:
    """Numbers of the stages that there are tensors of."""
    for name in names:
        if name.startswith(PREFIX) and not _is_stage(name):
            raise ValueError(f"{where}: tensor {name!r} names no stage; expected mtp.NUMBER.NAME")
    return sorted({int(name.split(".")[1]) for name in names if _is_stage(name)})


def routing_in(names: set[str], stages: int) -> tuple[str, ...]:
    """``hash_moe`` for the stages that have a table of experts by token, ``moe`` else."""
    tables = {f"mtp.{i}.ffn.gate.tid2eid": i for i in range(stages)}
    hashed = {tables[name] for name in names if name in tables}
    return tuple("hash_moe" if i in hashed else "moe" for i in range(stages))


def plain_names(config: BundledConfig, layout: Layout) -> dict[str, str]:
    """Checkpoint's name -> parameter's, of every tensor that is stored as it is, ends excluded."""
    routing = config.routing or ("moe",) * config.stages
    pairs: dict[str, str] = {}
    for i in range(config.stages):
        stage = {**_STAGE, **dict([_ROUTER[routing[i]]])}
        pairs |= {f"mtp.{i}.{theirs}": f"layers.{i}.{ours}" for theirs, ours in stage.items()}
    pairs |= {f"mtp.0.{theirs}": ours for theirs, ours in _FIRST.items()}
    pairs |= {f"mtp.{config.stages - 1}.{theirs}": ours for theirs, ours in _LAST.items()}
    at = f"mtp.{layout.heads_stage}."
    if config.markov_rank:
        for theirs, ours in zip(_MARKOV[layout.short_markov], _MARKOV[False], strict=True):
            pairs[f"{at}markov_head.{theirs}.weight"] = f"markov_head.{ours}.weight"
    if config.confident:
        pairs[f"{at}confidence_head.proj.weight"] = "confidence_head.proj.weight"
    return pairs


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One stacked parameter and the checkpoint's matrices in it."""

    parameter: str
    """[e, rows, columns]."""
    parts: tuple[tuple[str, ...], ...]
    """For each expert the matrices whose rows follow one another."""


def stacks(config: BundledConfig) -> Iterator[Stack]:
    """gate_up = [w1 ; w3] and down = w2 of every stage."""
    experts, _ = config.experts
    for i in range(config.stages):
        for parameter, weights in (("gate_up_proj", ("w1", "w3")), ("down_proj", ("w2",))):
            yield Stack(
                parameter=f"layers.{i}.mlp.experts.{parameter}",
                parts=tuple(
                    tuple(f"mtp.{i}.ffn.experts.{e}.{w}.weight" for w in weights)
                    for e in range(experts)
                ),
            )
