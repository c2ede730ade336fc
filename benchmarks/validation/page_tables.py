"""The tables of ``docs/validation.md``, written from the record so that page and numbers agree.

Owns which tables there are and how a number is shown. A table stands between
``<!-- table: NAME -->`` and ``<!-- end -->``; the text around them is a person's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.validation.record import (
    CALIBRATION,
    SHAPE_ONLY,
    SPEED_GAIN_PCT,
    TOLERANCE,
    FrontierPoint,
    LoadPoint,
    PaperModel,
    Validation,
    largest,
    median_abs,
)
from sglang_dspark.files import atomic_write, read_text
from simulator.twin.report import TWIN_TOLERANCE

_PLACE = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _number(value: float) -> str:
    """Four digits at most, thousands separated."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _beside(published: float, predicted: float, *, tolerance: float = TOLERANCE) -> str:
    """``published / predicted (error)``; bold where it is further off than the tolerance."""
    error = predicted / published - 1.0
    text = f"{_number(published)} / {_number(predicted)} ({_percent(error, '+')})"
    return f"**{text}**" if abs(error) > tolerance else text


def _percent(value: float, sign: str = "") -> str:
    shown = round(100 * value, 1) + 0.0  # no -0.0
    return f"{shown:{sign}.1f} %"


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def pairs_in_order(record: Validation) -> tuple[int, int]:
    """(pairs of arms at one concurrency whose throughputs are in the published order, all)."""
    right = total = 0
    by_load = itertools.groupby(
        sorted(record.frontier.points, key=lambda p: p.concurrency), lambda p: p.concurrency
    )
    for _, points in by_load:
        for one, other in itertools.combinations(points, 2):
            total += 1
            published = one.published_tok_s - other.published_tok_s
            right += published * (one.predicted_tok_s - other.predicted_tok_s) > 0
    return right, total


def _claims(record: Validation) -> str:
    frontier = record.frontier
    error = median_abs(point.error for point in frontier.predicted)
    valid = median_abs(p.error for p in frontier.predicted if p.role != SHAPE_ONLY)
    worst = largest(frontier.predicted)
    user = median_abs(point.user_error for point in frontier.predicted)
    slow = largest(frontier.predicted, of_user=True)
    ordered = sum(row.seeds_right == row.seeds for row in frontier.orders)
    right, pairs = pairs_in_order(record)
    gains = [gain for model in record.paper for gain in model.gains]
    speeds = [gain.predicted_pct for gain in gains if gain.kind.startswith("speed")]
    low, high = SPEED_GAIN_PCT
    covered = sum(row.covered for row in record.queues)
    gap_s = max(row.lindley_gap_s for row in record.queues)
    positions = [row for row in record.acceptance if row.position is not None]
    lengths = [row for row in record.acceptance if row.position is None]
    off = max(abs(row.simulated - row.published) for row in positions)
    length_off = max(abs(row.simulated / row.published - 1) for row in lengths)
    missed = sum(abs(row.error) > TWIN_TOLERANCE[row.figure] for row in record.twin)
    at_all = f"at every concurrency, {frontier.seeds} seeds"
    rows = [
        ("vLLM: throughput of none < fixed 7 < adaptive", at_all,
         f"{ordered} of {len(frontier.orders)}", _yes(ordered == len(frontier.orders))),
        (f"vLLM: median throughput error, {len(frontier.predicted)} points", "≤ 10 %",
         _percent(error), _yes(error <= TOLERANCE)),
        ("the same without the arms of incorrect output", "", _percent(valid), ""),
        (f"largest: {worst.arm} at {worst.concurrency}", "", _percent(worst.error, "+"), ""),
        ("vLLM: median error of the speed per user", "", _percent(user), ""),
        (f"largest: {slow.arm} at {slow.concurrency}", "", _percent(slow.user_error, "+"), ""),
        ("vLLM: pairs of arms in the published order", "", f"{right} of {pairs}", ""),
        ("paper: sign of every gain over MTP-1", "positive",
         f"{sum(gain.predicted_pct > 0 for gain in gains)} of {len(gains)}",
         _yes(all(gain.predicted_pct > 0 for gain in gains))),
        ("paper: speed gains at matched throughput", f"{low:.0f}-{high:.0f} %",
         f"{min(speeds):.0f}-{max(speeds):.0f} %",
         _yes(all(low <= speed <= high for speed in speeds))),
        ("queueing: theory inside the 95 % interval", "", f"{covered} of {len(record.queues)}", ""),
        ("queueing: any wait off Lindley's recursion", "rounding", f"{gap_s:.1g} s",
         _yes(gap_s < 1e-6)),
        (f"digital twin: figures within tolerance, {len(record.twin)}", "",
         f"{len(record.twin) - missed}", ""),
        ("acceptance: any position of Figure 2", "≤ 0.005", f"{off:.4f}", _yes(off <= 0.005)),
        ("acceptance: any accepted length", "≤ 1 %", _percent(length_off),
         _yes(length_off <= 0.01)),
    ]  # fmt: skip
    return _markdown(("what", "asked", "found", "holds"), rows)


