"""Requests per CPU-second of a replay, and its peak memory.

    python -m benchmarks.replay_speed

Poisson arrivals at 6.45 req/s with the lengths of the Azure 2023 conversation trace (of
``../shared/data/traces`` where that is present, else of the shipped ``chat`` trace), one replica.
Each case runs in a process of its own, three times; compilation is excluded, the best run counts,
because other work on the machine can only slow a run down. Writes
``benchmarks/results/replay_speed.json``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.apart import measure_cases
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.policy import parse_policy
from simulator.acceptance.load import load_acceptance
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Scenario
from simulator.study.first_start import warm_up
from traces import Trace, load_trace

ROOT = Path(__file__).resolve().parents[1]
AZURE = ROOT.parent / "shared" / "data" / "traces" / "azure2023_conv.csv"
RATE = 6.45
COST_MODEL = "h100-qwen3-8b-analytic"
CASES = [
    (policy, requests) for policy in ("none", "fixed", "global") for requests in (10_000, 100_000)
]


def lengths() -> tuple[str, np.ndarray, np.ndarray]:
    """(where from, prompt tokens, output tokens)."""
    if AZURE.exists():
        rows = np.loadtxt(AZURE, delimiter=",", skiprows=1, usecols=(1, 2), dtype=np.int64)
        return "azure2023_conv", rows[:, 0], np.maximum(rows[:, 1], 1)
    chat = load_trace(ROOT / "traces" / "chat.jsonl")
    return "traces/chat.jsonl", chat.prompt_tokens, chat.output_tokens


def poisson_trace(n: int) -> Trace:
    """``n`` requests: lengths drawn in pairs, exponential gaps, fixed seed."""
    rng = np.random.default_rng(20260724)
    _, prompt, output = lengths()
    rows = rng.integers(0, prompt.size, n)
    empty = np.zeros(0, dtype=np.int64)
    return replace(
        load_trace(ROOT / "traces" / "chat.jsonl").head(1),
        request_id=[str(i) for i in range(n)],
        arrival_s=np.cumsum(rng.exponential(1 / RATE, n)),
        prompt_tokens=prompt[rows],
        output_tokens=output[rows],
        domain=np.zeros(n, dtype=np.int32),
        domain_names=("chat",),
        session=np.full(n, -1, dtype=np.int64),
        temperature=np.full(n, np.nan),
        priority=np.zeros(n, dtype=np.int64),
        max_new_tokens=np.zeros(n, dtype=np.int64),
        slo=np.full(n, -1, dtype=np.int32),
        slo_names=(),
        prefix_offsets=np.zeros(n + 1, dtype=np.int64),
        prefix_blocks=empty,
        n_blocks=0,
        block_tokens=0,
    )


def measure(policy: str, requests: int) -> dict[str, object]:
    """One case in this process."""
    scenario = Scenario(
        trace=poisson_trace(requests),
        cost_model=load_cost_model(COST_MODEL),
        acceptance=load_acceptance("dspark-qwen3-4b"),
        policy=parse_policy(policy),
    )
    warm_up(scenario)
    best_s = float("inf")
    for _ in range(3):
        started = time.process_time()
        outcome = simulate(scenario)
        best_s = min(best_s, time.process_time() - started)
    state = outcome.memories[0].state[0]
    return {
        "policy": policy,
        "requests": requests,
        "requests_per_cpu_s": round(requests / best_s),
        "steps_per_cpu_s": round(int(state["steps"]) / best_s),
        "mean_batch": round(float(state["request_steps"] / state["decode_steps"]), 2),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Every case."""
    measure_cases(
        "replay_speed",
        CASES,
        about={"cost_model": COST_MODEL, "lengths": lengths()[0], "rate_req_s": RATE},
        warm_up=("none", 10),
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
