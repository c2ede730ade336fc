"""What a comparison of policies comes to: gains over what runs today, and a sentence to act on.

Owns the gain's law and the words. Everything is read from the rows of ``summary.json`` and from
request records. Knows no files and simulates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.tables import PLAIN, UNIFORM, decode_step_seconds
from simulator.engine.layout import Records
from simulator.study.metrics import batch_interval, is_finished

Row = dict[str, Any]

ALIKE = 0.01
"""Gains up to here are no reason to change anything."""
_MATTERS = 0.02
_MOST_IN_FLIGHT = 1024

MERITS = {
    "output_tok_s": "output tokens/s",
    "tok_s_user": "tokens/s of a user",
    "capacity_req_s": "requests/s at saturation",
}
"""What policies are judged by: a closed loop's throughput, an open loop's speed while the server
keeps up, and what it can finish where one does not."""


def merit_of(rows: Sequence[Row]) -> str:
    """The key of ``MERITS`` for two policies at one load."""
    if rows[0]["concurrency"] is not None:
        return "output_tok_s"
    return "capacity_req_s" if any(row["saturated"] for row in rows) else "tok_s_user"


def gain(ours: Row, theirs: Row, ours_r: Records, theirs_r: Records, merit: str) -> Row | None:
    """Ours over theirs - 1 with a 95 % interval; None where a figure is missing.

    By Little's law a closed loop's throughput is clients / mean latency, and a user's speed tokens
    / decoding time: with d_r the paired difference of a request's seconds and T their mean under
    theirs, the gain is T / (T + mean d) - 1, its interval that of mean d (``batch_interval``). In a
    closed loop the mean is that of the throughputs themselves. ``low`` and ``high`` are None for
    what can be finished at saturation, of which there is one figure a run.
    """
    if not (ours["judged"] and theirs["judged"]):
        return None
    if merit == "capacity_req_s":
        if not (ours[merit] and theirs[merit]):
            return None
        return _rounded(merit, ours[merit] / theirs[merit] - 1.0, None, None)
    both = is_finished(ours_r) & is_finished(theirs_r)
    since = "arrival_s" if merit == "output_tok_s" else "first_token_s"
    ours_s, theirs_s = (
        np.where(both, rows["finish_s"] - rows[since], np.nan) for rows in (ours_r, theirs_r)
    )
    difference = batch_interval(ours_s - theirs_s)
    total_s = float(np.nanmean(theirs_s)) if both.any() else 0.0
    if difference is None or total_s <= 0 or total_s + difference[1] <= 0:
        return None
    mean, high, low = (total_s / (total_s + d) - 1.0 for d in difference)
    if merit == "output_tok_s":
        if not (ours[merit] and theirs[merit]):
            return None
        exact = ours[merit] / theirs[merit] - 1.0
        mean, low, high = exact, low + exact - mean, high + exact - mean
    return _rounded(merit, mean, low, high)


def _rounded(merit: str, mean: float, low: float | None, high: float | None) -> Row:
    return {
        "of": merit,
        "mean": round(mean, 6),
        "low": None if low is None else round(low, 6),
        "high": None if high is None else round(high, 6),
    }


def verdict(summary: Row, costs: CostModel | None, places: int) -> list[str]:
    """What to do, a sentence for each answer that loads have, and where differences begin.

    ``costs`` are those of every replica; None where replicas differ, and nobody says where.
    ``places``: how many requests decode together on one under speculation.
    """
    rows, current = summary["policies"], summary["current"]
    gains = {(d["policy"], d["concurrency"]): d["gain"] for d in summary["differences"]}
    found: list[str] = []
    answers: dict[str, list[tuple[int | None, str]]] = {}
    for load in dict.fromkeys(row["concurrency"] for row in rows):
        here = [row["policy"] for row in rows if row["concurrency"] == load]
        answer, rest = _at_one_load(
            {n: gains.get((n, load)) for n in here if n != current}, current
        )
        answers.setdefault(answer, []).append((load, rest))
    for answer, loads in answers.items():
        load, rest = loads[-1]
        if rest and len(loads) > 1:
            rest = rest.replace("; ", f"; at {load} ", 1)
        found.append(f"{_at([load for load, _ in loads])}{answer}{rest}.")
    begins = _begins(rows, summary["replicas"], costs, places) if costs else None
    return [*found, begins] if begins else found


def _begins(rows: Sequence[Row], replicas: int, costs: CostModel, places: int) -> str | None:
    """Where differences begin, while the runs are below it."""
    drafting = [row for row in rows if row["drafted_share"] and row["requests_in_system_mean"]]
    if not drafting:
        return None
    fullest = max(drafting, key=lambda row: float(row["verify_tokens_per_request_step"]))
    begins = budget_matters_from(fullest, costs)
    in_flight = max(row["concurrency"] or row["requests_in_system_mean"] for row in drafting)
    if begins is None or in_flight / replicas >= begins:
        return None
    loads = [begins * 2**i for i in range(3)]
    flags = f"--concurrency {','.join(str(load * replicas) for load in loads)}"
    if loads[-1] > places:
        flags += f" --max-running-requests {loads[-1]}"
    return (
        f"How much is verified begins to matter at about {begins} requests in flight on a replica; "
        f"here there were {in_flight / replicas:.1f}. Try {flags}."
    )


def budget_matters_from(row: Row, costs: CostModel) -> int | None:
    """The fewest requests in flight at which verifying every draft token loses 2 % of throughput.

    Against the best uniform length k, 0 without a drafter, of A(k) / (verify(n (k + 1)) + draft(n)
    + host), A(k) the tokens a request commits in a round that verifies k, from the row's own counts
    of verified and accepted lengths. None: not up to 1,024, or nothing was drafted.
    """
    verified, accepted = (np.array(row[f"{name}_by_length"]) for name in ("verified", "accepted"))
    reached = verified[::-1].cumsum()[::-1]
    survived = accepted[::-1].cumsum()[::-1]
    gamma = len(verified) - 1
    if gamma < 1 or reached[gamma] == 0:
        return None
    shares = survived[1:] / np.maximum(reached[1:], 1)
    committed = 1.0 + np.concatenate([[0.0], np.cumsum(np.minimum.accumulate(shares))])
    tables = costs.tables(_MOST_IN_FLIGHT * (gamma + 1), _MOST_IN_FLIGHT)
    context = tables.context_reference_tokens
    for n in sorted({math.ceil(2 ** (i / 4)) for i in range(41)}):
        rates = [
            committed[k]
            / decode_step_seconds(
                tables, n * (k + 1), n, n if k else 0, n * context, UNIFORM if k else PLAIN
            )
            for k in range(gamma + 1)
        ]
        if rates[gamma] < (1.0 - _MATTERS) * max(rates):
            return n
    return None


def _at(loads: Sequence[int | None]) -> str:
    if loads == [None]:
        return ""
    return f"At concurrency {', '.join(map(str, loads))}: "


def _at_one_load(gains: Mapping[str, Row | None], current: str) -> tuple[str, str]:
    """What to do at one load, and who is how far behind; ``gains`` over ``current`` by policy."""
    known = {name: gain for name, gain in gains.items() if gain is not None}
    if not gains:
        return f"{current} ran alone, there is nothing to compare", ""
    if not known:
        return "nothing to tell the policies apart by", ""
    merit = MERITS[next(iter(known.values()))["of"]]
    better = {n: g for n, g in known.items() if g["mean"] > ALIKE and not _noise(g)}
    worse = {n: g for n, g in known.items() if g["mean"] < -ALIKE and not _noise(g)}
    behind = ", ".join(
        f"{name} {gain['mean']:+.0%}"
        for name, gain in sorted(worse.items(), key=lambda pair: -pair[1]["mean"])
    )
    rest = f"; behind it: {behind}" if worse else ""
    if not better and not worse:
        text = (
            f"any policy will do: no other differs from {current}, which runs today, by more than"
        )
        return f"{text} 1 % in {merit}", ""
    if not better:
        return f"keep {current}, which runs today: no other has more {merit}", rest
    leader = max(better, key=lambda name: better[name]["mean"])
    tied = [
        n for n, g in better.items() if n != leader and better[leader]["mean"] - g["mean"] <= ALIKE
    ]
    text = f"{leader} has {_percent(better[leader])} {merit} over {current}, which runs today"
    if tied:
        text += f" ({', '.join(tied)} within 1 % of it)"
    return text, rest.replace("behind it", f"behind {current}")


def _interval(gain: Row) -> tuple[float | None, float | None]:
    """With the doubt about prices where there is one."""
    known = gain.get("prices") or gain
    return known["low"], known["high"]


def _noise(gain: Row) -> bool:
    """Whether the interval holds no difference."""
    low, high = _interval(gain)
    return low is not None and high is not None and low <= 0 <= high


def _percent(gain: Row) -> str:
    text = f"{gain['mean']:+.1%}"
    low, high = _interval(gain)
    return text if low is None else f"{text} [{low:+.1%}, {high:+.1%}]"
