"""Tune a verification policy on a trace before rollout.

    python -m simulator.tune traces/mixed.jsonl --slo interactive
    python -m simulator.tune traces/mixed.jsonl --slo interactive --rate 5 --current sglang

Owns the command: flags, progress, ``policy.json`` and ``summary.json``. The search is
``simulator.tune_search``, the verdict ``simulator.tune_guard``. An interrupted run goes on where it
was when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import sglang_dspark
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.core.policy import PolicyFile, parse_policy, save_policy
from sglang_dspark.files import make_folder, write_json
from simulator.run import numbers
from simulator.run_config import RunConfig, label_of, load_run_config, load_study, with_flags
from simulator.scenario import Scenario
from simulator.sensitivity import verify_scaled
from simulator.study import saturated_rate, warm_up
from simulator.sweep import sweep
from simulator.tune_bench import Bench, Load, Setting
from simulator.tune_guard import STALE_FACTORS, Examination, Guard, rounded
from simulator.tune_report import format_summary
from simulator.tune_search import OBJECTIVES, Search
from simulator.tune_space import describe, families
from simulator.windows import cut_windows, split

_ALWAYS = ("global", "sglang", "fixed")
"""Compared with whatever the current policy is."""
_JOURNAL = "tune.journal"


def _parser() -> Parser:
    parser = Parser(prog="python -m simulator.tune", description=__doc__.split("\n")[0])
    parser.add_argument("trace", nargs="?", help="request trace, NAME.jsonl")
    parser.add_argument("--slo", metavar="NAME|TTFT_MS:TPOT_MS", help="service-level objective")
    parser.add_argument(
        "--objective", choices=OBJECTIVES, default="goodput",
        help="output tok/s, requests in SLO per second (default), or tok/s of the median user; "
        "the first and the last without losing SLO attainment",
    )  # fmt: skip
    parser.add_argument(
        "--policy", action="append", metavar="NAME", help="tune this policy only; may be repeated"
    )
    parser.add_argument(
        "--current", default="global", metavar="NAME[:PARAMETER]|FILE",
        help="what runs today; a file's calibration is the start of the tuned one",
    )  # fmt: skip
    parser.add_argument("--cost-model", metavar="NAME|FILE", help="prices the steps")
    parser.add_argument("--acceptance", metavar="NAME|FILE", help="draws what is accepted")
    parser.add_argument("--rate", type=float, metavar="X", help="arrivals X times as fast")
    parser.add_argument(
        "--concurrency", type=numbers, metavar="C[,C...]",
        help="closed loops with C clients instead of the trace's arrivals",
    )  # fmt: skip
    parser.add_argument("--replicas", type=int, metavar="N", help="replicas behind the router")
    parser.add_argument("--seed", type=int, help="of acceptance and confidences")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="run on this Ray cluster; local starts one"
    )
    parser.add_argument("--out", metavar="DIR", help="result folder (default: results/TRACE-tune)")
    parser.add_argument("--config", metavar="FILE", help="a simulator.run configuration to start "
                        "from, for the settings in 'engine'")  # fmt: skip
    return parser


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """A tuning run with everything loaded and checked."""

    config: RunConfig
    """Trace, cost model and load; its policies are the incumbents."""
    current: str
    objective: str
    tuned_policies: tuple[str, ...]
    setting: Setting
    incumbents: dict[str, PolicyFile]
    whole: Scenario
    """The whole trace under the current policy."""
    trace_sha256: str
    origin: str
    """Of the cost model."""
    warnings: list[str]

    @property
    def loads(self) -> tuple[Load, ...]:
        config = self.config
        closed = tuple(Load(concurrency=clients) for clients in config.concurrency)
        return closed or (Load(rate=config.rate),)

    @property
    def command(self) -> str:
        """What makes the same policy again, wherever and with however many jobs."""
        config, default = self.config, RunConfig(trace="")
        words = ["python", "-m", "simulator.tune", config.trace, "--slo", config.slo]
        words += ["--objective", self.objective, "--current", self.current]
        for name in self.tuned_policies:
            words += ["--policy", name]
        for name in ("cost_model", "acceptance", "rate", "replicas", "seed"):
            if getattr(config, name) != getattr(default, name):
                words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
        if config.concurrency:
            words += ["--concurrency", ",".join(map(str, config.concurrency))]
        return shlex.join(words)


def _load(arguments: argparse.Namespace) -> _Task:
    if arguments.config:
        config = load_run_config(arguments.config)
    elif arguments.trace:
        config = RunConfig(trace=arguments.trace)
    else:
        raise ValueError("no trace given; name one, for example traces/mixed.jsonl")
    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs} must be at least 1")
    is_file = arguments.current.endswith(".json")
    current = Path(arguments.current).name if is_file else label_of(arguments.current)
    incumbents = {current: parse_policy(arguments.current)}
    for name in _ALWAYS:
        incumbents.setdefault(name, parse_policy(name))
    given = (arguments.current, *(name for name in incumbents if name != current))
    config = with_flags(
        config,
        trace=arguments.trace,
        policies=given,
        cost_model=arguments.cost_model,
        acceptance=arguments.acceptance,
        replicas=arguments.replicas,
        rate=arguments.rate,
        concurrency=arguments.concurrency,
        slo=arguments.slo,
        seed=arguments.seed,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = load_study(config)
    run = study.runs[0]
    return _Task(
        config=config,
        current=arguments.current,
        objective=arguments.objective,
        tuned_policies=tuple(arguments.policy or ()),
        setting=Setting(
            windows=cut_windows(study.trace, config.concurrency),
            cost_model=study.cost_model,
            beliefs={f: verify_scaled(study.cost_model, f) for f in STALE_FACTORS},
            acceptance=run.scenario.acceptance,
            engine=config.engine,
            replicas=config.replicas,
            slo=run.slo,
            seed=config.seed,
        ),
        incumbents=incumbents,
        whole=dataclasses.replace(run.scenario, concurrency=None),
        trace_sha256=study.trace.sha256,
        origin=study.cost_model.provenance.origin,
        warnings=[str(warning.message) for warning in caught],
    )


def _capacity(task: _Task, tuned: PolicyFile, bench: Bench) -> list[dict[str, Any]]:
    """How far from saturation the tuned and the current policy are; nothing in a closed loop."""
    arrival_s = task.whole.trace.arrival_s
    span_s = float(arrival_s[-1] - arrival_s[0]) / task.config.rate
    if task.config.concurrency or span_s <= 0:
        return []
    named = {"tuned": tuned, next(iter(task.incumbents)): task.whole.policy}
    scenarios = [dataclasses.replace(task.whole, policy=policy) for policy in named.values()]
    rates, interrupted = sweep(
        scenarios, _capacity_req_s, jobs=bench.jobs, ray=bench.ray, journal=bench.journal
    )
    if interrupted:
        raise KeyboardInterrupt
    offered = (len(arrival_s) - 1) / span_s
    return [
        {
            "load": task.loads[0].label,
            "policy": name,
            "offered_req_s": round(offered, 6),
            "capacity_req_s": round(rate, 6),
            "share": round(offered / rate, 6),
        }
        for name, rate in zip(named, rates, strict=True)
        if rate
    ]


def _capacity_req_s(scenario: Scenario) -> float:
    """0 where the trace is too short to tell."""
    return saturated_rate(scenario) or 0.0


def summarise(
    task: _Task,
    search: Search,
    loads: list[dict[str, Any]],
    found: Examination | None,
) -> dict[str, Any]:
    """``summary.json``: the same bytes for the same inputs and seed."""
    config, setting = task.config, task.setting
    places = split(len(setting.windows))
    sizes = [window.end - window.first for window in setting.windows]
    summary: dict[str, Any] = {
        "schema_version": 1,
        "command": task.command,
        "version": sglang_dspark.__version__,
        "trace": task.whole.trace.name,
        "trace_sha256": task.trace_sha256,
        "cost_model": setting.cost_model.name,
        "cost_model_origin": task.origin,
        "acceptance": config.acceptance,
        "seed": config.seed,
        "slo": config.slo,
        "rate": config.rate,
        "concurrency": list(config.concurrency),
        "replicas": config.replicas,
        "gpus": config.replicas * setting.cost_model.gpus,
        "objective": task.objective,
        "current": next(iter(task.incumbents)),
        "interrupted": found is None,
        "split": {
            "search": list(places[0]),
            "held_out": list(places[1]),
            "requests": [min(sizes), max(sizes)],
        },
        "search": {
            "candidates": search.rungs[0]["candidates"] + search.refined,
            "simulations": search.simulations,
            "rungs": search.rungs,
            "families": [
                {
                    "policy": describe(policy),
                    "allowed": search.scores[policy].allowed,
                    "objective": task.objective,
                    "score": round(search.scores[policy].value, 6),
                }
                for policy in search.best_by_family().values()
            ],
        },
        "tuned": describe(search.best()),
        "load": loads,
    }
    if found is not None:
        summary |= {
            "policies": found.rows,
            "gains": {name: rounded(g) for name, g in found.gains.items()},
            "low_load": found.low_load,
            "beliefs": found.worlds,
            "no_difference": found.no_difference,
        }
    reasons = ["The run was interrupted before the policy was judged."]
    if found is not None:
        reasons = found.reasons
    return summary | {"roll_out": not reasons, "reasons": reasons}


def _command(arguments: argparse.Namespace) -> int:
    task = _load(arguments)
    gamma = task.setting.acceptance.gamma
    space = families(task.tuned_policies, gamma, task.whole.policy.calibration)
    out = make_folder(arguments.out or Path("results") / f"{task.whole.trace.name}-tune")
    journal = out / _JOURNAL
    with tqdm(unit="run", desc="compiling, once", leave=False) as bar:

        def show(known: int) -> None:
            bar.update(known - bar.n)

        bench = Bench(
            setting=task.setting,
            jobs=arguments.jobs,
            ray=arguments.ray,
            journal=journal,
            on_done=show,
        )
        found: Examination | None = None
        loads: list[dict[str, Any]] = []
        search_places, held_out = split(len(task.setting.windows))
        search = Search(
            bench=bench,
            families=space,
            current=task.whole.policy,
            objective=task.objective,
            loads=task.loads,
            windows=search_places,
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the whole trace has warned already
            warm_up(task.whole)
            try:
                bar.set_description_str("searching")
                tuned = search.run()
                bar.total = len(bench.known) + guard.most_trials()
                bar.set_description_str("judging")
                found = guard.examine(tuned)
                loads = _capacity(task, tuned, bench)
            except KeyboardInterrupt:
                found = None
                if not search.scores:
                    raise  # nothing to keep but the journal
    summary = summarise(task, search, loads, found)
    summary["warnings"] = _notes(task, bench)
    verdict = "roll out" if summary["roll_out"] else "do NOT roll out"
    note = (
        f"{task.command}; trace sha256 {task.trace_sha256}; cost model "
        f"{task.setting.cost_model.name} ({task.origin}); seed {task.config.seed}; {verdict}"
    )
    save_policy(out / "policy.json", dataclasses.replace(search.best(), note=note))
    write_json(out / "summary.json", summary)
    for text in summary["warnings"]:
        warnings.warn(text, stacklevel=1)
    print(format_summary(summary))
    print(f"\nWrote {out}/policy.json, summary.json")
    if found is None:
        return 130
    journal.unlink(missing_ok=True)
    return 0


def _notes(task: _Task, bench: Bench) -> list[str]:
    """What to warn of: how the parts fit, and steps outside the cost model's range."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoded = [j for j in bench.known.values() if j.fewest_tokens <= j.most_tokens]
        if decoded:
            requests = max(j.most_requests for j in decoded)
            for tokens in (max(j.most_tokens for j in decoded),
                           min(j.fewest_tokens for j in decoded)):  # fmt: skip
                task.setting.cost_model.warn_outside(tokens, requests)
    return list(dict.fromkeys([*task.warnings, *(str(w.message) for w in caught)]))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("simulator.tune", lambda: _command(_parser().parse_args(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
