"""Tuner and capacity report on the same traffic: whether they say the same of a policy.

    python -m benchmarks.one_verdict [--jobs N]

Nine times, three traces at three rates each: ``python -m simulator.tune`` and then ``python -m
analysis.capacity`` with the tuned file, as docs/rollout.md has them. They agree where the tuner
says DO NOT ROLL OUT and the report advises no change, or the one ROLL OUT and the other a change.
Writes ``benchmarks/results/one_verdict.json``; about half an hour of one core.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from analysis.capacity.command import main as capacity
from benchmarks.provenance import provenance
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.files import make_folder, read_json, write_json
from simulator.tune.command import main as tune

SLO = "interactive"
CURRENT = "global"
CASES = {
    ("chat", "h200-qwen3-14b-analytic"): (1, 3, 5),
    ("code", "h200-qwen3-14b-analytic"): (1, 2, 3),
    ("mixed", "b300x4-dsv4-flash-vllm"): (1, 2, 3),
}
"""(trace, cost model): factors on the trace's rate."""


def verdicts(trace: str, cost_model: str, rate: float, folder: Path, jobs: int) -> dict[str, Any]:
    """Both commands at one load; ``ValueError`` where one fails."""
    tuned, report = folder / "tuned", folder / "report"
    common = [trace, "--slo", SLO, "--cost-model", cost_model, "--current", CURRENT]
    common += ["--rate", str(rate), "--jobs", str(jobs)]
    more = [word for name in (CURRENT, "sglang", "fixed") for word in ("--policy", name)]
    more += ["--policy-file", str(tuned / "policy.json"), "-o", str(report)]
    if tune([*common, "--out", str(tuned)]) or capacity([*common, *more]):
        raise ValueError(f"{trace} at rate {rate:g}: a command failed; see above")
    found = read_json(tuned / "summary.json")
    told = read_json(report / "report.json")
    choice = told["fleets"][0]["choice"]
    return {
        "trace": trace,
        "cost_model": cost_model,
        "rate": rate,
        "roll_out": found["roll_out"],
        "tuner_gain": found["gains"][CURRENT],
        "headline": told["answer"]["headline"],
        "replica_rate": choice["replica_rate"],
        "report_gain": choice["gains"]["tuned"],
        "agree": found["roll_out"] == (choice["policy"] != CURRENT),
    }


def _command() -> int:
    parser = Parser(prog="python -m benchmarks.one_verdict", description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    arguments = parser.parse_args()
    rows = []
    for (trace, cost_model), rates in CASES.items():
        for rate in rates:
            with tempfile.TemporaryDirectory(prefix="one-verdict-") as name:
                rows.append(verdicts(trace, cost_model, rate, Path(name), arguments.jobs))
    result = provenance("python -m benchmarks.one_verdict") | {"slo": SLO, "cases": rows}
    write_json(make_folder(Path(__file__).parent / "results") / "one_verdict.json", result)
    for row in rows:
        print(f"{row['trace']} x{row['rate']}: {row['headline']} agree: {row['agree']}")
    return 0 if all(row["agree"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(run_command("benchmarks.one_verdict", _command))
