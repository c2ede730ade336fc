"""Write the composed cost models that ship in ``sglang_dspark/cost_models``, and their table.

    python -m benchmarks.make_composed_models [--out FOLDER] [--page FILE]

Needs the extra ``operators``; a few minutes on one core. The same tables give the same bytes. What
does not fit its GPUs or has no table is left out and listed with its reason in the page, between
the lines that say so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sglang_dspark.cli import run_command
from sglang_dspark.core.costs.composed.command import order_of
from sglang_dspark.core.costs.composed.gpus import GPUS
from sglang_dspark.core.costs.composed.model import compose
from sglang_dspark.core.costs.composed.targets import NAMED, Layout
from sglang_dspark.core.costs.doubt import KNOTS, NAMES, changed, knot_weights
from sglang_dspark.core.costs.library import SHIPPED, load_cost_model
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.tables import UNIFORM, CostTables, draft_seconds, verify_seconds
from sglang_dspark.files import atomic_write, make_folder, read_json, read_text
from simulator.fit.bench.prior import doubted

PAGE = Path(__file__).parents[1] / "docs" / "prices.md"
BEGIN = "<!-- made by python -m benchmarks.make_composed_models -->"
END = "<!-- end -->"
HOPPER = ("h100", "h200")
GAMMA = 7
CHECKED = (
    ("sglang-35413", "qwen3-14b", "h200", Layout(), 0),
    ("vllm-fig2-cost", "dsv4-flash", "b300", Layout(tp=4, ep=4), 8192),
)
"""Published step times, and what stands for them: the context is the record's. SGLang derived its
table while it captured graphs, whose requests have none; vLLM states 8192 tokens."""
CHECKED_TOKENS = (1, 8, 16, 64, 256, 512, 1024)
STEP_NOISE = 0.02
"""Deviation of a published step time's logarithm."""
CHECKED_REQUESTS = (1, 2, 32, 128, 256)


def plans() -> Iterator[tuple[str, str, Layout]]:
    """Every model on every GPU: its checkpoint there, and the fewest GPUs that hold it well."""
    for gpu in GPUS:
        small, hopper = gpu == "h100", gpu in HOPPER
        for model in ("qwen3-4b", "qwen3-8b", "qwen3-14b", "qwen3-30b-a3b"):
            yield model, gpu, Layout()
        yield "qwen3-32b", gpu, Layout(tp=2 if small else 1)
        yield "gemma4-12b", gpu, Layout()
        yield "gemma4-26b-a4b", gpu, Layout()
        yield "llama-3.1-70b", gpu, Layout(tp=4 if small else 2)
        if hopper:  # no kernels for four-bit experts in the tables
            yield "dsv4-flash-fp8", gpu, Layout(tp=8 if small else 4)
            yield "dsv4-pro-fp8", gpu, Layout(tp=8)
            yield "glm-5.2", gpu, Layout(tp=8)
            yield "minimax-m3", gpu, Layout(tp=8)
        else:
            yield "dsv4-flash", gpu, Layout(tp=4, ep=4)
            yield "dsv4-pro", gpu, Layout(tp=8, ep=8)
            yield "glm-5.2-nvfp4", gpu, Layout(tp=4)
            yield "minimax-m3-nvfp4", gpu, Layout(tp=4)
        yield (
            "kimi-k3",
            gpu,
            Layout(tp=16, ep=16) if gpu == "gb200" else Layout(tp=8, ep=1 if hopper else 8),
        )


def shipped() -> list[CostModel]:
    """The composed models that ship."""
    return [load_cost_model(path.stem) for path in sorted(SHIPPED.glob("*-composed.json"))]


def matrix(models: Sequence[CostModel]) -> str:
    """Models down, GPUs across: how many GPUs, what was measured, how far the form is off."""
    cells: dict[str, dict[str, str]] = {}
    for model in models:
        assert model.operators is not None
        assert model.fit_error is not None
        gpu = model.name.split("-")[0].partition("x")[0]
        cells.setdefault(model.provenance.model, {})[gpu] = (
            f"{model.gpus}: {model.operators.measured_share:.0%}, {model.fit_error.max_rel:.0%}"
        )
    labels = dict.fromkeys(label for label, _, _ in NAMED.values())
    lines = [f"| model | {' | '.join(GPUS)} |", f"| --- |{' --- |' * len(GPUS)}"]
    for label in labels:
        row = cells.get(label, {})
        lines.append(f"| {label} | {' | '.join(row.get(gpu, '') for gpu in GPUS)} |")
    return "\n".join(lines)


