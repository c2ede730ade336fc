"""One page that compares policies: latencies, throughput, verification budget.

    python -m analysis.compare results/mixed -o compare.png
    python -m analysis.compare results/dspark results/mtp1 -o compare.pdf --concurrency 64

Owns the command and the choice of panels. A sweep over several concurrencies has the paper's
Figures 7 and 8; results without one show instead what their decode steps did at each batch size.
Runs no simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from matplotlib.figure import Figure

from analysis.page import Panel, compose
from analysis.panels import (
    draw_budget,
    draw_cdf,
    draw_frontier,
    draw_in_system,
    draw_profile,
    draw_throughput,
)
from analysis.replays import Replay, load_replay, read_batch_profiles, read_requests
from analysis.series import Series, make_series
from analysis.style import check_suffix, page_style, plain_number, save_page
from sglang_dspark.cli import Parser, run_command
from simulator.engine.layout import Records
from simulator.slo import Slo, parse_slo
from simulator.study.metrics import request_times
from simulator.study.place import settled

_BUDGET = "Verification budget"


def _parser() -> Parser:
    parser = Parser(
        description="Draw one page that compares policies: latencies, throughput, verified tokens.",
        examples=[
            "results/mixed -o compare.png",
            "results/dspark results/mtp1 -o compare.pdf --concurrency 64",
        ],
        page="docs/rollout.md; every figure: docs/metrics.md",
    )
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="result folders of run")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="a .png, .pdf or .svg")
    parser.add_argument(
        "--policy", action="append", default=[], metavar="NAME",
        help="draw only this one; may be repeated (default: all there are)",
    )  # fmt: skip
    parser.add_argument(
        "--concurrency",
        type=int,
        metavar="C",
        help="the load of a sweep whose latencies are drawn (default: the largest)",
    )
    return parser


def compare_page(
    replays: Sequence[Replay], policies: Sequence[str] = (), concurrency: int | None = None
) -> Figure:
    """The page as a matplotlib figure; ``ValueError`` where the results do not go together."""
    loads = _loads(replays)
    rows = [row for replay in replays for row in replay.summary.policies]
    steady = {row.concurrency or 0 for row in rows if row.output_tok_s is not None}
    load = _load_of_latencies(loads, sorted(steady & set(loads)), concurrency)
    whole_run = (load or 0) not in steady
    series = make_series(replays, policies)
    slos = {replay.summary.slo for replay in replays}
    slo = parse_slo(slos.pop()) if len(slos) == 1 else None
    requests = _requests(series, load)
    panels = _latency_panels(series, requests, load, slo)
    if len(loads) > 1:
        panels += _sweep_panels(series, slo)
        subject = f"closed loop at concurrency {loads[0]} to {loads[-1]}"
    else:
        panels += _single_panels(series, load, slo)
        subject = "arrivals as traced" if load is None else f"closed loop at concurrency {load}"
        rates = {replay.settings.rate for replay in replays}
        if load is None and rates != {1.0}:
            subject = "arrivals at " + ", ".join(f"{rate:g}" for rate in sorted(rates))
            subject += " times the traced rate"
    if whole_run:
        subject += "; no steady state: latencies of the whole run"
    with page_style():
        return compose(panels, series, replays, subject)


def _loads(replays: Sequence[Replay]) -> list[int]:
    """The concurrencies of the results in order; none when they replay the trace's arrivals."""
    loads = {load for replay in replays for load in replay.concurrencies}
    closed = sorted(load for load in loads if load is not None)
    if closed and None in loads:
        raise ValueError(
            "some results replay the trace's arrivals and some a closed loop; draw them apart"
        )
    return closed


def _load_of_latencies(
    loads: Sequence[int], steady: Sequence[int], asked: int | None
) -> int | None:
    """The load asked for; else the largest, of those with a steady state where one has it."""
    if asked is not None and asked not in loads:
        known = ", ".join(map(str, loads)) or "none, they replay the trace's arrivals"
        raise ValueError(f"--concurrency {asked} is not in the results; there are {known}")
    return asked if asked is not None else max(steady or loads, default=None)


def _requests(
    series: Sequence[Series], load: int | None, *, whole_run: bool = False
) -> dict[str, Records]:
    """Per label the request records at one load; a series without that load is left out."""
    of_folder: dict[Replay, dict[str, Records]] = {}
    found: dict[str, Records] = {}
    for one in series:
        replay = one.at(load)
        if replay is not None:
            if replay not in of_folder:
                of_folder[replay] = read_requests(replay, load, whole_run=whole_run)
            found[one.label] = of_folder[replay][one.policy]
    return found


def _latency_panels(
    series: Sequence[Series], requests: dict[str, Records], load: int | None, slo: Slo | None
) -> list[Panel]:
    times = {label: request_times(rows) for label, rows in requests.items()}
    at = "" if load is None else f" at concurrency {plain_number(load)}"
    bounds_s = {"ttft": slo.ttft_ms / 1e3, "tpot": slo.tpot_ms / 1e3} if slo else {}
    return [
        (
            name,
            partial(
                draw_cdf,
                series=series,
                times_s={label: values[key] for label, values in times.items()},
                at=at,
                bound_s=bounds_s.get(key),
            ),
        )
        for key, name in (
            ("ttft", "Time to first token"),
            ("tpot", "Time per output token"),
            ("e2e", "End-to-end latency"),
        )
    ]


def _sweep_panels(series: Sequence[Series], slo: Slo | None) -> list[Panel]:
    return [
        _frontier_panel(series, slo),
        (_BUDGET, partial(draw_budget, series=series)),
        ("Throughput", partial(draw_throughput, series=series)),
    ]


def _frontier_panel(series: Sequence[Series], slo: Slo | None) -> Panel:
    least_tok_s = 1e3 / slo.tpot_ms if slo else None
    title = "Throughput against user speed"
    return title, partial(draw_frontier, series=series, least_tok_s=least_tok_s)


def _single_panels(series: Sequence[Series], load: int | None, slo: Slo | None) -> list[Panel]:
    profiles, gpus = {}, {}
    for one in series:
        replay = one.at(load)
        if replay is not None:
            found = read_batch_profiles(replay, load)
            if one.policy in found:
                profiles[one.label] = found[one.policy]
                gpus[one.label] = replay.summary.gpus / replay.summary.replicas
    budget = partial(draw_profile, series=series, profiles=profiles, gpus_per_replica=None)
    throughput = partial(draw_profile, series=series, profiles=profiles, gpus_per_replica=gpus)
    requests = _requests(series, load, whole_run=True)
    in_system = partial(draw_in_system, series=series, requests=requests)
    last = ("Load over time", in_system) if load is None else _frontier_panel(series, slo)
    return [(_BUDGET, budget), ("Decode throughput", throughput), last]


def _command(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    check_suffix(arguments.out)
    with ExitStack() as folders:
        for path in arguments.results:
            folders.enter_context(settled(path))
        replays = [load_replay(path) for path in arguments.results]
        page = compare_page(replays, arguments.policy, arguments.concurrency)
    save_page(page, arguments.out)
    print(f"Wrote {arguments.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("analysis.compare", lambda: _command(argv))


if __name__ == "__main__":
    raise SystemExit(main())
