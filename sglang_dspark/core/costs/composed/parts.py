"""The parts of a composed cost model that no table knows, by the laws of the analytic models.

Host, graph tiers, memory, power, and whose drafter it is. Knows no time of an operator.
"""

from __future__ import annotations

import math

from sglang_dspark.core.costs.composed import drafting
from sglang_dspark.core.costs.composed.drafting import DraftPlan
from sglang_dspark.core.costs.composed.gpus import Gpu
from sglang_dspark.core.costs.composed.operators import Operators
from sglang_dspark.core.costs.composed.targets import Layout, Target
from sglang_dspark.core.costs.roofline import EAGER_LAYER_S, IDLE_SHARE
from sglang_dspark.core.costs.schema import (
    GraphTiers,
    HostCost,
    Memory,
    PlainCost,
    PricedDrafter,
    Watts,
)

_USABLE = 0.88
_SPARE = 1.02
"""Room for keys and values, at the least, in shares of the weights."""


def host() -> HostCost:
    """The host part, the same for every model: nothing."""
    return HostCost(
        step_s=0.0,
        origin="analytic",
        note="the tables hold kernels; overlap scheduling is assumed to hide the host",
    )


def graphs(tiers: tuple[int, ...], width: int, layers: int) -> GraphTiers:
    """The graphs part: SGLang's batch sizes for speculation, ``width`` tokens of each request."""
    return GraphTiers(
        tiers_tokens=tiers,
        beyond_last_s=EAGER_LAYER_S * layers,
        origin="analytic",
        note=f"SGLang's speculative batch sizes up to {tiers[-1] // width}, times {width} tokens; "
        f"beyond them launches of {EAGER_LAYER_S * 1e6:g} us per layer are assumed",
    )


def plain(tiers: tuple[int, ...]) -> PlainCost:
    """The plain part: SGLang's batch sizes without speculation."""
    return PlainCost(
        tiers_tokens=tiers,
        origin="analytic",
        note=f"SGLang's batch sizes without speculation up to {tiers[-1]}",
    )


def memory(operators: Operators, plan: DraftPlan | None, dense: Operators | None) -> Memory:
    """The memory part. ``ValueError`` with the bytes and a number of GPUs that would hold them."""
    gpus, sheet = operators.layout.tp, operators.gpu.sheet
    weights, per_token = operators.weights_bytes, operators.kv_bytes
    if plan is not None:
        weights += drafting.weights_bytes(plan, operators, dense)
        per_token += drafting.kv_bytes(plan, operators, dense)
    capacity = sheet.memory_bytes
    if weights * _SPARE > _USABLE * gpus * capacity:
        enough = 2 ** math.ceil(math.log2(_SPARE * weights / (_USABLE * capacity)))
        raise ValueError(
            f"{operators.target.label} in {operators.dtype}: weights of {weights / 1e9:.1f} GB, "
            f"the drafter's included, do not fit {_USABLE:g} of {gpus} x {capacity / 1e9:g} GB "
            f"({sheet.name}); --tp {enough} would hold them"
        )
    return Memory(
        gpus=gpus,
        gpu_memory_bytes=capacity,
        weights_bytes=round(weights),
        kv_bytes_per_token=max(round(per_token), 1),
        origin="analytic",
        usable_share=_USABLE,
        note="from the config and the data sheet, the drafter's weights and KV included; per token "
        "as in a request of 4096",
    )


def watts(gpu: Gpu, layout: Layout) -> Watts:
    """The watts part: busy at the boards' limit."""
    busy = layout.tp * gpu.sheet.limit_watts
    return Watts(
        idle=IDLE_SHARE * busy,
        busy=busy,
        origin="analytic",
        note=f"data sheet's limit when busy; {IDLE_SHARE:.0%} of it when idle is assumed",
    )


def drafter(target: Target, plan: DraftPlan) -> PricedDrafter:
    """Whose drafting is priced, and the acceptance profile that belongs to it."""
    own, said = None, ""
    if target.slug == "qwen3-4b" and plan == drafting.plan_of("", None, target):
        own, said = "dspark-qwen3-4b", "the DSpark paper's drafter of seven tokens"
    if plan.kind == "stages" and drafting.ships_stages(target):
        own = "dspark5-v4"
        said = (
            "DSpark-5 as published: accepted lengths of V4-Pro's on coding, other domains assumed"
        )
    none = f"none of its own: replay rounds of a drafter for {target.label} where you have them"
    kind = "MTP layer" if plan.kind == "mtp" else "DSpark"
    return PricedDrafter(
        name=f"{kind} for {target.label}",
        acceptance=own,
        note=f"{said or none}; priced: {plan.note}",
    )
