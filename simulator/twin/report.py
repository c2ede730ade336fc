"""Predicted beside measured: the signs of policy differences, the table, the picture.

Knows results only, no server and no simulation.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from simulator.twin.timings import FIGURES, Timings, pooled

TIE = 0.02
"""Policies that measure this close are not told apart, whatever the sign."""
_RESAMPLES = 1000

TWIN_TOLERANCE = {
    "output_tok_s": 0.05,
    "tpot_p50_ms": 0.10,
    "ttft_p99_ms": 0.20,
    "verified_tokens": 0.05,
}
"""Relative errors that the digital twin may have."""

Blocks = dict[tuple[str, str], list[Timings]]
"""What each (load, policy) measured, block for block: the same number had the same arrivals."""


def distinct(rows: list[dict[str, Any]], key: str) -> list[str]:
    """Its values, in order of appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def measured_interval(
    ours: list[Timings], theirs: list[Timings], seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % interval of each figure's relative difference between two policies, from resampled
    blocks; a block counts for both, since both were sent its arrivals."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for _ in range(_RESAMPLES):
        drawn = rng.integers(len(ours), size=len(ours))
        one, other = (pooled([blocks[n] for n in drawn]).figures() for blocks in (ours, theirs))
        for name in FIGURES:
            found[name].append(one[name] / other[name] - 1.0)
    ends = {name: np.percentile(values, (2.5, 97.5)) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def signs(rows: list[dict[str, Any]], blocks: Blocks) -> list[dict[str, Any]]:
    """Every difference between two policies at one load, measured and predicted.

    A difference of less than ``TIE``, or one whose interval holds zero, has no sign to predict.
    """
    found = []
    for load in distinct(rows, "load"):
        at = {row["policy"]: row for row in rows if row["load"] == load}
        for one, other in itertools.combinations(at, 2):
            intervals = measured_interval(blocks[load, one], blocks[load, other])
            for name in FIGURES:
                real, simulated = (
                    at[one][kind][name] / at[other][kind][name] - 1.0
                    for kind in ("measured", "predicted")
                )
                low, high = intervals[name]
                tie = abs(real) < TIE or low <= 0.0 <= high
                found.append(
                    {
                        "load": load,
                        "figure": name,
                        "difference": f"{one} against {other}",
                        "measured": real,
                        "interval": [low, high],
                        "predicted": simulated,
                        "tie": tie,
                        "right": tie or bool(np.sign(real) == np.sign(simulated)),
                    }
                )
    return found


def comparison(result: dict[str, Any], kind: str) -> list[str]:
    """A line for each policy and load; ! marks what misses its tolerance."""
    lines = [
        f"{'load':8}{'policy':8}{'of cap.':>8}{'drift':>12}"
        + "".join(f"{name:>28}" for name in FIGURES),
        " " * 36 + f"{'real  predicted   error ':>28}" * len(FIGURES),
    ]
    for row in result["rows"]:
        share = "-" if row["of_capacity"] is None else f"{row['of_capacity']:.0%}"
        drifts = f"{np.mean(row['drift']):.2f}+-{np.std(row['drift']):.2f}"
        text = f"{row['load']:8}{row['policy']:8}{share:>8}{drifts:>12}"
        for name in FIGURES:
            real, simulated = row["measured"][name], row[kind][name]
            error = simulated / real - 1.0
            mark = " " if abs(error) <= TWIN_TOLERANCE[name] else "!"
            text += f"{real:11.2f}{simulated:9.2f}{error:+7.1%}{mark}"
        lines.append(text)
    return lines


def table(result: dict[str, Any]) -> str:
    """Predicted beside measured, and what the machine's own drift has to do with it."""
    lines = comparison(result, "predicted")
    lines += ["", "The same with the cost model at the speed that each replayed segment ran at,"]
    lines += ["which no one knows beforehand: what misses here is the simulation's.", ""]
    lines += [*comparison(result, "predicted_at_speed"), ""]
    known = [one for one in result["signs"] if not one["tie"]]
    wrong = [one for one in known if not one["right"]]
    lines.append(
        f"policy differences: {len(known) - len(wrong)} of {len(known)} signs right, "
        f"{len(result['signs']) - len(known)} too close to tell"
    )
    lines += [
        f"  {w['load']} {w['figure']}, {w['difference']}: measured {w['measured']:+.1%} "
        f"[{w['interval'][0]:+.1%}, {w['interval'][1]:+.1%}], predicted {w['predicted']:+.1%}"
        for w in wrong
    ]
    lines += ["", *one_log_lines(result), ""]
    off = result["censoring"]
    lines.append("acceptance by position, global against fixed, in standard errors:")
    for kind in ("corrected", "uncorrected"):
        values = " ".join(f"{value:+5.1f}" for value in off[f"{kind}_off_in_errors"])
        lines.append(f"  {kind:12}{values}")
    return "\n".join(lines)


def one_log_lines(result: dict[str, Any]) -> list[str]:
    """How far off the nine predictions are where one policy's log is all there is."""
    lines = [
        "Fitted on the first third of one policy's log alone: the largest error of all rows (TTFT",
        "p99: of those below saturation), and the signs of the differences that are known.",
        f"{'log of':8}" + "".join(f"{name:>17}" for name in FIGURES) + f"{'signs':>9}",
    ]
    known = [one for one in result["signs"] if not one["tie"]]
    share = {(row["load"], row["policy"]): row["of_capacity"] or 0.0 for row in result["rows"]}
    for source, found in result["one_log"].items():
        at = {(row["load"], row["policy"]): row["predicted"] for row in found["rows"]}
        text = f"{source:8}"
        for name in FIGURES:
            errors = [
                row["predicted"][name] / row["measured"][name] - 1.0
                for row in found["rows"]
                if name != "ttft_p99_ms" or share[row["load"], row["policy"]] < 1.0
            ]
            text += f"{max(errors, key=abs):+17.1%}"
        right = 0
        for one in known:
            ours, theirs = (
                at[one["load"], policy][one["figure"]]
                for policy in one["difference"].split(" against ")
            )
            right += bool(np.sign(ours - theirs) == np.sign(one["measured"]))
        lines.append(f"{text}{right:>6}/{len(known)}")
        lines += [f"  NOT IDENTIFIED: {line}" for line in found["not_identified"]]
    return lines


def rounded(value: Any) -> Any:
    """Floats with five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def draw(result: dict[str, Any], path: Path) -> None:
    """One panel for each figure: measured on one axis, predicted on the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    titles = {
        "output_tok_s": "Output, tokens/s (±5 %)",
        "tpot_p50_ms": "TPOT p50, ms (±10 %)",
        "ttft_p99_ms": "TTFT p99, ms (±20 %)",
        "verified_tokens": "Verified tokens (±5 %)",
    }
    rows = result["rows"]
    colours = dict(zip(distinct(rows, "policy"), ("#999999", "#E69F00", "#0072B2"), strict=True))
    marks = dict(zip(distinct(rows, "load"), ("o", "s", "^"), strict=True))
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.8), layout="constrained")
    for axis, name in zip(axes, FIGURES, strict=True):
        values = [row[kind][name] for row in rows for kind in ("measured", "predicted")]
        ends = np.array([0.8 * min(values), 1.2 * max(values)])
        axis.plot(ends, ends, color="black", linewidth=0.8)
        band = TWIN_TOLERANCE[name]
        axis.fill_between(ends, ends * (1 - band), ends * (1 + band), color="#dddddd")
        for row in rows:
            axis.plot(
                row["measured"][name],
                row["predicted"][name],
                marks[row["load"]],
                color=colours[row["policy"]],
            )
        axis.set(xscale="log", yscale="log", title=titles[name], xlabel="measured")
        for side in (axis.xaxis, axis.yaxis):
            wide = ends[-1] > 100 * ends[0]
            side.set_major_locator(ticker.LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
            side.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            side.set_minor_locator(ticker.NullLocator())
    axes[0].set_ylabel("predicted")
    for name, colour in colours.items():
        axes[0].plot([], [], "o", color=colour, label=name)
    for name, mark in marks.items():
        axes[0].plot([], [], mark, color="black", fillstyle="none", label=name)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
