"""How far to trust the simulator on one server's own recording.

    python -m simulator.twin recorded --requests mine.jsonl
    python -m simulator.twin recorded --requests mine.jsonl --policy-file tuned/policy.json -o twin

Fits the first part of a recording, replays all of it with the server's own settings and policy, and
prints the rest measured beside predicted, how the machine's speed drifted meanwhile, and what the
log says of the other policies. Owns the command and its exit status: 0 within tolerance, 1 beyond
it, 2 wrong input. Reads are ``recording``'s, fits and figures ``judge``'s, words ``words``'s.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sglang_dspark.cli import Parser, run_command
from sglang_dspark.core.policy import POLICIES, PolicyFile, parse_policy
from sglang_dspark.files import make_folder, write_json
from simulator.study.config import label_of
from simulator.twin.judge import TOLERANCE, Fitted, Verdict, fit_first, judge, others
from simulator.twin.recording import Recording, read_recording
from simulator.twin.report import rounded
from simulator.twin.words import told

NAME = "simulator.twin"


def _parser() -> Parser:
    bounds = ", ".join(f"{name} {share:.0%}" for name, share in TOLERANCE.items())
    parser = Parser(
        description="Say how far to trust the simulator on your server: fit the first part of a "
        "recording, replay the rest, and print it measured beside predicted.\n\n"
        f"Status 1: a prediction is off by more than its tolerance ({bounds}; the TTFT below "
        "saturation only).",
        examples=[
            "recorded --requests mine.jsonl",
            "recorded --requests mine.jsonl --policy-file tuned/policy.json -o twin",
        ],
        page="docs/calibrate.md",
    )
    parser.add_argument(
        "log", metavar="LOG", help="folder with the server's steps, as traces record filled it"
    )
    parser.add_argument(
        "--requests", metavar="TRACE", required=True,
        help="trace of the same requests, of traces record --from",
    )  # fmt: skip
    parser.add_argument(
        "--policy-file", action="append", default=[], metavar="FILE",
        help="say what the log says of this policy, too; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--measured", metavar="FILE",
        help="what was measured of them (default: the .measured.jsonl beside the trace)",
    )  # fmt: skip
    parser.add_argument(
        "--server", metavar="FILE",
        help="server.json that traces record wrote (default: the one in LOG)",
    )  # fmt: skip
    parser.add_argument(
        "--fit-share", type=float, default=1 / 3, metavar="SHARE",
        help="of the time that is fitted; the rest is judged (default: a third)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="replays of the recording (default: 5)"
    )
    parser.add_argument(
        "--alone", action="store_true", help="only the policy that served, not the others"
    )
    parser.add_argument(
        "-o", "--out", metavar="DIR",
        help="folder for twin.json and the fit: cost_model.json, acceptance.parquet, fit.json",
    )  # fmt: skip
    return parser


Named = list[tuple[str, PolicyFile]]
"""Policies with the labels that results give them."""


def _shipped(served: PolicyFile) -> Named:
    """One of each name, as the one that served where it has its name."""
    return [
        (name, served if served.policy.name == name else parse_policy(name)) for name in POLICIES
    ]


def _result(
    arguments: argparse.Namespace,
    recording: Recording,
    fitted: Fitted,
    verdict: Verdict,
    files: Named,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """``twin.json``."""
    seen, outside = recording.segment.seen, fitted.twin.outside
    fit = fitted.calibrated
    served = recording.served.policy
    strangers = [
        f"{label} did not serve this log, {served.name} did: it is predicted, not judged"
        for label, file in files
        if file.policy != served
    ]
    return {
        "schema_version": 1,
        "log": Path(arguments.log).name,
        "served": served.name,
        "requests": {"fitted": fitted.first, "judged": len(seen) - fitted.first},
        "seconds": {
            "fitted": seen[fitted.first].sent_s - seen[0].sent_s,
            "judged": seen[-1].sent_s - seen[fitted.first].sent_s,
        },
        "cached_share": sum(one.cached_tokens or 0 for one in seen)
        / sum(one.prompt_tokens for one in seen),
        "engine": dataclasses.asdict(recording.settings.engine),
        "outside_ms": {"idle": 1e3 * outside.idle_s, "busy": 1e3 * outside.busy_s},
        "of_capacity": verdict.of_capacity,
        "tolerance": TOLERANCE,
        "measured": verdict.measured,
        "predicted": verdict.predicted,
        "predicted_at_speed": verdict.at_speed,
        "drift": verdict.drift,
        "missed": verdict.missed,
        "policies": rows,
        "fit": fit.report(),
        "notes": [*strangers, *recording.notes, *outside.notes],
    }


def _check(arguments: argparse.Namespace) -> None:
    if not 0.05 <= arguments.fit_share <= 0.95:
        raise ValueError(f"--fit-share {arguments.fit_share:g} must lie between 0.05 and 0.95")
    if not 1 <= arguments.seeds <= 100:
        raise ValueError(f"--seeds {arguments.seeds} must be 1 to 100")


def _command(arguments: argparse.Namespace) -> int:
    _check(arguments)
    recording = read_recording(
        arguments.log,
        arguments.requests,
        measured=arguments.measured,
        server=arguments.server,
    )
    files = [(label_of(text), parse_policy(text)) for text in arguments.policy_file]
    policies = files if arguments.alone else [*files, *_shipped(recording.served)]
    with ExitStack() as stack, warnings.catch_warnings():
        # That a price is extrapolated is said of the fit, once.
        warnings.simplefilter("ignore", UserWarning)
        folder = (
            make_folder(arguments.out)
            if arguments.out
            else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        )
        source = f"first {arguments.fit_share:.0%} of {Path(arguments.log).name}"
        fitted = fit_first(recording, folder, share=arguments.fit_share, source=source)
        verdict = judge(recording, fitted, seeds=arguments.seeds)
        rows = others(recording, fitted, verdict, policies, seeds=arguments.seeds)
        result = _result(arguments, recording, fitted, verdict, files, rows)
        if arguments.out:
            command = shlex.join(["python", "-m", NAME, *_words(arguments)])
            write_json(folder / "twin.json", rounded({"command": command, **result}))
    print(told(result, verdict))
    if arguments.out:
        print(f"\nWrote {arguments.out}/twin.json, cost_model.json, acceptance.parquet, fit.json")
    return 1 if verdict.missed else 0


def _words(arguments: argparse.Namespace) -> list[str]:
    """What was typed, without folders: a result says nothing of the machine it was made on."""
    words = [Path(arguments.log).name, "--requests", Path(arguments.requests).name]
    for file in arguments.policy_file:
        words += ["--policy-file", Path(file).name]
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(NAME, lambda: _command(_parser().parse_args(argv)))
