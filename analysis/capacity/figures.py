"""The figures of the capacity report: which panels stand together, what each is called and says.

Owns headings, captions and alternative texts. Draws from the record of ``report`` alone;
the trace's own picture is ``traces.picture``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis.capacity.panels import (
    draw_bars,
    draw_gain,
    draw_lines,
    draw_mistakes,
    draw_sizes,
    mark_goal,
)
from analysis.capacity.sheet import Drawing, closed_loop_replay, report_sheet
from analysis.capacity.words import number, percent
from analysis.page import Panel, settle
from analysis.panels import draw_budget, draw_cdf, draw_frontier, draw_throughput
from analysis.series import Series, make_series
from analysis.style import page_style
from traces import Trace
from traces.picture import draw
from traces.statistics import statistics


def draw_all(report: dict[str, Any], trace: Trace) -> list[Drawing]:
    """Every figure of the report, in the order of its sections."""
    series = make_series([closed_loop_replay(report)])
    with page_style():
        return [
            _fleet(report, series),
            _sweep(report, series),
            _load(report, series),
            _latencies(report, series),
            _crossovers(report, series),
            _trace_picture(report, trace),
        ]


def _goal(report: dict[str, Any]) -> str:
    return f"SLO {report['slo']['name']} for {percent(report['attainment'], 0)} % of requests"


def _fleet(report: dict[str, Any], series: Sequence[Series]) -> Drawing:
    fleets = report["fleets"]
    priced = report["cost_per_gpu_hour"] is not None
    offered = [fleet["offered_req_s"] for fleet in fleets]

    def per_fleet(key: str) -> dict[str, tuple[Sequence[float], Sequence[float | None]]]:
        return {
            one.label: (offered, [fleet["policies"][one.label][key] for fleet in fleets])
            for one in series
        }

    most = max(found["bound"] for fleet in fleets for found in fleet["policies"].values())
    lines = partial(draw_lines, series=series, xlabel="traffic (requests/s)", log_x=True)
    money = "cost per million output tokens" if priced else "GPU-hours per million output tokens"
    held = {label: found["replica_req_s"] for label, found in report["traffic"].items()}
    energy = partial(
        lines,
        lines=per_fleet("kwh_per_mtok"),
        ylabel="kWh per million output tokens",
        log_y=True,
    )
    panels: list[Panel] = [
        (
            "Fewest GPUs",
            partial(draw_sizes, series=series, fleets=fleets, most=most, chosen=report["chosen"]),
        ),
        (
            "Traffic that one replica holds",
            partial(
                draw_bars,
                series=series,
                values=held,
                texts={label: number(value) for label, value in held.items()},
                xlabel="requests/s on one replica",
            ),
        ),
        (
            money[0].upper() + money[1:],
            partial(
                lines,
                lines=per_fleet("cost_per_mtok" if priced else "gpu_hours_per_mtok"),
                ylabel=money,
                log_y=True,
            ),
        ),
        ("Energy of those fleets", energy if report["cost_model"]["watts"] else _no_watts),
    ]
    chosen = report["chosen"]
    sizes = ", ".join(
        f"×{fleet['rate']:g} {fleet['policies'][chosen]['gpus'] or 'none'}" for fleet in fleets
    )
    return Drawing(
        key="fleet",
        title="How many GPUs at which traffic",
        figure=report_sheet(
            report, series, panels, f"fleets for {_goal(report)}",
            f"fleets of equal replicas of {report['cost_model']['gpus']} GPU, {report['router']}",
        ),
        caption="The smallest fleet from which no larger one misses the objective, and what its "
        "tokens cost. Small fleets pay for whole GPUs that the traffic does not fill.",
        alternative=f"Fewest GPUs by traffic and policy. {chosen} by rate: {sizes}.",
    )  # fmt: skip


def _no_watts(axes: Axes) -> None:
    axes.text(0.5, 0.5, "the cost model states no power", transform=axes.transAxes, ha="center")
    axes.set_axis_off()


def _sweep(report: dict[str, Any], series: Sequence[Series]) -> Drawing:
    loop = report["closed_loop"]
    accepted = {
        one.label: (
            loop["concurrency"],
            [row["accept_len_mean"] for row in loop["policies"][one.label]],
        )
        for one in series
    }
    panels: list[Panel] = [
        (
            "Throughput against user speed",
            partial(draw_frontier, series=series, least_tok_s=1e3 / report["slo"]["tpot_ms"]),
        ),
        ("Throughput", partial(draw_throughput, series=series)),
        ("Verification budget", partial(draw_budget, series=series)),
        ("Accepted length", partial(_draw_accepted, series=series, lines=accepted)),
    ]
    loads = loop["concurrency"]
    return Drawing(
        key="interactivity",
        title="Throughput against interactivity, and the verification budget",
        figure=report_sheet(
            report, series, panels,
            f"closed loop at concurrency {loads[0]} to {loads[-1]}",
            "one replica, each client sends its next request when one ends",
        ),
        caption="Numbers beside points are concurrent requests; a curve further up and to the "
        "right serves more users faster. The paper shows the first as Figure 7, the budget and "
        "the throughput as Figure 8.",
        alternative="Output tokens per second and GPU against the median user's speed, against "
        f"concurrency from {loads[0]} to {loads[-1]}, and tokens verified and accepted per step.",
    )  # fmt: skip


def _draw_accepted(
    axes: Axes, series: Sequence[Series], lines: Mapping[str, tuple[Any, Any]]
) -> None:
    draw_lines(
        axes, series, lines, xlabel="concurrent requests",
        ylabel="tokens emitted per request and step", log_x=True,
    )  # fmt: skip
    loads = next(iter(lines.values()))[0]
    axes.set_xticks(list(loads))


def _load(report: dict[str, Any], series: Sequence[Series]) -> Drawing:
    loads, slo = report["loads"], report["slo"]
    xs = loads["replica_req_s"]

    def values(read: Any) -> dict[str, tuple[Sequence[float], Sequence[float | None]]]:
        return {one.label: (xs, [read(row) for row in loads["policies"][one.label]])
                for one in series}  # fmt: skip

    def percentile(axes: Axes, *, key: str, bound_ms: float, name: str) -> None:
        draw_lines(
            axes, series, values(lambda row: row[key]["p90"]), xlabel="requests/s on one replica",
            ylabel=f"{name} p90 (ms)", log_y=True,
        )  # fmt: skip
        mark_goal(axes, bound_ms, "SLO")

    def attainment(axes: Axes) -> None:
        shares = values(lambda row: 100 * row["attainment"])
        draw_lines(
            axes, series, shares, xlabel="requests/s on one replica",
            ylabel="requests that meet the SLO (%)",
        )  # fmt: skip
        axes.set_ylim(0.0, 103.0)
        mark_goal(axes, 100 * report["attainment"], "goal")

    def speed(axes: Axes) -> None:
        draw_lines(
            axes, series, values(lambda row: row["tok_s_user_p50"]),
            xlabel="requests/s on one replica", ylabel="speed of the median user (output tok/s)",
        )  # fmt: skip
        mark_goal(axes, 1e3 / slo["tpot_ms"], "SLO")

    panels: list[Panel] = [
        ("Attainment", attainment),
        ("Speed of the median user", speed),
        (
            "Time to first token",
            partial(percentile, key="ttft_ms", bound_ms=slo["ttft_ms"], name="TTFT"),
        ),
        (
            "Time per output token",
            partial(percentile, key="tpot_ms", bound_ms=slo["tpot_ms"], name="TPOT"),
        ),
    ]
    first = report["traffic"][report["chosen"]]["replica_req_s"]
    return Drawing(
        key="attainment",
        title="SLO attainment against load",
        figure=report_sheet(
            report, series, panels,
            f"one replica under {_goal(report)}",
            "one replica, the trace's arrivals stretched and compressed",
        ),
        caption="Where attainment falls below the goal, a replica is full. Beyond that point "
        "latencies grow with the length of the trace.",
        alternative=f"Share of requests within the SLO against requests per second on one "
        f"replica; {report['chosen']} holds the goal up to {number(first)} requests/s.",
    )  # fmt: skip


def _latencies(report: dict[str, Any], series: Sequence[Series]) -> Drawing:
    point, slo = report["point"], report["slo"]
    held = report["traffic"][report["chosen"]]["replica_req_s"] is not None
    at = f" at {number(point['replica_req_s'])} requests/s"

    def panel(name: str, key: str, bound_ms: float | None, of: str) -> Panel:
        times = {
            label: np.array(found["quantiles_s"][key])
            for label, found in point["policies"].items()
        }  # fmt: skip
        bound_s = None if bound_ms is None else bound_ms / 1e3
        return name, partial(draw_cdf, series=series, times_s=times, at="", bound_s=bound_s, of=of)

    panels = [
        panel("Time to first token", "ttft", slo["ttft_ms"], "completed requests"),
        panel("Time per output token", "tpot", slo["tpot_ms"], "completed requests"),
        panel("Inter-token latency", "itl", None, "bursts of tokens"),
        panel("End-to-end latency", "e2e", None, "completed requests"),
    ]
    why = f", the most that {report['chosen']} holds" if held else ""
    return Drawing(
        key="latencies",
        title="Latency distributions",
        figure=report_sheet(
            report, series, panels, f"one replica{at}{why}",
            f"one replica, rate ×{number(point['rate'])}",
        ),
        caption=f"All policies at the same traffic{at}{why}. TPOT spreads a stall over the "
        "whole answer; inter-token latency counts each burst that a user waits for.",
        alternative="Cumulative distributions of time to first token, time per output token, "
        "inter-token latency and end-to-end latency under each policy.",
    )  # fmt: skip


def _crossovers(report: dict[str, Any], series: Sequence[Series]) -> Drawing:
    loop, regrets = report["closed_loop"]["concurrency"], report["low_load_regret"]

    def gain(base: str) -> Panel:
        gains = {c["policy"]: c["gain"] for c in report["crossovers"] if c["versus"] == base}
        return f"Against {base}", partial(
            draw_gain, series=series, concurrency=loop, gains=gains, base=base
        )

    panels: list[Panel] = [
        gain("none"),
        gain("fixed"),
        (
            "Low-load regret",
            partial(
                draw_bars,
                series=series,
                values={label: 100 * regret for label, regret in regrets.items()},
                texts={label: percent(regret) for label, regret in regrets.items()},
                xlabel="throughput lost to the best policy at 1 to 4 requests (%)",
            ),
        ),
        ("Wrong beliefs", partial(draw_mistakes, series=series, mistakes=report["mistakes"])),
    ]
    worst = max(regrets, key=lambda label: regrets[label])
    return Drawing(
        key="crossovers",
        title="Where each policy pays, and what wrong beliefs cost",
        figure=report_sheet(
            report, series, panels, "gains, regret and robustness in a closed loop",
            "one replica, each client sends its next request when one ends",
        ),
        caption="A policy overtakes where its line crosses zero. Wrong beliefs: the policy "
        "plans with step costs or confidences that are off, while the simulated truth stays.",
        alternative=f"Throughput of each policy against none and fixed by concurrency; most "
        f"regret at low load: {worst} with {percent(regrets[worst])} %.",
    )  # fmt: skip


def _trace_picture(report: dict[str, Any], trace: Trace) -> Drawing:
    figures = report["statistics"]
    arrivals = figures["arrivals"]
    figure = draw(
        trace, statistics(trace), source=f"as recorded; sglang-dspark {report['version']}"
    )
    settle(figure)
    return Drawing(
        key="trace",
        title="What the trace looks like",
        figure=figure,
        caption="Arrivals over time, lengths, burstiness and shared prefixes of the trace that "
        "everything here is simulated from.",
        alternative=f"{figures['requests']:,} requests over {number(arrivals['span_s'] / 60)} "
        f"minutes; median prompt {number(figures['prompt_tokens']['p50'])} and output "
        f"{number(figures['output_tokens']['p50'])} tokens.",
    )