def checked() -> str:
    """The composed beside the published times, row by row: nothing was fitted to them."""
    records = read_json(Path(__file__).with_name("published_step_costs.json"))["records"]
    lines = [
        "| what | published, ms | composed, ms | off | after two points |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for key, model, gpu, layout, context in CHECKED:
        record = records[key]
        composed = compose(order_of(model=model, gpu=gpu, layout=layout, gamma=GAMMA))
        tables = composed.tables(2048, 256)
        where = f"{composed.provenance.model}, {layout.tp} {gpu}"
        verified = [(m, ms) for m, ms in record["verify_ms"] if m <= CHECKED_TOKENS[-1]]

        def forward_ms(model_tables: CostTables, tokens: int, each: int = context) -> float:
            requests = -(-tokens // (GAMMA + 1))
            held = float(requests * each)
            return 1e3 * verify_seconds(model_tables, tokens, requests, held, UNIFORM)

        moved = _after_two_points(composed, verified, partial(forward_ms, tables))
        after = moved.tables(2048, 256)
        off = [abs(forward_ms(after, m) / ms - 1.0) for m, ms in verified[1:-1]]
        for tokens, published_ms in verified:
            if tokens in CHECKED_TOKENS:
                what = f"{where}: verify {tokens} tokens"
                given = tokens in (verified[0][0], verified[-1][0])
                last = "given" if given else f"{forward_ms(after, tokens) / published_ms - 1:+.0%}"
                lines.append(_row(what, published_ms, forward_ms(tables, tokens), last))
        if off:
            between = f"{where}: all {len(off)} sizes between"
            lines.append(
                f"| {between} |  |  |  | median {np.median(off):.0%}, worst {max(off):.0%} |"
            )
        for requests, published_ms in record["draft_ms"]:
            if requests in CHECKED_REQUESTS:
                ms = 1e3 * draft_seconds(tables, requests)
                lines.append(_row(f"{where}: draft for {requests}", published_ms, ms, ""))
    return "\n".join(lines)


def _after_two_points(
    composed: CostModel, verified: Sequence[tuple[int, float]], forward_ms: Callable[[int], float]
) -> CostModel:
    """The composed model moved by its smallest and largest published step, as far as the doubt of
    its origin lets either say of the sizes between."""
    given = [verified[0], verified[-1]]
    _, doubt = doubted(composed)
    prior = doubt.root() @ doubt.root().T
    slopes = np.zeros((2, len(NAMES)))
    slopes[:, : len(KNOTS)] = knot_weights(np.array([float(m) for m, _ in given]))
    gaps = np.array([np.log(ms / forward_ms(m)) for m, ms in given])
    noise = STEP_NOISE**2 * np.eye(2)
    x = prior @ slopes.T @ np.linalg.solve(slopes @ prior @ slopes.T + noise, gaps)
    x[len(KNOTS) :] = 0.0
    return changed(composed, x)


def _row(what: str, published_ms: float, composed_ms: float, after: str) -> str:
    off = composed_ms / published_ms - 1
    return f"| {what} | {published_ms:.2f} | {composed_ms:.2f} | {off:+.0%} | {after} |"


def section(models: Sequence[CostModel], left_out: Sequence[str], check: str) -> str:
    """What stands between the page's two lines."""
    said = "\n".join(f"- {sentence}" for sentence in left_out)
    return f"{BEGIN}\n\n{matrix(models)}\n\nLeft out:\n\n{said}\n\n{check}\n\n{END}"


def main(argv: list[str] | None = None) -> int:
    """Write them all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder to write into")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the table")
    arguments = parser.parse_args(argv)
    make_folder(arguments.out)
    models, left_out = [], []
    for name, gpu, layout in plans():
        try:
            model = compose(order_of(model=name, gpu=gpu, layout=layout))
        except ValueError as error:
            left_out.append(f"`{name}` on {layout.tp} {gpu}: {error}")
            continue
        model.save(arguments.out / f"{model.name}.json")
        models.append(model)
        print(f"{model.name}: {model.operators.measured_share:.1%}" if model.operators else "")
    page = read_text(arguments.page)
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    with atomic_write(arguments.page) as file:
        file.write(f"{before}{section(models, left_out, checked())}{after}")
    print(f"{len(models)} models, {len(left_out)} left out")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command("make_composed_models", main))
