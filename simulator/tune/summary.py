"""From a finished or interrupted tuning run to ``summary.json``.

Owns the keys. The same inputs and seed give the same bytes, however many jobs. Knows no printing.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import sglang_dspark
from sglang_dspark.core.policy import PolicyFile
from simulator.fleet.scenario import Scenario
from simulator.study.study import saturated_rate
from simulator.study.windows import split
from simulator.sweep.sweep import sweep
from simulator.tune.bench import Bench
from simulator.tune.guard import Examination, rounded
from simulator.tune.search import Search
from simulator.tune.space import describe
from simulator.tune.task import Task


def capacity(task: Task, tuned: PolicyFile, bench: Bench) -> list[dict[str, Any]]:
    """How far from saturation the tuned and the current policy are; nothing in a closed loop."""
    arrival_s = task.whole.trace.arrival_s
    span_s = float(arrival_s[-1] - arrival_s[0]) / task.config.rate
    if task.config.concurrency or span_s <= 0:
        return []
    named = {"tuned": tuned, next(iter(task.incumbents)): task.whole.policy}
    scenarios = [dataclasses.replace(task.whole, policy=policy) for policy in named.values()]
    rates, interrupted = sweep(
        scenarios, _capacity_req_s, jobs=bench.jobs, ray=bench.ray, journal=bench.journal
    )
    if interrupted:
        raise KeyboardInterrupt
    offered = (len(arrival_s) - 1) / span_s
    return [
        {
            "load": task.loads[0].label,
            "policy": name,
            "offered_req_s": round(offered, 6),
            "capacity_req_s": round(rate, 6),
            "share": round(offered / rate, 6),
        }
        for name, rate in zip(named, rates, strict=True)
        if rate
    ]


def _capacity_req_s(scenario: Scenario) -> float:
    """0 where the trace is too short to tell."""
    return saturated_rate(scenario) or 0.0


def summarise(
    task: Task,
    search: Search,
    loads: list[dict[str, Any]],
    found: Examination | None,
) -> dict[str, Any]:
    """``summary.json``: the same bytes for the same inputs and seed."""
    config, setting = task.config, task.setting
    places = split(len(setting.windows))
    sizes = [window.end - window.first for window in setting.windows]
    summary: dict[str, Any] = {
        "schema_version": 1,
        "command": task.command,
        "version": sglang_dspark.__version__,
        "trace": task.whole.trace.name,
        "trace_sha256": task.whole.trace.sha256,
        "cost_model": task.whole.cost_model.name,
        "cost_model_origin": task.whole.cost_model.provenance.origin,
        "acceptance": config.acceptance,
        "acceptance_mismatch": list(task.acceptance_mismatch),
        "seed": config.seed,
        "slo": config.slo,
        "rate": config.rate,
        "concurrency": list(config.concurrency),
        "replicas": config.replicas,
        "gpus": config.replicas * task.whole.cost_model.gpus,
        "objective": task.objective,
        "current": next(iter(task.incumbents)),
        "interrupted": found is None,
        "split": {
            "search": list(places[0]),
            "held_out": list(places[1]),
            "requests": [min(sizes), max(sizes)],
        },
        "search": {
            "candidates": search.rungs[0]["candidates"] + search.refined,
            "simulations": search.simulations,
            "rungs": search.rungs,
            "families": [
                {
                    "policy": describe(policy),
                    "allowed": search.scores[policy].allowed,
                    "objective": task.objective,
                    "score": round(search.scores[policy].value, 6),
                }
                for policy in search.best_by_family().values()
            ],
        },
        "tuned": describe(search.best()),
        "load": loads,
    }
    if found is not None:
        summary |= {
            "policies": found.rows,
            "gains": {name: rounded(g) for name, g in found.gains.items()},
            "low_load": found.low_load,
            "ladder": found.ladder,
            "mistakes": found.mistakes,
            "no_difference": found.no_difference,
        }
        if found.prices is not None:
            summary["prices"] = found.prices
    reasons = ["The run was interrupted before the policy was judged."]
    if found is not None:
        reasons = found.reasons
    return summary | {"roll_out": not reasons, "reasons": reasons}


def notes(task: Task, bench: Bench) -> list[str]:
    """What to warn of: how the parts fit, and steps outside the cost model's range."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoded = [j for j in bench.known.values() if j.fewest_tokens <= j.most_tokens]
        if decoded:
            requests = max(j.most_requests for j in decoded)
            for tokens in (max(j.most_tokens for j in decoded),
                           min(j.fewest_tokens for j in decoded)):  # fmt: skip
                task.whole.cost_model.warn_outside(tokens, requests)
    return list(dict.fromkeys([*task.warnings, *(str(w.message) for w in caught)]))
