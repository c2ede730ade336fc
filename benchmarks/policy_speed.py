"""How long a budget decision takes: ``python -m benchmarks.policy_speed``.

One thread, gamma 7, a table of 64 probes. What is timed, in microseconds for one decision:

budget    the budget from the stale survival alone (SGLang: ``compute_verify_token_budget``)
lengths   the lengths from the current survival, half the tokens admitted (SGLang: top-k lengths)
decide    the whole decision from both survivals, called from Python
plan      the whole plan from logits, inside compiled code as the simulator runs it
Planner   ``Planner.plan``: a ``BatchState`` in, a ``VerifyPlan`` out, called from Python

Every call gets another of 64 random batches, so that the branch predictor cannot learn the answer.
Columns show the 10th percentile, since other processes share the machine; the file has the median
too. Compilation is not counted. Writes ``benchmarks/results/policy_speed.json``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(NUMBA_NUM_THREADS="1", OMP_NUM_THREADS="1")

import numpy as np

from benchmarks.provenance import hardware, provenance
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.core.compiled import compiled
from sglang_dspark.core.costs.model import CostModel, decode_cost_model
from sglang_dspark.core.costs.tables import CostTables
from sglang_dspark.core.decide import best_budget, decide
from sglang_dspark.core.goodput import Circumstances
from sglang_dspark.core.planner import Planner, compile_policy
from sglang_dspark.core.policy import POLICIES, GlobalBudget
from sglang_dspark.core.ranking import assign_slots, sort_candidates
from sglang_dspark.core.state import BatchState, Floats
from sglang_dspark.core.survival import fill_survival_rows
from sglang_dspark.core.tables import PolicyTables, Workspace, make_workspace
from sglang_dspark.files import make_folder, write_json

GAMMA = 7
PROBES = 64
BATCHES = 64
REQUESTS = (8, 64, 256, 1024)
ROOM = 2**60
RESULTS = Path(__file__).parent / "results" / "policy_speed.json"


def model_of(max_tokens: int) -> CostModel:
    """A staircase of 64 probes with a knee, so that the best budget lies inside the batch."""
    tokens = np.unique(np.linspace(1, max_tokens, PROBES).astype(int))
    seconds = 0.010 + 0.010 * np.maximum(tokens / max_tokens - 0.4, 0.0) + 1e-6 * tokens
    return decode_cost_model(
        {
            "schema_version": 1,
            "name": "benchmark",
            "kind": "table",
            "provenance": {
                "origin": "analytic",
                "source": "benchmarks/policy_speed.py",
                "hardware": "none",
                "model": "none",
                "dtype": "none",
                "tp": 1,
                "engine": "none",
                "date": "2026-11-24",
                "command": "python -m benchmarks.policy_speed",
            },
            "valid_range": {
                "tokens": [1, max_tokens],
                "requests": [1, max_tokens],
                "context_tokens": [0, 1000],
            },
            "fit_error": None,
            "table": {
                "tokens": tokens.tolist(),
                "seconds": seconds.tolist(),
                "between": "staircase",
                "origin": "analytic",
            },
            "prefill": {"base_s": 0.0, "token_s": 1e-5, "pair_s": 0.0, "origin": "analytic"},
            "host": {"step_s": 0.0005, "origin": "analytic"},
            "graphs": {"tiers_tokens": [], "beyond_last_s": 0.0, "origin": "analytic"},
        },
        where="benchmark",
    )


@compiled
def budget_alone(costs: CostTables, stale: Floats, work: Workspace) -> int:
    """The part of a decision that SGLang's ``compute_verify_token_budget`` is."""
    total = sort_candidates(stale, work.values, work.counts)
    return best_budget(costs, work.values, total, stale.shape[0], stale.shape[1], ROOM)


@compiled
def plan_from_logits(
    policy: PolicyTables,
    costs: CostTables,
    logits: Floats,
    stale_logits: Floats,
    calibration: tuple[Floats, Floats],
    survivals: tuple[Floats, Floats],
    around: Circumstances,
    work: Workspace,
    rounds: int,
) -> int:
    """``rounds`` decisions over the given batches in turn; returns the tokens they admit."""
    inverse_temperature, bias = calibration
    survival, stale = survivals
    admitted = 0
    for i in range(rounds):
        batch = i % logits.shape[0]
        fill_survival_rows(logits[batch], inverse_temperature, bias, survival)
        fill_survival_rows(stale_logits[batch], inverse_temperature, bias, stale)
        decide(policy, costs, survival, stale, around, ROOM, work)
        admitted += work.lengths[0]
    return admitted


