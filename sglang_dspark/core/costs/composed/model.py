"""``compose``: a target, its drafter and a kind of GPU as a cost model of origin ``composed``.

Puts the composed parts together with what no table knows (``parts``), and says what was measured.
Knows no command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_dspark.core.costs.composed import drafting, parts
from sglang_dspark.core.costs.composed.assumed import MBU, MFU
from sglang_dspark.core.costs.composed.drafting import DraftPlan
from sglang_dspark.core.costs.composed.gpus import Gpu
from sglang_dspark.core.costs.composed.operators import MEASURED, Operators, Priced
from sglang_dspark.core.costs.composed.package import PACKAGE, package_version, quiet
from sglang_dspark.core.costs.composed.prefill import compose_prefill
from sglang_dspark.core.costs.composed.step import (
    CONTEXTS,
    Step,
    attention,
    body,
    compose_step,
    seconds,
)
from sglang_dspark.core.costs.composed.targets import Layout, Target
from sglang_dspark.core.costs.model import SCHEMA_VERSION, CostModel, as_json, decode_cost_model
from sglang_dspark.core.costs.roofline import sglang_plain_tiers, sglang_request_tiers
from sglang_dspark.core.costs.schema import (
    AdditiveCost,
    ComposedOf,
    ContextCost,
    DraftCost,
    FitError,
    PrefillCost,
    Provenance,
    ValidRange,
)

RELEASED = "2026-10"
"""When the tables of the supported versions were published."""
_MOST_REQUESTS = 256
_TYPICAL = (32, 2048)
"""Requests and context of the step whose measured share the file states."""
_WORDS_NOT_MEASURED = 12


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked for."""

    target: Target
    gpu: Gpu
    layout: Layout
    plan: DraftPlan | None
    engine: str = "sglang"
    dtype: str = ""
    kv_dtype: str = ""
    name: str
    command: str
    """As the file will state it."""


def compose(order: Order) -> CostModel:
    """The cost model. ``ValueError`` for what the tables do not know or the GPUs do not hold."""
    with quiet():
        return _compose(order)


def _compose(order: Order) -> CostModel:
    plan, layout = order.plan, order.layout
    operators = Operators(
        order.target, order.gpu, layout,
        engine=order.engine, dtype=order.dtype, kv_dtype=order.kv_dtype,
    )  # fmt: skip
    dense = None
    if plan is not None and plan.dense is not None:
        dense = Operators(plan.dense, order.gpu, layout, engine=order.engine)
    memory = parts.memory(operators, order.plan, dense)
    requests = tuple(sglang_request_tiers(_MOST_REQUESTS))
    width = 1 if plan is None else plan.gamma + 1
    tiers = tuple(width * r for r in requests)
    plain = tuple(sglang_plain_tiers(_MOST_REQUESTS))
    step = compose_step(
        operators,
        requests=requests,
        tokens=tuple(sorted({*tiers, *plain})),
        width=width,
        pool_tokens=memory.pool_tokens,
    )
    draft, drafted_context_s = _draft(order, operators, dense, requests)
    typical = _typical_step(operators, plan, dense, width)
    model = CostModel(
        schema_version=SCHEMA_VERSION,
        name=order.name,
        kind="additive",
        provenance=_provenance(order, operators),
        valid_range=ValidRange(
            tokens=(1, tiers[-1]), requests=(1, requests[-1]), context_tokens=(0, CONTEXTS[-1])
        ),
        fit_error=FitError(
            median_rel=float(np.median(step.errors)),
            max_rel=float(step.errors.max()),
            note="of bias + alpha(R) + theta(M) + context against the composed steps, worst at "
            f"{step.worst[0]} requests of {step.worst[1]} tokens; how far the composed steps are "
            "from a server's is not in it",
        ),
        drafter=None if plan is None else parts.drafter(order.target, plan),
        operators=_composed_of(operators, typical, width),
        additive=_additive(step),
        draft=draft,
        prefill=_prefill(operators),
        host=parts.host(),
        plain=parts.plain(plain),
        graphs=parts.graphs(tiers, width, operators.layers),
        context=ContextCost(
            token_s=step.token_s + drafted_context_s,
            reference_tokens=0,
            origin="composed",
            note="attention's slope over requests and contexts up to 32768 tokens, the drafter's "
            "included: what the form keeps of both is the fit error",
        ),
        memory=memory,
        watts=parts.watts(order.gpu, layout),
    )
    return decode_cost_model(_rounded(as_json(model)), where=order.name)


