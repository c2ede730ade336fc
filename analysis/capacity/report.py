"""``report.json``: every number of the capacity report, and the conclusions drawn from them.

Owns the arithmetic between what was simulated and what is shown: money, energy, crossovers,
regret, and which policy to deploy. Pages are drawn from this record alone. Knows no page; the
sentences are in ``words``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import sglang_dspark
from analysis.capacity.answer import answer_in_words
from analysis.capacity.words import limits_in_words, sureness_in_words
from analysis.series import short_name
from sglang_dspark.core.costs.model import CostModel
from simulator.capacity.choice import Choice
from simulator.capacity.questions import QUANTILES, Answer
from simulator.capacity.search import offered_rate
from simulator.capacity.study import LOADS, Findings, Inquiry
from simulator.fleet.mistakes import MISTAKES
from simulator.study.config import Study
from traces.statistics import statistics

SCHEMA_VERSION = 1
LOW_LOADS = (1, 2, 4)
"""Concurrent requests at which regret counts: where a server is most of the night."""
HOURS_PER_MONTH = 730
NEAR = 0.01
"""Throughputs closer than this are called equal."""


def build_report(
    study: Study,
    inquiry: Inquiry,
    findings: Findings,
    *,
    price: float | None,
    currency: str = "USD",
    idle_cut_s: float = 0.0,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The record of ``report.json``.

    ``price`` is what one GPU costs per hour in ``currency``, None if unknown; ``idle_cut_s`` were
    cut from the trace, the rest is busy time; ``notes`` are warnings to repeat.
    """
    scenario = inquiry.runs[0].scenario
    offered = offered_rate(scenario)
    assert offered is not None  # the inquiry has refused a trace without a rate
    model = study.cost_model
    slo = inquiry.goal.slo
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "version": sglang_dspark.__version__,
        "trace": {
            "name": study.trace.name,
            "sha256": study.trace.sha256,
            "requests": len(study.trace),
            "offered_req_s": offered,
            "idle_cut_s": idle_cut_s,
        },
        "cost_model": _cost_model(model),
        "acceptance": short_name(study.acceptance),
        "acceptance_mismatch": list(study.acceptance_mismatch),
        "assumed_acceptance": _assumed(scenario.acceptance),
        "slo": {"name": slo.name, "ttft_ms": slo.ttft_ms, "tpot_ms": slo.tpot_ms},
        "attainment": inquiry.goal.attainment,
        "seed": study.config.seed,
        "cost_per_gpu_hour": price,
        "currency": currency,
        "grown_by": "users" if inquiry.users else "faster",
        "policies": [run.label for run in inquiry.runs],
        "current": inquiry.current,
        "router": scenario.fleet.router,
        "warm_up": scenario.warm_up,
        "replicas_fail": scenario.fleet.failures is not None,
        "chosen": findings.chosen,
        "traffic": {
            label: _traffic(found, offered, model.gpus) for label, found in findings.traffic.items()
        },
        "fleets": [
            {
                "rate": rate,
                "offered_req_s": offered * rate,
                "lasts_s": (len(study.trace) - 1) / (offered * rate),
                "policies": {
                    label: _fleet(sizes[i], offered * rate, study, price)
                    for label, sizes in findings.sizes.items()
                },
                "choice": _choice(findings.choices[i]),
                "doubted_gpus": _doubted(findings, i, model.gpus),
            }
            for i, rate in enumerate(inquiry.rates)
        ],
        "classes": findings.sizes[findings.chosen][0]["at"]["misses"],
        "headroom": findings.headroom,
        "loads": {
            "replica_req_s": [offered * rate for rate in findings.load_rates],
            "shares": list(LOADS),
            "policies": findings.loads,
        },
        "closed_loop": {
            "concurrency": list(inquiry.concurrencies),
            "policies": findings.closed,
        },
        "crossovers": _crossovers(inquiry.concurrencies, findings.closed),
        "low_load_regret": _regrets(inquiry.concurrencies, findings.closed),
        "point": {
            "replica_req_s": offered * findings.point_rate,
            "rate": findings.point_rate,
            "quantiles": list(QUANTILES),
            "policies": findings.point,
        },
        "mistakes": _mistakes(inquiry.concurrencies, findings),
        "statistics": dataclasses.asdict(statistics(study.trace)),
    }
    report["answer"] = answer_in_words(report)
    report["sureness"] = sureness_in_words(report)
    report["limits"] = [*limits_in_words(report), *(f"Warning: {note}." for note in notes)]
    return report


def _doubted(findings: Findings, place: int, gpus: int) -> list[int | None] | None:
    """GPUs of the chosen policy with prices off in each way, fewest first, None last."""
    if not findings.doubted:
        return None
    sizes = [size and size * gpus for size in findings.doubted[place]]
    return sorted(sizes, key=lambda size: (size is None, size or 0))


def _cost_model(model: CostModel) -> dict[str, Any]:
    parts = {
        "verify": model.table or model.additive or model.roofline,
        "draft": model.draft,
        "prefill": model.prefill,
        "memory": model.memory,
    }
    return {
        "name": model.name,
        "origin": model.provenance.origin,
        "origins": {name: part.origin for name, part in parts.items() if part is not None},
        "hardware": model.provenance.hardware,
        "model": model.provenance.model,
        "engine": model.provenance.engine,
        "fit_error": model.fit_error and dataclasses.asdict(model.fit_error),
        "gpus": model.gpus,
        "watts": model.watts and dataclasses.asdict(model.watts),
    }


def _assumed(acceptance: Any) -> list[str]:
    """What of the acceptance profile nobody measured or published; a recorded log has none."""
    entries = getattr(acceptance, "provenance", None)
    entries = entries if isinstance(entries, list) else []
    return [entry.figure for entry in entries if entry.origin == "assumed"]