def _matrix(record: Validation, pair: Callable[[FrontierPoint], tuple[float, float]]) -> str:
    """A row for each concurrency, a column for each arm."""
    arms = list(dict.fromkeys(point.arm for point in record.frontier.points))
    at = {(point.arm, point.concurrency): point for point in record.frontier.points}
    rows = []
    for load in dict.fromkeys(point.concurrency for point in record.frontier.points):
        cells = []
        for arm in arms:
            text = _beside(*pair(at[arm, load]))
            cells.append(text + " †" if at[arm, load].role == CALIBRATION else text)
        rows.append([str(load), *cells])
    return _markdown(["concurrency", *arms], rows)


def _throughput(record: Validation) -> str:
    return _matrix(record, lambda p: (p.published_tok_s, p.predicted_tok_s))


def _speed(record: Validation) -> str:
    return _matrix(record, lambda p: (p.published_user_tok_s, p.predicted_user_tok_s))


def _transfer(record: Validation) -> str:
    found = record.frontier.transfer
    rows = [
        ("base, ms", f"{1e3 * found.flash_base_s:.2f}", f"{1e3 * found.base_s:.2f}", "calibrated"),
        ("all experts, ms", f"{1e3 * found.flash_experts_s:.2f}", f"{1e3 * found.experts_s:.2f}",
         "calibrated"),
        ("per token, µs", f"{1e6 * found.flash_token_s:.1f}", f"{1e6 * found.token_s:.1f}",
         f"× {found.token_factor:.2f}"),
        ("drafting", "published", f"× {found.draft_factor:.2f}", "scaled"),
    ]  # fmt: skip
    rows += [
        (
            "median error of the form",
            _percent(found.flash_fit_median_error),
            "",
            "up to 1024 tokens",
        )
    ]
    survival = record.frontier.survival
    return (
        _markdown(("", "V4-Flash, 4 B300", "V4-Pro, 8 B300", "V4-Pro's is"), rows)
        + "\n"
        + _markdown(
            ["position", *(str(k + 1) for k in range(len(survival)))],
            [["survival", *(f"{value:.2f}" for value in survival)]],
        )
    )


def _variants(record: Validation) -> str:
    frontier = record.frontier
    loads = len(frontier.orders)
    slow = largest(frontier.predicted, of_user=True)
    ordered = sum(row.seeds_right == row.seeds for row in frontier.orders)
    cases = [
        ("nothing", median_abs(p.error for p in frontier.predicted),
         abs(largest(frontier.predicted).error),
         median_abs(p.user_error for p in frontier.predicted), abs(slow.user_error), ordered),
        *((v.change, v.median_error, v.max_error, v.median_user_error, v.max_user_error,
           v.orders_right) for v in frontier.variants),
    ]  # fmt: skip
    rows = [
        (change, *(_percent(value) for value in errors), f"{right} of {loads}")
        for change, *errors, right in cases
    ]
    head = ("changed", "throughput error, median", "largest", "speed error, median", "largest",
            "orders right")  # fmt: skip
    return _markdown(head, rows)


def _gains(record: Validation) -> str:
    rows = [
        (model.model, gain.kind, gain.at, f"{gain.published_pct:+.0f} %",
         f"{gain.predicted_pct:+.0f} %")
        for model in record.paper
        for gain in model.gains
    ]  # fmt: skip
    return _markdown(("model", "gain of DSpark-5 in", "at", "paper", "predicted"), rows)


