"""Replay a request trace under competing verification budgets.

    python -m simulator.run chat
    python -m simulator.run chat --policy global --policy fixed:3 --concurrency 1,8,64

Owns the command: flags, progress, printing and the result folder. Results go to stdout, everything
else to stderr. The clock is ``simulator.fleet``, the numbers are ``study.metrics``.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sglang_dspark
from sglang_dspark.cli import Parser, progress_bar, run_command
from sglang_dspark.core.compiled import base_folder
from simulator.engine.config import SPECULATIVE_PLACES
from simulator.fleet.config import ROUTERS, FleetConfig
from simulator.study.config import (
    RunConfig,
    Study,
    common_flags,
    first_config,
    flag_help,
    load_study,
    with_flags,
)
from simulator.study.first_start import shown_on
from simulator.study.metrics import paired_difference
from simulator.study.place import claimed
from simulator.study.price_doubt import add_doubt, doubted_runs, priced, sentences
from simulator.study.report import format_notes, format_table
from simulator.study.results import ResultFolder
from simulator.study.study import Run, RunResult, perform
from simulator.study.verdict import gain, merit_of, verdict


def _parser() -> Parser:
    parser = Parser(
        description=__doc__.split("\n")[0],
        examples=[
            "chat",
            "chat --policy global --policy fixed:3 --concurrency 1,8,64",
            "mixed --slo interactive --rate 4 --replicas 8 --router least-loaded --out results/8",
        ],
        page="docs/rollout.md; every figure: docs/metrics.md; --config files: docs/fleet.md",
    )
    parser.add_argument("trace", nargs="?", metavar="TRACE", help=flag_help("trace"))
    parser.add_argument(
        "--policy",
        action="append",
        metavar="NAME[:PARAMETER]|FILE",
        help=f"{flag_help('policy')}; repeat to compare (default: one of each name)",
    )
    parser.add_argument("--current", metavar="NAME[:PARAMETER]|FILE", help=flag_help("current"))
    parser.add_argument("--cost-model", metavar="NAME|FILE", help=flag_help("cost_model"))
    parser.add_argument("--acceptance", metavar="NAME|FILE", help=flag_help("acceptance"))
    parser.add_argument("--server", metavar="FILE", help=flag_help("server"))
    parser.add_argument(
        "--max-running-requests", type=int, metavar="N", help=flag_help("max_running_requests")
    )
    parser.add_argument("--replicas", type=int, metavar="N", help=flag_help("replicas"))
    parser.add_argument(
        "--router", metavar="NAME",
        help=f"{', '.join(ROUTERS)} (default: {FleetConfig.router})",
    )  # fmt: skip
    parser.add_argument("--rate", type=float, metavar="X", help=flag_help("rate"))
    parser.add_argument("--warm-up", type=float, metavar="SHARE", help=flag_help("warm_up"))
    parser.add_argument(
        "--concurrency",
        type=numbers,
        metavar="C[,C...]",
        help="closed loop with C clients instead of the trace's arrivals",
    )
    parser.add_argument("--slo", metavar="NAME|TTFT_MS:TPOT_MS", help=flag_help("slo"))
    parser.add_argument("--seed", type=int, metavar="N", help=flag_help("seed"))
    parser.add_argument(
        "--jobs", type=int, metavar="N", default=os.cpu_count() or 1, help=flag_help("jobs")
    )
    parser.add_argument("--ray", metavar="ADDRESS", help=flag_help("ray"))
    parser.add_argument("--out", metavar="DIR", help="result folder (default: results/TRACE)")
    parser.add_argument(
        "--config", metavar="FILE", help="JSON with any of these and more; flags go over it"
    )
    parser.add_argument(
        "--check", action="store_true", help="check that nothing is lost or invented"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    parser.add_argument("--steps", action="store_true", help="keep every engine step too")
    parser.add_argument(
        "--force", action="store_true", help="replace the result of another run in --out"
    )
    return parser


def numbers(text: str) -> tuple[int, ...]:
    """The value of ``--concurrency``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list like 1,8,64") from None