def measure(call: Callable[[int], object], repeats: int, calls: int = 1) -> dict[str, float]:
    """Microseconds of one of the ``calls`` decisions that ``call(batch)`` makes."""
    for i in range(BATCHES):
        call(i)
    took = np.empty(repeats)
    for i in range(repeats):
        start = time.perf_counter_ns()
        call(i % BATCHES)
        took[i] = (time.perf_counter_ns() - start) / 1e3 / calls
    low, median = np.percentile(took, [10, 50])
    return {"p10_us": round(float(low), 2), "p50_us": round(float(median), 2)}


def measure_batch(requests: int, repeats: int) -> dict[str, dict[str, float]]:
    """Every column for one batch size."""
    rng = np.random.default_rng(requests)
    shape = (BATCHES, requests, GAMMA)
    logits, stale_logits = rng.normal(2.0, 1.5, shape), rng.normal(2.0, 1.5, shape)
    calibration = np.ones(GAMMA), np.zeros(GAMMA)
    survival, stale = np.empty(shape), np.empty(shape)
    for i in range(BATCHES):
        fill_survival_rows(logits[i], *calibration, survival[i])
        fill_survival_rows(stale_logits[i], *calibration, stale[i])
    model = model_of(requests * (GAMMA + 1))
    costs = model.tables(requests * (GAMMA + 1), requests)
    work = make_workspace(requests, GAMMA)
    tables = {
        name: compile_policy(kind(), model, GAMMA, requests) for name, kind in POLICIES.items()
    }
    around = Circumstances(
        stale_age=np.full(requests, 2),
        note=np.full(requests, 0.5),
        weight=np.ones(requests),
        context_tokens=1000.0 * requests,
        prefills_per_step=0.1,
    )
    nothing = np.empty(shape[1:]), np.empty(shape[1:])
    half = requests * GAMMA // 2
    planner = Planner(policy=GlobalBudget(), cost_model=model, gamma=GAMMA, max_requests=requests)
    states = [
        BatchState(
            logits=logits[i],
            stale_logits=stale_logits[i],
            stale_age=np.full(requests, 2),
            context_tokens=np.full(requests, 1000),
        )
        for i in range(BATCHES)
    ]

    def decision(policy: PolicyTables) -> Callable[[int], object]:
        return lambda i: decide(policy, costs, survival[i], stale[i], around, ROOM, work)

    columns = {
        "budget": measure(lambda i: budget_alone(costs, stale[i], work), repeats),
        "lengths": measure(
            lambda i: assign_slots(survival[i], half, work.lengths, work.values, work.counts),
            repeats,
        ),
        "plan": measure(
            lambda i: plan_from_logits(
                tables["global"],
                costs,
                logits,
                stale_logits,
                calibration,
                nothing,
                around,
                work,
                BATCHES,
            ),
            repeats // 10,
            BATCHES,
        ),
        "Planner": measure(lambda i: planner.plan(states[i]), repeats),
    }
    for name, policy in tables.items():
        columns[f"decide {name}"] = measure(decision(policy), repeats)
    return columns


def main() -> None:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000, help="calls per column")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args()
    if arguments.repeats < 100:
        raise ValueError(f"--repeats {arguments.repeats} must be at least 100 for a percentile")
    measured = {requests: measure_batch(requests, arguments.repeats) for requests in REQUESTS}
    print(f"{hardware()}; one thread, gamma {GAMMA}, {PROBES} probes, p10 microseconds")
    print(f"{'':18}" + "".join(f"{f'R={requests}':>9}" for requests in REQUESTS))
    for column in measured[REQUESTS[0]]:
        row = "".join(f"{measured[requests][column]['p10_us']:9.1f}" for requests in REQUESTS)
        print(f"{column:18}{row}")
    make_folder(arguments.out.parent)
    write_json(
        arguments.out,
        provenance(" ".join(["python -m benchmarks.policy_speed", *sys.argv[1:]]))
        | {
            "gamma": GAMMA,
            "probes": PROBES,
            "repeats": arguments.repeats,
            "requests": {str(requests): columns for requests, columns in measured.items()},
        },
    )
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    sys.exit(run_command("policy_speed", main))
