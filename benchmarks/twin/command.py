"""Does the simulator predict a real server? Record one, fit a third, replay the rest.

    python -m benchmarks.twin --minutes 15 -o benchmarks/results/digital_twin.json
    python -m benchmarks.twin --alone global --minutes 12 -o benchmarks/results/twin_alone.json

Starts the installed SGLang with DSPARK on this machine's CPU, one server for each policy (they wait
while another is measured): fixed, sglang and global on a SGLang with a DSPARK of its own, none,
fixed and global on 0.5.15.post1. Profiles them, and sends each the same bursty arrivals at three
loads, ``--minutes`` for each policy, in short blocks and in turns. The cost model, the acceptance
profile and the time outside the engine are fitted to the first third; the others are replayed in
the simulator and printed beside what was measured. Wants a quiet machine with two cores; 15 minutes
take 55. The pair of small models is made first where it is missing. The second line is what an
operator does: one policy, recorded, and judged by ``python -m simulator.twin`` and nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import pickle
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import provenance
from benchmarks.twin.alone import judged, record_alone
from benchmarks.twin.recording import ENGINE, LOADS, POLICIES, PROFILED, fitted_on, record
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import parse_policy
from sglang_dspark.files import make_folder, os_problem, read_json, write_json
from simulator.acceptance.load import load_acceptance
from simulator.fit.acceptance import fit_censored
from simulator.fit.calibrate import Calibrated, calibrate, summary
from simulator.fit.logged_steps import logged
from simulator.twin.outside import Outside
from simulator.twin.replay import Twin, trace_of
from simulator.twin.report import Blocks, draw, rounded, signs, table
from simulator.twin.speed import at_speed, drift
from simulator.twin.timings import Segment, measured, pooled, served_of

SEEDS = 5
"""Replays of every recorded segment."""


def mean_load(loads: list[float | None]) -> float | None:
    """None where a trace was too short to say."""
    known = [load for load in loads if load is not None]
    return float(np.mean(known)) if known else None


def censoring(segments: list[Segment]) -> dict[str, Any]:
    """Does the correction find, in what the trimming policy shows, what full verification shows?

    Same requests, two servers; rounds of the two do not begin at the same tokens, so that they
    agree within their errors and not exactly.
    """
    found = {}
    for policy in ("fixed", "global"):  # in both of POLICIES
        mine = [segment for segment in segments if segment.policy == policy]
        steps = (record for segment in mine for record in segment.steps)
        rounds = logged(steps, served_of(mine)).rounds
        fit = fit_censored(rounds)
        found[policy] = {
            "rounds": len(rounds.request),
            "mean_verified": float(rounds.verified.mean()),
            "corrected": fit.conditional.tolist(),
            "standard_error": fit.standard_error.tolist(),
            "uncorrected": fit.plain.tolist(),
        }
    whole, trimmed = found["fixed"], found["global"]
    error = np.hypot(whole["standard_error"], trimmed["standard_error"])
    for kind in ("corrected", "uncorrected"):
        found[f"{kind}_off_in_errors"] = (
            (np.array(trimmed[kind]) - np.array(whole["corrected"])) / error
        ).tolist()
    return found


def fitted(segments: list[Segment], belief: CostModel, folder: Path) -> tuple[Calibrated, Twin]:
    """Everything that the first third of these segments tells, and the twin made of it."""
    first = [segment for segment in segments if segment.third == 0]
    found = calibrate(
        (record for segment in first for record in segment.steps),
        served_of(first),
        name="cpu-fitted",
        provenance=fitted_on("first third of the digital twin's recording"),
        chunk_tokens=ENGINE.chunked_prefill_size,
    )
    found.save(make_folder(folder), seed=0)
    twin = Twin(
        cost_model=found.cost.model,
        acceptance=load_acceptance(folder / "acceptance.parquet"),
        belief=belief,
        engine=ENGINE,
        outside=Outside.of(first, found.cost.model),
    )
    return found, twin


def replayed_rows(twin: Twin, segments: list[Segment]) -> tuple[list[dict[str, Any]], Blocks]:
    """Measured beside predicted, for every load and policy; all but the first third."""
    rows, blocks = [], {}
    for load, policy in itertools.product(LOADS, POLICIES):
        replayed = [
            segment
            for segment in segments
            if (segment.policy, segment.load) == (policy, load) and segment.third
        ]
        real = blocks[load, policy] = [measured(segment) for segment in replayed]
        traces = [trace_of(segment) for segment in replayed]
        file = parse_policy(policy)
        simulated = [twin.predict(trace, file, seeds=SEEDS) for trace in traces]
        drifts = [drift(segment.steps, twin.cost_model) for segment in replayed]
        paced = [
            dataclasses.replace(twin, cost_model=at_speed(twin.cost_model, factor)).predict(
                trace, file, seeds=SEEDS
            )
            for trace, factor in zip(traces, drifts, strict=True)
        ]
        rows.append(
            {
                "load": load,
                "policy": policy,
                "requests": sum(len(segment.seen) for segment in replayed),
                "of_capacity": mean_load([twin.load(trace, file) for trace in traces]),
                "drift": drifts,
                "measured": pooled(real).figures(),
                "predicted": pooled(simulated).figures(),
                "predicted_at_speed": pooled(paced).figures(),
            }
        )
    return rows, blocks


def one_log(segments: list[Segment], belief: CostModel, folder: Path) -> dict[str, Any]:
    """What an operator has: the log of the one policy that is served. Fit that alone, and predict
    every policy."""
    found = {}
    for source in POLICIES:
        mine = [segment for segment in segments if segment.policy == source]
        calibrated, twin = fitted(mine, belief, folder / f"fit-{source}")
        found[source] = {
            "not_identified": calibrated.not_identified,
            "rows": replayed_rows(twin, segments)[0],
        }
    return found


def compare(segments: list[Segment], belief: CostModel, folder: Path) -> dict[str, Any]:
    """Fit the first third, replay the others."""
    found, twin = fitted(segments, belief, folder / "fit")
    print(summary(found), flush=True)
    outside_ms = {"idle": 1e3 * twin.outside.idle_s, "busy": 1e3 * twin.outside.busy_s}
    print(
        f"outside the engine: {outside_ms['idle']:.1f} ms of a first token that found it idle, "
        f"{outside_ms['busy']:.1f} ms of others",
        flush=True,
    )
    rows, blocks = replayed_rows(twin, segments)
    return {
        "fit": found.report(),
        "outside_ms": outside_ms,
        "rows": rows,
        "signs": signs(rows, blocks),
        "one_log": one_log(segments, belief, folder),
        "censoring": censoring(segments),
    }


def _command(arguments: argparse.Namespace) -> int:
    if not 0.5 <= arguments.minutes <= 600.0:
        raise ValueError(f"--minutes {arguments.minutes:g} must be 0.5 to 600")
    if arguments.again and not arguments.folder:
        raise ValueError("--again compares an earlier recording; name its folder with --folder")
    folder = make_folder(arguments.folder or tempfile.mkdtemp(prefix="digital-twin-"))
    if arguments.alone:
        return _alone(arguments, folder)
    kept = folder / "recording.pickle"
    if arguments.again:
        try:
            segments, chosen = pickle.loads(kept.read_bytes())
        except OSError as error:
            raise os_problem("read", kept, error) from None
        belief = load_cost_model(folder / PROFILED)
    else:
        segments, belief, chosen = record(
            folder, cache=Path(arguments.cache), minutes=arguments.minutes
        )
        kept.write_bytes(pickle.dumps((segments, chosen)))
    result = compare(segments, belief, folder)
    result = {
        **provenance(f"python -m benchmarks.twin --minutes {arguments.minutes:g}"),
        "sglang": metadata.version("sglang"),
        "minutes_per_policy": arguments.minutes,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        **chosen,
        **result,
    }
    print(table(result))
    if arguments.out:
        write_json(arguments.out, rounded(result))
    if arguments.figure:
        draw(result, Path(arguments.figure))
    return 0


def _alone(arguments: argparse.Namespace, folder: Path) -> int:
    """One policy, recorded and judged as an operator does; the status is the command's."""
    kept = folder / "chosen.json"
    if arguments.again:
        chosen = read_json(kept)
    else:
        chosen = record_alone(
            arguments.alone, folder, cache=Path(arguments.cache), minutes=arguments.minutes
        )
        write_json(kept, chosen)
    result = judged(folder, chosen)
    words = f"python -m benchmarks.twin --alone {arguments.alone} --minutes {arguments.minutes:g}"
    if arguments.out:
        write_json(arguments.out, rounded({**provenance(words), **result}))
    status: int = result["status"]
    return status


def _parser() -> Parser:
    from sglang_dspark.draft.demo.command import default_cache

    parser = Parser(prog="python -m benchmarks.twin", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=15.0, help="of traffic for each policy")
    parser.add_argument("-o", "--out", metavar="FILE", help="JSON of everything compared")
    parser.add_argument("--figure", metavar="FILE", help="picture of predicted against measured")
    parser.add_argument("--folder", metavar="DIR", help="logs and fits (default: temporary)")
    parser.add_argument("--cache", default=str(default_cache()), help="of the small models")
    parser.add_argument(
        "--alone", metavar="POLICY",
        help="serve this one only, record it as an operator does, and judge it with dspark twin",
    )  # fmt: skip
    parser.add_argument("--again", action="store_true", help="compare what --folder recorded")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("benchmarks.twin", lambda: _command(_parser().parse_args(argv)))
