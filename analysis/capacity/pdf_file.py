"""``report.pdf``: the first page in print, then every figure, then the limits.

Owns how text pages are set. What is said comes from ``report`` and ``tables``, the pictures
from ``figures``.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath

from analysis.capacity.sheet import Drawing, provenance
from analysis.capacity.tables import Table, policies, sizes
from analysis.capacity.words import objective
from analysis.style import page_style

_WIDTH_IN, _LEAST_HEIGHT_IN, _MARGIN_IN = 10.0, 7.1, 0.35
_LINE = 1.36
"""Line height over font size."""

Block = Callable[[Figure | None, float], float]
"""Draws at so many inches from the top, or only measures without a figure; its height in inches."""


def pdf_report(report: dict[str, Any], drawings: Sequence[Drawing]) -> bytes:
    """The document; no date in it, the same bytes for the same record."""
    buffer = io.BytesIO()
    with (
        page_style(),
        PdfPages(buffer, metadata={"CreationDate": None, "Title": _title(report)}) as pages,
    ):
        pages.savefig(_page(_first_page(report)))
        for drawing in drawings:
            pages.savefig(drawing.figure)
        pages.savefig(_page(_limits(report)))
    return buffer.getvalue()


def _title(report: dict[str, Any]) -> str:
    return f"Capacity of {report['trace']['name']} under SLO {report['slo']['name']}"


def _first_page(report: dict[str, Any]) -> list[Block]:
    answer = report["answer"]
    return [
        _text(_title(report), 12, bold=True),
        _text(f"The question: {objective(report)}.", 9),
        _gap(0.1),
        _text(answer["headline"], 22, bold=True),
        *(_text(sentence, 11) for sentence in answer["sentences"]),
        _gap(0.12),
        _table(sizes(report)),
        _gap(0.12),
        _table(policies(report)),
        _gap(0.12),
        _text("How sure this is", 11, bold=True),
        *(_text(f"•  {sentence}", 9) for sentence in report["sureness"]),
        _gap(0.1),
        *(_text(line, 7.5) for line in provenance(report, f"equal replicas, {report['router']}")),
    ]


def _limits(report: dict[str, Any]) -> list[Block]:
    return [
        _text("What the model does not know", 12, bold=True),
        _gap(0.05),
        *(_text(f"•  {sentence}", 9.5) for sentence in report["limits"]),
        _gap(0.15),
        _text("Every number of this document is in report.json beside it.", 9),
        *(_text(line, 7.5) for line in provenance(report, f"equal replicas, {report['router']}")),
    ]


def _page(blocks: Sequence[Block]) -> Figure:
    """A page as high as its blocks need, or as the figures are."""
    height_in = max(_LEAST_HEIGHT_IN, 2 * _MARGIN_IN + sum(block(None, 0.0) for block in blocks))
    figure = Figure(figsize=(_WIDTH_IN, height_in))
    top_in = _MARGIN_IN
    for block in blocks:
        top_in += block(figure, top_in)
    return figure


def _gap(height_in: float) -> Block:
    return lambda figure, top_in: height_in


def _width_in(text: str, size: float, *, bold: bool = False) -> float:
    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return float(TextPath((0, 0), text, size=size, prop=font).get_extents().width) / 72


def _wrapped(text: str, size: float, width_in: float, *, bold: bool) -> list[str]:
    """Lines no wider than ``width_in``."""
    characters = len(text)
    while True:
        lines = textwrap.wrap(text, max(8, characters), break_on_hyphens=False) or [""]
        widest = max(_width_in(line, size, bold=bold) for line in lines)
        if widest <= width_in or characters <= 8:
            return lines
        characters = min(characters - 1, int(max(map(len, lines)) * width_in / widest) + 1)


def _text(text: str, size: float, *, bold: bool = False) -> Block:
    lines = _wrapped(text, size, _WIDTH_IN - 2 * _MARGIN_IN, bold=bold)
    step_in = size * _LINE / 72

    def draw(figure: Figure | None, top_in: float) -> float:
        if figure is not None:
            for i, line in enumerate(lines):
                _write(figure, _MARGIN_IN, top_in + i * step_in, line, size, bold=bold)
        return len(lines) * step_in + 0.03

    return draw


def _write(
    figure: Figure,
    x_in: float,
    y_in: float,
    text: str,
    size: float,
    *,
    bold: bool,
    right: bool = False,
) -> None:
    height_in = figure.get_figheight()
    figure.text(
        x_in / _WIDTH_IN, 1 - y_in / height_in, text, fontsize=size, va="top",
        ha="right" if right else "left", fontweight="bold" if bold else "normal",
        parse_math=False,
    )  # fmt: skip


def _table(table: Table) -> Block:
    """The table at the largest size up to 9 points at which it fits the page's width."""
    room_in = _WIDTH_IN - 2 * _MARGIN_IN
    heads = [textwrap.wrap(cell, 15, break_on_hyphens=False) or [""] for cell in table.head]
    columns = [[*head, *(row[k] for row in table.rows)] for k, head in enumerate(heads)]
    unit_in = [max(_width_in(cell, 1.0, bold=True) for cell in column) for column in columns]
    pad = 1.6  # of the font size, between columns
    per_point_in = sum(unit_in) + pad * (len(columns) - 1) / 72
    size = min(9.0, room_in / per_point_in)
    step_in = size * _LINE / 72
    rights, right = [], _MARGIN_IN
    for width in unit_in:
        right += width * size
        rights.append(right)
        right += pad * size / 72
    deep = max(map(len, heads))

    def draw(figure: Figure | None, top_in: float) -> float:
        title_in = 10 * _LINE / 72 + 0.04
        height_in = title_in + (deep + len(table.rows)) * step_in + 0.12
        if figure is None:
            return height_in
        _write(figure, _MARGIN_IN, top_in, table.title, 10, bold=True)
        y_in = top_in + title_in
        for k, head in enumerate(heads):
            for i, line in enumerate(head):
                at_in = y_in + (deep - len(head) + i) * step_in
                _cell(figure, rights, unit_in, size, k, at_in, line, bold=False)
        y_in += deep * step_in + 0.03
        _rule(figure, y_in, rights[-1])
        y_in += 0.03
        for i, row in enumerate(table.rows):
            for k, cell in enumerate(row):
                bold = (i, k) in table.best
                _cell(figure, rights, unit_in, size, k, y_in + i * step_in, cell, bold=bold)
        return height_in

    return draw


def _cell(
    figure: Figure,
    rights: Sequence[float],
    unit_in: Sequence[float],
    size: float,
    k: int,
    y_in: float,
    text: str,
    *,
    bold: bool,
) -> None:
    if k == 0:
        _write(figure, rights[0] - unit_in[0] * size, y_in, text, size, bold=bold)
    else:
        _write(figure, rights[k], y_in, text, size, bold=bold, right=True)


def _rule(figure: Figure, y_in: float, right_in: float) -> None:
    height_in = figure.get_figheight()
    figure.add_artist(
        Rectangle(
            (_MARGIN_IN / _WIDTH_IN, 1 - y_in / height_in),
            (right_in - _MARGIN_IN) / _WIDTH_IN,
            0.006 / height_in,
            transform=figure.transFigure,
            facecolor="#888888",
            linewidth=0,
        )
    )
