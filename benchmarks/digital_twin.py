"""Does the simulator predict a real server? Record one, fit a third, replay the rest.

    python benchmarks/digital_twin.py --minutes 15 -o benchmarks/results/digital_twin.json

Starts SGLang 0.5.15.post1 with DSPARK on this machine's CPU, one server for each of the policies
none, fixed and global (they wait while another is measured), profiles them, and sends each the same
bursty arrivals at three loads, ``--minutes`` for each policy, in three rounds. The cost model, the
acceptance profile and the time outside the engine are fitted to the first round; the other two are
replayed in the simulator and printed beside what was measured. Wants a quiet machine with two
cores; 15 minutes take 50. The pair of small models is made first where it is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import pickle
import platform
import tempfile
import time
import urllib.request
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from twin_replay import (
    FIGURES,
    Segment,
    Twin,
    at_speed,
    drift,
    measured,
    outside_s,
    pooled,
    served_of,
    trace_of,
)
from twin_traffic import (
    Job,
    Server,
    bursty_s,
    conversations,
    send_arrivals,
    send_clients,
    start_server,
    wait_ready,
)

from sglang_dspark.cli import Parser, run_command
from sglang_dspark.core.cost import CostModel, load_cost_model
from sglang_dspark.core.cost_schema import Provenance
from sglang_dspark.files import make_folder, write_json
from sglang_dspark.runtime.step_log import read
from simulator.acceptance import load_acceptance
from simulator.acceptance_censored import fit_censored
from simulator.calibrate import calibrate, summary
from simulator.config import EngineConfig
from simulator.cost_fit import fit_cost
from simulator.logged_steps import logged

POLICIES = ("none", "fixed", "global")
SPREADS = "threshold:0.5"
"""Served only while costs are profiled: its verified tokens do not grow in step with requests."""
LOADS = ("light", "medium", "heavy")
SHARES = {"light": 0.35, "medium": 0.65}
"""Of the capacity of the slowest policy; heavy is a share of the fastest one's."""
HEAVY_SHARE = 0.85
THIRDS = 3
BURSTINESS = 0.5
CLIENTS = (1, 2, 4, 8, 16)
PROFILE_S = 5.0
FLUSH_S = 11.0
"""A step log shows a record ten seconds after it was made."""
SEEDS = 5
TOLERANCE = {
    "output_tok_s": 0.05,
    "tpot_p50_ms": 0.10,
    "ttft_p99_ms": 0.20,
    "verified_tokens": 0.05,
}
TIE = 0.02
"""Policies that measure this close are not told apart, whatever the sign."""

MAX_TOKENS = 128
ENGINE = EngineConfig(
    max_running_requests=16,
    chunked_prefill_size=256,
    max_prefill_tokens=16384,
    page_size=1,
    enable_prefix_cache=True,
    kv_pool_tokens=16384,
    admission_new_tokens=MAX_TOKENS,
)


def server_arguments(target: Path, drafter: Path) -> list[str]:
    """What every server is started with; ``ENGINE`` says the same to the simulator."""
    return [
        *("--model-path", str(target), "--speculative-algorithm", "DSPARK"),
        *("--speculative-draft-model-path", str(drafter)),
        *("--max-total-tokens", str(ENGINE.kv_pool_tokens)),
        *("--max-running-requests", str(ENGINE.max_running_requests)),
        *("--chunked-prefill-size", str(ENGINE.chunked_prefill_size)),
        *("--max-prefill-tokens", str(ENGINE.max_prefill_tokens)),
        *("--page-size", str(ENGINE.page_size)),
        # With overlap every token leaves one step late, which the simulator does not model.
        "--disable-overlap-schedule",
    ]


def provenance(source: str) -> Provenance:
    """Of the models fitted here."""
    return Provenance(
        origin="measured",
        source=source,
        hardware=f"{platform.machine()} CPU, one thread",
        model="small Qwen3 of the laptop run",
        dtype="float32",
        tp=1,
        engine="SGLang 0.5.15.post1 with sglang-dspark, torch_native",
        date=date.today().isoformat(),
        command="python benchmarks/digital_twin.py",
    )


