"""One page of predictions beside publications, and the tables of ``docs/validation.md``.

    python -m benchmarks.validation.page benchmarks/results/validation.json \
        -o docs/figures/validation.png --docs docs/validation.md

Owns the command, the page's layout and its footer. Runs no simulation: the record is that of
``python -m benchmarks.validation``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.style import check_suffix, page_style, save_page
from benchmarks.validation.page_panels import (
    ARM_LOOKS,
    draw_acceptance,
    draw_budgets,
    draw_frontiers,
    draw_gains,
    draw_production,
    draw_queues,
    draw_speed_pairs,
    draw_throughput_pairs,
    draw_twin,
)
from benchmarks.validation.page_tables import fill_tables
from benchmarks.validation.record import Validation
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.files import read_record

PANELS: tuple[tuple[str, Callable[[Axes, Validation], None]], ...] = (
    ("vLLM, V4-Pro on 8 B300: throughput", draw_throughput_pairs),
    ("The same: speed per user", draw_speed_pairs),
    ("The same: three arms, load 1 to 256", draw_frontiers),
    ("Paper, Figure 8: throughput", draw_production),
    ("Paper, Figure 8: verification budget", draw_budgets),
    ("Paper, Figure 7: gains at its anchors", draw_gains),
    ("Queueing theory", draw_queues),
    ("Digital twin: a real server on a CPU", draw_twin),
    ("Acceptance profiles against Figure 2", draw_acceptance),
)
_SIZE_IN = (11.5, 11.6)
_FOOTER_CHARACTERS = 185


def validation_page(record: Validation) -> Figure:
    """The page as a matplotlib figure."""
    with page_style():
        figure = Figure(figsize=_SIZE_IN)
        grid = figure.subplots(
            3, 3,
            gridspec_kw={"left": 0.07, "right": 0.985, "bottom": 0.1, "top": 0.915,
                         "wspace": 0.42, "hspace": 0.3},
        ).flat  # fmt: skip
        for axes, letter, (title, draw) in zip(grid, "abcdefghi", PANELS, strict=True):
            draw(axes, record)
            axes.set_title(f"{letter}  {title}")
        figure.text(
            0.012, 0.985, "What the simulator predicts beside what was published or measured",
            fontsize=12, fontweight="bold", va="top",
        )  # fmt: skip
        figure.text(0.012, 0.953, "a-c:", fontsize=8.5, va="center")
        figure.legend(
            handles=[
                Line2D([], [], label=arm, **(look.line() | {"linestyle": "none"}))
                for arm, look in ARM_LOOKS.items()
            ],
            ncols=len(ARM_LOOKS),
            loc="center left",
            bbox_to_anchor=(0.035, 0.953),
            handlelength=1.0,
            columnspacing=1.6,
        )
        for line, text in enumerate(reversed(_footer(record))):
            figure.text(0.012, 0.008 + 0.0135 * line, text, fontsize=7.5)
        return figure


def _footer(record: Validation) -> list[str]:
    """What was calibrated on, and where the numbers come from."""
    parts = [f"Calibrated on: a-c {'; '.join(record.frontier.calibrated_on)}"]
    parts += [f"d-f {model.model} {'; '.join(model.calibrated_on)}" for model in record.paper]
    parts += [
        f"{record.command} at commit {record.commit}",
        "published numbers and their sources: benchmarks/published_serving.json",
    ]
    # A line breaks between parts, not inside one.
    whole = [part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts]
    return textwrap.wrap(" · ".join(whole), _FOOTER_CHARACTERS, break_on_hyphens=False)


def _parser() -> Parser:
    parser = Parser(prog="python -m benchmarks.validation.page", description=__doc__.split("\n")[0])
    parser.add_argument("record", help="JSON of python -m benchmarks.validation")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="a .png, .pdf or .svg")
    parser.add_argument("--docs", metavar="FILE", help="a page whose tables are written anew")
    return parser


def _command(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    check_suffix(arguments.out)
    record = read_record(arguments.record, Validation)
    save_page(validation_page(record), arguments.out)
    print(f"Wrote {arguments.out}")
    if arguments.docs:
        fill_tables(arguments.docs, record)
        print(f"Wrote {arguments.docs}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("benchmarks.validation.page", lambda: _command(argv))


if __name__ == "__main__":
    raise SystemExit(main())
