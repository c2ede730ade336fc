"""The sheet around the panels: heading, legend, rows of panels, footer.

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
from matplotlib.textpath import TextPath

from analysis.replays import Replay
from analysis.series import Series, short_name
from analysis.style import plain_number
from simulator.slo import parse_slo

Panel = tuple[str, Callable[[Axes], None]]
"""A title, and what draws below it."""

_WIDTH_IN, _PANELS_IN = 10.0, 6.2
_HEADING_LINE_IN, _LEGEND_LINE_IN, _FOOTER_LINE_IN, _MARGIN_IN = 0.24, 0.157, 0.155, 0.1
_HEADING_CHARACTERS, _FOOTER_CHARACTERS = 95, 165
_LABEL_CHARACTERS = 100
_HANDLE_IN = 0.68
"""Of a legend entry, beside its label."""


def compose(
    panels: Sequence[Panel], series: Sequence[Series], replays: Sequence[Replay], subject: str
) -> Figure:
    """The page of result folders, inside ``analysis.style.page_style``."""
    footer = provenance(replays)
    return sheet(panels, series, heading=_heading(replays, subject), footer=footer, columns=3)


def sheet(
    panels: Sequence[Panel],
    series: Sequence[Series],
    *,
    heading: str,
    footer: Sequence[str],
    columns: int,
) -> Figure:
    """Panels row by row under a heading and one legend; ``footer`` holds whole lines.

    Inside ``analysis.style.page_style``. ``len(panels)`` is a multiple of ``columns``.
    """
    heading_lines = textwrap.wrap(heading, _HEADING_CHARACTERS)
    labels = [_shortened(one.label) for one in series]
    legend_columns = _legend_columns(labels)
    legend_in = -(-len(series) // legend_columns) * _LEGEND_LINE_IN + 0.04
    heading_in = _MARGIN_IN + len(heading_lines) * _HEADING_LINE_IN
    footer_in = _MARGIN_IN + len(footer) * _FOOTER_LINE_IN
    height_in = heading_in + legend_in + _PANELS_IN + footer_in
    engine = ConstrainedLayoutEngine(
        rect=(0.005, footer_in / height_in, 0.99, _PANELS_IN / height_in),
        w_pad=0.07,
        h_pad=0.07,
    )
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout=engine)
    grid = figure.subplots(len(panels) // columns, columns).flat
    for axes, letter, (title, draw) in zip(grid, "abcdef"[: len(panels)], panels, strict=True):
        draw(axes)
        axes.set_title(f"{letter}  {title}")
    left = _MARGIN_IN / _WIDTH_IN
    _write(
        figure, heading_lines, left, 1 - _MARGIN_IN / height_in, 11.0, _HEADING_LINE_IN / height_in
    )  # fmt: skip
    _write(
        figure, footer, left, footer_in / height_in - 0.004, 7.5, _FOOTER_LINE_IN / height_in
    )  # fmt: skip
    entries = [
        Line2D([], [], label=label, **one.look.line())
        for label, one in zip(labels, series, strict=True)
    ]
    legend = figure.legend(
        # Filled column by column; this order reads row by row.
        handles=[
            entry for column in range(legend_columns) for entry in entries[column::legend_columns]
        ],
        ncols=legend_columns,
        loc="upper left",
        bbox_to_anchor=(left, 1 - heading_in / height_in),
        borderaxespad=0.0,
        borderpad=0.0,
        labelspacing=0.3,
        columnspacing=1.8,
    )
    legend.set_in_layout(False)
    settle(figure)
    return figure


def settle(figure: Figure) -> None:
    """Lay the panels out once, to a thousandth of an inch.

    The layout solver sorts by memory addresses: the last bits of its result differ between runs.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(float(v), 4) for v in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


def _shortened(label: str) -> str:
    """The label, without its middle where it would not fit the page."""
    half = _LABEL_CHARACTERS // 2
    return label if len(label) <= _LABEL_CHARACTERS else f"{label[:half]} … {label[-half:]}"


def _legend_columns(labels: Sequence[str]) -> int:
    """As many columns as fit the page's width, filled row by row."""
    widths_in = [
        _HANDLE_IN + TextPath((0, 0), label, size=8.5).get_extents().width / 72 for label in labels
    ]
    for columns in range(len(labels), 1, -1):
        needed_in = sum(max(widths_in[column::columns]) for column in range(columns))
        if needed_in + 0.25 * (columns - 1) <= _WIDTH_IN - 2 * _MARGIN_IN:
            return columns
    return 1


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
    rates = [replay.settings.rate for replay in replays]
    parts = [
        "Simulated from trace "
        + _each(
            f"{s.trace} (sha256 {s.trace_sha256[:12]}, {plain_number(s.policies[0].requests)} "
            "requests)"
            for s in summaries
        ),
        "cost model "
        + _each(f"{short_name(s.cost_model)} ({s.cost_model_origin})" for s in summaries),
        _each(f"{_count(s.gpus, 'GPU')} in {_count(s.replicas, 'replica')}" for s in summaries),
        "acceptance " + _each(short_name(s.acceptance) for s in summaries),
        "SLO "
        + _each(f"{s.name} (TTFT {s.ttft_ms:.4g} ms, TPOT {s.tpot_ms:.4g} ms)" for s in slos),
        "rate " + _each(f"×{rate:g}" for rate in rates) if set(rates) != {1.0} else "",
        "bands: 90 % with the doubt about prices"
        if any(row.prices for s in summaries for row in s.policies)
        else "",
        "seed " + _each(str(s.seed) for s in summaries),
        "sglang-dspark " + _each(r.settings.provenance.get("version", "?") for r in replays),
    ]
    stopped = [replay.path.resolve().name for replay in replays if replay.summary.interrupted]
    if stopped:
        parts.append(f"partial: interrupted before the end ({', '.join(stopped)})")
    said = dict.fromkeys(note for s in summaries for note in s.acceptance_mismatch)
    return [*sentence_lines(said), *footer_lines(parts)]


def sentence_lines(sentences: Iterable[str]) -> list[str]:
    """Sentences as lines of a footer, each from a line of its own."""
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(f"Note: {sentence}.", _FOOTER_CHARACTERS, break_on_hyphens=False)
    ]


def footer_lines(parts: Iterable[str]) -> list[str]:
    """The parts of a footer, as lines that break between parts, not inside one."""
    whole = [part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts if part]
    return textwrap.wrap(" · ".join(whole), _FOOTER_CHARACTERS, break_on_hyphens=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
