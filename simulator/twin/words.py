"""What ``dspark twin`` says: tables and sentences, from its result alone.

Prints nothing itself. Knows no simulation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.twin.judge import BESIDE, SATURATED, TOLERANCE, Verdict

_DRIFTED = 0.1
"""Share by which the machine's speed may differ from the fitted one before a miss is put down to
it."""
_UNITS = {
    "output_tok_s": "output tok/s",
    "tpot_p50_ms": "TPOT p50, ms",
    "ttft_p50_ms": "TTFT p50, ms",
    "verified_tokens": "verified tokens",
    "ttft_p90_ms": "TTFT p90, ms",
    "ttft_p99_ms": "TTFT p99, ms",
    "requests_per_step": "requests a step",
    "tokens_per_request_step": "tokens a step",
}


def told(result: dict[str, Any], verdict: Verdict) -> str:
    """The whole report."""
    lines = [*_heading(result), "", *_comparison(verdict), "", *_drift(verdict), ""]
    if result["policies"]:
        lines += [*_others(result["policies"]), ""]
    lines += [f"NOT IDENTIFIED: {line}" for line in result["fit"]["not_identified"]]
    lines += [f"NOTE: {line}" for line in result["notes"]]
    return "\n".join([*lines, verdict_line(verdict)])


def _heading(result: dict[str, Any]) -> list[str]:
    requests, seconds = result["requests"], result["seconds"]
    outside = result["outside_ms"]
    load = result["of_capacity"]
    share = "a load that the recording is too short to tell" if load is None else (
        f"{load:.0%} of what it could finish"
    )  # fmt: skip
    return [
        f"{result['log']}: served under {result['served']}, {share}, "
        f"{result['cached_share']:.0%} of the prompt tokens cached",
        f"fitted on {requests['fitted']} requests of {seconds['fitted'] / 60:.1f} minutes, judged "
        f"on {requests['judged']} of {seconds['judged'] / 60:.1f} minutes",
        f"outside the engine: {outside['idle']:.1f} ms of a first token that found it idle, "
        f"{outside['busy']:.1f} ms of others",
    ]


def _comparison(verdict: Verdict) -> list[str]:
    """A line for each figure; ! marks what misses its tolerance."""
    lines = [
        f"{'':18}{'measured':>10}{'predicted':>11}{'error':>9}{'tolerance':>11}"
        f"{'at the speed of the rest':>26}"
    ]
    for name in (*TOLERANCE, *BESIDE):
        real, simulated = verdict.measured[name], verdict.predicted[name]
        bound = "" if name not in TOLERANCE else f"{TOLERANCE[name]:.0%}"
        if verdict.saturated and name == "ttft_p50_ms":
            bound = "saturated"
        mark = "!" if name in verdict.missed else " "
        lines.append(
            f"{_UNITS[name]:18}{real:10.4g}{simulated:11.4g}{verdict.error(name):+9.1%}"
            f"{bound:>10}{mark}{verdict.at_speed[name]:15.4g}"
            f"{verdict.error(name, 'at_speed'):+11.1%}"
        )
    return lines


def _drift(verdict: Verdict) -> list[str]:
    values = np.array(verdict.drift)
    if not values.size:
        return ["drift of the machine: no two steps of the rest follow each other"]
    parts = " ".join(f"{value:.2f}" for value in values)
    mean = float(values.mean()) - 1.0
    way = "slower" if mean > 0 else "faster"
    return [
        f"drift of the machine: the rest's steps took {abs(mean):.1%} {way} than as fitted, part "
        f"by part {parts}",
        "(time really taken over the fitted model's for the same steps: the machine, no replay's "
        "error)",
    ]


def _others(rows: list[dict[str, Any]]) -> list[str]:
    names = ("tpot_p50_ms", "ttft_p50_ms", "ttft_p99_ms", "verified_tokens")
    width = max(len(row["policy"]) for row in rows) + 2
    lines = [
        "what this log says of every policy on the judged traffic, predicted:",
        f"{'':{width}}" + "".join(f"{_UNITS[name]:>17}" for name in names) + f"{'full, req/s':>13}",
    ]
    for row in rows:
        capacity = row["capacity_req_s"]
        lines.append(
            f"{row['policy']:{width}}"
            + "".join(f"{row[name]:17.4g}" for name in names)
            + (f"{capacity:13.4g}" if capacity else f"{'-':>13}")
            + ("  served" if row["served"] else "")
        )
    return lines


def verdict_line(verdict: Verdict) -> str:
    """The last line: whether to believe the replay, and what misses."""
    if not verdict.missed:
        waiting = (
            f"; saturated (above {SATURATED:.0%}), so that its TTFT is not judged"
            if verdict.saturated
            else ""
        )
        return f"WITHIN TOLERANCE{waiting}"
    missed = ", ".join(f"{_UNITS[name]} {verdict.error(name):+.1%}" for name in verdict.missed)
    furthest = max((abs(value - 1.0) for value in verdict.drift), default=0.0)
    moved = (
        f"; the machine's own speed moved by up to {furthest:.0%} meanwhile: record at a quieter "
        "time before the simulator is blamed"
        if furthest > _DRIFTED
        else ""
    )
    return f"BEYOND TOLERANCE: {missed}{moved}"
