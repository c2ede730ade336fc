"""How many GPUs hold which traffic under an SLO, and which policy to deploy: the report.

    python -m analysis.capacity chat --slo interactive -o report
    python -m analysis.capacity results/chat --policy-file policy.json --cost-per-gpu-hour 3.5 -o r

Owns the command: what it takes from flags or from a result folder, progress, and the three files
``report.html``, ``report.pdf`` and ``report.json``, written together when all is done. The
simulations are ``simulator.capacity.study``, the record is ``report``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.capacity import tables
from analysis.capacity.figures import draw_all
from analysis.capacity.html_file import html_report
from analysis.capacity.pdf_file import pdf_report
from analysis.capacity.report import build_report, finite
from sglang_dspark.cli import Parser, called_as, progress_bar, run_command
from sglang_dspark.core.compiled import base_folder
from sglang_dspark.core.policy import policy_forms
from sglang_dspark.files import atomic_write, make_folder
from simulator.capacity.busy import without_idle
from simulator.capacity.search import Goal, offered_rate
from simulator.capacity.study import Findings, Inquiry, ask
from simulator.fleet.config import FleetConfig
from simulator.slo import parse_slo
from simulator.study.config import (
    RunConfig,
    Study,
    flag_help,
    load_run_config,
    load_study,
    with_flags,
)
from simulator.study.first_start import shown_on, warm_up
from simulator.study.results import read_results
from simulator.study.server import engine_of
from simulator.sweep.ray_pool import connected
from traces.superpose import more_users

RATES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def _parser() -> Parser:
    parser = Parser(
        description="Say how many GPUs hold which traffic under an SLO, and which policy is best.",
        examples=[
            "chat --slo interactive -o report",
            "results/chat --policy-file policy.json --cost-per-gpu-hour 3.5 -o report",
        ],
        page="docs/rollout.md; every figure: docs/metrics.md",
    )
    parser.add_argument(
        "source", metavar="TRACE|RESULTS",
        help=f"{flag_help('trace')}; or a result folder of run, to take its settings",
    )  # fmt: skip
    parser.add_argument("--slo", metavar="NAME|TTFT_MS:TPOT_MS", help=flag_help("slo"))
    parser.add_argument(
        "--policy", action="append", metavar="NAME[:PARAMETER]",
        help=f"{policy_forms()}; repeat to compare (default: one of each name)",
    )  # fmt: skip
    parser.add_argument(
        "--policy-file", action="append", default=[], metavar="FILE",
        help="a tuned policy beside them; may be repeated",
    )  # fmt: skip
    parser.add_argument("--cost-model", metavar="NAME|FILE", help=flag_help("cost_model"))
    parser.add_argument("--acceptance", metavar="NAME|FILE", help=flag_help("acceptance"))
    parser.add_argument("--server", metavar="FILE", help=flag_help("server"))
    parser.add_argument(
        "--max-running-requests", type=int, metavar="N", help=flag_help("max_running_requests")
    )
    parser.add_argument("--current", metavar="NAME[:PARAMETER]|FILE", help=flag_help("current"))
    traffic = parser.add_mutually_exclusive_group()
    traffic.add_argument(
        "--rate", type=float, nargs="+", metavar="X",
        help="factors on the trace's rate that fleets are sized for (default: 1 2 4 8 16 32)",
    )  # fmt: skip
    traffic.add_argument(
        "--req-s", type=float, nargs="+", metavar="X", help="the same in requests per second"
    )
    parser.add_argument(
        "--grow", choices=("faster", "users"), default="faster",
        help="more traffic is the same requests faster, bursts too, or more users at other times",
    )  # fmt: skip
    parser.add_argument(
        "--gpus", type=int, metavar="N",
        help="a fleet that stands already: its headroom, and what 30 %% more traffic does to it",
    )  # fmt: skip
    parser.add_argument(
        "--attainment", type=float, default=0.9, metavar="SHARE",
        help="of the requests that must meet the SLO (default: 0.9)",
    )  # fmt: skip
    parser.add_argument(
        "--cost-per-gpu-hour", type=float, metavar="X", help="what one GPU costs in an hour"
    )
    parser.add_argument("--currency", default="USD", metavar="NAME", help="of that price")
    parser.add_argument(
        "--jobs", type=int, metavar="N", default=os.cpu_count() or 1, help=flag_help("jobs")
    )
    parser.add_argument("--ray", metavar="ADDRESS", help=flag_help("ray"))
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="folder of the report")
    return parser


def _config(arguments: argparse.Namespace) -> RunConfig:
    """One replica at the trace's own rate; what the flags leave open comes from the folder."""
    source = Path(arguments.source)
    if source.is_dir():
        read_results(source)  # its sentence for a folder that is no result
        config = load_run_config(source / "config.json")
        _check_fleet(source, config.fleet)
        config = dataclasses.replace(config, replicas=1, rate=1.0, concurrency=(), provenance={})
    else:
        config = RunConfig(trace=arguments.source)
    names = tuple(arguments.policy or config.policies)
    return with_flags(
        config,
        policies=(*names, *arguments.policy_file),
        current=arguments.current,
        cost_model=arguments.cost_model,
        acceptance=arguments.acceptance,
        slo=arguments.slo,
        engine=engine_of(arguments.server),
        max_running_requests=arguments.max_running_requests,
    )


def _check_fleet(source: Path, fleet: FleetConfig) -> None:
    """Refuse what a count of equal replicas cannot have; a router and failures are kept."""
    unsized = {
        "pools": fleet.pools,
        "failures.at": fleet.failures and fleet.failures.at,
    }
    for name, value in unsized.items():
        if value:
            raise ValueError(
                f"{source}/config.json: capacity counts equal replicas and cannot size {name!r}; "
                "give a result folder without it, or a trace"
            )


