"""One look for every page: colours, markers, dashes, axes; and the same bytes for the same page.

The colours are Okabe and Ito's (safe for colour-blind readers); marker and dash alone tell series
apart in grey print. Knows nothing of what is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

from sglang_dspark.files import atomic_write

SUFFIXES = (".png", ".pdf", ".svg")
INK = "#222222"
FAINT = "#8a8a8a"
_PNG_DPI = 160


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one series is drawn wherever it appears."""

    colour: str
    dash: Any
    """Matplotlib line style."""
    marker: str
    width: float = 1.5
    """Of the line, in points."""

    def line(self) -> dict[str, Any]:
        """Keywords of ``Axes.plot``."""
        filled = self.marker in "ovsDP"
        return {
            "color": self.colour,
            "linestyle": self.dash,
            "linewidth": self.width,
            "marker": self.marker,
            "markerfacecolor": self.colour if filled else "white",
            "markeredgecolor": self.colour,
        }


_SOLID = "-"
_DASHED = (0, (4.5, 1.8))
_DOTTED = (0, (1, 1.3))
_DASH_DOT = (0, (5, 1.4, 1, 1.4))
_LONG = (0, (9, 2))
_DASH_DOT_DOT = (0, (5, 1.4, 1, 1.4, 1, 1.4))

POLICY_LOOKS = {
    "none": Look(colour="#000000", dash=_DOTTED, marker="x"),
    "fixed": Look(colour="#d55e00", dash=_DASHED, marker="s"),
    "threshold": Look(colour="#cc79a7", dash=_DASH_DOT, marker="^"),
    "early_stop": Look(colour="#56b4e9", dash=_DASH_DOT_DOT, marker="v"),
    "global": Look(colour="#0072b2", dash=_SOLID, marker="o"),
    "sglang": Look(colour="#009e73", dash=_LONG, marker="D"),
    "goodput": Look(colour="#e69f00", dash=_SOLID, marker="P", width=2.6),
}
"""A policy looks the same on every page."""

SPARE_LOOKS = (
    Look(colour="#7f4fa0", dash=_DASHED, marker="*"),
    Look(colour="#6b6b6b", dash=_DASH_DOT, marker="p"),
    Look(colour="#8c2d04", dash=_LONG, marker="<"),
    Look(colour="#4d7c0f", dash=_DOTTED, marker=">"),
    Look(colour="#1b4f72", dash=_DASH_DOT_DOT, marker="h"),
)
"""For the second folder's policies and for parameters of a policy already drawn."""

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so pages do not depend on the machine
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.handlelength": 3.6,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "dspark",
}


@contextmanager
def page_style() -> Iterator[None]:
    """Draw and save inside it: the reader's own matplotlibrc changes nothing."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def check_suffix(path: str | Path) -> str:
    """The file format that a name asks for; ``ValueError`` for one that pages are not drawn in."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise ValueError(f"{path}: {suffix or 'no suffix'!r} is no picture format; use {known}")
    return suffix[1:]


def _small_png(data: bytes) -> bytes:
    """The picture with a palette: a third of the bytes, the colours of lines exact within 1 %."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture = picture.quantize(256, method=Image.Quantize.FASTOCTREE)
    # The octree makes white 254; paper must stay white.
    values = picture.getpalette()
    assert values is not None
    picture.putpalette([255 if value > 252 else value for value in values])
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def page_bytes(figure: Figure, form: str) -> bytes:
    """The figure as a file: no date and no random names in it."""
    buffer = io.BytesIO()
    date = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}[form]
    with page_style():
        figure.savefig(buffer, format=form, dpi=_PNG_DPI, metadata={date: None})
    return _small_png(buffer.getvalue()) if form == "png" else buffer.getvalue()


def save_page(figure: Figure, path: str | Path) -> None:
    """Write the page whole or not at all."""
    data = page_bytes(figure, check_suffix(path))
    with atomic_write(path, "wb") as file:
        file.write(data)


def plain_number(value: float) -> str:
    """1500 -> 1,500; 0.25 -> 0.25."""
    return f"{value:,.0f}" if abs(value) >= 1 and value == round(value) else f"{value:,g}"


def plain_axis(axes: Axes, which: str) -> None:
    """Numbers as people write them, with thousands separated."""
    getattr(axes, f"{which}axis").set_major_formatter(FuncFormatter(lambda v, _: plain_number(v)))


def log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """Logarithmic between two values above 0, with ticks at 1, 2, 5 or at powers of 10."""
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=20))
    axis.set_minor_locator(NullLocator())
    plain_axis(axes, which)
