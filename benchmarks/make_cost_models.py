"""Write the cost models that ship in ``sglang_dspark/cost_models``.

    python -m benchmarks.make_cost_models [--out FOLDER]

Inputs: the published step times in ``published_step_costs.json`` beside this file, model configs
and GPU data sheets below. The same inputs give the same bytes. What was not published is computed
and says so in its block's ``origin`` and ``note``.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from scipy.optimize import least_squares

from sglang_dspark.cli import run_command
from sglang_dspark.core.costs.library import SHIPPED
from sglang_dspark.core.costs.model import CostModel, as_json, decode_cost_model
from sglang_dspark.core.costs.roofline import (
    Drafter,
    Efficiency,
    GpuSheet,
    ModelConfig,
    RooflineCost,
    sglang_request_tiers,
)
from sglang_dspark.core.costs.schema import (
    ContextCost,
    DraftCost,
    FitError,
    GraphTiers,
    HostCost,
    Memory,
    PrefillCost,
    PricedDrafter,
    Provenance,
    StepTable,
    ValidRange,
    Watts,
)
from sglang_dspark.files import make_folder, read_json

COMMAND = "python -m benchmarks.make_cost_models"
PUBLISHED = Path(__file__).with_name("published_step_costs.json")
DATE = "2026-11"
GAMMA = 7
_SCHEMA = 2
"""Of these files, which have no block that came later."""


def _sheet(name: str, tflops: int, terabytes_per_s: float, gigabytes: int, watts: int) -> GpuSheet:
    return GpuSheet(
        name=name,
        flops=tflops * 1e12,
        memory_bytes_per_s=terabytes_per_s * 1e12,
        memory_bytes=gigabytes * 10**9,
        limit_watts=watts,
    )


GPUS = {
    "h100": _sheet("H100 SXM 80GB", 989, 3.35, 80, 700),
    "h200": _sheet("H200 SXM 141GB", 989, 4.8, 141, 700),
    "b200": _sheet("B200 180GB", 2250, 8.0, 180, 1000),
}
"""NVIDIA's data sheets: dense bf16 (half of the figure with sparsity), per GPU."""


def _qwen3(layers: int, hidden: int, intermediate: int, heads: int, *, tied: bool) -> ModelConfig:
    return ModelConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=tied,
    )


MODELS = {
    "qwen3-4b": ("Qwen3-4B", _qwen3(36, 2560, 9728, 32, tied=True)),
    "qwen3-8b": ("Qwen3-8B", _qwen3(36, 4096, 12288, 32, tied=False)),
    "qwen3-14b": ("Qwen3-14B", _qwen3(40, 5120, 17408, 40, tied=False)),
    "gemma-12b": (
        "Gemma-3-12B text model",
        ModelConfig(
            num_hidden_layers=48,
            hidden_size=3840,
            intermediate_size=15360,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=256,
            vocab_size=262208,
            tie_word_embeddings=True,
        ),
    ),
}
"""The models' config.json files."""

OWN_PROFILES = {"qwen3-4b": "dspark-qwen3-4b"}
"""Acceptance by position is published for one of the models; of the others lengths alone are."""

ASSUMED_MBU = 0.80
ASSUMED_LOGIT_PASSES = 4.0


class Fit(NamedTuple):
    """The efficiency and its relative errors at the published endpoints."""

    efficiency: Efficiency
    errors: dict[str, float]


def published(key: str) -> dict[str, Any]:
    """One record of ``published_step_costs.json``."""
    record: dict[str, Any] = read_json(PUBLISHED)["records"][key]
    return record


def drafter_of(model: str) -> PricedDrafter:
    """DSpark as DeepSpec trains it for one of ``MODELS``."""
    label, own = MODELS[model][0], OWN_PROFILES.get(model)
    return PricedDrafter(
        name=f"DSpark for {label}",
        acceptance=own,
        note="the DSpark paper's drafter of seven tokens"
        if own
        else f"none of its own: acceptance by position is published for Qwen3-4B only; replay "
        f"rounds of a drafter for {label} where you have them",
    )