def _check(arguments: argparse.Namespace) -> None:
    price = arguments.cost_per_gpu_hour
    if price is not None and not (math.isfinite(price) and price > 0):
        raise ValueError(
            f"--cost-per-gpu-hour {price:g} must be a finite number above 0; leave it out to be "
            "told GPU-hours"
        )
    for wanted in arguments.req_s or ():
        if not (math.isfinite(wanted) and wanted > 0):
            raise ValueError(f"--req-s {wanted:g} must be a finite number above 0")
    if not arguments.currency.strip():
        raise ValueError("--currency is empty; name one, like EUR")
    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs} must be at least 1")


def _busy(study: Study) -> tuple[Study, float]:
    """The study without the idle stretches of its trace, and how many seconds were cut."""
    trace, cut_s = without_idle(study.trace)
    runs = tuple(
        dataclasses.replace(run, scenario=dataclasses.replace(run.scenario, trace=trace))
        for run in study.runs
    )
    return dataclasses.replace(study, trace=trace, runs=runs), cut_s


def _inquiry(arguments: argparse.Namespace, study: Study, goal: Goal) -> Inquiry:
    """What the flags ask for, checked."""
    scenario = study.runs[0].scenario
    rates = arguments.rate or RATES
    if arguments.req_s:
        offered = offered_rate(scenario)
        rates = [wanted / offered for wanted in arguments.req_s] if offered else RATES
    rates = tuple(sorted(set(rates)))
    gpus = study.cost_model.gpus
    replicas = None
    if arguments.gpus is not None:
        replicas, rest = divmod(arguments.gpus, gpus)
        if rest or replicas < 1:
            raise ValueError(
                f"--gpus {arguments.gpus}: a replica of {study.cost_model.name} takes {gpus}; give "
                "a multiple of it"
            )
    users = {}
    if arguments.grow == "users":
        users = {
            rate: more_users(study.trace, rate, seed=study.config.seed)
            for rate in rates
            if rate != 1.0
        }
    return Inquiry(
        runs=study.runs,
        goal=goal,
        rates=rates,
        current=study.config.baseline,
        replicas=replicas,
        users=users,
    )


def _asked(inquiry: Inquiry, jobs: int, ray: str | None, journal: Path) -> Findings:
    """The simulations, with a progress bar."""
    with progress_bar(
        total=inquiry.questions, unit="question", desc="loading the engine", leave=False
    ) as bar:
        warm_up(inquiry.runs[0].scenario, shown_on(bar))

        def on_done(done: int) -> None:
            bar.set_description_str("simulating", refresh=False)
            bar.update(done - bar.n)

        with warnings.catch_warnings(), connected(ray, jobs):
            warnings.simplefilter("ignore")  # the study has warned already
            return ask(inquiry, jobs=jobs, ray=ray, journal=journal, on_done=on_done)


def _outside(study: Study, findings: Findings) -> None:
    """Warn where a step left the range that the cost model vouches for."""
    rows = [row for rows in findings.closed.values() for row in rows]
    most_tokens = max(row["most_tokens"] for row in rows)
    if most_tokens:  # else no request has a second token to decode
        most_requests = max(row["most_requests"] for row in rows)
        study.cost_model.warn_outside(most_tokens, most_requests)


def _command(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    base_folder()  # warns where it must, before warnings become notes of the result
    _check(arguments)
    config = _config(arguments)
    goal = Goal(slo=parse_slo(config.slo), attainment=arguments.attainment)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = load_study(config)
    study, idle_cut_s = _busy(study)
    inquiry = _inquiry(arguments, study, goal)
    out = make_folder(arguments.out)
    # Opened first: a folder that cannot be written to is refused before minutes of work.
    with (
        atomic_write(out / "report.html") as page,
        atomic_write(out / "report.pdf", "wb") as document,
        atomic_write(out / "report.json") as record,
    ):
        notes = list(dict.fromkeys(str(warning.message) for warning in caught))
        report = _reported(study, inquiry, arguments, out / "journal.jsonl", notes, idle_cut_s)
        drawings = draw_all(report, study.trace)
        page.write(html_report(report, drawings))
        document.write(pdf_report(report, drawings))
        json.dump(report, record, indent=1, allow_nan=False)
        record.write("\n")
    (out / "journal.jsonl").unlink(missing_ok=True)
    for note in notes:
        if note not in study.acceptance_mismatch:
            warnings.warn(note, stacklevel=1)
    for note in study.acceptance_mismatch:
        print(f"NOTE: {note}")
    print("\n".join([report["answer"]["headline"], *report["answer"]["sentences"], ""]))
    print(tables.as_text(tables.sizes(report)))
    print(f"\nWrote {out}/report.html, report.pdf, report.json")
    return 0


def _reported(
    study: Study,
    inquiry: Inquiry,
    arguments: argparse.Namespace,
    journal: Path,
    notes: list[str],
    idle_cut_s: float,
) -> dict[str, Any]:
    """The record, simulated; ``notes`` gains what there is to warn of."""
    try:
        findings = _asked(inquiry, arguments.jobs, arguments.ray, journal)
    except KeyboardInterrupt:
        if journal.exists():
            print(f"{called_as('analysis.capacity')}: what is done is in {journal}; "
                  "the same command goes on", file=sys.stderr)  # fmt: skip
        raise
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _outside(study, findings)
    notes += [str(warning.message) for warning in caught]
    price = arguments.cost_per_gpu_hour
    report = build_report(
        study,
        inquiry,
        findings,
        price=price,
        currency=arguments.currency,
        idle_cut_s=idle_cut_s,
        notes=notes,
    )
    return dict(finite(report))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("analysis.capacity", lambda: _command(argv))
