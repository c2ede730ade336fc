"""What the capacity report's own panels draw: one function per panel, given axes and numbers.

Every axis carries its unit. Policies that tie are drawn side by side or named on an axis, so that
none hides behind another. Knows nothing of the sheet around the panel; panels that other pages
share are in ``analysis.panels``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from analysis.capacity.words import number
from analysis.series import Series
from analysis.style import FAINT, INK, log_axis, plain_axis

Line = tuple[Sequence[float], Sequence[float | None]]
_MISTAKE_MARKERS = "<>v^sDP"


def _draw_doubt(axes: Axes, fleets: Sequence[dict[str, Any]], shift: float, one: Series) -> None:
    for i, fleet in enumerate(fleets):
        sizes = [size for size in fleet["doubted_gpus"] or () if size]
        if sizes:
            axes.vlines(i + shift, sizes[0], sizes[-1], color=one.look.colour, linewidth=1.4)


def draw_sizes(
    axes: Axes,
    series: Sequence[Series],
    fleets: Sequence[dict[str, Any]],
    most: int,
    chosen: str,
) -> None:
    """GPUs that hold each traffic; policies stand side by side, an arrow says "more than that".

    A bar on the chosen policy's is the doubt about prices, where the cost model states one.
    """
    step = 0.8 / max(1, len(series))
    found = [f["policies"][one.label]["gpus"] for f in fleets for one in series]
    found += [size for fleet in fleets for size in fleet["doubted_gpus"] or ()]
    known_sizes = [size for size in found if size] or [1]
    largest = max(known_sizes)
    for place, one in enumerate(series):
        shift = (place - (len(series) - 1) / 2) * step
        style = one.look.line() | {"linestyle": "none", "markersize": 6}
        sizes = [fleet["policies"][one.label]["gpus"] for fleet in fleets]
        known = [(i + shift, size) for i, size in enumerate(sizes) if size]
        axes.plot([x for x, _ in known], [y for _, y in known], label=one.label, **style)
        if one.label == chosen:
            _draw_doubt(axes, fleets, shift, one)
        for i, size in enumerate(sizes):
            if not size:
                axes.annotate(
                    "↑", (i + shift, 0.985), xycoords=("data", "axes fraction"), ha="center",
                    va="top", color=one.look.colour, fontsize=9,
                )  # fmt: skip
    for i in range(len(fleets) - 1):
        axes.axvline(i + 0.5, color="#e3e3e3", linewidth=0.6)
    axes.grid(visible=False, axis="x")
    axes.set_xlim(-0.5, len(fleets) - 0.5)
    axes.set_xticks(
        range(len(fleets)),
        [f"{number(f['offered_req_s'])}\n×{number(f['rate'])}" for f in fleets],
    )
    if largest > 20:
        log_axis(axes, "y", min(known_sizes) / 1.4, largest * 1.6)
    else:
        axes.set_ylim(0.0, largest * 1.15)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        plain_axis(axes, "y")
    axes.set_xlabel("traffic (requests/s, and as a factor on the trace)")
    axes.set_ylabel("fewest GPUs that hold it")
    if None in found:
        note = f"↑ not held by up to {most} replicas"
        text = axes.text(0.02, 0.93, note, transform=axes.transAxes, fontsize=7.5, va="top")
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def draw_lines(
    axes: Axes,
    series: Sequence[Series],
    lines: Mapping[str, Line],
    *,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """One line per policy; gaps where a value is missing."""
    xs = [x for one in series for x in lines[one.label][0]]
    ys = [y for one in series for y in lines[one.label][1] if y is not None and y > 0]
    for one in series:
        x, y = lines[one.label]
        values = [float("nan") if v is None else v for v in y]
        axes.plot(list(x), values, label=one.label, **one.look.line())
    if log_x and xs and min(xs) > 0:
        log_axis(axes, "x", min(xs) / 1.15, max(xs) * 1.15)
    else:
        axes.set_xlim(0.0, max(xs, default=1.0) * 1.04)
        plain_axis(axes, "x")
    if log_y and ys and max(ys) >= 4 * min(ys):
        log_axis(axes, "y", min(ys) / 1.2, max(ys) * 1.2)
    else:
        axes.set_ylim(0.0, max(ys, default=1.0) * 1.06)
        plain_axis(axes, "y")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


def mark_goal(axes: Axes, y: float, name: str) -> None:
    """A horizontal line at the objective, named at its left end."""
    low, high = axes.get_ylim()
    if not low < y < high:
        return
    axes.axhline(y, color=FAINT, linewidth=1.0, zorder=1)
    note = axes.annotate(
        name, (0.01, y), xycoords=("axes fraction", "data"), xytext=(2, 3),
        textcoords="offset points", fontsize=7.5, color=INK,
    )  # fmt: skip
    note.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def draw_bars(
    axes: Axes,
    series: Sequence[Series],
    values: Mapping[str, float | None],
    *,
    xlabel: str,
    texts: Mapping[str, str],
) -> None:
    """One horizontal bar per policy, named on the axis and with its value at its end."""
    places = range(len(series))
    widths = [values[one.label] or 0.0 for one in series]
    axes.barh(
        places, widths, color=[one.look.colour for one in series], height=0.62, edgecolor=INK,
        linewidth=0.5,
    )  # fmt: skip
    most = max(widths, default=0.0) or 1.0
    for place, one in zip(places, series, strict=True):
        axes.text(
            widths[place] + 0.015 * most, place, texts[one.label], va="center", fontsize=8,
            color=INK,
        )  # fmt: skip
    axes.set_yticks(places, [_short(one.label) for one in series])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0.0, most * 1.22)
    plain_axis(axes, "x")
    axes.set_xlabel(xlabel)


def _short(label: str, most: int = 20) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def draw_gain(
    axes: Axes,
    series: Sequence[Series],
    concurrency: Sequence[int],
    gains: Mapping[str, Sequence[float]],
    base: str,
) -> None:
    """Throughput against ``base`` by concurrency; a line crosses zero where a policy overtakes."""
    if not gains:
        axes.text(0.5, 0.5, f"{base} is not among the policies", transform=axes.transAxes,
                  ha="center")  # fmt: skip
        axes.set_axis_off()
        return
    for one in series:
        if one.label in gains:
            values = [100 * gain for gain in gains[one.label]]
            axes.plot(list(concurrency), values, label=one.label, **one.look.line())
    axes.axhline(0.0, color=INK, linewidth=0.9, zorder=1)
    log_axis(axes, "x", concurrency[0] / 1.2, concurrency[-1] * 1.2)
    axes.set_xticks(list(concurrency))
    plain_axis(axes, "y")
    axes.set_xlabel("concurrent requests")
    axes.set_ylabel(f"output tok/s against {base} (%)")


def draw_mistakes(axes: Axes, series: Sequence[Series], mistakes: dict[str, Any]) -> None:
    """Change of throughput under each wrong belief; a row per policy and load."""
    rows = [
        (one, i, load)
        for one in series
        if one.label in mistakes["policies"]
        for i, load in enumerate(mistakes["concurrency"])
    ]
    if not rows:
        axes.text(0.5, 0.5, "no policy here believes anything", transform=axes.transAxes,
                  ha="center")  # fmt: skip
        axes.set_axis_off()
        return
    for k, label in enumerate(mistakes["labels"]):
        values = [100 * mistakes["policies"][one.label][i][k] for one, i, _ in rows]
        axes.plot(
            values, range(len(rows)), linestyle="none", marker=_MISTAKE_MARKERS[k], label=label,
            color=INK, markerfacecolor="white" if k % 2 else FAINT, markersize=5.5,
            markeredgewidth=0.9, alpha=0.95,
        )  # fmt: skip
    axes.axvline(0.0, color=INK, linewidth=0.9, zorder=1)
    axes.set_yticks(range(len(rows)), [f"{_short(one.label, 14)}, {load}" for one, _, load in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    changes = [abs(v) for row in mistakes["policies"].values() for each in row for v in each]
    least = 100 * max(0.002, max(changes)) * 1.12
    low = min([0.0, *(100 * v for row in mistakes["policies"].values() for e in row for v in e)])
    high = max([0.0, *(100 * v for row in mistakes["policies"].values() for e in row for v in e)])
    axes.set_xlim(min(low * 1.12, -0.12 * least), max(high * 1.12, 0.12 * least))
    plain_axis(axes, "x")
    axes.set_xlabel("change of output tok/s against right beliefs (%)")
    axes.set_ylabel("policy, concurrent requests")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=2, fontsize=7.5, handlelength=1.2,
        columnspacing=1.2, labelspacing=0.25,
    )  # fmt: skip