def fitted_efficiency() -> Fit:
    """mfu and the two constants, least squares of the relative errors at H200 Qwen3-14B.

    The bandwidth share cannot be told from the constant there (8 and 16 tokens both read all
    weights), hence it is assumed, as are the passes over the logits.
    """
    record = published("sglang-35413")

    def roofline(parameters: Any, source: str = "") -> RooflineCost:
        mfu, step_ms, draft_step_ms = (float(p) for p in parameters)
        efficiency = Efficiency(
            basis="fitted",
            mfu=round(mfu, 3),
            mbu=ASSUMED_MBU,
            step_s=round(step_ms / 1e3, 6),
            draft_step_s=round(draft_step_ms / 1e3, 6),
            logit_passes=ASSUMED_LOGIT_PASSES,
            source=source,
        )
        return RooflineCost(
            model=MODELS["qwen3-14b"][1],
            gpu=GPUS["h200"],
            efficiency=efficiency,
            drafter=Drafter(gamma=GAMMA),
            origin="analytic",
        )

    def errors(cost: RooflineCost) -> dict[str, float]:
        verify = {
            f"verify {m} tokens": cost.verify_s(m) * 1e3 / ms for m, ms in record["verify_ms"]
        }
        draft = {f"draft {r} requests": cost.draft_s(r) * 1e3 / ms for r, ms in record["draft_ms"]}
        return {name: ratio - 1.0 for name, ratio in (verify | draft).items()}

    # Steps far above the rounding, else the rounded model looks constant to the differences.
    found = least_squares(
        lambda p: list(errors(roofline(p)).values()),
        [0.7, 1.5, 0.3],
        bounds=([0.1, 0.0, 0.0], [1.0, 10.0, 10.0]),
        diff_step=0.02,
    )
    source = (
        "mfu and the two constants fitted to the endpoints of sgl-project/sglang PR #35413 (H200, "
        f"Qwen3-14B); mbu {ASSUMED_MBU:g} and {ASSUMED_LOGIT_PASSES:g} passes over the logits are "
        "assumed, since those endpoints cannot tell bandwidth from the constant"
    )
    cost = roofline(found.x, source)
    return Fit(cost.efficiency, errors(cost))


def analytic_model(gpu: str, model: str, fit: Fit) -> CostModel:
    """A roofline model of one shipped config on one shipped GPU."""
    label, config = MODELS[model]
    sheet = GPUS[gpu]
    timed = (gpu, model) == ("h200", "qwen3-14b")
    worst = ", ".join(f"{name} {error:+.1%}" for name, error in fit.errors.items())
    sizes = sorted(abs(error) for error in fit.errors.values())
    return CostModel(
        schema_version=_SCHEMA,
        name=f"{gpu}-{model}-analytic",
        kind="roofline",
        provenance=Provenance(
            origin="analytic",
            source=f"config.json of {label}; NVIDIA data sheet of {sheet.name}",
            hardware=f"1x {sheet.name}",
            model=label,
            dtype="bfloat16",
            tp=1,
            engine="SGLang, as in PR #35413",
            date=DATE,
            command=COMMAND,
        ),
        valid_range=ValidRange(tokens=(1, 2048), requests=(1, 256), context_tokens=(0, 32768)),
        fit_error=FitError(
            median_rel=statistics.median(sizes),
            max_rel=sizes[-1],
            note=f"at the six published endpoints it was fitted to: {worst}; sizes between them, "
            "context, prefill and memory were not compared",
        )
        if timed
        else None,
        drafter=drafter_of(model),
        roofline=RooflineCost(
            model=config,
            gpu=sheet,
            efficiency=fit.efficiency,
            drafter=Drafter(gamma=GAMMA),
            origin="analytic",
            note="" if timed else "never timed: efficiency carried over from H200 Qwen3-14B",
        ),
    )


def h200_published(fit: Fit) -> CostModel:
    """The endpoints of PR #35413, on lines between them; the rest from the roofline."""
    record = published("sglang-35413")
    cost = analytic_model("h200", "qwen3-14b", fit).roofline
    assert cost is not None
    tiers = tuple((GAMMA + 1) * r for r in sglang_request_tiers(128))
    return CostModel(
        schema_version=_SCHEMA,
        name="h200-qwen3-14b-sglang-pr35413",
        kind="table",
        provenance=Provenance(
            origin="published",
            source=f"{record['source']}; {record['exactness']}",
            hardware=record["hardware"],
            model=record["model"],
            dtype="bfloat16",
            tp=1,
            engine=record["engine"],
            date=DATE,
            command=COMMAND,
        ),
        valid_range=ValidRange(tokens=(8, 1024), requests=(1, 128), context_tokens=(0, 0)),
        fit_error=None,
        drafter=drafter_of("qwen3-14b"),
        table=StepTable(
            tokens=tuple(m for m, _ in record["verify_ms"]),
            seconds=tuple(_seconds(record["verify_ms"])),
            between="linear",
            origin="published",
            note="only these three of 35 tiers are published; the line between 16 and 1024 tokens "
            "is an assumption, dearer than a roofline between them",
        ),
        draft=DraftCost(
            gamma=GAMMA,
            requests=tuple(r for r, _ in record["draft_ms"]),
            seconds=tuple(_seconds(record["draft_ms"])),
            between="linear",
            origin="published",
            note="only these three batch sizes are published",
        ),
        prefill=cost.prefill_cost(),
        host=HostCost(step_s=0.0, origin="analytic", note="not published; assumed hidden"),
        graphs=GraphTiers(
            tiers_tokens=tiers,
            beyond_last_s=cost.graph_tiers().beyond_last_s,
            origin="analytic",
            note="SGLang's speculative batch sizes up to 128 times 8 tokens: 35 sizes, as many as "
            "the PR states; beyond them kernel launches are assumed, 100 us per layer",
        ),
        context=cost.context_cost(),
        memory=cost.memory(),
        watts=cost.watts(),
    )