def _configure(arguments: argparse.Namespace) -> RunConfig:
    config = first_config(arguments.config, arguments.trace)
    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs} must be at least 1")
    fleet = arguments.router and replace(config.fleet, router=arguments.router)
    return with_flags(
        config,
        fleet=fleet,
        policies=arguments.policy and tuple(arguments.policy),
        current=arguments.current,
        warm_up=arguments.warm_up,
        **common_flags(arguments),
    )


def summarise(
    study: Study,
    results: Sequence[RunResult],
    interrupted: bool,
    drawn: Sequence[Sequence[RunResult]] = (),
) -> dict[str, Any]:
    """``summary.json``: the same bytes for the same inputs and seed.

    ``drawn``: the same runs with prices off, one list for each way.
    """
    config = study.config
    rows = [result.row for result in results]
    current = config.baseline
    by_load: dict[int | None, list[RunResult]] = {}
    for result in results:
        by_load.setdefault(result.row["concurrency"], []).append(result)
    differences = []
    for concurrency, group in by_load.items():
        bases = [result for result in group if result.row["policy"] == current]
        for base, other in ((b, o) for b in bases for o in group if o is not b):
            pair = {"policy": other.row["policy"], "versus": current, "concurrency": concurrency}
            merit = merit_of([other.row, base.row])
            found = gain(other.row, base.row, other.requests, base.requests, merit)
            latencies = paired_difference(other.requests, base.requests)
            differences.append(pair | {"gain": found} | latencies)
    summary = {
        "schema_version": 2,
        "trace": study.trace.name,
        "trace_sha256": study.trace.sha256,
        "cost_model": study.cost_model.name,
        "cost_model_origin": study.cost_model.provenance.origin,
        "acceptance": study.acceptance,
        "acceptance_mismatch": list(study.acceptance_mismatch),
        "seed": config.seed,
        "slo": config.slo,
        "current": current,
        "replicas": sum(pool.replicas for pool in study.runs[0].scenario.pools),
        "gpus": study.runs[0].scenario.gpus,
        "interrupted": interrupted,
        "policies": rows,
        "differences": differences,
    }
    if drawn:
        add_doubt(summary, drawn, priced(study.runs))
    costs = None if config.fleet.pools else study.cost_model  # of equal replicas
    engine = study.runs[0].scenario.pools[0].engine
    places = engine.places(speculative=True)
    return summary | {"verdict": None if interrupted else verdict(summary, costs, places)}


def _warn_outside(study: Study, results: Sequence[RunResult]) -> None:
    """Warn where a step left the range that its replica's cost model vouches for."""
    for result in results:
        pools = study.runs[result.number].scenario.pools
        for pool, steps in zip(pools, result.extents, strict=True):
            if steps.least_tokens <= steps.most_tokens:
                pool.cost_model.warn_outside(steps.most_tokens, steps.most_requests)
                pool.cost_model.warn_outside(steps.least_tokens, steps.most_requests)


def _at_the_limit(study: Study, results: Sequence[RunResult]) -> list[str]:
    """A sentence on the policies that filled the batch that nobody set a limit of."""
    full: dict[str, None] = {}
    for result in results:
        scenario = study.runs[result.number].scenario
        for pool, steps in zip(scenario.pools, result.extents, strict=True):
            speculates = scenario.policy.policy.drafts
            unset = pool.engine.max_running_requests is None and pool.role != "prefill"
            if unset and speculates and steps.most_requests >= SPECULATIVE_PLACES:
                full[result.row["policy"]] = None
    if not full:
        return []
    return [
        f"{', '.join(full)}: at most {SPECULATIVE_PLACES} requests decode at once, as SGLang "
        "limits them under speculation where nobody does; set --max-running-requests"
    ]


def _heading(summary: dict[str, Any], study: Study) -> str:
    gpus = f"{summary['gpus']} GPU{'s' if summary['gpus'] > 1 else ''}"
    return (
        f"{summary['trace']}: {len(study.trace)} requests on {gpus}, "
        f"{summary['cost_model']} ({summary['cost_model_origin']}), "
        f"acceptance {summary['acceptance']}, SLO {summary['slo']}, seed {summary['seed']}"
    )


