"""The sheet around the panels: heading, legend, two rows of three panels, footer.

Every part gets the height that its text needs, so that nothing overlaps or is cut off however long
the names are. Owns what heading and footer say; knows nothing of what the panels draw.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from analysis.replays import Replay
from analysis.series import Series, short_name
from analysis.style import plain_number
from simulator.slo import parse_slo

Panel = tuple[str, Callable[[Axes], None]]
"""A title, and what draws below it."""

_WIDTH_IN, _PANELS_IN = 10.0, 6.2
_HEADING_LINE_IN, _LEGEND_LINE_IN, _FOOTER_LINE_IN, _MARGIN_IN = 0.24, 0.19, 0.145, 0.1
_HEADING_CHARACTERS, _FOOTER_CHARACTERS = 95, 160
_LETTER_IN, _HANDLE_IN = 0.075, 0.75


def compose(
    panels: Sequence[Panel], series: Sequence[Series], replays: Sequence[Replay], subject: str
) -> Figure:
    """The page, inside ``analysis.style.page_style``."""
    heading = textwrap.wrap(_heading(replays, subject), _HEADING_CHARACTERS)
    footer = [
        line
        for part in provenance(replays)
        for line in textwrap.wrap(part, _FOOTER_CHARACTERS, break_on_hyphens=False)
    ]
    widest_in = _HANDLE_IN + _LETTER_IN * max(len(one.label) for one in series)
    columns = max(1, min(len(series), int((_WIDTH_IN - 2 * _MARGIN_IN) / widest_in)))
    legend_in = -(-len(series) // columns) * _LEGEND_LINE_IN
    heading_in = _MARGIN_IN + len(heading) * _HEADING_LINE_IN
    footer_in = _MARGIN_IN + len(footer) * _FOOTER_LINE_IN
    height_in = heading_in + legend_in + _PANELS_IN + footer_in
    engine = ConstrainedLayoutEngine(
        rect=(0.005, footer_in / height_in, 0.99, _PANELS_IN / height_in),
        w_pad=0.07,
        h_pad=0.07,
    )
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout=engine)
    grid = figure.subplots(2, 3).flat
    for axes, letter, (title, draw) in zip(grid, "abcdef", panels, strict=True):
        draw(axes)
        axes.set_title(f"{letter}  {title}")
    left = _MARGIN_IN / _WIDTH_IN
    _write(figure, heading, left, 1 - _MARGIN_IN / height_in, 11.0, _HEADING_LINE_IN / height_in)
    _write(
        figure, footer, left, footer_in / height_in - 0.004, 7.0, _FOOTER_LINE_IN / height_in
    )  # fmt: skip
    legend = figure.legend(
        handles=[Line2D([], [], label=one.label, **one.look.line()) for one in series],
        ncols=columns,
        loc="upper left",
        bbox_to_anchor=(left, 1 - heading_in / height_in),
        borderaxespad=0.0,
        borderpad=0.0,
        labelspacing=0.3,
        columnspacing=1.8,
    )
    legend.set_in_layout(False)
    return figure


def _write(
    figure: Figure, lines: Sequence[str], left: float, top: float, size: float, step: float
) -> None:
    weight = "bold" if size > 10 else "normal"
    for number, line in enumerate(lines):
        figure.text(
            left, top - number * step, line, fontsize=size, fontweight=weight, va="top",
            in_layout=False,
        )  # fmt: skip


def _each(values: Iterable[str]) -> str:
    """One value, or all different ones."""
    return " | ".join(dict.fromkeys(values))


def _heading(replays: Sequence[Replay], subject: str) -> str:
    traces = _each(replay.summary.trace for replay in replays)
    models = _each(short_name(replay.summary.cost_model) for replay in replays)
    partial = "PARTIAL RESULT: " if any(replay.summary.interrupted for replay in replays) else ""
    return f"{partial}{traces} on {models}, {subject}"


def provenance(replays: Sequence[Replay]) -> list[str]:
    """Where the numbers come from; values that differ between folders are separated by ``|``."""
    summaries = [replay.summary for replay in replays]
    slos = [parse_slo(summary.slo) for summary in summaries]
    parts = {
        "Trace": _each(
            f"{s.trace} (sha256 {s.trace_sha256[:12]}, {plain_number(s.policies[0].requests)} "
            "requests)"
            for s in summaries
        ),
        "Cost model": _each(
            f"{short_name(s.cost_model)} ({s.cost_model_origin})" for s in summaries
        ),
        "GPUs": _each(
            f"{s.gpus} in {s.replicas} replica{'s'[: s.replicas > 1]}" for s in summaries
        ),
        "Acceptance": _each(short_name(s.acceptance) for s in summaries),
        "SLO": _each(
            f"{slo.name}: TTFT {slo.ttft_ms:.4g} ms, TPOT {slo.tpot_ms:.4g} ms" for slo in slos
        ),
        "Rate": _each(f"×{replay.settings.rate:g}" for replay in replays),
        "Seed": _each(str(s.seed) for s in summaries),
        "sglang-dspark": _each(r.settings.provenance.get("version", "?") for r in replays),
    }
    if all(replay.settings.rate == 1 for replay in replays):
        del parts["Rate"]
    lines = ["Simulated. " + ". ".join(f"{name}: {text}" for name, text in parts.items()) + "."]
    stopped = [replay.path.resolve().name for replay in replays if replay.summary.interrupted]
    if stopped:
        lines.append(f"Partial: interrupted before the end ({', '.join(stopped)}).")
    return lines
