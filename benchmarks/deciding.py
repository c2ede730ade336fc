"""What deciding costs in each step, who pays for it, and from which load on it pays.

    python -m benchmarks.deciding

Closed loops on the trace ``chat``, in steady state. ``ladder``: the published H200 prices with 1 ms
for every step that decides, the whole trace. ``grid``: prices made up of a slope per token, a cost
of deciding and an eager floor of ragged steps, everything else the same model's, 24 requests for
each client or 400. Writes ``benchmarks/results/deciding.json``; some minutes of one core.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.provenance import provenance
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import SCHEMA_VERSION, CostModel
from sglang_dspark.core.costs.schema import AdaptiveCost, RaggedCost, StepTable
from sglang_dspark.core.policy import parse_policy
from sglang_dspark.files import write_json
from simulator.acceptance.load import load_acceptance
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Scenario
from simulator.slo import parse_slo
from simulator.study.metrics import measure
from traces import load_trace

RESULT = Path(__file__).parent / "results" / "deciding.json"
COST_MODEL = "h200-qwen3-14b-sglang-pr35413"
POLICIES = ("none", "fixed:3", "fixed:5", "fixed", "global", "goodput")
LADDER = (1, 2, 4, 8, 16, 24, 32)
GRID = (1, 2, 4, 8, 16, 32)
SLOPES_US = (50, 100, 200)
DECIDING_MS = (0.0, 0.3, 1.0)
FLOORS_MS = (0.0, 14.0)


def priced(model: CostModel, *, deciding_ms: float, floor_ms: float = 0.0) -> CostModel:
    """The model with a price on deciding, and on ragged steps that run eagerly."""
    ragged = RaggedCost(origin="analytic", tiers_tokens=(), floor_s=floor_ms / 1e3)
    return replace(
        model,
        schema_version=SCHEMA_VERSION,
        adaptive=AdaptiveCost(step_s=deciding_ms / 1e3, origin="analytic"),
        ragged=ragged if floor_ms else None,
    )


def sloped(model: CostModel, slope_us: float) -> CostModel:
    """The model with a forward of 8.5 ms and so much for every token beyond the first."""
    assert model.graphs is not None
    seconds = (0.0085, 0.0085 + 1023 * slope_us / 1e6)
    table = StepTable(tokens=(1, 1024), seconds=seconds, between="linear", origin="analytic")
    graphs = replace(model.graphs, tiers_tokens=(), beyond_last_s=0.0)
    valid = replace(model.valid_range, tokens=(1, 1024))
    return replace(model, table=table, graphs=graphs, valid_range=valid)


def rates(model: CostModel, clients: int, requests: int | None = None) -> dict[str, float]:
    """Output tokens per second of each policy, on so many requests or all."""
    trace = load_trace("chat")
    found = {}
    for name in POLICIES:
        scenario = Scenario(
            trace=trace.head(requests or len(trace)),
            cost_model=model,
            acceptance=load_acceptance("dspark-qwen3-4b"),
            policy=parse_policy(name),
            concurrency=clients,
        )
        found[name] = measure(simulate(scenario), parse_slo("standard"))["output_tok_s"]
    return found


def behind(found: dict[str, float], name: str) -> float:
    """Throughput over that of the best, less 1."""
    return round(found[name] / max(found.values()) - 1.0, 6)


def _command() -> None:
    Parser(description=__doc__.split("\n")[0]).parse_args()
    model = load_cost_model(COST_MODEL)
    cells: list[dict[str, Any]] = []
    grid = list(itertools.product(SLOPES_US, DECIDING_MS, FLOORS_MS, GRID))
    for slope, deciding, floor, clients in tqdm(grid, unit="cell"):
        prices = priced(sloped(model, slope), deciding_ms=deciding, floor_ms=floor)
        found = rates(prices, clients, max(400, 24 * clients))
        cells.append(
            {"slope_us": slope, "deciding_ms": deciding, "floor_ms": floor, "clients": clients}
            | {"output_tok_s": found, "goodput": behind(found, "goodput")}
            | {"global": behind(found, "global")}
        )
    ladder = [
        {"clients": clients, "output_tok_s": rates(priced(model, deciding_ms=1.0), clients)}
        for clients in tqdm(LADDER, unit="load")
    ]
    worst = {name: min(cell[name] for cell in cells) for name in ("goodput", "global")}
    write_json(
        RESULT,
        {**provenance("benchmarks.deciding"), "cost_model": COST_MODEL, "worst": worst}
        | {"ladder": ladder, "grid": cells},
    )
    for row in ladder:
        print(row["clients"], {k: round(v / row["output_tok_s"]["fixed"] - 1, 4)
                               for k, v in row["output_tok_s"].items()})  # fmt: skip
    print(f"worst of {len(cells)}: {worst}\nwrote {RESULT}")


def main() -> int:
    """The command; returns its exit status."""
    return run_command("benchmarks.deciding", _command)


if __name__ == "__main__":
    raise SystemExit(main())
