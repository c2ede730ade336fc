"""Calibrate a cost model by benchmarks of the server that it is to price.

    dspark prices calibrate mine.json --bench none.jsonl --bench fixed:7=fixed7.jsonl -o server.json

Owns the command. What is read is ``bench_files``'s, the fit ``posterior``'s.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

from sglang_dspark.cli import Parser, progress_bar, run_command
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import SCHEMA_VERSION, CostModel
from sglang_dspark.files import refuse_onto_input, refuse_replacing
from simulator.acceptance.load import DEFAULT_PROFILE, load_acceptance
from simulator.acceptance.profile import FittedProfile
from simulator.fit.bench.asked import Bench, engine_of_points, scenario_of
from simulator.fit.bench.bench_files import Told, read_points
from simulator.fit.bench.points import Point
from simulator.fit.bench.posterior import Posterior, fit, most_replays
from simulator.fit.bench.prior import doubted
from simulator.fit.bench.replays import replay
from simulator.fit.bench.words import complaints, doubts, next_point, table
from simulator.study.config import flag_help
from simulator.study.first_start import shown_on, warm_up
from simulator.study.server import engine_of

NAME = "simulator.fit.bench.command"
_CANDIDATES = (1, 8, 64)


def _parser() -> Parser:
    parser = Parser(
        description="Calibrate a cost model by benchmarks of the server that it is to price. Two "
        "runs help, the lowest and the highest load without speculation; each further one narrows "
        "what is left. The written model holds how far its prices may still be off, and run, tune "
        "and capacity show it. Without --bench it holds what its origin deserves.",
        examples=[
            "h200-qwen3-14b-composed --bench none.jsonl --bench fixed:7=fixed7.jsonl -o mine.json",
            "b300x8-kimi-k3-composed --stands-in '8x MI350X' --bench sweep.csv -o mine.json",
        ],
        page="docs/prices.md",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=flag_help("cost_model"))
    add(
        "--bench", action="append", default=[], metavar="[POLICY=]FILE",
        help="result of SGLang's bench_serving, vLLM's bench serve, GuideLLM, or a CSV; POLICY as "
        "dspark run names it (default: none where nothing was accepted); repeat for several",
    )  # fmt: skip
    add("--stands-in", metavar="WHAT", help="the model is of other hardware, or of another model, "
        "than what was benchmarked: say which, and its prices are doubted by half")  # fmt: skip
    add("--acceptance", metavar="NAME|FILE", help=flag_help("acceptance"))
    add("--server", metavar="FILE", help=flag_help("server"))
    add("--max-running-requests", type=int, metavar="N", help=flag_help("max_running_requests"))
    add("--prompt-tokens", type=int, metavar="N", help="of a request, where a file does not say")
    add("--output-tokens", type=int, metavar="N", help="of a request, where a file does not say")
    add("--requests", type=int, metavar="N", help="of each run, where a file does not say")
    add("--seed", type=int, default=0, metavar="N", help="of lengths, acceptance and confidences")
    add("-o", "--out", required=True, metavar="FILE", help="the cost model to write")
    add("--force", action="store_true", help="replace another file in --out")
    return parser


def read_all(arguments: argparse.Namespace) -> list[Point]:
    """The points of all files, in order."""
    found = []
    for text in arguments.bench:
        policy, sign, path = text.rpartition("=")
        if sign and (Path(text).exists() or not policy):
            policy, path = "", text
        told = Told(
            policy=policy or None,
            prompt_tokens=arguments.prompt_tokens,
            output_tokens=arguments.output_tokens,
            requests=arguments.requests,
        )
        found += read_points(path, told)
    return found


def _bench(arguments: argparse.Namespace, model: CostModel, points: list[Point]) -> Bench:
    profile = load_acceptance(arguments.acceptance or model.acceptance or DEFAULT_PROFILE)
    if not isinstance(profile, FittedProfile):
        raise ValueError(
            f"--acceptance {arguments.acceptance}: is a log of rounds; a fitted .json profile is "
            "needed, whose level can move"
        )
    engine = engine_of(arguments.server) or engine_of_points(points)
    if arguments.max_running_requests is not None:
        engine = dataclasses.replace(engine, max_running_requests=arguments.max_running_requests)
    engine = dataclasses.replace(engine, enable_prefix_cache=False)
    return Bench(acceptance=profile, engine=engine, seed=arguments.seed)


def _written(model: CostModel, arguments: argparse.Namespace, points: list[Point]) -> CostModel:
    provenance = model.provenance
    words = ["dspark prices calibrate", arguments.model]
    words += [f"--bench {text}" for text in arguments.bench]
    source = provenance.source
    if points:
        source += f"; calibrated by {len(points)} benchmark runs"
    provenance = dataclasses.replace(
        provenance,
        source=source,
        hardware=arguments.stands_in or provenance.hardware,
        command=" ".join(words),
    )
    return dataclasses.replace(
        model, name=Path(arguments.out).stem, provenance=provenance, schema_version=SCHEMA_VERSION
    )


def _fitted(
    bench: Bench, model: CostModel, points: list[Point], arguments: argparse.Namespace
) -> Posterior:
    base, doubt = doubted(model, stands_in=bool(arguments.stands_in))
    note = f"{len(points)} benchmark runs: " + ", ".join(f"{p.policy} at {p.load}" for p in points)
    with progress_bar(total=most_replays(points), unit="replay", leave=False) as bar:
        bar.set_description_str("loading the engine")
        warm_up(scenario_of(bench, points[0], base), shown_on(bar))
        bar.set_description_str("replaying")
        return fit(bench, base, doubt, points, note=note, tick=lambda: bar.update(1))


def _suggestion(bench: Bench, points: list[Point], found: Posterior) -> str:
    """Which run to measure next, of plain and speculating ones at a few loads."""
    like = points[0]
    policies = list(dict.fromkeys(["none", *(p.policy for p in points)]))
    if found.model.draft is not None:
        policies += [p for p in (f"fixed:{found.model.draft.gamma}", "global") if p not in policies]
    candidates = [
        dataclasses.replace(
            like, where="", policy=policy, concurrency=clients, rate=None, requests=4 * clients,
            output_tok_s=1.0, tpot_ms=None, ttft_ms=None, accepted_length=None,
        )
        for policy in policies
        for clients in _CANDIDATES
    ]  # fmt: skip
    replays = [replay(bench, one, found.model, level=found.level) for one in candidates]
    return next_point(replays, candidates, found.covariance)


def _command(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    model = load_cost_model(arguments.model)
    refuse_onto_input(arguments.out, *(text.rpartition("=")[2] for text in arguments.bench))
    points = read_all(arguments)
    bench = _bench(arguments, model, points)
    if points and model.doubt is not None and model.doubt.basis == "posterior":
        warnings.warn(
            f"{arguments.model} was calibrated already, by {model.doubt.note}; give new runs only: "
            "what is given twice counts twice",
            stacklevel=1,
        )
    if points:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of gammas: each point drafts what its policy says
            found = _fitted(bench, model, points, arguments)
            suggestion = _suggestion(bench, points, found)
        centre = found.model
        print(table(points, found))
        for sentence in complaints(points, found):
            warnings.warn(sentence, stacklevel=1)
    else:
        centre, doubt = doubted(model, stands_in=bool(arguments.stands_in))
        centre = dataclasses.replace(centre, doubt=doubt, schema_version=SCHEMA_VERSION)
        suggestion = ""
    written = _written(centre, arguments, points)
    refuse_replacing(arguments.out, written.text().encode(), force=arguments.force)
    written.save(arguments.out)
    assert written.doubt is not None
    print(f"\n{doubts(written, written.doubt)}")
    if suggestion:
        print(suggestion)
    print(f"written: {arguments.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(NAME, lambda: _command(argv))