def _doubted(
    arguments: argparse.Namespace, ways: Sequence[Sequence[Run]], bar: Any, each: int, cut: bool
) -> tuple[list[list[RunResult]], bool]:
    """The runs with prices off, all of them or none; and whether Ctrl-C came, now or before."""
    drawn: list[list[RunResult]] = []
    bar.total = each * (1 + len(ways))
    for i, runs in enumerate(ways, start=1):
        bar.set_description_str(f"prices off, {i} of {len(ways)} ways", refresh=False)

        def on_progress(finished: int, before: int = i * each) -> None:
            bar.update(before + finished - bar.n)

        found, cut = perform(runs, jobs=arguments.jobs, ray=arguments.ray, on_progress=on_progress)
        if cut:
            return [], True
        drawn.append(found)
    return drawn, cut


def _replayed(
    arguments: argparse.Namespace,
    study: Study,
    config: RunConfig,
    out: Path,
    caught: Sequence[warnings.WarningMessage],
) -> tuple[list[RunResult], bool, dict[str, Any]]:
    """Run everything and write the folder ``out``: (results, interrupted, summary)."""
    folder = ResultFolder(out)
    total = len(study.trace) * len(study.runs)
    try:
        with progress_bar(total=total, unit="req", desc="loading the engine", leave=False) as bar:

            def on_progress(finished: int) -> None:
                bar.set_description_str("replaying", refresh=False)
                bar.update(finished - bar.n)

            results, interrupted = perform(
                study.runs,
                jobs=arguments.jobs,
                ray=arguments.ray,
                folder=folder,
                steps=arguments.steps,
                check=arguments.check,
                on_wait=shown_on(bar),
                on_progress=on_progress,
            )
            ways = [] if interrupted else doubted_runs(study.runs)
            drawn, interrupted = _doubted(arguments, ways, bar, total, interrupted)
        if not results:
            raise KeyboardInterrupt  # nothing to keep: the earlier result stays
        with warnings.catch_warnings(record=True) as outside:
            warnings.simplefilter("always")
            _warn_outside(study, results)
        notes = list(dict.fromkeys(str(warning.message) for warning in [*caught, *outside]))
        summary = summarise(study, results, interrupted, drawn) | {"warnings": notes}
        folder.finish([result.number for result in results], summary, config)
    finally:
        folder.discard()
    return results, interrupted, summary


def _command(arguments: argparse.Namespace) -> int:
    base_folder()  # warns where it must, before warnings become notes of the result
    config = _configure(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = load_study(config)
    provenance = {"version": sglang_dspark.__version__, "trace_sha256": study.trace.sha256}
    config = with_flags(study.config, provenance=provenance)
    default = Path("results") / study.trace.name
    with claimed(arguments.out, default, config, force=arguments.force) as out:
        results, interrupted, summary = _replayed(arguments, study, config, out, caught)
    above = [] if arguments.json else study.acceptance_mismatch
    for note in summary["warnings"]:
        if note not in above:
            warnings.warn(note, stacklevel=1)
    if arguments.json:
        shown = dict(summary)
        shown["policies"] = [r.row | {"cpu_s": round(r.cpu_s, 3)} for r in results]
        print(json.dumps(shown, allow_nan=False))
    else:
        print("\n".join([_heading(summary, study), *(f"NOTE: {note}" for note in above), ""]))
        print(format_table(summary["policies"], interrupted=interrupted))
        print("\n".join([format_notes(summary), *_at_the_limit(study, results)]))
        print("\n".join(sentences(summary)), end="\n" if "prices_draws" in summary else "")
        print(f"\n* best of its column. Wrote {out}/summary.json, requests.parquet, "
              f"batches.parquet, {'steps.parquet, ' * arguments.steps}config.json. "
              f"Draw it: dspark compare {out} -o compare.png")  # fmt: skip
        if interrupted:
            print("INTERRUPTED: partial results, marked as such in summary.json")
        else:
            print("\n" + "\n".join(summary["verdict"]))
    return 130 if interrupted else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("simulator.run", lambda: _command(_parser().parse_args(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
