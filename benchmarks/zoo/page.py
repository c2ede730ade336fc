"""The zoo's part of ``docs/validation.md``, and its figure.

Owns the tables, between lines that name them, and the drawing. Computes nothing but what it shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.style import INK, page_style, save_page
from benchmarks.zoo.protocols import COLD, PROTOCOLS, TWO_POINTS, USER
from benchmarks.zoo.records import Record
from sglang_dspark.files import atomic_write, read_text

_END = "<!-- end zoo -->"
_WORST = 8
_KINDS = {"none": ("x", "#000000"), "fixed": ("s", "#d55e00"), "adaptive": ("o", "#0072b2")}
_WANTED = (
    ("median error", "median_error", {TWO_POINTS: "≤ 8 %", USER: "≤ 5 %"}),
    ("90 % intervals that hold the published point", "covered", dict.fromkeys(PROTOCOLS, "≥ 85 %")),
    ("median half-width of the intervals", "median_half_width", {TWO_POINTS: "≤ 15 %"}),
    ("pairs told apart that are in the right order", "right_share", {TWO_POINTS: "≥ 95 %"}),
    ("pairs published apart that are told apart", "told_share", {TWO_POINTS: "≥ 70 %"}),
)
_TICKS = (0.25, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0)


def write_page(path: Path, found: Mapping[str, Any], records: Mapping[str, Record]) -> None:
    """Rewrite the tables of ``path`` and draw ``zoo.png`` beside its figures."""
    tables = {
        "headline": headline(found),
        "records": by_record(found, records),
        "misses": misses(found),
        "sources": sources(records),
    }
    text = read_text(path)
    for name, table in tables.items():
        begin = f"<!-- zoo: {name} -->"
        pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(_END)}", re.DOTALL)
        place = pattern.search(text)
        if place is None:
            raise ValueError(f"{path}: has no {begin} ... {_END}; put the lines back")
        block = f"{begin}\n{table}\n{_END}"
        text = text[: place.start()] + block + text[place.end() :]
    with atomic_write(path) as file:
        file.write(text)
    with page_style():
        save_page(draw(found), str(path.parent / "figures" / "zoo.png"))


def _percent(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{100 * value:{sign}.1f} %"


def headline(found: Mapping[str, Any]) -> str:
    """The figures by protocol, with what was asked of them."""
    lines = [f"|  | {' | '.join(PROTOCOLS)} |", f"| --- |{' --- |' * len(PROTOCOLS)}"]
    scores = {name: found["protocols"][name]["score"] for name in PROTOCOLS}
    counts = [f"{scores[n]['points']} points, {scores[n]['pairs']} pairs" for n in PROTOCOLS]
    lines.append(f"| predicted | {' | '.join(counts)} |")
    for words, key, asked in _WANTED:
        cells = []
        for name in PROTOCOLS:
            bound = f" (asked: {asked[name]})" if name in asked else ""
            cells.append(f"{_percent(scores[name][key])}{bound}")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    unexplained = [f"{100 * found['protocols'][n]['unexplained']:.0f} %" for n in PROTOCOLS]
    lines.append(f"| of a point, what no price explains | {' | '.join(unexplained)} |")
    return "\n".join(lines)


def by_record(found: Mapping[str, Any], records: Mapping[str, Record]) -> str:
    """A line for each record: error, coverage and scatter under each protocol."""
    lines = [
        "| record | on | predicted from | cold | two points | their scatter | what a user has |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, record in records.items():
        base = f"`{record.base}`" + (", standing in" if record.stands_in else "")
        cells = []
        for protocol in PROTOCOLS:
            row = found["protocols"][protocol]["records"].get(name)
            cells.append("" if row is None else _score(row["score"]))
            if protocol == TWO_POINTS:
                spread = row["moved"]["spread"]
                cells.append(f"**{spread:.1f}**" if spread > 2 else f"{spread:.1f}")
        model = f"{record.model} on {record.hardware}"
        lines.append(f"| {name} | {model} | {base} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _score(score: Mapping[str, Any]) -> str:
    error = _percent(score["median_error"])
    return (
        f"{error}, worst {_percent(score['worst_error'], '+')}; "
        f"{_percent(score['covered'])} of {score['points']} held"
    )


def misses(found: Mapping[str, Any]) -> str:
    """The largest errors of points that nobody gave, two of a record at most."""
    lines = [
        "| protocol | record | run | published | predicted |",
        "| --- | --- | --- | --- | --- |",
    ]
    for protocol in (TWO_POINTS, USER):
        rows = [
            (abs(np.log(p["predicted"] / p["published"])), name, p)
            for name, row in found["protocols"][protocol]["records"].items()
            for p in row["points"]
        ]
        seen: dict[str, int] = {}
        kept = []
        for row in sorted(rows, key=lambda row: -row[0]):
            seen[row[1]] = seen.get(row[1], 0) + 1
            if seen[row[1]] <= 2:
                kept.append(row)
        for _, name, point in kept[: _WORST if protocol == TWO_POINTS else 2]:
            unit = "tok/s" if point["figure"] == "output_tok_s" else "ms TPOT"
            lines.append(
                f"| {protocol} | {name} | {point['policy']}, {point['concurrency']} clients, "
                f"prompts of {point['prompt_tokens']:.0f} | {point['published']:,.4g} {unit} | "
                f"{point['predicted']:,.4g} ({point['error']:+.0%}) |"
            )
    return "\n".join(lines)


def sources(records: Mapping[str, Record]) -> str:
    """Where each record is from, and what had to be assumed."""
    lines = ["| record | source | assumed |", "| --- | --- | --- |"]
    for name, record in records.items():
        lines.append(f"| {name} | {record.source} | {'; '.join(record.assumed)} |")
    return "\n".join(lines)


def draw(found: Mapping[str, Any]) -> Figure:
    """Predicted over published rate of every point, a row for each record, a panel a protocol."""
    names = list(found["protocols"][COLD]["records"])
    figure = Figure(figsize=(11.0, 5.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, protocol, letter in zip(panels, PROTOCOLS, "abc", strict=True):
        _panel(axes, found["protocols"][protocol], names)
        axes.set_title(f"{letter}  {protocol}")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.legend(
        handles=[
            Line2D([], [], marker=marker, color=colour, linestyle="none", label=kind,
                   markerfacecolor="none" if marker != "x" else colour)
            for kind, (marker, colour) in _KINDS.items()
        ],
        loc="outside lower center", ncols=3, title="grey: the median 90 % interval of a record",
    )  # fmt: skip
    return figure


def _panel(axes: Axes, protocol: Mapping[str, Any], names: list[str]) -> None:
    for place, name in enumerate(names):
        row = protocol["records"].get(name)
        if row is None:
            axes.annotate("no adaptive run", (1.1, place), fontsize=7, color="#808080",
                          ha="left", va="center")  # fmt: skip
            continue
        half = row["score"]["median_half_width"]
        axes.plot([np.exp(-half), np.exp(half)], [place, place], color="#d9d9d9", linewidth=9,
                  solid_capstyle="butt", zorder=1)  # fmt: skip
        for kind, (marker, colour) in _KINDS.items():
            shift = {"none": -0.2, "fixed": 0.0, "adaptive": 0.2}[kind]
            ratios = [1.0 + p["error"] for p in row["points"] if p["kind"] == kind]
            axes.plot(ratios, [place + shift] * len(ratios), marker=marker, linestyle="none",
                      markersize=3.5, markeredgecolor=colour, color=colour,
                      markerfacecolor="none", markeredgewidth=0.8, zorder=2)  # fmt: skip
    axes.axvline(1.0, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(0.22, 4.6)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("predicted / published rate")
