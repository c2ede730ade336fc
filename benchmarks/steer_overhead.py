"""What a steered decision costs the scheduler's thread, beside SGLang's own on the same states.

``python -m benchmarks.steer_overhead [--write FILE]``

Needs SGLang 0.5.21 (requirements/sglang-0.5.21-cpu.txt, the stand-in for sgl_kernel on PYTHONPATH).
Both sides run through SGLang's own entry points on one thread: the budget from relayed confidences
(``HostConfidenceBudgetPlanner.compute_budget``) and the lengths from the current ones
(``ScheduleVerifyLensTopk.execute``), gamma 7. CPU microseconds of the thread, medians.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from benchmarks.provenance import provenance
from sglang_dspark.core import Planner, load_cost_model, parse_policy
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.sglang_tables import to_additive, to_sps
from sglang_dspark.files import write_json
from sglang_dspark.runtime.metrics import WorkerMetrics

GAMMA, ROUNDS, STATES = 7, 30, 20
REQUESTS = (8, 64, 256)
COSTS = "h200-qwen3-8b-analytic"


def states(requests: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(relayed, current) float32 confidences, as a drafter's: likely at first, less so later."""
    rng = np.random.default_rng(requests)
    z = rng.normal(1.5, 1.5, (STATES, 2, requests, GAMMA)) - 0.2 * np.arange(GAMMA)
    found = torch.from_numpy(1 / (1 + np.exp(-z))).float()
    return [(pair[0].contiguous(), pair[1].contiguous()) for pair in found]


def median_us(act: Callable[[int], Any]) -> float:
    """Median CPU time of ``act(i)`` over all states, after one round that compiles."""
    for i in range(STATES):
        act(i)
    took = []
    for _ in range(ROUNDS):
        for i in range(STATES):
            start = time.thread_time_ns()
            act(i)
            took.append((time.thread_time_ns() - start) / 1000)
    return round(statistics.median(took), 1)


def timed(module: Any, table: Any, requests: int) -> dict[str, float]:
    """Budget and lengths of ``requests``, through whatever is on SGLang's entry points now."""
    cfg = module.DSparkScheduleConfig(gamma=GAMMA)
    host = module.HostConfidenceBudgetPlanner(
        sps_table=table, cfg=cfg, model_runner=None, relay_lag_steps=99
    )
    given = states(requests)
    generation = torch.ones(requests, dtype=torch.int64)
    slots = torch.arange(requests)

    def budget(i: int) -> int:
        found: int = host.compute_budget(
            confidence=given[i][0],
            generation=generation,
            current_generation=generation,
            req_pool_indices_cpu=slots,
        )
        return found

    budgets = [budget(i) for i in range(STATES)]
    budget_us = median_us(budget)
    lengths_us = median_us(
        lambda i: module.ScheduleVerifyLensTopk.execute(
            confidence=given[i][1], budget=budgets[i], cfg=cfg
        )
    )
    return {"budget_us": budget_us, "lengths_us": lengths_us}


def recording(model: CostModel, requests: int) -> float:
    """What watching a step costs: marks, copies, planning once more, metrics; no log."""
    from sglang_dspark.runtime.steer.decision import Decider
    from sglang_dspark.runtime.steer.observe import StepObserver

    planner = Planner(
        policy=parse_policy("global").policy, cost_model=model, gamma=GAMMA, max_requests=requests
    )
    metrics: Any = WorkerMetrics(
        gamma=GAMMA,
        policy="global",
        cost_model=COSTS,
        labels={"tp_rank": 0},
        interval_s=0,
        registry=CollectorRegistry(),
    )
    observer = StepObserver(planner, metrics, device=torch.device("cpu"), lag_steps=2)
    decider = Decider(planner, lag_steps=2)
    given, fresh = states(requests), torch.ones(requests, dtype=torch.bool)
    steps = [decider.from_history(stale, fresh) for stale, _ in given]
    planned = [
        decider.lengths(step, now, step.budget or 0) + 1
        for step, (_, now) in zip(steps, given, strict=True)
    ]
    names, prefix = [str(r) for r in range(requests)], torch.full((requests,), 100)

    def watch(i: int) -> None:
        observer.begin()
        assert observer.clock is not None
        for name in ("draft", "target_verify"):
            with observer.clock.part(name):
                pass
        observer.end(
            decision=steps[i],
            request_ids=names,
            confidence_RK=given[i][1],
            prefix_R=prefix,
            accepted_R=planned[i] // 2,
            verified_R=planned[i],
            ragged=True,
        )

    return median_us(watch)


def measure() -> dict[str, Any]:
    """Built-in first, then the same entry points with the hooks on them."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.speculative.dspark_components import dspark_planner as module

    from sglang_dspark.runtime.steer import targets
    from sglang_dspark.runtime.steer.decision import Decider
    from sglang_dspark.runtime.steer.hooks import Steering

    model = load_cost_model(COSTS)
    tables: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, exported in (("sps", to_sps(model, GAMMA)), ("additive", to_additive(model))):
            exported.save(Path(folder) / name)
            tables[name] = module.load_sps_table_from_path(str(Path(folder) / name))
    rows = []
    for name, table in tables.items():
        rows += [
            {"decides": f"built-in, {name}", "requests": r, **timed(module, table, r)}
            for r in REQUESTS
        ]
    steering = Steering()
    for target, hook in ((targets.BUDGET, steering.budget), (targets.LENGTHS, steering.lengths)):
        HookRegistry.register(target.path, hook, HookType.AROUND)
    HookRegistry.apply_hooks()
    for policy in ("global", "sglang", "sglang:additive"):
        planner = Planner(
            policy=parse_policy(policy).policy,
            cost_model=model,
            gamma=GAMMA,
            max_requests=max(REQUESTS),
        )
        steering.decide_with(Decider(planner, lag_steps=2))
        rows += [
            {"decides": f"steered, {policy}", "requests": r, **timed(module, tables["sps"], r)}
            for r in REQUESTS
        ]
    return {
        "what": "CPU microseconds of the scheduler's thread, median",
        "rows": rows,
        "record_us": {str(r): recording(model, r) for r in REQUESTS},
        "gamma": GAMMA,
        "cost_model": COSTS,
        "versions": {name: importlib.metadata.version(name) for name in ("sglang", "torch")},
        "threads": 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="write the numbers to this .json file")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    found = measure()
    for row in found["rows"]:
        print(
            f"{row['decides']:24} R={row['requests']:<4} budget {row['budget_us']:7.1f} us  "
            f"lengths {row['lengths_us']:7.1f} us"
        )
    for requests, took in found["record_us"].items():
        print(f"recording a step         R={requests:<4} {took:7.1f} us")
    if write is not None:
        write_json(write, provenance("python -m benchmarks.steer_overhead") | found)


if __name__ == "__main__":
    main()