def _lines(record: Validation) -> str:
    """Figure 8 at the simulated loads, and how the two figures of the paper agree."""

    def cell(published: float | None, predicted: float) -> str:
        return "" if published is None else _beside(published, predicted)

    def at(model: PaperModel, method: str, load: int) -> LoadPoint:
        return next(p for p in model.points if (p.method, p.concurrency) == (method, load))

    rows = []
    for model in record.paper:
        for load in dict.fromkeys(point.concurrency for point in model.points):
            mtp1, dspark = at(model, "MTP-1", load), at(model, "DSpark-5", load)
            if mtp1.published_tok_s is None and dspark.published_tok_s is None:
                continue
            rows.append(
                (model.model, str(load), cell(mtp1.published_tok_s, mtp1.predicted_tok_s),
                 cell(dspark.published_tok_s, dspark.predicted_tok_s),
                 cell(dspark.published_budget, dspark.predicted_budget))
            )  # fmt: skip
    fits = [
        (
            model.model,
            f"{1e3 * model.base_s:.1f} ms + {1e6 * model.token_s:.1f} µs",
            f"{model.mtp1_accepted_length:.2f}",
            " and ".join(_percent(ratio - 1, "+") for ratio in model.figure_8_over_7),
        )
        for model in record.paper
    ]
    head = ("model", "requests per GPU", "MTP-1, tok/s per GPU", "DSpark-5, tok/s per GPU",
            "verified tokens")  # fmt: skip
    fit_head = ("model", "step: base + per verified token", "MTP-1's tokens per step",
                "paper's Figure 8 over its Figure 7 at the two anchors")  # fmt: skip
    return _markdown(fit_head, fits) + "\n" + _markdown(head, rows)


def _queues(record: Validation) -> str:
    rows = [
        (row.service, f"{row.load:g}", f"{1e3 * row.theory_s:.2f}", f"{1e3 * row.simulated_s:.2f}",
         f"{1e3 * row.low_s:.2f} to {1e3 * row.high_s:.2f}", _yes(row.covered))
        for row in record.queues
    ]  # fmt: skip
    head = ("server", "load", "theory, ms", "simulated, ms", "95 % interval, ms", "holds theory")
    return _markdown(head, rows)


def _twin(record: Validation) -> str:
    figures = list(TWIN_TOLERANCE)
    at = {(row.load, row.policy, row.figure): row for row in record.twin}
    rows = []
    for load, policy in dict.fromkeys((row.load, row.policy) for row in record.twin):
        cells = []
        for figure in figures:
            row = at[load, policy, figure]
            tolerance = TWIN_TOLERANCE[figure]
            cells.append(_beside(row.measured, row.predicted, tolerance=tolerance))
        rows.append([load, policy, *cells])
    head = ["load", "policy", "output tok/s", "TPOT p50, ms", "TTFT p99, ms", "verified tokens"]
    return _markdown(head, rows)


def _acceptance(record: Validation) -> str:
    rows = []
    for profile, domain in dict.fromkeys((row.profile, row.domain) for row in record.acceptance):
        mine = [r for r in record.acceptance if (r.profile, r.domain) == (profile, domain)]
        length = next(row for row in mine if row.position is None)
        gaps = [row.simulated - row.published for row in mine if row.position is not None]
        worst = f"{max(gaps, key=abs):+.4f}" if gaps else "not published"
        rows.append(
            (profile, domain, _beside(length.published, length.simulated, tolerance=0.01), worst)
        )
    head = ("profile", "domain", "accepted length", "furthest of its positions")
    return _markdown(head, rows)


TABLES: dict[str, Callable[[Validation], str]] = {
    "claims": _claims,
    "transfer": _transfer,
    "throughput": _throughput,
    "speed": _speed,
    "variants": _variants,
    "gains": _gains,
    "lines": _lines,
    "queues": _queues,
    "twin": _twin,
    "acceptance": _acceptance,
}


def filled(text: str, record: Validation, *, where: str) -> str:
    """``text`` with every table anew; ``ValueError`` for a name that no table has, or for none."""

    def table(match: re.Match[str]) -> str:
        name = match[2]
        if name not in TABLES:
            raise ValueError(f"{where}: no table {name!r}; there are {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[name](record)}{match[3]}"

    found, count = _PLACE.subn(table, text)
    if not count:
        raise ValueError(f"{where}: no '<!-- table: NAME -->' ... '<!-- end -->'; add one")
    return found


def fill_tables(path: str | Path, record: Validation) -> None:
    """Write the page's tables anew, its text as it is."""
    text = filled(read_text(path), record, where=str(path))
    with atomic_write(path) as file:
        file.write(text)