def jobs_of(samples: Path, arrivals_s: Any, *, seed: int) -> list[Job]:
    """Requests at these times."""
    drawn = conversations(samples, count=len(arrivals_s), seed=seed)
    return [
        Job(at_s=float(at), prompt=prompt, domain=domain, most_tokens=MAX_TOKENS, temperature=1.0)
        for at, (domain, prompt) in zip(arrivals_s, drawn, strict=True)
    ]


def flush(server: Server) -> None:
    """Forget the prefix cache, so that a segment starts as its replay does."""
    request = urllib.request.Request(f"{server.url}/flush_cache", method="POST")
    for _ in range(50):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                if answer.status == 200:
                    return
        except urllib.error.HTTPError:
            pass
        time.sleep(0.1)
    raise ValueError(f"{server.url} does not flush its cache; is something else sending to it?")


def closed_loop(server: Server, samples: Path, clients: int) -> float:
    """Requests per second that so many clients finish."""
    jobs = jobs_of(samples, np.zeros(2000), seed=1000 + clients)
    start_s = time.time()
    tag = f"profile-{server.policy}-{clients}"
    seen = send_clients(server, jobs, tag=tag, clients=clients, seconds=PROFILE_S)
    return len(seen) / (time.time() - start_s)


class Recording:
    """The servers, what they did, and the rates that were chosen."""

    def __init__(self, folder: Path, target: Path, drafter: Path, samples: Path) -> None:
        self.folder, self.samples = folder, samples
        self.arguments = server_arguments(target, drafter)
        self.servers: dict[str, Server] = {}
        self.capacity: dict[str, float] = {}
        self.windows: list[tuple[str, str, int, list[Any]]] = []

    def start(self, policy: str, cost_model: Path | None = None) -> None:
        """A server of its own for the policy."""
        server = start_server(
            policy, self.arguments, folder=self.folder / policy, cost_model=cost_model
        )
        self.servers[policy] = server

    def profile(self, clients: tuple[int, ...]) -> None:
        """Closed loops of some sizes on every server; the largest says what it can finish."""
        for count in clients:
            for policy, server in self.servers.items():
                self.capacity[policy] = closed_loop(server, self.samples, count)

    def end(self, policy: str) -> None:
        """Stop one server; it takes part in nothing more."""
        self.servers.pop(policy).stop()
        del self.capacity[policy]

    def record(self, *, segment_s: float) -> None:
        """Every third, load and policy; policies innermost, so that a drift hits all alike."""
        slowest, fastest = min(self.capacity.values()), max(self.capacity.values())
        rates = {load: share * slowest for load, share in SHARES.items()}
        rates["heavy"] = HEAVY_SHARE * fastest
        self.rates = rates
        for third, (number, load) in itertools.product(range(THIRDS), enumerate(LOADS)):
            seed = 10 * third + number
            rng = np.random.default_rng(seed)
            arrivals_s = bursty_s(
                rate=rates[load], seconds=segment_s, burstiness=BURSTINESS, rng=rng
            )
            jobs = jobs_of(self.samples, arrivals_s, seed=seed)
            for policy in POLICIES:
                flush(self.servers[policy])
                tag = f"{policy}-{load}-{third}"
                seen = send_arrivals(self.servers[policy], jobs, tag=tag)
                self.windows.append((policy, load, third, seen))
                print(f"recorded {tag}: {len(seen)} requests", flush=True)
        time.sleep(FLUSH_S)

    def segments(self) -> list[Segment]:
        """The windows with the steps that served them."""
        owner = {one.rid: number for number, window in enumerate(self.windows) for one in window[3]}
        steps: list[list[Any]] = [[] for _ in self.windows]
        for server in self.servers.values():
            for record in read(server.step_log):
                number = owner.get(record.request_ids[0])
                if number is not None:
                    steps[number].append(record)
        return [
            Segment(policy=policy, load=load, third=third, seen=seen, steps=steps[number])
            for number, (policy, load, third, seen) in enumerate(self.windows)
        ]

    def stop(self) -> None:
        """End the servers."""
        for server in self.servers.values():
            server.stop()


