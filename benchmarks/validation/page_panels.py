"""The nine panels of the validation page: one function per panel, given its axes and the record.

Predicted is drawn filled and solid, published hollow and dashed, on every panel. Knows nothing of
the page around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from analysis.style import (
    FAINT,
    INK,
    POLICY_LOOKS,
    SPARE_LOOKS,
    Look,
    log_axis,
    plain_axis,
)
from benchmarks.validation.record import (
    CALIBRATION,
    SPEED_GAIN_PCT,
    TOLERANCE,
    Frontier,
    FrontierPoint,
    PaperModel,
    Validation,
    largest,
)
from simulator.twin.report import TWIN_TOLERANCE

ARM_LOOKS = {
    "none": POLICY_LOOKS["none"],
    "fixed 1": SPARE_LOOKS[0],
    "fixed 3": SPARE_LOOKS[1],
    "fixed 5": SPARE_LOOKS[2],
    "fixed 6": SPARE_LOOKS[3],
    "fixed 7": POLICY_LOOKS["fixed"],
    "adaptive": POLICY_LOOKS["global"],
}
_METHOD_LOOKS = {"MTP-1": POLICY_LOOKS["fixed"], "DSpark-5": POLICY_LOOKS["global"]}
_SERVICE_LOOKS = {"M/D/1": POLICY_LOOKS["global"], "M/M/1": POLICY_LOOKS["fixed"]}
_DRAFTER_LOOKS = {
    "dspark-qwen3-4b": POLICY_LOOKS["global"],
    "dflash-qwen3-4b": POLICY_LOOKS["fixed"],
    "eagle3-qwen3-4b": POLICY_LOOKS["sglang"],
}
_TWIN_NAMES = {
    "output_tok_s": "output\ntok/s",
    "tpot_p50_ms": "TPOT\np50",
    "ttft_p99_ms": "TTFT\np99",
    "verified_tokens": "verified\ntokens",
}
_LOAD_MARKS = {"light": "o", "medium": "s", "heavy": "^"}
_BAND = "#e6e6e6"
_SMALL = 7.0


def _dots(look: Look, *, hollow: bool = False) -> dict[str, Any]:
    """Keywords of ``Axes.plot`` for markers without a line."""
    style = look.line() | {"linestyle": "none"}
    return style | {"markerfacecolor": "white"} if hollow else style


def _note(axes: Axes, x: float, y: float, lines: Sequence[str], *, right: bool) -> None:
    axes.text(
        x,
        y,
        "\n".join(lines),
        transform=axes.transAxes,
        ha="right" if right else "left",
        va="bottom" if y < 0.5 else "top",
        fontsize=_SMALL,
        color=INK,
        linespacing=1.25,
    )


def _draw_pairs(
    axes: Axes,
    frontier: Frontier,
    pair: Callable[[FrontierPoint], tuple[float, float]],
    error: Callable[[FrontierPoint], float],
    *,
    unit: str,
    of_user: bool,
) -> None:
    """Predicted against published on equal logarithmic axes, the band, and what lies outside."""
    values = [value for point in frontier.points for value in pair(point)]
    low, high = min(values) / 1.3, max(values) * 1.3
    ends = np.array([low, high])
    axes.fill_between(ends, ends * (1 - TOLERANCE), ends * (1 + TOLERANCE), color=_BAND, lw=0)
    axes.plot(ends, ends, color=FAINT, linewidth=0.8)
    for point in frontier.points:
        published, predicted = pair(point)
        axes.plot(published, predicted, **_dots(ARM_LOOKS[point.arm]))
        if point.role == CALIBRATION:
            axes.plot(
                published, predicted, "o", markersize=11, markerfacecolor="none",
                markeredgecolor=INK, markeredgewidth=0.8,
            )  # fmt: skip
    log_axis(axes, "x", low, high)
    log_axis(axes, "y", low, high)
    if high > 2000:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.set_aspect("equal")
    axes.set_xlabel(f"published ({unit})")
    axes.set_ylabel(f"predicted ({unit})")
    _note(axes, 0.03, 0.97, ["band: ±10 %", "circled: calibrated on"], right=False)
    missed = sorted(
        (point for point in frontier.predicted if abs(error(point)) > TOLERANCE),
        key=lambda point: -abs(error(point)),
    )
    lines = ["outside the band:"] if missed else ["none outside; furthest:"]
    for point in missed or [largest(frontier.predicted, of_user=of_user)]:
        lines.append(f"{point.arm} at {point.concurrency}: {100 * error(point):+.0f} %")
    _note(axes, 0.98, 0.03, lines, right=True)


def draw_throughput_pairs(axes: Axes, record: Validation) -> None:
    """vLLM's aggregate throughput, every arm at every concurrency."""
    _draw_pairs(
        axes, record.frontier, lambda p: (p.published_tok_s, p.predicted_tok_s),
        lambda p: p.error, unit="output tok/s, 8 GPUs", of_user=False,
    )  # fmt: skip


