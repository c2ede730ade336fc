"""What each panel draws: one function per panel, given its axes and the series.

Every axis carries its unit. Units: seconds inside, milliseconds where latencies are short. Knows
nothing of the page around the panel; a run without data for a panel is left out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from analysis.replays import BatchProfile, Floats, Replay, Row
from analysis.series import Series
from analysis.style import FAINT, INK, log_axis, plain_axis
from simulator.engine.layout import COMPLETED, REJECTED, SHED, Records

_QUANTILES = np.linspace(0.0, 1.0, 401)
_LEAST_STEPS = 20
"""Fewer decode steps than these are noise, not a point."""


def draw_cdf(
    axes: Axes,
    series: Sequence[Series],
    times_s: dict[str, Floats],
    *,
    at: str,
    bound_s: float | None,
    of: str = "completed requests",
) -> None:
    """Share of completed requests whose latency is at most x; ``bound_s`` is the objective's.

    The axis spans the 0.1st to the 99.9th percentile: a handful of outliers would take half of it.
    ``at`` says at which load, ``of`` what the latencies belong to.
    """
    known = {label: times[~np.isnan(times)] for label, times in times_s.items()}
    known = {label: times for label, times in known.items() if times.size}
    if not known:
        axes.text(0.5, 0.5, "no request has one", transform=axes.transAxes, ha="center")
        axes.set_axis_off()
        return
    low = min(float(np.quantile(times, 0.001)) for times in known.values())
    high = max(float(np.quantile(times, 0.999)) for times in known.values())
    scale, unit = (1.0, "s") if high >= 1.0 else (1e3, "ms")
    for place, one in enumerate(series):
        if one.label not in known:
            continue
        quantiles = np.quantile(known[one.label], _QUANTILES) * scale
        marks = slice(20 + 12 * place % 80, 390, 80)
        axes.plot(
            quantiles,
            _QUANTILES * 100.0,
            label=one.label,
            **(one.look.line() | {"markersize": 4.5, "markevery": marks}),
        )
    if low > 0 and high / low >= 5.0:
        log_axis(axes, "x", low * scale / 1.1, high * scale * 1.1)
    else:
        plain_axis(axes, "x")
    axes.set_xlabel(f"latency{at} ({unit})")
    axes.set_ylabel(f"{of} (%)")
    axes.set_ylim(0.0, 101.0)
    axes.set_yticks([0, 25, 50, 75, 90, 99])
    if bound_s is not None and low <= bound_s <= high:
        mark_bound(axes, bound_s * scale)


def mark_bound(axes: Axes, x: float) -> None:
    """A vertical line at the objective, its name at its foot, on the side with room."""
    axes.axvline(x, color=FAINT, linewidth=1.0, zorder=1)
    across = axes.transAxes.inverted().transform(axes.transData.transform((x, 1.0)))[0]
    note = axes.annotate(
        "SLO",
        (x, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(3, 0) if across < 0.85 else (-3, 0),
        textcoords="offset points",
        ha="left" if across < 0.85 else "right",
        fontsize=7.5,
        color=INK,
    )
    note.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _points(
    one: Series,
    x_of: Callable[[Replay, Row], float | None],
    y_of: Callable[[Replay, Row], float | None],
) -> tuple[list[float], list[float], list[int | None]]:
    xs: list[float] = []
    ys: list[float] = []
    loads: list[int | None] = []
    for replay, row in one.rows():
        x, y = x_of(replay, row), y_of(replay, row)
        if x is not None and y is not None:
            xs.append(x)
            ys.append(y)
            loads.append(row.concurrency)
    return xs, ys, loads


def _throughput(replay: Replay, row: Row) -> float | None:
    return None if row.output_tok_s is None else row.output_tok_s / replay.summary.gpus


def draw_frontier(axes: Axes, series: Sequence[Series], *, least_tok_s: float | None) -> None:
    """Throughput against per-user speed, one point per concurrency (the paper's Figure 7).

    The numbers beside the outermost points are concurrencies; ``least_tok_s`` is the objective's
    slowest admissible user.
    """
    outermost: dict[int, tuple[float, float]] = {}
    speeds: list[float] = []
    for one in series:
        xs, ys, loads = _points(one, lambda _, row: row.tok_s_user_p50, _throughput)
        axes.plot(xs, ys, label=one.label, **one.look.line())
        speeds.extend(xs)
        for x, y, load in zip(xs, ys, loads, strict=True):
            if load is not None and y > outermost.get(load, (0.0, 0.0))[1]:
                outermost[load] = (x, y)
    if speeds and max(speeds) >= 5.0 * min(speeds):
        log_axis(axes, "x", min(speeds) / 1.2, max(speeds) * 1.25)
    else:
        axes.set_xlim(0.0, max(speeds, default=1.0) * 1.15)
        plain_axis(axes, "x")
    axes.set_ylim(0.0, axes.get_ylim()[1] * 1.06)
    plain_axis(axes, "y")
    _name_points(axes, outermost)
    axes.set_xlabel("speed of the median user (output tok/s)")
    axes.set_ylabel("output tok/s per GPU")
    if speeds and least_tok_s is not None and min(speeds) / 1.1 < least_tok_s < max(speeds):
        mark_bound(axes, least_tok_s)


def _name_points(axes: Axes, points: dict[int, tuple[float, float]]) -> None:
    """Concurrencies beside their points, the highest first; one that would cover another is left
    out."""
    kept: list[tuple[float, float]] = []
    for load in reversed(_spaced(sorted(points))):
        place = axes.transAxes.inverted().transform(axes.transData.transform(points[load]))
        if any(abs(place[0] - x) < 0.08 and abs(place[1] - y) < 0.05 for x, y in kept):
            continue
        kept.append((float(place[0]), float(place[1])))
        note = axes.annotate(
            f"{load}",
            points[load],
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=7.5,
            color=INK,
        )
        note.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _concurrency_axis(axes: Axes, series: Sequence[Series]) -> None:
    loads = sorted({row.concurrency or 0 for one in series for _, row in one.rows()})
    log_axis(axes, "x", loads[0] / 1.2, loads[-1] * 1.2)
    axes.set_xticks(_spaced(loads))
    axes.set_xlabel("concurrent requests")


def _spaced(loads: Sequence[int]) -> list[int]:
    """The swept loads whose labels have room beside each other on a logarithmic axis."""
    ratio = (loads[-1] / loads[0]) ** (1 / 9) if loads else 1.0
    kept: list[int] = []
    for load in reversed(loads):
        if not kept or load * ratio <= kept[-1]:
            kept.append(load)
    return kept[::-1]


def draw_budget(axes: Axes, series: Sequence[Series]) -> None:
    """Tokens verified per request and step, its anchor included, by load (the paper's Figure 8)."""
    for one in series:
        xs, ys, _ = _points(
            one,
            lambda _, row: float(row.concurrency or 0),
            lambda _, row: row.verify_tokens_per_request_step,
        )
        axes.plot(xs, ys, label=one.label, **one.look.line())
    _concurrency_axis(axes, series)
    _budget_axis(axes)


def _budget_axis(axes: Axes) -> None:
    axes.set_ylim(0.0, max(2.0, axes.get_ylim()[1]))
    plain_axis(axes, "y")
    axes.set_ylabel("verified tokens per request and step\n(anchor included)")


def _bound(side: int) -> Callable[[Replay, Row], float | None]:
    """The throughput's interval with the doubt about prices: its low or high end."""

    def of(replay: Replay, row: Row) -> float | None:
        interval = (row.prices or {}).get("output_tok_s")
        return interval and float(interval[side]) / replay.summary.gpus

    return of


def draw_throughput(axes: Axes, series: Sequence[Series]) -> None:
    """Output tokens per second and GPU by load (the paper's Figure 8); where the cost model says
    how far its prices may be off, a band of 90 %."""

    def load(_: Replay, row: Row) -> float:
        return float(row.concurrency or 0)

    for one in series:
        xs, ys, _ = _points(one, load, _throughput)
        axes.plot(xs, ys, label=one.label, **one.look.line())
        lows, highs = (_points(one, load, _bound(side)) for side in (0, 1))
        axes.fill_between(lows[0], lows[1], highs[1], color=one.look.colour, alpha=0.1, lw=0)
    _concurrency_axis(axes, series)
    axes.set_ylim(0.0, axes.get_ylim()[1])
    plain_axis(axes, "y")
    axes.set_ylabel("output tok/s per GPU")


def draw_profile(
    axes: Axes,
    series: Sequence[Series],
    profiles: dict[str, BatchProfile],
    *,
    gpus_per_replica: dict[str, float] | None,
) -> None:
    """Decode steps by running requests: the budget, or with ``gpus_per_replica`` the throughput."""
    most = max((float(p.steps.size - 1) for p in profiles.values()), default=1.0)
    for one in series:
        profile = profiles.get(one.label)
        if profile is None:
            continue
        requests, sums = _grouped(profile)
        if gpus_per_replica is None:
            ys = sums["verified"] / sums["requests"]
        else:
            ys = sums["committed"] / sums["seconds"] / gpus_per_replica[one.label]
        axes.plot(requests, ys, label=one.label, **one.look.line())
    log_axis(axes, "x", 0.85, max(most, 2.0) * 1.15)
    axes.set_xlabel("running requests in the decode step")
    if gpus_per_replica is None:
        _budget_axis(axes)
    else:
        axes.set_ylim(0.0, axes.get_ylim()[1])
        plain_axis(axes, "y")
        axes.set_ylabel("output tok/s per GPU while decoding")


def _grouped(profile: BatchProfile) -> tuple[Floats, dict[str, Floats]]:
    """Sums over groups of similar batch sizes, and each group's mean batch size."""
    sizes = np.arange(profile.steps.size)
    # 1, 2, 3, 4, then about 1.4 times as wide: even spacing on a logarithmic axis.
    edges = np.unique(np.round(2.0 ** np.arange(0, 14, 0.5)).astype(int))
    groups = np.searchsorted(edges, sizes, side="right")
    columns = {
        "steps": profile.steps,
        "requests": profile.steps * sizes,
        "verified": profile.verified,
        "committed": profile.committed,
        "seconds": profile.seconds,
    }
    sums = {name: np.bincount(groups, values) for name, values in columns.items()}
    keep = (sums["steps"] >= _LEAST_STEPS) & (sums["requests"] > 0)
    kept = {name: np.asarray(values[keep], np.float64) for name, values in sums.items()}
    return kept["requests"] / kept["steps"], kept


def draw_in_system(axes: Axes, series: Sequence[Series], requests: dict[str, Records]) -> None:
    """Requests sent and not yet finished, averaged over bins of the run: a queue that only grows
    is saturation."""
    end_s = max(float(np.nanmax(rows["finish_s"], initial=0.0)) for rows in requests.values())
    scale, unit = (60.0, "min") if end_s > 600 else (1.0, "s")
    edges_s = np.linspace(0.0, end_s or 1.0, 61)
    for place, one in enumerate(series):
        if one.label not in requests:
            continue
        rows = requests[one.label]
        rows = rows[~np.isin(rows["status"], (REJECTED, SHED))]
        finish_s = np.where(rows["status"] == COMPLETED, rows["finish_s"], np.inf)
        area = _area(rows["arrival_s"], edges_s) - _area(finish_s, edges_s)
        style = one.look.line() | {"markersize": 4.5, "markevery": (2 * place % 12, 12)}
        middles_s = (edges_s[1:] + edges_s[:-1]) / 2
        axes.plot(middles_s / scale, np.diff(area) / np.diff(edges_s), label=one.label, **style)
    axes.set_xlim(0.0, edges_s[-1] / scale)
    axes.set_ylim(0.0, max(1.0, axes.get_ylim()[1]))
    plain_axis(axes, "x")
    plain_axis(axes, "y")
    axes.set_xlabel(f"time since the first arrival ({unit})")
    axes.set_ylabel("requests in the system")


def _area(times_s: Floats, at_s: Floats) -> Floats:
    """Integral up to each of ``at_s`` of the number of ``times_s`` passed."""
    ordered = np.sort(times_s[np.isfinite(times_s)])
    passed = np.searchsorted(ordered, at_s, side="right")
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    return np.asarray(passed * at_s - sums[passed])
