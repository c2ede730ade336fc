"""What a calibration by benchmarks found, for people.

Owns the words. Computes nothing that the posterior does not hold.
"""

from __future__ import annotations

import numpy as np

from sglang_dspark.core.costs.doubt import KNOTS, NAMES, NINETY, Doubt, Floats
from sglang_dspark.core.costs.model import CostModel
from simulator.fit.bench.points import Point
from simulator.fit.bench.posterior import FAR, Posterior
from simulator.fit.bench.replays import FIGURES, Replayed

_SHORT = {"output_tok_s": "tok/s", "tpot_ms": "TPOT ms", "ttft_ms": "TTFT ms"}
_CONTRADICT = 2.0
"""A scatter of the points beyond their noise that is said."""


def table(points: list[Point], found: Posterior) -> str:
    """Every point: measured, and replayed before and after."""
    head = ["run", "load", *(f"{_SHORT[f]} measured, before, after" for f in FIGURES)]
    rows = [head]
    for point, before, after in zip(points, found.before, found.after, strict=True):
        cells = [point.policy, point.load]
        for figure in FIGURES:
            value = getattr(point, figure)
            shown = [before.figures[figure], after.figures[figure]]
            cells.append("-" if value is None else f"{value:.5g}  {shown[0]:.4g}  {shown[1]:.4g}")
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def doubts(model: CostModel, doubt: Doubt) -> str:
    """How far each price may still be off, in a line each."""
    root = doubt.root()
    sd = np.sqrt(np.square(root).sum(axis=1))
    smallest_ms = 1e3 * float(model.verify_curve.at(np.ones(1))[0])
    lines = []
    for m in (KNOTS[0], KNOTS[3], KNOTS[5]):
        off = NINETY * sd[KNOTS.index(m)]
        ms = 1e3 * float(model.plain_curve.at(np.array([float(m)]))[0])
        lines.append(f"  a forward over {m} tokens: {ms:.2f} ms, within {_factor(off)}")
    of = dict(zip(NAMES, sd, strict=True))
    lines.append(f"  prefill: within {_factor(NINETY * of['prefill'])}")
    if model.draft is not None:
        alone = np.hypot(of["speculating"], of["speculating/root"]) * smallest_ms
        lines.append(
            f"  drafting: within {_factor(NINETY * of['drafting'])}, and {NINETY * alone:.2f} ms "
            "more or less of a step with one request"
        )
    lines.append(f"  deciding: within {NINETY * of['deciding'] * smallest_ms:.2f} ms of a step")
    return "\n".join(["how far prices may be off, at 90 %:", *lines])


def _factor(log: float) -> str:
    return f"a factor of {np.exp(log):.2f}" if log > 0.5 else f"{100 * (np.exp(log) - 1):.0f} %"


def complaints(points: list[Point], found: Posterior) -> list[str]:
    """What a user has to know before he believes the model."""
    said = []
    if not found.converged:
        said.append(
            "the fit did not settle: some figure still moves by more than 1 %; look for a point "
            "that contradicts the others in the table"
        )
    if found.spread > _CONTRADICT:
        worst = int(np.abs(found.misfit).argmax())
        said.append(
            f"the points scatter {found.spread:.1f} times as far as benchmarks do around any "
            f"prices, worst {_observed(points, worst)}: every interval is that much wider; was "
            "one of them warming up, or of another server?"
        )
    for name, moved in zip((*NAMES, "accepted length"), found.moved, strict=True):
        if abs(moved) > FAR:
            said.append(
                f"{name} moved by {abs(moved):.1f} times what was thought possible of a model of "
                f"this origin: the points contradict the base model; is it the right one?"
            )
    return said


def _observed(points: list[Point], place: int) -> str:
    seen = [(p, f) for p in points for f in FIGURES if getattr(p, f) is not None]
    point, figure = seen[place]
    return f"{_SHORT[figure]} of {point.policy} with {point.load} ({point.where})"


def next_point(replays: list[Replayed], points: list[Point], covariance: Floats) -> str:
    """Which run, measured next, would narrow the rates of all runs most.

    Of candidates i, the one that takes most off the summed variance of log rates:
    sum over j of cov(i, j)^2 / (var(i) + noise^2).
    """
    slopes = np.array([replayed.slopes["output_tok_s"] for replayed in replays])
    together = slopes @ covariance @ slopes.T
    total = float(np.trace(together))
    if total <= 0:
        return ""
    gains = np.square(together).sum(axis=0) / (np.diag(together) + 0.05**2)
    best = int(gains.argmax())
    before = NINETY * np.sqrt(total / len(points))
    after = NINETY * np.sqrt(max(total - gains[best], 0.0) / len(points))
    if before < 0.05 or after > 0.9 * before:
        return ""
    return (
        f"Measure {points[best].policy} with {points[best].load} next: intervals of rates go from "
        f"±{100 * before:.0f} % to ±{100 * after:.0f} %."
    )