def _provenance(order: Order, operators: Operators) -> Provenance:
    layout = order.layout
    groups = [f"tp {layout.tp}"]
    groups += [f"ep {layout.ep}"] if layout.ep > 1 else []
    groups += [f"dp {layout.dp}"] if layout.dp > 1 else []
    return Provenance(
        origin="composed",
        source=f"{order.target.source}; operators timed by NVIDIA on {order.gpu.sheet.name}, from "
        f"{PACKAGE} {package_version()} (Apache-2.0)",
        hardware=f"{layout.tp}x {order.gpu.sheet.name}",
        model=order.target.label,
        dtype=f"{operators.dtype}; KV {operators.kv_dtype}",
        tp=layout.tp,
        engine=f"{order.engine} {operators.engine_version}, {', '.join(groups)}",
        date=RELEASED,
        command=order.command,
    )


def _additive(step: Step) -> AdditiveCost:
    first = float(step.body_s[0])
    raised = f"; {step.raised} sizes raised to the running maximum" if step.raised else ""
    return AdditiveCost(
        bias_s=step.first_attention_s + first,
        requests=step.requests,
        alpha_s=tuple(step.alpha_s.tolist()),
        tokens=step.tokens,
        theta_s=tuple((step.body_s - first).tolist()),
        origin="composed",
        note="attention at the requests, every other operator at the tokens, without a context"
        + raised,
    )


def _draft(
    order: Order, operators: Operators, dense: Operators | None, requests: tuple[int, ...]
) -> tuple[DraftCost | None, float]:
    """The drafting part, and the seconds that each context token adds to it."""
    plan = order.plan
    if plan is None:
        return None, 0.0
    of = drafting.block(plan, operators, dense)
    spent = np.maximum.accumulate([seconds(of(r)) for r in requests])
    context_s = 0.0
    if plan.kind != "stages":
        whose, passes = dense or operators, plan.gamma if plan.kind == "mtp" else 1
        near, far = (seconds(attention(whose, 32, c)) for c in (1024, 8192))
        context_s = max(far - near, 0.0) / (32 * 7168) * passes * plan.layers / whose.layers
    cost = DraftCost(
        gamma=plan.gamma,
        requests=requests,
        seconds=tuple(spent.tolist()),
        between="staircase",
        origin="composed",
        note=f"{plan.note}: operators at all tokens of the block, attention at the requests over "
        "short contexts; sampling from the data sheet",
    )
    return cost, context_s


def _prefill(operators: Operators) -> PrefillCost:
    found = compose_prefill(operators)
    return PrefillCost(
        base_s=found.base_s,
        token_s=found.token_s,
        pair_s=found.pair_s,
        floor_s=found.floor_s,
        origin="composed",
        note="fitted to composed prefills of 512 to 8192 tokens behind up to 16384 cached ones: "
        f"median {found.median_rel:.1%} off, at most {found.max_rel:.1%}; the target's alone",
    )


def _typical_step(
    operators: Operators, plan: DraftPlan | None, dense: Operators | None, width: int
) -> list[Priced]:
    requests, context = _TYPICAL
    priced = body(operators, requests * width) + attention(operators, requests, context)
    return priced + (drafting.block(plan, operators, dense)(requests) if plan else [])


def _composed_of(operators: Operators, typical: list[Priced], width: int) -> ComposedOf:
    """What was measured of the typical step."""
    total = seconds(typical)
    others: dict[str, float] = {}
    for one in typical:
        if one.source != MEASURED and one.seconds > 0:
            said = f"{one.name} ({one.source})"
            others[said] = others.get(said, 0.0) + one.seconds
    named = sorted(others, key=lambda said: -others[said])[:_WORDS_NOT_MEASURED]
    requests, context = _TYPICAL
    return ComposedOf(
        source=PACKAGE,
        version=f"{package_version()}, {operators.engine} {operators.engine_version}",
        measured_share=1.0 - sum(others.values()) / total,
        not_measured=tuple(named),
        note=f"of a step of {requests} requests with {width} tokens each and a context of "
        f"{context}, drafting included; 'data sheet' stands for {MFU:g} of its operations and "
        f"{MBU:g} of its bandwidth",
    )


def _rounded(value: Any) -> Any:
    """Six significant digits in every float: more would be false precision."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
