"""Pictures of an evaluation, after the paper's Figures 2, 5 and 6.

Owns how figures look. Reads statistics, computes none; knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sglang_dspark.draft.evaluation.reliability import (
    Acceptance,
    Reliability,
    ThresholdSweep,
    reliability_curve,
)
from sglang_dspark.files import atomic_write
from sglang_dspark.logs.rounds import Floats, Mask

# Okabe and Ito: colours that colour-blind readers tell apart; markers and dashes do without colour.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = ("o", "s", "D", "^", "v", "P")
_DASHES: tuple[Any, ...] = ("-", (0, (4.5, 1.8)), (0, (1, 1.3)), (0, (5, 1.4, 1, 1.4)))
_INK, _FAINT = "#222222", "#8a8a8a"


def _figure(
    columns: int, *, height: float = 2.9, width: float = 3.3, share: bool = False
) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width * columns + 0.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, columns, sharey=share)))
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        one.set_axisbelow(True)
        one.tick_params(labelsize=8, colors=_INK)
    return figure, axes


def _look(i: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "linestyle": _DASHES[i % len(_DASHES)],
        "markersize": 4,
        "linewidth": 1.4,
    }


def acceptance_figure(found: Mapping[str, Mapping[str, Acceptance]]) -> Figure:
    """Figure 2: conditional acceptance by position, a panel for each domain, a line per drafter.

    ``found`` is drafter -> domain -> acceptance; bars are two standard errors.
    """
    domains = list(dict.fromkeys(domain for by_domain in found.values() for domain in by_domain))
    figure, axes = _figure(len(domains), share=True)
    for axis, domain in zip(axes, domains, strict=True):
        for i, (drafter, by_domain) in enumerate(found.items()):
            if domain not in by_domain:
                continue
            shown = by_domain[domain].conditional
            axis.errorbar(
                np.arange(1, len(shown.value) + 1),
                shown.value,
                yerr=2 * np.nan_to_num(shown.error),
                capsize=2,
                label=f"{drafter} ({by_domain[domain].length.value:.2f} per round)",
                **_look(i),
            )
        axis.set_title(domain, fontsize=9, color=_INK)
        axis.set_xlabel("draft position", fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("conditional acceptance, $\\pm$2 se", fontsize=8)
    return figure


def threshold_figure(sweeps: Mapping[str, ThresholdSweep]) -> Figure:
    """Figure 5: tokens verified and committed by threshold (bars), and their ratio (line)."""
    figure, axes = _figure(len(sweeps))
    for i, (axis, (domain, sweep)) in enumerate(zip(axes, sweeps.items(), strict=True)):
        x = np.arange(len(sweep.thresholds))
        axis.bar(x, sweep.verified, width=0.8, color="#d9e6f2", label="verified (anchor counted)")
        axis.bar(x, sweep.committed, width=0.5, color=_COLOURS[0], label="committed")
        axis.set_xticks(x[::2], [f"{t:g}" for t in sweep.thresholds[::2]])
        axis.set_title(domain, fontsize=9, color=_INK)
        axis.set_xlabel("confidence threshold", fontsize=8)
        axis.set_ylim(0, 1.05 * sweep.verified.max())
        rate = axis.twinx()
        rate.plot(x, 100 * sweep.rate, color=_COLOURS[1], marker="o", markersize=3, linewidth=1.4)
        rate.set_ylim(0, 105)
        rate.tick_params(labelsize=8, colors=_COLOURS[1])
        rate.spines[["top"]].set_visible(False)
        if i == len(sweeps) - 1:
            rate.set_ylabel("acceptance rate, %", fontsize=8, color=_COLOURS[1])
        if i == 0:
            axis.set_ylabel("tokens per round", fontsize=8)
            figure.legend(fontsize=8, frameon=False, loc="outside upper center", ncols=2)
    return figure


def reliability_figure(
    survival: Mapping[str, Floats], survived: Mask, found: Mapping[str, Reliability]
) -> Figure:
    """Figure 6: predicted against observed prefix survival at every second position.

    ``survival`` is name -> predictions [N, K], ``found`` what they measure; grey bars show how many
    rounds the first one's bins hold.
    """
    shown = list(range(0, survived.shape[1], 2))
    figure, axes = _figure(len(shown), width=2.5)
    for axis, k in zip(axes, shown, strict=True):
        happened = survived[:, k].astype(np.float64)
        axis.plot([0, 1], [0, 1], color=_FAINT, linewidth=0.8)
        text = []
        for i, (name, predicted) in enumerate(survival.items()):
            mean, share, count = reliability_curve(predicted[:, k], happened)
            if i == 0:
                low = np.arange(len(count)) / len(count)
                heights = 0.25 * count / count.max()
                axis.bar(low, heights, width=1 / len(count), align="edge", color="#e6e6e6")
            # Bins of a few rounds are noise that draws the eye.
            keep = count >= max(10, 0.001 * count.sum())
            axis.plot(mean[keep], share[keep], label=name, **(_look(i) | {"markersize": 3}))
            figures = found[name]
            text.append(f"{name}: ECE {100 * figures.ece[k]:.1f} %, AUC {figures.auc[k]:.3f}")
        axis.set_title(f"position {k + 1}", fontsize=9, color=_INK)
        axis.text(
            0.03,
            0.98,
            "\n".join(text),
            transform=axis.transAxes,
            fontsize=6.5,
            va="top",
            color=_INK,
        )
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1.22)
        axis.set_xlabel("predicted prefix survival", fontsize=8)
    axes[0].set_ylabel("observed", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside upper center", ncols=4)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """A PNG without a date in it; whole or not at all."""
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