def record(folder: Path, *, cache: Path, minutes: float) -> tuple[list[Segment], CostModel, Any]:
    """Serve, profile, and record; (segments, the policy's cost model, what was chosen)."""
    from sglang_dspark.draft.demo import trained_pair
    from sglang_dspark.draft.demo_recipe import laptop

    target, drafter = trained_pair(laptop(), cache, corpus="templated")
    recording = Recording(folder, target, drafter, target.parent / "templated-samples.jsonl")
    try:
        first = ("none", "fixed", SPREADS)
        for policy in first:
            recording.start(policy)
        for policy in first:
            wait_ready(recording.servers[policy])
        recording.profile(CLIENTS)
        time.sleep(FLUSH_S)
        logs = [server.step_log for server in recording.servers.values()]
        times = logged((record for log in logs for record in read(log)), {}).times
        belief = fit_cost(
            times, gamma=7, name="cpu-profiled", provenance=provenance("closed loops, 1 to 16")
        )
        belief.model.save(folder / "profiled.json")
        recording.end(SPREADS)
        recording.start("global", folder / "profiled.json")
        wait_ready(recording.servers["global"])
        recording.profile(CLIENTS[-1:])
        print(f"capacity, requests per second: {recording.capacity}", flush=True)
        recording.record(segment_s=60.0 * minutes / (THIRDS * len(LOADS)))
        segments = recording.segments()
        chosen = {"capacity_req_s": recording.capacity, "rates_req_s": recording.rates}
        return segments, belief.model, chosen
    finally:
        recording.stop()


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
    for policy in ("fixed", "global"):
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


def compare(segments: list[Segment], belief: CostModel, folder: Path) -> dict[str, Any]:
    """Fit the first third, replay the others."""
    first = [segment for segment in segments if segment.third == 0]
    found = calibrate(
        (record for segment in first for record in segment.steps),
        served_of(first),
        name="cpu-fitted",
        provenance=provenance("first third of the digital twin's recording"),
    )
    print(summary(found), flush=True)
    found.save(make_folder(folder / "fit"), seed=0)
    extra_s = outside_s(first, found.cost.model)
    outside_ms = dict(zip(("p50", "p99"), 1e3 * np.percentile(extra_s, (50, 99)), strict=True))
    print(
        f"outside the engine: {outside_ms['p50']:.1f} ms of a first token, p99 "
        f"{outside_ms['p99']:.1f} ms",
        flush=True,
    )
    twin = Twin(
        cost_model=found.cost.model,
        acceptance=load_acceptance(folder / "fit" / "acceptance.parquet"),
        belief=belief,
        engine=ENGINE,
        outside_s=extra_s,
    )
    rows = []
    for load, policy in itertools.product(LOADS, POLICIES):
        replayed = [
            segment
            for segment in segments
            if (segment.policy, segment.load) == (policy, load) and segment.third
        ]
        real = [measured(segment) for segment in replayed]
        traces = [
            trace_of(segment, folder / f"{policy}-{load}-{segment.third}.jsonl")
            for segment in replayed
        ]
        simulated = [twin.predict(trace, policy, seeds=SEEDS) for trace in traces]
        drifts = [drift(segment, twin.cost_model) for segment in replayed]
        paced = [
            dataclasses.replace(twin, cost_model=at_speed(twin.cost_model, factor)).predict(
                trace, policy, seeds=SEEDS
            )
            for trace, factor in zip(traces, drifts, strict=True)
        ]
        rows.append(
            {
                "load": load,
                "policy": policy,
                "requests": sum(len(segment.seen) for segment in replayed),
                "of_capacity": mean_load([twin.load(trace, policy) for trace in traces]),
                "drift": drifts,
                "measured": pooled(real).figures(),
                "measured_thirds": [one.figures() for one in real],
                "predicted": pooled(simulated).figures(),
                "predicted_at_speed": pooled(paced).figures(),
            }
        )
    return {
        "fit": found.report(),
        "outside_ms": {name: float(value) for name, value in outside_ms.items()},
        "rows": rows,
        "signs": signs(rows),
        "censoring": censoring(segments),
    }


