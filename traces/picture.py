"""The picture of a trace: rate over time, lengths, burstiness, prefix reuse.

Owns the drawing. Knows nothing of files (it returns a figure) nor of how figures are defined
(``traces.statistics``). matplotlib is imported on the call: a replay that reads traces has no need
of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from traces.columns import Trace
from traces.statistics import Statistics, first_seen, window_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by colour-blind readers; the dashes serve grey prints.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "x")
_MOST_DOMAINS = len(_COLOURS)


def draw(trace: Trace, figures: Statistics, *, source: str) -> Figure:
    """A figure of 10 x 6.4 inches; ``source`` stands in its footer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = 3 if figures.prefix.hit_share is not None else 2
    grid = figure.add_gridspec(2, panels, width_ratios=(1.35, 1, 1)[:panels])
    _draw_rate(figure.add_subplot(grid[0, :]), trace)
    _draw_lengths(figure.add_subplot(grid[1, 0]), trace)
    _draw_dispersion(figure.add_subplot(grid[1, 1]), trace)
    if panels == 3:
        _draw_reuse(figure.add_subplot(grid[1, 2]), trace, figures)
    rate = figures.arrivals.rate_req_s
    figure.suptitle(
        f"{trace.name}: {len(trace):,} requests in {figures.arrivals.span_s / 60:.1f} minutes"
        + (f", {rate:.3g} per second" if rate is not None else ""),
        fontsize=13,
    )
    figure.supxlabel(
        f"{source}; trace sha256 {trace.sha256[:16]}; drawn by traces.describe",
        fontsize=7,
        color="#555555",
    )
    return figure


def _groups(trace: Trace) -> list[tuple[str, np.typing.NDArray[np.bool_]]]:
    """(label, rows) of the domains that are drawn one by one; the largest come first."""
    groups = [(name, trace.domain == code) for code, name in enumerate(trace.domain_names)]
    groups.append(("no domain", trace.domain < 0))
    groups = sorted((g for g in groups if g[1].any()), key=lambda g: -int(g[1].sum()))
    if len(groups) > _MOST_DOMAINS:
        rest = np.logical_or.reduce([rows for _, rows in groups[_MOST_DOMAINS - 1 :]])
        groups = [*groups[: _MOST_DOMAINS - 1], ("other domains", rest)]
    return groups


def _draw_rate(axes: Axes, trace: Trace) -> None:
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    window_s = next((w for w in (1, 10, 30, 60, 600, 3600) if span_s / w <= 400), 86400)
    groups = _groups(trace)
    minutes = span_s > 300
    unit_s = 60 if minutes else 1
    windows = len(window_counts(trace.arrival_s, window_s))
    edges = np.arange(windows + 1) * window_s / unit_s
    place = ((trace.arrival_s - trace.arrival_s[0]) / window_s).astype(np.int64)
    total = np.bincount(place, minlength=windows) / window_s
    axes.stairs(total, edges, fill=True, color="#BBBBBB", label="all requests")
    if len(groups) > 1:
        for (name, rows), colour, dash in zip(groups, _COLOURS, _DASHES, strict=False):
            rate = np.bincount(place[rows], minlength=windows) / window_s
            axes.stairs(rate, edges, color=colour, linestyle=dash, linewidth=1.2, label=name)
    mean = len(trace) / (windows * window_s)
    axes.axhline(mean, color="black", linewidth=1, linestyle=(0, (6, 3)), label="mean")
    axes.set_title("Arrival rate", loc="left", fontsize=10)
    axes.set_xlabel(
        "minutes since the first arrival" if minutes else "seconds since the first arrival"
    )
    axes.set_ylabel(f"requests per second\n(mean of {window_s} s)")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, total.max() * 1.05)
    axes.legend(fontsize=8, ncols=len(groups) + 2, loc="lower right", bbox_to_anchor=(1, 1))


def _draw_lengths(axes: Axes, trace: Trace) -> None:
    groups = _groups(trace)
    share = np.linspace(0, 1, 501)
    for (name, rows), colour, marker in zip(groups, _COLOURS, _MARKERS, strict=False):
        label = "" if len(groups) == 1 else f"{name} "
        for side, tokens, dash in (
            ("prompt", trace.prompt_tokens, "-"),
            ("output", trace.output_tokens, "--"),
        ):
            values = np.quantile(tokens[rows], share)
            axes.plot(
                values,
                100 * share,
                dash,
                color=colour,
                linewidth=1.5,
                marker=marker if len(groups) > 1 else None,
                markersize=4,
                markevery=(25, 50),
                label=f"{label}{side}",
            )
    axes.set_xscale("log")
    if len(groups) > 1:
        # Room for a legend beside the curves.
        left, right = axes.get_xlim()
        axes.set_xlim(left, right * (right / left) ** 0.3)
    axes.set_title("Lengths", loc="left", fontsize=10)
    axes.set_xlabel("tokens")
    axes.set_ylabel("requests at or below (%)")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right", handlelength=2.6)


def _draw_dispersion(axes: Axes, trace: Trace) -> None:
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    windows, indices = [], []
    for window_s in np.geomspace(0.1, max(span_s / 10, 0.1), 25):
        counts = window_counts(trace.arrival_s, float(window_s))[: int(span_s // window_s)]
        if len(counts) >= 10 and counts.sum():
            windows.append(float(window_s))
            indices.append(float(counts.var() / counts.mean()))
    if not windows:
        # Every array here is empty, which a logarithmic axis refuses.
        axes.text(0.5, 0.5, "too short to tell", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    axes.plot(windows, indices, "o-", color=_COLOURS[0], markersize=3, label="this trace")
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="Poisson")
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.5), max(high, 10))
    axes.set_title("Burstiness", loc="left", fontsize=10)
    axes.set_xlabel("window (s)")
    axes.set_ylabel("variance / mean of count")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left")


def _draw_reuse(axes: Axes, trace: Trace, figures: Statistics) -> None:
    """Hit share against the requests seen so far: whether the cache has warmed up."""
    hits = ~first_seen(trace)
    row = np.repeat(np.arange(len(trace)), np.diff(trace.prefix_offsets))
    minutes = (trace.arrival_s[row] - trace.arrival_s[0]) / 60
    bins = np.linspace(0, max(float(minutes.max()), 1e-9), 31)
    count, _ = np.histogram(minutes, bins)
    found, _ = np.histogram(minutes[hits], bins)
    share = np.divide(100 * found, count, out=np.full(len(count), np.nan), where=count > 0)
    axes.plot((bins[:-1] + bins[1:]) / 2, share, "o-", color=_COLOURS[2], markersize=3,
              label=f"per {60 * bins[1]:.0f} s")  # fmt: skip
    whole = 100 * float(hits.mean())
    axes.axhline(whole, color="black", linewidth=1, linestyle="--",
                 label=f"whole trace: {whole:.0f} %")  # fmt: skip
    axes.set_title("Prefix reuse, infinite cache", loc="left", fontsize=10)
    axes.set_xlabel("minutes since the first arrival")
    axes.set_ylabel(f"{figures.prefix.block_tokens}-token blocks found (%)")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left")
