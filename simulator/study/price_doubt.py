"""What the doubt about prices does to a comparison of policies.

Every run is replayed with prices off in ``DRAWS`` ways, the same for all policies, while policies
plan with the prices that are believed. Owns the intervals, and which measurement would narrow the
answer most. Writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sglang_dspark.core.costs.doubt import Floats
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.tables import DECIDED, PLAIN, UNIFORM, decode_step_seconds
from simulator.fleet.mistakes import Mistake, mistaken
from simulator.study.study import Run, RunResult
from simulator.study.verdict import merit_of

Row = dict[str, Any]

DRAWS = 12
FIGURES = ("output_tok_s", "tok_s_user_p50", "capacity_req_s", "slo_attainment")
PERCENTILES = (("ttft_ms", "p50"), ("tpot_ms", "p50"))
_LOADS = (1, 8, 64)
_EXPLAINS = 0.5
"""Share of an answer's variance from which on one measurement is advised."""


def doubted_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """[DRAWS][runs] with prices off; nothing where the (first pool's) model does not say how far
    they may be."""
    return [
        [
            Run(label=run.label, slo=run.slo, scenario=mistaken(run.scenario, mistake))
            for run in runs
        ]
        for mistake in price_mistakes(priced(runs))
    ]


def priced(runs: Sequence[Run]) -> CostModel:
    """Whose doubt is taken: every pool's prices are off alike, those of one maker."""
    return runs[0].scenario.pools[0].cost_model


def price_mistakes(model: CostModel, count: int = DRAWS) -> list[Mistake]:
    """So many ways in which the model's prices may be off; nothing where it does not say."""
    if model.doubt is None:
        return []
    return [
        Mistake(label=f"prices off, way {i + 1}", prices=tuple(x.tolist()))
        for i, x in enumerate(model.doubt.draws(count))
    ]


def add_doubt(summary: Row, drawn: Sequence[Sequence[RunResult]], model: CostModel) -> None:
    """Give rows, differences and the verdict of ``summary.json`` what the draws came to."""
    rows = [[result.row for result in results] for results in drawn]
    for i, row in enumerate(summary["policies"]):
        row["prices"] = _figures(row, [run[i] for run in rows])
    place = {(r["policy"], r["concurrency"]): i for i, r in enumerate(summary["policies"])}
    answers = []
    for difference in summary["differences"]:
        ours, theirs = (
            place[difference[name], difference["concurrency"]] for name in ("policy", "versus")
        )
        gains = _gains([run[ours] for run in rows], [run[theirs] for run in rows])
        if gains is None or difference["gain"] is None:
            continue
        known = difference["gain"]
        noise = 0.0 if known["low"] is None else (known["high"] - known["low"]) / 2.0
        half = math.hypot(noise, half_width(gains, known["mean"]))
        known["prices"] = {
            "low": round(known["mean"] - half, 6),
            "high": round(known["mean"] + half, 6),
        }
        answers.append((half, difference, gains))
    summary["prices_draws"] = DRAWS
    summary["narrow"] = _narrow(answers, model) if answers else None


def _figures(believed: Row, rows: Sequence[Row]) -> Row:
    """90 % interval of each figure over the draws."""
    found: Row = {}
    for name in FIGURES:
        found[name] = _interval(believed[name], [row[name] for row in rows])
    for name, percentile in PERCENTILES:
        own, *others = ((row[name] or {}).get(percentile) for row in (believed, *rows))
        found[name] = {percentile: _interval(own, others)}
    return found


def half_width(values: Floats, middle: float) -> float:
    """Half of the 90 % interval around the run at believed prices, from runs with prices off.

    Student's t, with as many degrees of freedom as ways to be off.
    """
    from scipy.special import stdtrit  # of a package that is slow to import

    spread = float(np.sqrt(np.mean(np.square(values - middle))))
    return float(stdtrit(values.size, 0.95)) * spread


def _interval(believed: float | None, values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None and value > 0]
    if not believed or len(known) < len(values):
        return None
    half = half_width(np.log(known), math.log(believed))
    return [round(believed * math.exp(sign * half), 6) for sign in (-1.0, 1.0)]


def _gains(ours: Sequence[Row], theirs: Sequence[Row]) -> Floats | None:
    """[DRAWS] of one policy over another, in what they are judged by."""
    pairs = list(zip(ours, theirs, strict=True))
    merit = merit_of(pairs[0])
    if not all(a[merit] and b[merit] for a, b in pairs):
        return None
    return np.array([a[merit] / b[merit] - 1.0 for a, b in pairs])


def _narrow(answers: Sequence[tuple[float, Row, Floats]], model: CostModel) -> str | None:
    """The benchmark whose outcome tells most of the least certain answer, if one does."""
    half, difference, gains = max(answers, key=lambda answer: answer[0])
    if half < 0.01:
        return None
    assert model.doubt is not None
    told = _candidates(model, model.doubt.draws(DRAWS))
    shares = {name: float(np.corrcoef(gains, logs)[0, 1] ** 2) for name, logs in told.items()}
    best = max(shares, key=lambda name: shares[name])
    if not shares[best] >= _EXPLAINS:
        return None
    where = "" if difference["concurrency"] is None else f" at {difference['concurrency']} clients"
    return (
        f"{difference['policy']} against {difference['versus']}{where} is known to ±{half:.1%}; "
        f"a benchmark of {best} would tell {shares[best]:.0%} of what its prices leave open: "
        "dspark prices calibrate"
    )


def _candidates(model: CostModel, draws: Floats) -> dict[str, Floats]:
    """By benchmark, [DRAWS] logarithm of its step's seconds."""
    from sglang_dspark.core.costs.doubt import changed

    gamma = model.draft.gamma if model.draft else 0
    shapes = {f"none with {n} clients": (n, n, 0, PLAIN) for n in _LOADS}
    if gamma:
        for n in _LOADS:
            shapes[f"fixed:{gamma} with {n} clients"] = (n * (gamma + 1), n, n, UNIFORM)
        shapes["global with 1 client"] = (gamma + 1, 1, 1, DECIDED)
    most = max(_LOADS)
    found: dict[str, list[float]] = {name: [] for name in shapes}
    for x in draws:
        tables = changed(model, x).tables(most * (gamma + 1), most)
        reference = tables.context_reference_tokens
        for name, (tokens, requests, drafted, shape) in shapes.items():
            seconds = decode_step_seconds(
                tables, tokens, requests, drafted, requests * reference, shape
            )
            found[name].append(math.log(seconds))
    return {name: np.array(logs) for name, logs in found.items()}


def sentences(summary: Row) -> list[str]:
    """The intervals as a person reads them, and what to measure next."""
    if "prices_draws" not in summary:
        return []
    lines = ["With the doubt about prices, 90 %:"]
    for row in summary["policies"]:
        load = "" if row["concurrency"] is None else f" at {row['concurrency']}"
        parts = []
        for words, interval, form in (
            ("tok/s", row["prices"]["output_tok_s"], ".0f"),
            ("tok/s of a user", row["prices"]["tok_s_user_p50"], ".1f"),
            ("TTFT p50 ms", row["prices"]["ttft_ms"]["p50"], ".0f"),
            ("TPOT p50 ms", row["prices"]["tpot_ms"]["p50"], ".2f"),
        ):
            if interval:
                parts.append(f"{words} {interval[0]:{form}} to {interval[1]:{form}}")
        lines.append(f"  {row['policy']}{load}: {', '.join(parts) or 'no steady state'}")
    if summary["narrow"]:
        lines.append(summary["narrow"] + ".")
    return lines
