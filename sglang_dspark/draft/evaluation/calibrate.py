"""Fit calibrations to logs of verify rounds:

    python -m sglang_dspark.draft.calibrate rounds.parquet -o calibration

Owns the command: which files come out and what is printed. Calibration depends on the decode
temperature, so every temperature in the logs gets its own files: ``calibration.json`` (the policy
file's calibration: whichever of raw, STS and temperature-and-bias has the smallest held-out ECE,
or ``--method``'s) and ``sts.json`` (SGLang's ``--speculative-dspark-confidence-sts-path``), with
``-T1.4`` in their names when there are several. The fits are in ``calibration_fit``.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence

import numpy as np

from sglang_dspark.cli import Parser
from sglang_dspark.core.calibration import Calibration, save_sts
from sglang_dspark.draft.evaluation.calibration_fit import METHODS, Fit, fit
from sglang_dspark.files import make_folder, write_json
from sglang_dspark.logs.acceptance_log import read_rounds
from sglang_dspark.logs.rounds import Rounds, join_rounds

_TITLES = {"sts": "sequential temperatures (STS)", "bias": "temperature and bias"}


def fit_all(rounds: Rounds, *, held_out: float = 0.3, seed: int = 0) -> dict[float, list[Fit]]:
    """Every method at every decode temperature of the log, the same rounds held out."""
    return {
        temperature: [
            fit(rounds.at_temperature(temperature), method, held_out=held_out, seed=seed)
            for method in METHODS
        ]
        for temperature in rounds.temperatures()
    }


def best_calibration(fits: list[Fit]) -> tuple[str, Calibration]:
    """(name, calibration) of the smallest mean held-out ECE; ``raw`` when no fit improves on it."""
    best = min(fits, key=lambda one: float(one.after.ece.mean()))
    if best.after.ece.mean() < best.before.ece.mean():
        return best.method, best.calibration
    gamma = len(best.calibration.temperatures)
    return "raw", dataclasses.replace(
        best.calibration,
        temperatures=(1.0,) * gamma,
        biases=(),
        ece_after=best.calibration.ece_before,
    )


def _row(name: str, values: tuple[float, ...] | np.ndarray, unit: str = "%6.2f") -> str:
    return f"  {name:30}" + "".join(unit % value for value in values)


def report(temperature: float, fits: list[Fit]) -> str:
    """ECE in percent by position, before and after, with the noise floor beside it."""
    before = fits[0].before
    at = "unknown temperature" if math.isnan(temperature) else f"T={temperature:g}"
    positions = tuple(range(1, len(before.ece) + 1))
    lines = [
        f"decode {at}: held-out ECE of the prefix survival, percent",
        _row("position", positions, "%6d") + "   mean",
        _row("raw", (*(100 * before.ece), 100 * before.ece.mean())),
        _row("  noise floor", (*(100 * before.ece_floor), 100 * before.ece_floor.mean())),
    ]
    for one in fits:
        after = one.after
        lines += [
            _row(_TITLES[one.method], (*(100 * after.ece), 100 * after.ece.mean()))
            + f"   {one.gain:.2f} +- {one.gain_error:.2f} times better",
            _row("  noise floor", (*(100 * after.ece_floor), 100 * after.ece_floor.mean())),
            _row("  T", one.calibration.temperatures),
        ]
        if one.calibration.biases:
            lines.append(_row("  b", one.calibration.biases))
    lines.append(f"  best on held-out rounds: {best_calibration(fits)[0]}")
    if before.at_floor:
        lines.append("  raw confidences are at their noise floor already: no calibration is needed")
    return "\n".join(lines)


def write_fits(folder: str, fits: dict[float, list[Fit]], method: str) -> list[str]:
    """Write both files of every temperature; return their paths."""
    goal, written = make_folder(folder), []
    for temperature, methods in fits.items():
        by_name = {one.method: one.calibration for one in methods}
        chosen = best_calibration(methods)[1] if method == "best" else by_name[method]
        end = "" if len(fits) == 1 else f"-T{temperature:g}"
        write_json(goal / f"calibration{end}.json", chosen)
        save_sts(goal / f"sts{end}.json", by_name["sts"])
        written += [str(goal / f"calibration{end}.json"), str(goal / f"sts{end}.json")]
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(
        description="Fit calibrations of the confidences to logs of verify rounds. Every decode "
        "temperature in the logs gets its own: calibration.json, for a policy file, and sts.json, "
        "for SGLang's --speculative-dspark-confidence-sts-path.",
        examples=["eval/rounds.parquet -o calibration"],
        page="docs/serving.md",
    )
    parser.add_argument(
        "logs", nargs="+", metavar="LOG", help="Parquet logs of fully verified rounds"
    )
    parser.add_argument("-o", "--out", required=True, help="folder for the files")
    parser.add_argument(
        "--method", choices=("best", *METHODS), default="best", help="what calibration.json holds"
    )
    parser.add_argument("--held-out", type=float, default=0.3, help="share of requests to judge on")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    options = parser.parse_args(arguments)
    rounds = join_rounds([read_rounds(path) for path in options.logs])
    fits = fit_all(rounds, held_out=options.held_out, seed=options.seed)
    for temperature, methods in fits.items():
        print(report(temperature, methods))
    for path in write_fits(options.out, fits, options.method):
        print(f"wrote {path}", file=sys.stderr)
