r"""What ``goodput`` loses to the best of the other policies, and what it wins.

    python -m benchmarks.goodput_regret --jobs 2

Closed loops on every shipped trace and cost model at concurrency 1 to 512, every policy. Two
questions, one policy each: ``goodput`` as it comes, for throughput; ``goodput`` paced by the SLO
(``slack_weight`` 1 on the SLO's bounds), for goodput, requests per second that meet it. Only the
steady part counts: between the finish number 2C and the last send, so that neither the first wave
of C prompts nor the draining of the last is in it. Where fewer than a tenth of the requests meet
the SLO under every policy, goodput is a matter of luck and is not compared.

Both are differences to the best of six noisy numbers, which is too high on average. Goodput comes
with a 95 % interval over 20 batches of consecutive requests; a loss or a win is *shown* when the
whole interval lies beyond 1 %.

Writes ``benchmarks/results/goodput_regret.json``; resumes from its journal when interrupted.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from benchmarks.provenance import provenance
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.core.costs.library import load_cost_model, shipped_cost_models
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import Goodput, PolicyFile, parse_policy
from sglang_dspark.files import make_folder, write_json
from simulator.acceptance.load import AcceptanceProfile, load_acceptance
from simulator.engine.config import EngineConfig
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Scenario
from simulator.slo import parse_slo
from simulator.study.first_start import warm_up
from simulator.study.metrics import measure, met_slo
from simulator.sweep.sweep import sweep
from traces import Trace, load_trace

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "goodput_regret.json"
TRACES = ("chat", "code", "math", "mixed")
LOADS = (1, 4, 16, 64, 256, 512)
OTHERS = ("none", "fixed", "threshold", "early_stop", "global", "sglang")
PLAIN, PACED = "goodput", "goodput paced"
SLO = "interactive"
SLACK_WEIGHT = 1.0
LEAST_ATTAINMENT = 0.1
BATCHES = 20


@dataclass(frozen=True)
class Point:
    """One simulation."""

    trace: str
    cost_model: str
    acceptance: str
    concurrency: int
    policy: str


@functools.cache
def _trace(name: str) -> Trace:
    return load_trace(ROOT / "traces" / f"{name}.jsonl")


@functools.cache
def _cost_model(name: str) -> CostModel:
    return load_cost_model(name)


@functools.cache
def _acceptance(name: str) -> AcceptanceProfile:
    return load_acceptance(name)


def policy_of(name: str) -> PolicyFile:
    """The policy that a point names."""
    if name != PACED:
        return parse_policy(name)
    slo = parse_slo(SLO)
    paced = Goodput(ttft_ms=slo.ttft_ms, tpot_ms=slo.tpot_ms, slack_weight=SLACK_WEIGHT)
    return PolicyFile(policy=paced)


def scenario_of(point: Point) -> Scenario:
    """Enough requests for a steady part, at most the whole trace."""
    trace = _trace(point.trace)
    requests = min(len(trace), max(2000, 16 * point.concurrency))
    return Scenario(
        trace=trace.head(requests),
        cost_model=_cost_model(point.cost_model),
        acceptance=_acceptance(point.acceptance),
        policy=policy_of(point.policy),
        # Above every concurrency: who waits for a full batch to drain is no policy's doing.
        engine=EngineConfig(max_running_requests=1024),
        concurrency=point.concurrency,
    )


def work(point: Point) -> dict[str, Any]:
    """Simulate one point: throughput, goodput and attainment in its steady state."""
    scenario, slo = scenario_of(point), parse_slo(SLO)
    outcome = simulate(scenario)
    row = measure(outcome, slo)
    met = met_slo(outcome, slo)[scenario.judged_requests]
    rate = met.size / row["duration_s"]
    return {
        "output_tok_s": row["output_tok_s"],
        "goodput_req_s": row["slo_goodput_req_s"],
        "attainment": row["slo_attainment"],
        "goodput_batches": [round(float(rate * m.mean()), 6) for m in np.array_split(met, BATCHES)],
    }


def compare(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Relative gain of each ``goodput`` over the best other policy, None where not compared."""
    best = max(OTHERS, key=lambda name: rows[name]["output_tok_s"])
    best_goodput = max(OTHERS, key=lambda name: rows[name]["goodput_req_s"])
    compared = max(row["attainment"] for row in rows.values()) >= LEAST_ATTAINMENT
    theirs = max(rows[best_goodput]["goodput_req_s"], 1e-9)
    paced = rows[PACED]["goodput_req_s"] / theirs - 1
    batches = np.array(rows[PACED]["goodput_batches"]) - rows[best_goodput]["goodput_batches"]
    half = stats.t.ppf(0.975, BATCHES - 1) * batches.std(ddof=1) / math.sqrt(BATCHES) / theirs
    return {
        "best_throughput": best,
        "throughput_gain": round(rows[PLAIN]["output_tok_s"] / rows[best]["output_tok_s"] - 1, 5),
        "best_goodput": best_goodput,
        "goodput_gain": round(paced, 5) if compared else None,
        "goodput_interval": [round(paced - half, 5), round(paced + half, 5)] if compared else None,
        "attainment": rows[PACED]["attainment"],
        "attainment_of_best": rows[best_goodput]["attainment"],
    }


