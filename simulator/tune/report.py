"""What ``python -m simulator.tune`` says: the table and the verdict, from ``summary.json`` alone.

Prints nothing itself. Knows no simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_COLUMNS = (
    ("throughput", "output tok/s", ".0f", 1.0),
    ("in_slo", "in SLO req/s", ".3f", 1.0),
    ("attainment", "in SLO %", ".1f", 100.0),
    ("speed", "user tok/s", ".1f", 1.0),
)
"""(figure, heading, format, factor)."""


def format_summary(summary: dict[str, Any]) -> str:
    """The report of a whole or an interrupted run."""
    lines = [_heading(summary), ""]
    search, split = summary["search"], summary["split"]
    lines.append(
        f"Searched {search['candidates']} candidates in {search['simulations']} simulations on "
        f"{len(split['search'])} windows, judged on {len(split['held_out'])} others "
        f"({split['requests'][0]} to {split['requests'][1]} requests each)."
    )
    lines += [f"  {name}: {text}" for name, text in _families(search["families"])]
    lines += ["", f"Tuned: {summary['tuned']}", *_loads(summary["load"])]
    if summary["interrupted"]:
        return "\n".join([*lines, "", "INTERRUPTED: not judged; run the same command to go on"])
    lines += ["", *_table(summary["policies"])]
    lines += [f"{summary['objective']} on held-out windows (95 %, paired by window):"]
    for name, found in summary["gains"].items():
        shown = found["low"] > 0 or found["high"] < 0
        lines.append(f"  over {name}: {_interval(found)}" + ("" if shown else ", within noise"))
    if "prices" in summary:
        lines.append(
            f"  over {summary['current']}, with the doubt about prices (90 %): "
            f"{_interval(summary['prices'])}"
        )
    lines.append("At low load, one replica:")
    lines += [
        f"  concurrency {row['concurrency']}: {row['output_tok_s']:.0f} tok/s, best other "
        f"{row['best_other']} {row['best_other_tok_s']:.0f}, regret {row['regret']:.2%}"
        for row in summary["low_load"]
    ]
    lines.append(crossing(summary["ladder"], summary["current"]))
    lines.append(f"Gain over {summary['current']} when what it believes is wrong:")
    lines += [f"  {row['mistake']}: {_interval(row)}" for row in summary["mistakes"]]
    return "\n".join([*lines, "", *_verdict(summary)])


_LEVEL = 0.005
"""Of throughput: less between two policies says nothing."""


def crossing(ladder: Sequence[dict[str, Any]], current: str) -> str:
    """Where the tuned policy is ahead of the current one and where behind, by clients."""
    signs: list[tuple[str, list[int]]] = []
    for row in ladder:
        gained = row["gain"]
        sign = "level" if abs(gained) < _LEVEL else "ahead" if gained > 0 else "behind"
        if not signs or signs[-1][0] != sign:
            signs.append((sign, []))
        signs[-1][1].append(row["concurrency"])
    parts = [
        f"{sign} at {loads[0]}" if len(loads) == 1 else f"{sign} from {loads[0]} to {loads[-1]}"
        for sign, loads in signs
    ]
    where = f"Throughput beside {current}, by clients of one replica: {', '.join(parts)}"
    gains = [row["gain"] for row in ladder]
    return f"{where} ({min(gains):+.1%} to {max(gains):+.1%})."


def _heading(summary: dict[str, Any]) -> str:
    return (
        f"{summary['trace']} on {summary['gpus']} GPU, {summary['cost_model']} "
        f"({summary['cost_model_origin']}), acceptance {summary['acceptance']}, SLO "
        f"{summary['slo']}, seed {summary['seed']}: {summary['objective']} against "
        f"{summary['current']}"
    )


def _families(families: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (
            row["policy"],
            f"{row['score']:.4f} of the current policy's {row['objective']} on search windows"
            if row["allowed"]
            else f"loses {-row['score']:.1%} of requests' SLO attainment on search windows",
        )
        for row in families
    ]


def _loads(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{row['load']}: {row['offered_req_s']:.2f} of {row['capacity_req_s']:.2f} req/s that "
        f"{row['policy']} can finish, "
        + ("SATURATED" if row["share"] >= 1 else f"{1 - row['share']:.0%} below saturation")
        for row in rows
    ]


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    width = max(len("policy"), *(len(row["policy"]) for row in rows))
    lines = []
    load = None
    for row in rows:
        if row["load"] != load:
            load = row["load"]
            heads = "  ".join(head for _, head, _, _ in _COLUMNS)
            lines += [f"Held-out windows at {load}:", f"  {'policy'.ljust(width)}  {heads}"]
        cells = (
            format(row[figure] * factor, form).rjust(len(head))
            for figure, head, form, factor in _COLUMNS
        )
        lines.append(f"  {row['policy'].ljust(width)}  " + "  ".join(cells))
    return [*lines, ""]


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:+.2%} [{found['low']:+.2%}, {found['high']:+.2%}]"


def _verdict(summary: dict[str, Any]) -> list[str]:
    lines = []
    if summary["no_difference"]:
        lines.append(
            "At this load, on these windows, no policy can be told from the tuned one."
            + _advice(summary)
        )
    if summary["roll_out"]:
        beaten = [name for name, found in summary["gains"].items() if found["low"] > 0]
        return [*lines, f"ROLL OUT: better than {', '.join(beaten)} on windows it was not tuned on"]
    return [*lines, "DO NOT ROLL OUT:", *(f"  {reason}" for reason in summary["reasons"])]


def _advice(summary: dict[str, Any]) -> str:
    loads = summary["load"]
    if not loads or loads[0]["share"] >= 0.7:
        return ""
    rate = summary["rate"] * 0.9 / loads[0]["share"]
    return f" Policies differ near saturation: --rate {rate:.2g} would be 90 % of capacity."