def draw_speed_pairs(axes: Axes, record: Validation) -> None:
    """vLLM's speed per user."""
    _draw_pairs(
        axes, record.frontier, lambda p: (p.published_user_tok_s, p.predicted_user_tok_s),
        lambda p: p.user_error, unit="output tok/s per user", of_user=True,
    )  # fmt: skip


def draw_frontiers(axes: Axes, record: Validation) -> None:
    """The three arms whose order is the claim: throughput against speed per user."""
    for arm in ("none", "fixed 7", "adaptive"):
        points = [point for point in record.frontier.points if point.arm == arm]
        look = ARM_LOOKS[arm]
        axes.plot(
            [p.published_user_tok_s for p in points],
            [p.published_tok_s for p in points],
            **(look.line() | {"linestyle": (0, (3, 2)), "markerfacecolor": "white"}),
        )
        axes.plot(
            [p.predicted_user_tok_s for p in points],
            [p.predicted_tok_s for p in points],
            **(look.line() | {"linestyle": "-"}),
        )
    log_axis(axes, "x", 25, 330)
    axes.set_ylim(0, None)
    plain_axis(axes, "y")
    axes.set_xlabel("output tok/s per user")
    axes.set_ylabel("output tok/s, 8 GPUs")
    _note(axes, 0.98, 0.97, ["solid: predicted", "dashed, hollow: published"], right=True)


def _by_method(axes: Axes, model: PaperModel, name: str) -> None:
    """Both methods' published line and predicted dots over the load."""
    filled = model.model == "V4-Flash"
    for method, look in _METHOD_LOOKS.items():
        points = [point for point in model.points if point.method == method]
        known = [p for p in points if getattr(p, f"published_{name}") is not None]
        if not known:
            continue
        loads = [p.concurrency for p in known]
        axes.plot(
            loads,
            [getattr(p, f"published_{name}") for p in known],
            color=look.colour,
            linestyle="-" if filled else (0, (3, 2)),
            linewidth=1.1,
        )
        marks = _dots(look, hollow=not filled)
        axes.plot(loads, [getattr(p, f"predicted_{name}") for p in known], **marks)


def _load_axis(axes: Axes, least: float) -> None:
    log_axis(axes, "x", least, 380)
    axes.set_xlabel("concurrent requests per GPU")


