"""``dspark prices build``: what a step of a model costs, composed of operators timed one by one.

    dspark prices build --model qwen3-14b --gpu h200 -o mine.json

Owns the flags and the summary. Needs no GPU and no server, and the extra ``operators``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sglang_dspark.cli import Parser
from sglang_dspark.core.costs.composed.drafting import KINDS, plan_of
from sglang_dspark.core.costs.composed.gpus import GPUS, gpu_of
from sglang_dspark.core.costs.composed.model import Order, compose
from sglang_dspark.core.costs.composed.package import DTYPES, ENGINES, KV_DTYPES, hub_configs
from sglang_dspark.core.costs.composed.targets import NAMED, Layout, target_of
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.files import did_you_mean, refuse_onto_input, refuse_replacing


def order_of(
    *,
    model: str,
    gpu: str,
    layout: Layout,
    drafter: str = "",
    gamma: int | None = None,
    engine: str = "sglang",
    dtype: str = "",
    kv_dtype: str = "",
    name: str = "",
) -> Order:
    """What the flags ask for; ``ValueError`` with the nearest name for one that is not known."""
    kind = gpu_of(gpu)
    for flag, value, known in (
        ("--dtype", dtype, DTYPES),
        ("--kv-dtype", kv_dtype, KV_DTYPES),
        ("--engine", engine, ENGINES),
    ):
        if value and value not in known:
            hint = did_you_mean(value, known)
            raise ValueError(f"{flag} {value!r} is not known; {hint}use one of {', '.join(known)}")
    target = target_of(model, hub_configs())
    given = {"--model": model, "--gpu": gpu}
    defaults = Layout()
    for flag in ("tp", "ep", "dp"):
        if getattr(layout, flag) != getattr(defaults, flag):
            given[f"--{flag}"] = str(getattr(layout, flag))
    others = {
        "--dtype": dtype, "--kv-dtype": kv_dtype, "--drafter": drafter,
        "--gamma": "" if gamma is None else str(gamma),
        "--engine": "" if engine == ENGINES[0] else engine,
    }  # fmt: skip
    given |= {flag: value for flag, value in others.items() if value}
    return Order(
        target=target,
        gpu=kind,
        layout=layout,
        plan=plan_of(drafter, gamma, target),
        engine=engine,
        dtype=dtype,
        kv_dtype=kv_dtype,
        name=name or composed_name(gpu, layout, target.slug),
        command=" ".join(["dspark prices build", *(f"{k} {v}" for k, v in given.items())]),
    )


def composed_name(gpu: str, layout: Layout, slug: str) -> str:
    """How a composed model is called."""
    count = f"x{layout.tp}" if layout.tp > 1 else ""
    return f"{gpu}{count}-{slug}-composed"


def summary(model: CostModel) -> str:
    """A few lines on the model: step times, what was measured of them, how far the form is off."""
    assert model.operators is not None
    assert model.fit_error is not None
    gamma = model.draft.gamma if model.draft else 0
    tables = model.tables(model.valid_range.tokens[1], model.valid_range.requests[1])
    rows = []
    for requests in (1, 32, 256):
        tokens = requests * (gamma + 1)
        verify = 1e3 * (tables.verify_s[tokens] + tables.request_s[requests])
        drafted = f", drafting {1e3 * tables.draft_s[requests]:.2f} ms" if gamma else ""
        rows.append(
            f"  {requests} request{'s' * (requests > 1)}, {tokens} tokens, no context: "
            f"{verify:.2f} ms{drafted}"
        )
    missing = model.operators.not_measured
    return "\n".join(
        [
            f"{model.name}: {model.provenance.model} on {model.provenance.hardware}, "
            f"{model.provenance.dtype}",
            *rows,
            f"measured: {model.operators.measured_share:.0%} of a typical step"
            + (f"; not measured: {', '.join(missing)}" if missing else ""),
            f"form: {model.fit_error.median_rel:.1%} off the composed steps in the median, at most "
            f"{model.fit_error.max_rel:.1%}; KV room for {model.kv_pool_tokens} tokens",
            "what a whole step of a server costs was not measured: dspark profile or dspark "
            "calibrate does",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Compose one cost model and write it."""
    arguments = _parse(argv)
    order = order_of(
        model=arguments.model,
        gpu=arguments.gpu,
        layout=Layout(tp=arguments.tp, ep=arguments.ep, dp=arguments.dp),
        drafter=arguments.drafter,
        gamma=arguments.gamma,
        engine=arguments.engine,
        dtype=arguments.dtype,
        kv_dtype=arguments.kv_dtype,
        name=Path(arguments.out).stem if arguments.out else "",
    )
    model = compose(order)
    out = arguments.out or f"{model.name}.json"
    refuse_onto_input(out, *filter(None, (arguments.model, arguments.drafter)))
    refuse_replacing(out, model.text().encode(), force=arguments.force)
    model.save(out)
    print(f"{summary(model)}\nwritten: {out}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Compose a cost model of operators that were timed one by one on real GPUs. "
        "Needs no GPU and no server: pip install 'sglang-dspark[operators]'.",
        examples=(
            "--model qwen3-14b --gpu h200 -o mine.json",
            "--model config.json --gpu b300 --tp 4 --ep 4 --gamma 5",
        ),
        page="docs/prices.md",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help=f"{', '.join(NAMED)}, or a config.json")
    add("--gpu", required=True, metavar="NAME", help=f"one of {', '.join(GPUS)}")
    add("--tp", type=int, default=1, metavar="N", help="GPUs of one replica")
    add("--ep", type=int, default=1, metavar="N", help="groups that share the experts out")
    add("--dp", type=int, default=1, metavar="N", help="groups with requests of their own")
    add(
        "--dtype", default="", metavar="NAME",
        help=f"of the weights: {', '.join(DTYPES)} (default: the checkpoint's own)",
    )  # fmt: skip
    add(
        "--kv-dtype", default="", metavar="NAME",
        help=f"of keys and values: {', '.join(KV_DTYPES)} (default: the checkpoint's own)",
    )  # fmt: skip
    add(
        "--drafter", default="", metavar="NAME",
        help=f"{', '.join(KINDS)}, none, or a drafter's config.json (default: the target's usual)",
    )  # fmt: skip
    add("--gamma", type=int, metavar="N", help="draft tokens (default: the drafter's own)")
    add("--engine", default=ENGINES[0], metavar="NAME", help=f"whose kernels: {', '.join(ENGINES)}")
    add("-o", "--out", metavar="FILE", help="the file to write (default: the model's name)")
    add("--force", action="store_true", help="replace another file in --out")
    return parser.parse_args(argv)