def b300_published() -> CostModel:
    """vLLM's DeepSeek-V4-Flash curves as running-maximum staircases; the rest estimated."""
    record = published("vllm-fig2-cost")
    tokens = [m for m, _ in record["verify_ms"]]
    verify = _running_maximum(_seconds(record["verify_ms"]))
    draft = _running_maximum(_seconds(record["draft_ms"]))
    raised = sum(a > b for a, b in zip(verify, _seconds(record["verify_ms"]), strict=True))
    # The line through the two largest eager forwards.
    prefill_token_s = (verify[-1] - verify[-2]) / (tokens[-1] - tokens[-2])
    return CostModel(
        schema_version=_SCHEMA,
        name="b300x4-dsv4-flash-vllm",
        kind="table",
        provenance=Provenance(
            origin="published",
            source=f"{record['source']}; {record['exactness']}",
            hardware=record["hardware"],
            model=record["model"],
            dtype="fp4 experts, fp8 elsewhere and in the KV cache",
            tp=4,
            engine=record["engine"],
            date="2026-08-14",
            command=COMMAND,
        ),
        valid_range=ValidRange(
            tokens=(1, tokens[-1]),
            requests=(1, record["draft_ms"][-1][0]),
            context_tokens=(8192, 8192),
        ),
        fit_error=None,
        drafter=PricedDrafter(
            name="DSpark of DeepSeek-V4-Flash",
            acceptance="dspark5-v4",
            note="DSpark-5 as published: accepted lengths of V4-Pro's on coding, other domains "
            "assumed; five of the seven positions that are priced",
        ),
        table=StepTable(
            tokens=tuple(tokens),
            seconds=tuple(verify),
            between="staircase",
            origin="published",
            note=f"medians of {record['samples_per_size']}; {raised} of {len(tokens)} raised to "
            "the running maximum, as vLLM does; beyond 1024 tokens the eager times, linear "
            "between them",
        ),
        draft=DraftCost(
            gamma=GAMMA,
            requests=tuple(r for r, _ in record["draft_ms"]),
            seconds=tuple(draft),
            between="staircase",
            origin="published",
            note="seven draft positions",
        ),
        prefill=PrefillCost(
            base_s=_rounded(verify[-1] - prefill_token_s * tokens[-1]),
            token_s=prefill_token_s,
            pair_s=2.4e-11,
            origin="analytic",
            note="prefill was not published: the line through the eager forwards of 8192 and 16384 "
            "tokens; per pair the indexer's 64 x 128 x 2 / 4 flops in 21 layers at 40 % of 4 x "
            "4.5 PFLOP/s, rounded up. Check: SGLang's cookbook has 191 ms to the first token of "
            "8192 on B300, this gives 136",
        ),
        host=HostCost(step_s=0.0, origin="published", note="the source adds verify and draft only"),
        graphs=GraphTiers(
            tiers_tokens=tuple(m for m in tokens if m <= 1024),
            beyond_last_s=0.0,
            origin="published",
            note="capture limit 1024; the price of leaving is in the eager probes (20.6 -> 104 ms)",
        ),
        context=ContextCost(
            token_s=1.2e-10,
            reference_tokens=record["profile_context_tokens"],
            origin="analytic",
            note="not published: the indexer's and the 128-fold compressed rows, 784 bytes per "
            "token on every GPU, at 80 % of 8 TB/s; selected rows are constant",
        ),
        memory=Memory(
            gpus=4,
            gpu_memory_bytes=288 * 10**9,
            weights_bytes=170 * 10**9,
            kv_bytes_per_token=4 * 3850,
            origin="analytic",
            note="not published: 284e9 parameters, experts in fp4 (checkpoint about 160 GB) and "
            "10 GB for the drafter; per token 21 layers of (584 + 132) / 4 and 20 of 584 / 128 "
            "bytes, on each GPU. A fixed cost per request (sliding window, page rounding) is left "
            "out",
        ),
        watts=Watts(
            idle=4 * 140.0,
            busy=4 * 1400.0,
            origin="analytic",
            note="data sheet's limit when busy; 10% of it when idle is assumed",
        ),
    )


def _seconds(pairs: list[list[float]]) -> list[float]:
    return [round(ms / 1e3, 9) for _, ms in pairs]


def _running_maximum(values: list[float]) -> list[float]:
    return [max(values[: i + 1]) for i in range(len(values))]


def _rounded(value: Any) -> Any:
    """Six significant digits, in every float of a JSON value: more would be false precision."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def cost_models() -> list[CostModel]:
    """Every shipped model."""
    fit = fitted_efficiency()
    models = [b300_published(), h200_published(fit)]
    models += [analytic_model(gpu, model, fit) for gpu in GPUS for model in MODELS]
    return [decode_cost_model(_rounded(as_json(m)), where=m.name) for m in models]


def main(arguments: list[str] | None = None) -> int:
    """Write the models and say where."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder (default: the package's)")
    folder = make_folder(parser.parse_args(arguments).out)
    for model in cost_models():
        path = folder / f"{model.name}.json"
        model.save(path)
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command("make_cost_models", main))