def draw_production(axes: Axes, record: Validation) -> None:
    """The paper's Figure 8: throughput by load."""
    for model in record.paper:
        _by_method(axes, model, "tok_s")
    _load_axis(axes, 0.85)
    log_axis(axes, "y", 40, 40_000)
    axes.set_ylabel("output tok/s per GPU")
    lines = ["furthest off:"]
    for model in record.paper:
        for method in _METHOD_LOOKS:
            errors = {
                p.concurrency: p.predicted_tok_s / p.published_tok_s - 1
                for p in model.points
                if p.method == method and p.published_tok_s is not None
            }
            load = max(errors, key=lambda at: abs(errors[at]))
            lines.append(f"{model.model}, {method} at {load}: {100 * errors[load]:+.0f} %")
    _note(axes, 0.98, 0.03, lines, right=True)
    handles = [
        Line2D([], [], label=method, **_dots(look)) for method, look in _METHOD_LOOKS.items()
    ]
    handles += [
        Line2D([], [], color=INK, lw=1.1, label="V4-Flash, published"),
        Line2D([], [], color=INK, lw=1.1, ls=(0, (3, 2)), label="V4-Pro, published (hollow)"),
    ]
    axes.legend(handles=handles, loc="upper left", fontsize=_SMALL, handlelength=2.4)


def draw_budgets(axes: Axes, record: Validation) -> None:
    """The paper's Figure 8: tokens DSpark-5 verifies per request and step."""
    for model in record.paper:
        _by_method(axes, model, "budget")
    _load_axis(axes, 5)
    axes.set_ylim(2, 6)
    axes.set_ylabel("verified tokens per request and step\n(anchor included)")
    _note(
        axes, 0.03, 0.03, ["lines: published", "dots: predicted", "hollow, dashed: V4-Pro"],
        right=False,
    )  # fmt: skip


def draw_gains(axes: Axes, record: Validation) -> None:
    """DSpark-5 over MTP-1 at the paper's anchors; the band is where a speed gain may lie."""
    gains = [(model.model, gain) for model in record.paper for gain in model.gains]
    rows = sorted(gains, key=lambda row: not row[1].kind.startswith("speed"))
    speeds = sum(gain.kind.startswith("speed") for _, gain in rows)
    axes.fill_betweenx([0.5 - speeds, 0.5], *SPEED_GAIN_PCT, color=_BAND, lw=0)
    look = _METHOD_LOOKS["DSpark-5"]
    labels = []
    for place, (name, gain) in enumerate(rows):
        axes.plot([gain.published_pct, gain.predicted_pct], [-place, -place], color=FAINT, lw=0.9)
        axes.plot(gain.published_pct, -place, **_dots(look, hollow=True))
        axes.plot(gain.predicted_pct, -place, **_dots(look))
        where = gain.at.replace(" per user", "/user").replace(" per GPU", "/GPU")
        labels.append(f"{name[3:]}: {gain.kind.split()[0]}\nat {where}")
    log_axis(axes, "x", 35, 1200)
    axes.set_xlabel("gain of DSpark-5 over MTP-1 (%)")
    axes.set_ylim(0.4 - len(rows), 1.6)
    axes.set_yticks([-place for place in range(len(rows))], labels, fontsize=6.5)
    axes.grid(axis="y", visible=False)
    low, high = SPEED_GAIN_PCT
    _note(
        axes, 0.98, 0.985,
        ["hollow: published, filled: predicted", f"band: speed gains, {low:.0f} to {high:.0f} %"],
        right=True,
    )  # fmt: skip


def draw_queues(axes: Axes, record: Validation) -> None:
    """Mean wait of a single server: theory as lines, simulation with its 95 % interval."""
    load = np.linspace(0.05, 0.93, 200)
    for service, look in _SERVICE_LOOKS.items():
        rows = [row for row in record.queues if row.service == service]
        at = rows[0]
        factor = at.theory_s * (1 - at.load) / at.load
        axes.plot(load, factor * load / (1 - load), color=look.colour, linestyle=look.dash, lw=1.1)
        axes.errorbar(
            [row.load for row in rows],
            [row.simulated_s for row in rows],
            yerr=[
                [row.simulated_s - row.low_s for row in rows],
                [row.high_s - row.simulated_s for row in rows],
            ],
            fmt=look.marker,
            color=look.colour,
            markersize=4,
            capsize=3,
            label=service,
        )
    log_axis(axes, "y", 0.005, 2)
    axes.set_xlim(0, 1)
    axes.set_xlabel("load of the server")
    axes.set_ylabel("mean wait (s), service 0.1 s")
    axes.legend(loc="upper left", fontsize=_SMALL, handlelength=1.5)
    _note(axes, 0.98, 0.03, ["lines: theory", "dots: simulated, 95 %"], right=True)