def signs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every difference between two policies at one load, measured and predicted.

    A difference of less than ``TIE``, or one whose sign the two replayed thirds disagree about,
    has no sign to predict.
    """
    found = []
    for load, name in itertools.product(LOADS, FIGURES):
        at = {row["policy"]: row for row in rows if row["load"] == load}
        for one, other in itertools.combinations(POLICIES, 2):
            real, simulated = (
                at[one][kind][name] / at[other][kind][name] - 1.0
                for kind in ("measured", "predicted")
            )
            each = [
                ours[name] - theirs[name]
                for ours, theirs in zip(
                    at[one]["measured_thirds"], at[other]["measured_thirds"], strict=True
                )
            ]
            tie = abs(real) < TIE or min(each) < 0.0 < max(each)
            found.append(
                {
                    "load": load,
                    "figure": name,
                    "difference": f"{one} against {other}",
                    "measured": real,
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
        drifts = "/".join(f"{value:.2f}" for value in row["drift"])
        text = f"{row['load']:8}{row['policy']:8}{share:>8}{drifts:>12}"
        for name in FIGURES:
            real, simulated = row["measured"][name], row[kind][name]
            error = simulated / real - 1.0
            mark = " " if abs(error) <= TOLERANCE[name] else "!"
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
        f"  {w['load']} {w['figure']}, {w['difference']}: measured {w['measured']:+.1%}, "
        f"predicted {w['predicted']:+.1%}"
        for w in wrong
    ]
    off = result["censoring"]
    lines.append("acceptance by position, global against fixed, in standard errors:")
    for kind in ("corrected", "uncorrected"):
        values = " ".join(f"{value:+5.1f}" for value in off[f"{kind}_off_in_errors"])
        lines.append(f"  {kind:12}{values}")
    return "\n".join(lines)


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
    colours = dict(zip(POLICIES, ("#999999", "#E69F00", "#0072B2"), strict=True))
    marks = dict(zip(LOADS, ("o", "s", "^"), strict=True))
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.8), layout="constrained")
    for axis, name in zip(axes, FIGURES, strict=True):
        values = [row[kind][name] for row in result["rows"] for kind in ("measured", "predicted")]
        ends = np.array([0.8 * min(values), 1.2 * max(values)])
        axis.plot(ends, ends, color="black", linewidth=0.8)
        band = TOLERANCE[name]
        axis.fill_between(ends, ends * (1 - band), ends * (1 + band), color="#dddddd")
        for row in result["rows"]:
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


def _command(arguments: argparse.Namespace) -> int:
    folder = make_folder(arguments.folder or tempfile.mkdtemp(prefix="digital-twin-"))
    kept = folder / "recording.pickle"
    if arguments.again:
        segments, chosen = pickle.loads(kept.read_bytes())
        belief = load_cost_model(folder / "profiled.json")
    else:
        segments, belief, chosen = record(
            folder, cache=Path(arguments.cache), minutes=arguments.minutes
        )
        kept.write_bytes(pickle.dumps((segments, chosen)))
    result = compare(segments, belief, folder)
    result = {
        "minutes_per_policy": arguments.minutes,
        "cpus": os.cpu_count(),
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


def _parser() -> Parser:
    from sglang_dspark.draft.demo import default_cache

    parser = Parser(prog="python benchmarks/digital_twin.py", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=15.0, help="of traffic for each policy")
    parser.add_argument("-o", "--out", metavar="FILE", help="JSON of everything compared")
    parser.add_argument("--figure", metavar="FILE", help="picture of predicted against measured")
    parser.add_argument("--folder", metavar="DIR", help="logs and fits (default: temporary)")
    parser.add_argument("--cache", default=str(default_cache()), help="of the small models")
    parser.add_argument("--again", action="store_true", help="compare what --folder recorded")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command("digital_twin", lambda: _command(_parser().parse_args())))
