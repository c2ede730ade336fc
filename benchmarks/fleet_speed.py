"""Wall time, CPU time and peak memory of a fleet: 64 replicas and 1,000,000 requests.

    python -m benchmarks.fleet_speed

Poisson arrivals with the lengths of the shipped ``chat`` trace, without its prefixes, at
``RATE_PER_REPLICA`` requests per second and replica; budget policy ``global``; one thread. Each
router runs in a process of its own; building the trace counts, compilation does not. Writes
``benchmarks/results/fleet_speed.json``.
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
from simulator.fleet.config import FleetConfig
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Scenario
from simulator.slo import PRESETS
from simulator.study.metrics import measure as figures
from traces import Trace, load_trace

ROOT = Path(__file__).resolve().parents[1]
REPLICAS = 64
REQUESTS = 1_000_000
RATE_PER_REPLICA = 12.0
COST_MODEL = "h100-qwen3-8b-analytic"
ROUTERS = ("round-robin", "least-loaded")


def poisson_trace(n: int) -> Trace:
    """``n`` requests: lengths drawn in pairs, exponential gaps, fixed seed, no prefixes."""
    rng = np.random.default_rng(20260724)
    chat = load_trace(ROOT / "traces" / "chat.jsonl")
    rows = rng.integers(0, len(chat), n)
    return replace(
        chat,
        request_id=[str(i) for i in range(n)],
        arrival_s=np.cumsum(rng.exponential(1 / (RATE_PER_REPLICA * REPLICAS), n)),
        prompt_tokens=chat.prompt_tokens[rows],
        output_tokens=chat.output_tokens[rows],
        domain=chat.domain[rows],
        session=np.full(n, -1, dtype=np.int64),
        temperature=np.full(n, np.nan),
        priority=np.zeros(n, dtype=np.int64),
        max_new_tokens=np.zeros(n, dtype=np.int64),
        slo=np.full(n, -1, dtype=np.int32),
        slo_names=(),
        prefix_offsets=np.zeros(n + 1, dtype=np.int64),
        prefix_blocks=np.zeros(0, dtype=np.int64),
        n_blocks=0,
        block_tokens=0,
    )


def measure(router: str, requests: int) -> dict[str, object]:
    """One router in this process."""
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    scenario = Scenario(
        trace=poisson_trace(requests),
        cost_model=load_cost_model(COST_MODEL),
        acceptance=load_acceptance("dspark-qwen3-4b"),
        policy=parse_policy("global"),
        replicas=REPLICAS,
        fleet=FleetConfig(router=router),
    )
    outcome = simulate(scenario)
    row = figures(outcome, PRESETS["standard"])
    return {
        "router": router,
        "replicas": REPLICAS,
        "requests": requests,
        "completed": row["completed"],
        "simulated_s": row["duration_s"],
        "steps": row["steps"],
        "wall_s": round(time.perf_counter() - started_s, 1),
        "cpu_s": round(time.process_time() - started_cpu_s, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "ttft_ms_p99": row["ttft_ms"]["p99"],
        "slo_attainment": row["slo_attainment"],
    }


def main() -> None:
    """Every router."""
    measure_cases(
        "fleet_speed",
        [(router, REQUESTS) for router in ROUTERS],
        about={
            "cost_model": COST_MODEL,
            "policy": "global",
            "rate_per_replica_req_s": RATE_PER_REPLICA,
        },
        warm_up=("round-robin", 1000),
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