def draw_twin(axes: Axes, record: Validation) -> None:
    """The digital twin's errors by figure, beside the tolerance of each."""
    policies = list(dict.fromkeys(row.policy for row in record.twin))
    missed = []
    for place, figure in enumerate(_TWIN_NAMES):
        tolerance = 100 * TWIN_TOLERANCE[figure]
        axes.fill_between([place - 0.42, place + 0.42], -tolerance, tolerance, color=_BAND, lw=0)
        for row in record.twin:
            if row.figure != figure:
                continue
            look = POLICY_LOOKS[row.policy]
            x = place + 0.22 * (policies.index(row.policy) - 1)
            error = 100 * row.error
            axes.plot(
                x, error, _LOAD_MARKS[row.load], color=look.colour, markersize=4.5,
                markerfacecolor="white" if row.policy == "none" else look.colour,
            )  # fmt: skip
            if abs(error) > tolerance:
                name = _TWIN_NAMES[figure].replace("\n", " ")
                missed.append(f"{name}, {row.policy}, {row.load}: {error:+.0f} %")
    axes.set_xticks(range(len(_TWIN_NAMES)), list(_TWIN_NAMES.values()))
    axes.grid(axis="x", visible=False)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    reach = max(25.0, *(110 * abs(row.error) for row in record.twin))
    axes.set_ylim(-reach, 2 * reach)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:+g}" if v else "0"))
    axes.set_ylabel("predicted over measured (%)")
    handles = [
        Line2D([], [], marker="o", ls="none", color=POLICY_LOOKS[p].colour, label=p,
               markerfacecolor="white" if p == "none" else POLICY_LOOKS[p].colour)
        for p in policies
    ] + [
        Line2D([], [], marker=mark, ls="none", color=FAINT, label=load)
        for load, mark in _LOAD_MARKS.items()
    ]  # fmt: skip
    axes.legend(handles=handles, loc="upper right", fontsize=_SMALL, handlelength=1.0)
    said = ["outside the bands:", *missed] if missed else ["all inside the bands"]
    _note(axes, 0.03, 0.97, said, right=False)
    _note(axes, 0.98, 0.03, [f"left to right: {', '.join(policies)}"], right=True)


def draw_acceptance(axes: Axes, record: Validation) -> None:
    """Replayed less published conditional acceptance, by position."""
    profiles = list(_DRAFTER_LOOKS)
    for row in record.acceptance:
        if row.position is not None:
            look = _DRAFTER_LOOKS[row.profile]
            x = row.position + 0.2 * (profiles.index(row.profile) - 1)
            axes.plot(x, row.simulated - row.published, **(_dots(look) | {"markersize": 3.6}))
    axes.axhspan(-0.005, 0.005, color=_BAND, lw=0, zorder=0)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set_ylim(-0.011, 0.011)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:+g}" if v else "0"))
    axes.set_xlabel("draft position")
    axes.set_ylabel("acceptance given its prefix,\nreplayed less published")
    names = {name: name.split("-")[0] for name in profiles}
    proper = {"dspark": "DSpark", "dflash": "DFlash", "eagle3": "Eagle3"}
    handles = [
        Line2D([], [], label=proper[names[p]], **_dots(look)) for p, look in _DRAFTER_LOOKS.items()
    ]
    axes.legend(handles=handles, loc="upper right", fontsize=_SMALL, ncols=3, handlelength=1.0,
                columnspacing=1.0)  # fmt: skip
    _note(axes, 0.03, 0.03, ["band: ±0.005"], right=False)
