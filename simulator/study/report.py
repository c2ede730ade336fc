"""The table a person reads after a run, from the same rows that ``summary.json`` holds.

The best value of each column carries a star; a closed loop has no load. Prints nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]


def _of(row: Row, figure: str, percentile: str) -> float | None:
    """None where there is no steady state."""
    values = row[figure]
    found: float | None = values and values[percentile]
    return found


_COLUMNS: tuple[tuple[str, str, Callable[[Row], float | None], str, int], ...] = (
    ("tok/s", "output", lambda r: r["output_tok_s"], ".0f", 1),
    ("tok/s", "user p50", lambda r: r["tok_s_user_p50"], ".1f", 1),
    ("TTFT ms", "p50", lambda r: _of(r, "ttft_ms", "p50"), ".0f", -1),
    ("TTFT ms", "p99", lambda r: _of(r, "ttft_ms", "p99"), ".0f", -1),
    ("TPOT ms", "p50", lambda r: _of(r, "tpot_ms", "p50"), ".2f", -1),
    ("TPOT ms", "p99", lambda r: _of(r, "tpot_ms", "p99"), ".2f", -1),
    ("ITL ms", "p99", lambda r: _of(r, "itl_ms", "p99"), ".1f", -1),
    ("in SLO", "%", lambda r: _percent(r["slo_attainment"]), ".1f", 1),
    ("in SLO", "req/s", lambda r: r["slo_goodput_req_s"], ".3f", 1),
    ("tok/step", "accepted", lambda r: r["accept_len_mean"], ".2f", 0),
    ("tok/step", "verified", lambda r: r["verify_tokens_per_request_step"], ".2f", 0),
    ("load", "%", lambda r: _percent(r["load"]), ".0f", 0),
)
"""(heading, sub-heading, value, format, +1 larger is better / -1 smaller is better / 0 neither)."""


_MOST_STARS = 2
"""Where more share the best value, it tells nobody apart."""


def _percent(share: float | None) -> float | None:
    return None if share is None else share * 100.0


def _cells(rows: Sequence[Row], partial: Sequence[bool]) -> list[list[str]]:
    """Formatted values per row, the best of each column starred; partial rows are not compared."""
    cells: list[list[str]] = [[] for _ in rows]
    for _, _, value_of, form, better in _COLUMNS:
        values = [value_of(row) for row in rows]
        texts = ["-" if v is None else format(v, form) for v in values]
        whole = [None if cut else v for v, cut in zip(values, partial, strict=True)]
        known = [v for v in whole if v is not None]
        best = format(max(known) if better > 0 else min(known), form) if known and better else None
        distinct = len({format(v, form) for v in known}) > 1
        for cell, text, value in zip(cells, texts, whole, strict=True):
            star = (
                distinct and value is not None and text == best and texts.count(text) <= _MOST_STARS
            )
            cell.append(f"{text}*" if star else f"{text} ")
    return cells


def format_table(rows: Sequence[Row], *, interrupted: bool = False) -> str:
    """One block per concurrency, one line per policy.

    ``interrupted``: rows with unfinished requests are partial; they say so and are not compared.
    """
    blocks: dict[int | None, list[Row]] = {}
    for row in rows:
        blocks.setdefault(row["concurrency"], []).append(row)
    lines: list[str] = []
    for concurrency, block in blocks.items():
        partial = [interrupted and row["unfinished"] > 0 for row in block]
        cells = _cells(block, partial)
        names = [
            f"{row['policy']} (partial)" if cut else row["policy"]
            for row, cut in zip(block, partial, strict=True)
        ]
        width = max(len("policy"), *(len(name) for name in names))
        widths = [
            max(len(c[0]), len(c[1]), *(len(cell[i]) - 1 for cell in cells))
            for i, c in enumerate(_COLUMNS)
        ]
        if concurrency is not None:
            lines.append(f"concurrency {concurrency}")
        for part in (0, 1):
            heads = (str(c[part]).rjust(w) for c, w in zip(_COLUMNS, widths, strict=True))
            lines.append("  ".join([("policy" if part else "").ljust(width), *heads]).rstrip())
        for name, cell in zip(names, cells, strict=True):
            texts = (t.rjust(w + 1) for t, w in zip(cell, widths, strict=True))
            lines.append((name.ljust(width) + " " + " ".join(texts)).rstrip())
        lines.append("")
    return "\n".join(lines)


def format_notes(summary: dict[str, Any]) -> str:
    """Saturation, what was judged, and requests that were not served, in sentences."""
    rows = summary["policies"]
    lines = [_saturation(row) for row in rows if row["load"] is not None]
    first = rows[0]
    for status, reason in _REASONS.items():
        worst = max(rows, key=lambda row: row[status])
        if worst[status]:
            lines.append(
                f"{worst[status]} of {first['requests']} requests {reason} "
                f"(policy {worst['policy']})"
            )
    for load in dict.fromkeys(row["concurrency"] for row in rows):
        here = [row for row in rows if row["concurrency"] == load]
        lines.append(_judged(load, here))
    return "\n".join(lines)


def _saturation(row: Row) -> str:
    margin = 1.0 - row["load"]
    verdict = (
        f"SATURATED: {-margin:.0%} more than it can finish; latencies grow with the trace"
        if row["saturated"]
        else f"{margin:.0%} below saturation"
    )
    return (
        f"{row['policy']}: {row['offered_req_s']:.2f} of {row['capacity_req_s']:.2f} "
        f"req/s, {verdict}"
    )


def _judged(load: int | None, rows: Sequence[Row]) -> str:
    """Which requests the figures are of; or why there are none."""
    total = rows[0]["requests"]
    judged = max(row["judged"] or 0 for row in rows)
    where = "" if load is None else f"concurrency {load}: "
    if judged and any(row["saturated"] for row in rows):
        return (
            f"{where}{judged} of {total} requests judged; where it is saturated, the queue grows "
            "all the time and there is no steady state"
        )
    if judged:
        return f"{where}{judged} of {total} requests judged, in steady state"
    if load is None:
        return (
            "no steady state: the trace's arrivals take no time between warm-up and cool-down; "
            "the whole run's figures are in summary.json"
        )
    return (
        f"{where}no steady state: {load} clients take at least {3 * load} requests, the trace has "
        f"{total}; the whole run's figures are in summary.json"
    )


_REASONS = {
    "rejected": "rejected: the prompt does not fit the KV memory",
    "truncated": "cut short: prompt and output exceed the KV memory",
    "shed": "shed: the queue was too long for their TTFT bound",
    "unfinished": "not finished: the run was interrupted, or replicas failed too often",
    "retried": "sent again because their replica failed",
}