def _traffic(found: Answer, offered: float, gpus: int) -> dict[str, Any]:
    rate, capacity = found["sustained"], found["capacity_req_s"]
    held = rate * offered if rate else None
    return {
        "rate": rate,
        "misses_at_rate": found["misses_at"],
        "replica_req_s": held,
        "gpu_req_s": held and held / gpus,
        "saturates_at_req_s": capacity,
        "load": held / capacity if held and capacity else None,
    }


def _fleet(
    found: Answer, offered_req_s: float, study: Study, price: float | None
) -> dict[str, Any]:
    """A fleet of the size found. What a token costs is what the fleet costs over what is sent.

    Not over what was emitted until the last request ended: the end of a replay is emptier than
    anything it stands for.
    """
    model, size, at = study.cost_model, found["replicas"], found["at"]
    fleet = {
        "replicas": size,
        "gpus": size and size * model.gpus,
        "bound": found["bound"],
        "load": found["load"],
        "attainment": at["attainment"],
        "interval": at["interval"],
        "one_less": found["one_less"] and found["one_less"]["attainment"],
        "ttft_ms_p99": at["ttft_ms"]["p99"],
        "tpot_ms_p99": at["tpot_ms"]["p99"],
        "e2e_ms_p50": at["e2e_ms"]["p50"],
        "rejected": at["rejected"],
        "truncated": at["truncated"],
        "utilisation": at["utilisation"],
        "gpu_hours_per_mtok": None,
        "cost_per_mtok": None,
        "cost_per_hour": None,
        "cost_per_month": None,
        "kwh_per_mtok": None,
    }
    if size:
        mtok_h = offered_req_s * at["generated_tokens"] / at["requests"] * 3600 / 1e6
        fleet["gpu_hours_per_mtok"] = size * model.gpus / mtok_h
        if price is not None:
            fleet["cost_per_mtok"] = price * fleet["gpu_hours_per_mtok"]
            fleet["cost_per_hour"] = price * size * model.gpus
            fleet["cost_per_month"] = fleet["cost_per_hour"] * HOURS_PER_MONTH
        if model.watts is not None:
            watts = model.watts.idle + at["utilisation"] * (model.watts.busy - model.watts.idle)
            fleet["kwh_per_mtok"] = size * watts / 1e3 / mtok_h
    return fleet


def _choice(found: Choice | None) -> dict[str, Any] | None:
    return None if found is None else dataclasses.asdict(found)


def _throughput(rows: Sequence[Answer]) -> list[float]:
    return [row["output_tok_s"] or 0.0 for row in rows]


def _crossovers(loads: Sequence[int], closed: dict[str, list[Answer]]) -> list[dict[str, Any]]:
    """Per policy and per base, where its throughput is above and where it is below the base's."""
    found = []
    for base in ("none", "fixed"):
        for label, rows in closed.items():
            if base in closed and label != base:
                ratios = [
                    ours / theirs - 1.0 if theirs else 0.0
                    for ours, theirs in zip(
                        _throughput(rows), _throughput(closed[base]), strict=True
                    )
                ]
                found.append(
                    {
                        "policy": label,
                        "versus": base,
                        "gain": ratios,
                        "above": _where(loads, ratios),
                        "below": _where(loads, [-ratio for ratio in ratios]),
                    }
                )
    return found


def _where(loads: Sequence[int], gains: Sequence[float]) -> list[tuple[float, float]]:
    """Ranges of concurrency in which the gain exceeds ``NEAR``; between two loads it is taken to
    run straight over the logarithm of the load."""
    ranges: list[tuple[float, float]] = []
    start: float | None = None
    for i, gain in enumerate(gains):
        before = gains[i - 1] if i else gain
        if (gain > NEAR) != (before > NEAR):
            share = (NEAR - before) / (gain - before)
            place = loads[i - 1] * (loads[i] / loads[i - 1]) ** share
            if gain > NEAR:
                start = place
            elif start is not None:
                ranges.append((start, place))
                start = None
        elif gain > NEAR and start is None:
            start = float(loads[i])
    return ranges if start is None else [*ranges, (start, float(loads[-1]))]


def _regrets(loads: Sequence[int], closed: dict[str, list[Answer]]) -> dict[str, float]:
    """Largest share of throughput lost to the best policy at ``LOW_LOADS``."""
    low = [i for i, load in enumerate(loads) if load in LOW_LOADS]
    best = [max(_throughput(rows)[i] for rows in closed.values()) for i in low]
    return {
        label: max(
            1.0 - _throughput(rows)[i] / top if top else 0.0
            for i, top in zip(low, best, strict=True)
        )
        for label, rows in closed.items()
    }


def _mistakes(loads: Sequence[int], findings: Findings) -> dict[str, Any]:
    """Change of throughput by policy, load and mistake, against right beliefs."""
    changes: dict[str, list[list[float]]] = {}
    for label, rows in findings.mistakes.items():
        right = _throughput(findings.closed[label])
        each = len(MISTAKES)
        changes[label] = [
            [
                wrong / right[loads.index(load)] - 1.0 if right[loads.index(load)] else 0.0
                for wrong in _throughput(rows[i * each : (i + 1) * each])
            ]
            for i, load in enumerate(findings.mistake_loads)
        ]
    return {
        "labels": [mistake.label for mistake in MISTAKES],
        "concurrency": list(findings.mistake_loads),
        "policies": changes,
    }


def finite(value: Any) -> Any:
    """The record as JSON values: NumPy numbers and tuples made plain, NaN made null."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value
