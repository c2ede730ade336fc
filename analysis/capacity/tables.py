"""The tables of the capacity report as text cells, for HTML and PDF alike.

Owns which columns a table has and how its numbers are rounded. Reads the record of
``report`` alone; knows no markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.capacity.words import number, percent


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells, row by row; the first column names the row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of cells that stand out."""


def as_text(table: Table) -> str:
    """The table for a terminal, its columns aligned."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(table.head))]
    return "\n".join(
        [
            table.title,
            *(
                "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
                for line in lines
            ),
        ]
    )


def sizes(report: dict[str, Any]) -> Table:
    """Fewest GPUs by traffic and policy, and how loaded they are."""
    rows, best = [], set()
    for i, fleet in enumerate(report["fleets"]):
        found = [fleet["policies"][label] for label in report["policies"]]
        fewest = min((one["gpus"] for one in found if one["gpus"]), default=None)
        if {one["gpus"] for one in found} != {fewest}:  # else it tells nobody apart
            best |= {(i, k + 2) for k, one in enumerate(found) if one["gpus"] == fewest and fewest}
        cells = [_size(one) for one in found]
        rows.append((f"×{number(fleet['rate'])}", number(fleet["offered_req_s"]), *cells))
    return Table(
        title="Fewest GPUs (in brackets: % of what they finish when always full)",
        head=("rate", "requests/s", *report["policies"]),
        rows=tuple(rows),
        best=frozenset(best),
    )


def _size(found: dict[str, Any]) -> str:
    if found["gpus"] is None:
        return f"none up to {found['bound']}"
    load = "" if found["load"] is None else f" ({percent(found['load'], 0)})"
    return f"{found['gpus']}{load}"


def policies(report: dict[str, Any]) -> Table:
    """Each policy at the largest traffic, and what one replica holds."""
    last = report["fleets"][-1]
    priced = report["cost_per_gpu_hour"] is not None
    money = "cost per M tokens" if priced else "GPU-hours per M tokens"
    rows = []
    for label in report["policies"]:
        found, traffic = last["policies"][label], report["traffic"][label]
        rows.append(
            (
                label,
                number(traffic["replica_req_s"]),
                _size(found),
                number(found["cost_per_mtok" if priced else "gpu_hours_per_mtok"]),
                number(found["kwh_per_mtok"]),
                attained(found),
                percent(found["one_less"]),
            )
        )
    chosen = report["policies"].index(report["chosen"])
    return Table(
        title=f"At {number(last['offered_req_s'])} requests/s (×{number(last['rate'])})",
        head=(
            "policy",
            "one replica holds, requests/s",
            "fewest GPUs (load %)",
            money,
            "kWh per M tokens",
            "% in SLO [95 %]",
            "% in SLO with one replica less",
        ),
        rows=tuple(rows),
        best=frozenset((chosen, column) for column in range(7)),
    )


def attained(found: dict[str, Any]) -> str:
    """Attainment in per cent with its interval."""
    if found["interval"] is None:
        return percent(found["attainment"])
    low, high = found["interval"]
    return f"{percent(found['attainment'])} [{percent(low)}, {percent(high)}]"


def fleets(report: dict[str, Any]) -> Table:
    """Every size that was searched."""
    priced = report["cost_per_gpu_hour"] is not None
    rows = []
    for fleet in report["fleets"]:
        for label in report["policies"]:
            found = fleet["policies"][label]
            rows.append(
                (
                    f"×{number(fleet['rate'])}",
                    label,
                    str(found["gpus"] or "none"),
                    str(found["bound"]),
                    percent(found["load"], 0),
                    attained(found),
                    percent(found["one_less"]),
                    number(found["ttft_ms_p99"]),
                    number(found["tpot_ms_p99"]),
                    number(found["cost_per_mtok" if priced else "gpu_hours_per_mtok"]),
                    number(found["kwh_per_mtok"]),
                )
            )
    return Table(
        title="Size, load, latencies and cost by rate and policy",
        head=(
            "rate",
            "policy",
            "GPUs",
            "checked to, replicas",
            "load %",
            "% in SLO [95 %]",
            "% with one less",
            "TTFT p99 ms",
            "TPOT p99 ms",
            "cost per M tokens" if priced else "GPU-hours per M tokens",
            "kWh per M tokens",
        ),
        rows=tuple(rows),
    )


def crossovers(report: dict[str, Any]) -> Table:
    """Where each policy is ahead of none and of fixed, and its regret at low load."""
    bases = list(dict.fromkeys(found["versus"] for found in report["crossovers"]))
    rows = []
    for label in report["policies"]:
        cells = []
        for base in bases:
            found = [c for c in report["crossovers"] if (c["policy"], c["versus"]) == (label, base)]
            cells += [_ranges(found[0]["above"]), _ranges(found[0]["below"])] if found else ["", ""]
        rows.append((label, *cells, percent(report["low_load_regret"][label])))
    heads = [f"concurrency {side} {base}" for base in bases for side in ("ahead of", "behind")]
    return Table(
        title="Ahead and behind by more than 1 % of throughput",
        head=("policy", *heads, "low-load regret %"),
        rows=tuple(rows),
    )


def _ranges(ranges: Sequence[Sequence[float]]) -> str:
    return ", ".join(f"{number(low)} to {number(high)}" for low, high in ranges) or "nowhere"


def trace(report: dict[str, Any]) -> Table:
    """The trace in figures."""
    figures = report["statistics"]
    arrivals, prefix = figures["arrivals"], figures["prefix"]
    rows = [
        ("requests", f"{figures['requests']:,}"),
        ("lasts", f"{number(arrivals['span_s'] / 60)} minutes"),
        ("rate", f"{number(arrivals['rate_req_s'])} requests/s"),
        ("spread of gaps (CV; Poisson: 1)", number(arrivals["interarrival_cv"])),
        ("busiest 10 s", f"{arrivals['busiest_10s']} requests"),
    ]
    for side in ("prompt", "output"):
        lengths = figures[f"{side}_tokens"]
        rows.append(
            (
                f"{side} tokens: mean, p50, p99",
                ", ".join(number(lengths[key]) for key in ("mean", "p50", "p99")),
            )
        )
    for name, part in figures["domains"].items():
        rows.append((f"domain {name}", f"{percent(part['share'])} %"))
    turns = figures["sessions"]["turns_mean"]
    rows.append(("turns per conversation", number(turns) if turns else "no sessions recorded"))
    shared = prefix["hit_tokens_share"]
    rows.append(
        (
            "prompt tokens seen before",
            "no hashes recorded" if shared is None else f"{percent(shared)} %",
        )
    )
    return Table(title="The trace in figures", head=("figure", "value"), rows=tuple(rows))
