"""Signs that a drafter was never trained, or is not what its config says.

Owns the tests, each a sentence with what to do; knows neither files nor printing. A suspicion is
not a refusal: the drafter loads, and decoding stays exact whatever it proposes. All tensors are
looked at, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sglang_dspark.draft.model.deepseek_v4.drafter import is_wide
from sglang_dspark.draft.model.recipes import AnyConfig

_NORMS = ("norm.weight", "layernorm.weight")
_ENDS = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the tests need of one tensor, so that none is held."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    all_ones: bool
    all_zero: bool
    std: float
    print: tuple[float, ...]
    """A few of its numbers, to tell copies from one another."""


def summary(name: str, tensor: Tensor) -> Summary:
    """Of a plain tensor."""
    flat = tensor.detach().flatten().float()
    picked = flat[:: max(1, len(flat) // 16)][:16]
    return Summary(
        name=name,
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        all_ones=bool((flat == 1).all()),
        all_zero=bool((flat == 0).all()),
        std=float(flat.std()) if len(flat) > 1 else 0.0,
        print=tuple(picked.tolist()),
    )


def of_weights(found: Iterable[Summary], config: AnyConfig) -> list[str]:
    """Suspicions that the weights give."""
    tensors = {one.name: one for one in found if one.name not in _ENDS}
    own = list(tensors.values())
    says: list[str] = []
    norms = [one for one in own if one.name.endswith(_NORMS)]
    if norms and all(one.all_ones for one in norms):
        says.append(
            f"all {len(norms)} norm weights are exactly 1.0: it was never trained; use another "
            "checkpoint"
        )
    matrices = [one for one in own if len(one.shape) > 1]
    if matrices and all(one.all_zero for one in matrices):
        return ["all of its own weights are 0: it was never trained; use another checkpoint"]
    says += _heads(tensors, config)
    says += _repeated(own)
    says += _dtypes(own)
    return says


def _heads(tensors: Mapping[str, Summary], config: AnyConfig) -> list[str]:
    says = []
    w1 = tensors.get("markov_head.markov_w1.weight")
    w2 = tensors.get("markov_head.markov_w2.weight")
    if w1 is not None and w2 is not None:
        fresh = config.initializer_range
        if w1.all_zero or w2.all_zero:
            says.append("its Markov head is 0 and biases nothing: the head was not trained")
        elif abs(w1.std / fresh - 1) < 0.02 and abs(w2.std / fresh - 1) < 0.02:
            says.append(
                f"both matrices of its Markov head spread by {w1.std:.4f}, as fresh ones do: the "
                "head was not trained"
            )
    proj = tensors.get("confidence_head.proj.weight")
    if proj is not None and (proj.all_zero or proj.std == 0):
        says.append(
            "its confidence head is constant: the head was not trained; policies that read "
            "confidences will not trim by them"
        )
    return says


def _repeated(own: Iterable[Summary]) -> list[str]:
    """Layers that are copies of one another, as a careless warm start leaves them."""
    layers: dict[str, list[tuple[float, ...]]] = {}
    for one in own:
        parts = one.name.split(".")
        if parts[0] == "layers" and len(one.shape) > 1:
            layers.setdefault(parts[1], []).append(one.print)
    prints = list(layers.values())
    if len(prints) > 1 and all(one == prints[0] for one in prints[1:]):
        return [f"its {len(prints)} layers are copies of one another: they were not trained"]
    return []


def _dtypes(own: Iterable[Summary]) -> list[str]:
    big = [one for one in own if len(one.shape) > 1 and not is_wide(one.name)]
    kinds = sorted({str(one.dtype).removeprefix("torch.") for one in big})
    if len(kinds) > 1:
        return [f"its matrices have {' and '.join(kinds)}: save them alike"]
    if kinds == ["float16"]:
        return ["it is stored as float16, targets compute in bfloat16: values may overflow"]
    return []


def of_config(
    config: AnyConfig, *, block_size: int | None, special: Mapping[str, Any] | None = None
) -> list[str]:
    """Suspicions that the config gives.

    block_size: the flag that a server is started with, compared. special: the target's
    ``eos_token_id`` and the like, which the mask token must not be.
    """
    says = []
    if block_size is not None and block_size != config.block_size:
        says.append(
            f"its block_size is {config.block_size}, the flag says {block_size}: slots beyond the "
            "block it was trained with propose noise; give the same"
        )
    tokens = special or getattr(config, "target_text_config", None) or _target(config)
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        theirs = tokens.get(key)
        if config.mask_token_id in (theirs if isinstance(theirs, list) else [theirs]):
            says.append(
                f"its mask token {config.mask_token_id} is the target's {key}: the right one is a "
                "token that no text has"
            )
    ids = list(config.target_layer_ids)
    if ids != sorted(ids):
        says.append(
            f"its captured layers {ids} do not ascend: servers hand the states over in ascending "
            "order"
        )
    if getattr(config, "sample_from_anchor", True) is False:
        says.append(
            "sample_from_anchor is false: slot 0 proposes nothing; taken for DeepSpec's it is "
            "accepted at a length of 1"
        )
    if not config.markov_rank:
        says.append("it has no Markov head: SGLang refuses it as DSPARK")
    return says


def _target(config: AnyConfig) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(config, "target_config", {})
    return found


def of_target(ends: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """Suspicions that the drafter's copies of embedding and lm_head give beside the target's."""
    return [
        f"its {name} is not the target's: it was made for another one"
        for name, mine in ends.items()
        if name in theirs and not _same(mine, theirs[name])
    ]


def _same(mine: Tensor, theirs: Tensor) -> bool:
    if mine.shape != theirs.shape:
        return False
    step = max(1, len(mine) // 64)
    a, b = mine[::step].float(), theirs[::step].float()
    return bool(torch.allclose(a, b, rtol=1e-2, atol=1e-3))