def _summary(cells: list[dict[str, Any]], name: str) -> dict[str, Any]:
    known = [cell for cell in cells if cell[name] is not None]
    gains = np.array([cell[name] for cell in known])
    worst = known[int(gains.argmin())]
    shown = {}
    if name == "goodput_gain":
        low, high = np.array([cell["goodput_interval"] for cell in known]).T
        shown = {"losses_shown": int((high < -0.01).sum()), "wins_shown": int((low > 0.01).sum())}
    return shown | {
        "cells": len(known),
        "worst": float(gains.min()),
        "worst_at": {k: worst[k] for k in ("trace", "cost_model", "acceptance", "concurrency")},
        "losses_above_1_pct": int((gains < -0.01).sum()),
        "wins_above_1_pct": int((gains > 0.01).sum()),
        "median": float(np.median(gains)),
        "best": float(gains.max()),
    }


def main() -> int:
    """Simulate all cells, print where it loses and wins, write the file."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument(
        "--cost-model", action="append", help="only these; repeat (default: all but composed ones)"
    )
    parser.add_argument("--acceptance", action="append", help="(default: dspark-qwen3-4b)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args()
    others = [name for name in shipped_cost_models() if not name.endswith("-composed")]
    models = arguments.cost_model or others
    profiles = arguments.acceptance or ["dspark-qwen3-4b"]
    points = [
        Point(trace, model, profile, load, policy)
        for profile in profiles
        for model in models
        for trace in TRACES
        for load in LOADS
        for policy in (*OTHERS, PLAIN, PACED)
    ]
    make_folder(arguments.out.parent)
    journal = arguments.out.with_suffix(".journal")
    warnings.simplefilter("ignore")
    warm_up(scenario_of(points[0]))
    with tqdm(total=len(points), unit="run") as bar:
        results, interrupted = sweep(
            points,
            work,
            jobs=arguments.jobs,
            journal=journal,
            on_done=lambda done: bar.update(done - bar.n),
        )
    if interrupted:
        print(f"interrupted; run again to go on from {journal}", file=sys.stderr)
        return 130
    cells = []
    size = len(OTHERS) + 2
    for i in range(0, len(points), size):
        rows = {
            p.policy: r for p, r in zip(points[i : i + size], results[i : i + size], strict=True)
        }
        point = points[i]
        cells.append(
            {
                "trace": point.trace,
                "cost_model": point.cost_model,
                "acceptance": point.acceptance,
                "concurrency": point.concurrency,
            }
            | compare(rows)  # type: ignore[arg-type]
        )
    found = {name: _summary(cells, name) for name in ("throughput_gain", "goodput_gain")}
    for name, summary in found.items():
        print(f"{name}: {summary}")
    write_json(
        arguments.out,
        provenance("python -m benchmarks.goodput_regret --jobs 2")
        | {"slo": SLO, "slack_weight": SLACK_WEIGHT, "least_attainment": LEAST_ATTAINMENT}
        | {"summary": found, "cells": cells},
    )
    journal.unlink()
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command("goodput_regret", main))
