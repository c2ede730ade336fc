"""Tune a verification policy on a trace before rollout.

    python -m simulator.tune mixed --slo interactive
    python -m simulator.tune mixed --slo interactive --rate 5 --current sglang

Owns the command: flags, progress, ``policy.json`` and ``summary.json``. The search is
``simulator.tune.search``, the verdict ``simulator.tune.guard``. An interrupted run goes on where it
was when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang_dspark.cli import Parser, progress_bar, run_command
from sglang_dspark.core.compiled import base_folder
from sglang_dspark.core.policy import DEFAULT_POLICY, POLICIES, parse_policy, save_policy
from sglang_dspark.files import make_folder, write_json
from simulator.run import numbers
from simulator.study.config import flag_help
from simulator.study.first_start import shown_on, warm_up
from simulator.study.windows import split
from simulator.sweep.ray_pool import connected
from simulator.tune.bench import Bench
from simulator.tune.guard import Examination, Guard
from simulator.tune.report import format_summary
from simulator.tune.search import OBJECTIVES, Search
from simulator.tune.summary import capacity, notes, summarise
from simulator.tune.task import Task, load_task

_JOURNAL = "tune.journal"


def _parser() -> Parser:
    parser = Parser(
        description="Tune a verification policy on a trace, and say whether to roll it out.",
        examples=[
            "mixed --slo interactive",
            "mixed --slo interactive --rate 5 --current sglang --out results/tuned",
        ],
        page="docs/rollout.md; every figure: docs/metrics.md",
    )
    parser.add_argument("trace", nargs="?", metavar="TRACE", help=flag_help("trace"))
    parser.add_argument("--slo", metavar="NAME|TTFT_MS:TPOT_MS", help=flag_help("slo"))
    parser.add_argument(
        "--objective", choices=OBJECTIVES, default="in_slo",
        help="throughput: output tok/s; in_slo: requests in SLO per second; speed: tok/s of the "
        "median user; the first and the last without losing SLO attainment",
    )  # fmt: skip
    parser.add_argument(
        "--policy", action="append", metavar="NAME",
        help=f"tune this one only; repeat for several: {', '.join(POLICIES)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--current", default=DEFAULT_POLICY, metavar="NAME[:PARAMETER]|FILE",
        help="what runs today; a file's calibration is the start of the tuned one",
    )  # fmt: skip
    parser.add_argument("--cost-model", metavar="NAME|FILE", help=flag_help("cost_model"))
    parser.add_argument("--acceptance", metavar="NAME|FILE", help=flag_help("acceptance"))
    parser.add_argument("--server", metavar="FILE", help=flag_help("server"))
    parser.add_argument(
        "--max-running-requests", type=int, metavar="N", help=flag_help("max_running_requests")
    )
    parser.add_argument("--rate", type=float, metavar="X", help=flag_help("rate"))
    parser.add_argument(
        "--concurrency", type=numbers, metavar="C[,C...]",
        help="closed loops with C clients instead of the trace's arrivals",
    )  # fmt: skip
    parser.add_argument("--replicas", type=int, metavar="N", help=flag_help("replicas"))
    parser.add_argument("--seed", type=int, metavar="N", help=flag_help("seed"))
    parser.add_argument(
        "--jobs", type=int, metavar="N", default=os.cpu_count() or 1, help=flag_help("jobs")
    )
    parser.add_argument("--ray", metavar="ADDRESS", help=flag_help("ray"))
    parser.add_argument("--out", metavar="DIR", help="result folder (default: results/TRACE-tune)")
    parser.add_argument("--config", metavar="FILE", help="JSON as run takes it, to start from; "
                        "flags go over it")  # fmt: skip
    return parser


def _tune(
    task: Task, bench: Bench, bar: Any
) -> tuple[Search, Examination | None, list[dict[str, Any]]]:
    """Search and judge; no examination when Ctrl-C came between.

    ``KeyboardInterrupt`` when it came before any candidate had run on all search windows.
    """
    whole = task.whole
    searched, held_out = split(len(task.setting.windows))
    search = Search(
        bench=bench,
        families=task.families,
        current=whole.policy,
        objective=task.objective,
        loads=task.loads,
        windows=searched,
    )
    guard = Guard(
        bench=bench,
        incumbents=task.incumbents,
        low_load_others={"none": parse_policy("none")},
        objective=task.objective,
        loads=task.loads,
        windows=held_out,
    )
    bar.total = search.most_trials() + guard.most_trials()
    try:
        bar.set_description_str("searching")
        tuned = search.run()
        bar.total = len(bench.known) + guard.most_trials()
        bar.set_description_str("judging")
        found = guard.examine(tuned)
        return search, found, capacity(task, tuned, bench)
    except KeyboardInterrupt:
        if not search.scores:
            raise  # nothing to keep but the journal
        return search, None, []


def _command(arguments: argparse.Namespace) -> int:
    base_folder()  # warns where it must, before warnings become notes of the result
    task = load_task(arguments)
    out = make_folder(arguments.out or Path("results") / f"{task.whole.trace.name}-tune")
    journal = out / _JOURNAL
    with progress_bar(unit="run", desc="loading the engine", leave=False) as bar:
        warm_up(task.whole, shown_on(bar))

        def show(known: int) -> None:
            bar.update(known - bar.n)

        bench = Bench(
            setting=task.setting,
            jobs=arguments.jobs,
            ray=arguments.ray,
            journal=journal,
            on_done=show,
        )
        with warnings.catch_warnings(), connected(arguments.ray, arguments.jobs):
            warnings.simplefilter("ignore")  # loading the task has warned already
            search, found, loads = _tune(task, bench, bar)
    summary = summarise(task, search, loads, found) | {"warnings": notes(task, bench)}
    model = task.whole.cost_model
    verdict = "roll out" if summary["roll_out"] else "do NOT roll out"
    note = (
        f"{task.command}; trace sha256 {task.whole.trace.sha256}; cost model {model.name} "
        f"({model.provenance.origin}); seed {task.config.seed}; {verdict}"
    )
    save_policy(out / "policy.json", dataclasses.replace(search.best(), note=note))
    write_json(out / "summary.json", summary)
    for text in summary["warnings"]:
        if text not in task.acceptance_mismatch:
            warnings.warn(text, stacklevel=1)
    for text in task.acceptance_mismatch:
        print(f"NOTE: {text}")
    print(format_summary(summary))
    print(f"\nWrote {out}/policy.json, summary.json")
    if found is None:
        return 130
    journal.unlink(missing_ok=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("simulator.tune", lambda: _command(_parser().parse_args(argv)))
