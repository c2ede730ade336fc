"""Which policy to run, who misses what, and a trace without its nights."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.capacity.command import main as capacity
from sglang_dspark.core.policy import parse_policy
from simulator.capacity.busy import without_idle
from simulator.capacity.choice import choose, make_bench
from simulator.capacity.misses import misses_by_class
from simulator.capacity.search import Goal, most_traffic, offered_rate
from simulator.fleet.fleet import simulate
from simulator.slo import PRESETS, Slo
from simulator.study.metrics import met_slo
from simulator.study.windows import split
from simulator.tune.bench import Bench
from simulator.tune.command import main as tune
from simulator.tune.guard import Guard
from simulator.tune.task import load_task
from tests.simulator.replay_scenes import NO_OVERLAP, scenario, trace
from traces import Request, write_trace

SLO = PRESETS["interactive"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 requests at 12 a second."""
    made = trace(400, rate=12.0, seed=3)
    path = tmp_path_factory.mktemp("traces") / "made.jsonl"
    requests = [
        Request(
            request_id=str(i), arrival_s=round(float(made.arrival_s[i]), 6),
            prompt_tokens=int(made.prompt_tokens[i]), output_tokens=int(made.output_tokens[i]),
            domain=made.domain_names[made.domain[i]],
        )
        for i in range(400)
    ]  # fmt: skip
    write_trace(path, requests, source="test", command="none", seed=3)
    return path


@pytest.mark.law
@pytest.mark.parametrize("rate", [0.5, 2.0, 4.0])
def test_a_choice_is_the_tuners_verdict(written: Path, rate: float) -> None:
    """Same windows, same random numbers, same statistics: the same interval to the last digit."""
    arguments = argparse.Namespace(
        trace=str(written), config=None, jobs=1, current="global", policy=None, objective="in_slo",
        cost_model=None, acceptance=None, replicas=None, rate=rate, concurrency=None,
        slo="interactive", seed=None, server=None, max_running_requests=None,
    )  # fmt: skip
    task = load_task(arguments)
    names = ("global", "fixed", "none", "goodput")
    policies = {name: parse_policy(name) for name in names}
    base = replace(task.whole, rate_factor=1.0)
    bench = make_bench(
        base, task.setting.slo, jobs=1, ray=None, journal=None, on_done=lambda n: None
    )
    found = choose(bench, policies, "global", rate)
    guard = Guard(
        bench=Bench(setting=task.setting),
        incumbents={"global": policies["global"]},
        low_load_others={"none": policies["none"]},
        objective=task.objective,
        loads=task.loads,
        windows=split(len(task.setting.windows))[1],
    )
    for name in names[1:]:
        told = guard.examine(policies[name])
        assert found.gains[name] == told.gains["global"]
        assert found.policy != name or not told.reasons
        assert found.reasons.get(name, told.reasons) == told.reasons


@pytest.mark.example
def test_a_policy_that_gains_is_chosen_and_one_that_fails_elsewhere_is_not() -> None:
    requests = trace(400, rate=12.0)
    policies = {name: parse_policy(name) for name in ("none", "fixed", "global")}
    base = scenario("none", requests, engine={"max_running_requests": 256, **NO_OVERLAP})
    bench = make_bench(base, SLO, jobs=1, ray=None, journal=None, on_done=lambda n: None)
    overloaded = choose(bench, policies, "none", 2.0)
    assert overloaded.policy in ("fixed", "global")
    assert overloaded.gains[overloaded.policy].proven
    idle = choose(bench, policies, "none", 0.05)
    assert idle.policy == "none"  # all within the SLO: nothing to gain


@pytest.mark.law
def test_misses_add_up_to_the_attainment_and_name_the_bound() -> None:
    requests = trace(300, rate=20.0, output_mean=30.0)
    classes = replace(
        requests, slo=np.arange(300, dtype=np.int32) % 3 - 1, slo_names=("relaxed", "reasoning")
    )
    outcome = simulate(scenario("none", classes))
    rows = misses_by_class(outcome, SLO, outcome.scenario.judged_requests)
    judged = outcome.scenario.judged_requests
    met = met_slo(outcome, SLO)[judged]
    assert {row["class"] for row in rows} == {"interactive", "relaxed", "reasoning"}
    assert sum(row["requests"] for row in rows) == met.size
    assert sum(row["missed"] for row in rows) == met.size - met.sum()
    for row in rows:
        assert row["missed"] == row["ttft"] + row["tpot"] - row["both"] + row["unserved"]
    strictest = next(row for row in rows if row["class"] == "reasoning")
    assert strictest["tpot"] > 0
    assert 0 <= strictest["short_share"] <= 1
    # The default class and a request's own of the same name are one.
    same = replace(classes, slo_names=("relaxed", "interactive"))
    assert len(misses_by_class(simulate(scenario("none", same)), SLO, judged)) == 2


@pytest.mark.law
def test_a_night_between_two_days_changes_no_capacity() -> None:
    day = trace(800, rate=6.0)
    night_s = 14 * 3600.0
    both = trace(
        1600,
        arrival_s=np.concatenate([day.arrival_s, day.arrival_s + day.arrival_s[-1] + night_s]),
        prompt_tokens=np.tile(day.prompt_tokens, 2),
        output_tokens=np.tile(day.output_tokens, 2),
    )
    busy, cut_s = without_idle(both)
    assert cut_s == pytest.approx(night_s, rel=0.01)
    assert np.diff(busy.arrival_s).max() < 10.0
    goal = Goal(slo=Slo(name="test", ttft_ms=500.0, tpot_ms=30.0))
    held = []
    for requests in (day, busy):
        asked = scenario("global", requests)
        found = most_traffic(asked, goal)
        offered = offered_rate(asked)
        assert found.rate_factor
        assert offered
        held.append(found.rate_factor * offered)
    assert held[1] == pytest.approx(held[0], rel=0.05)
    assert without_idle(day)[1] == 0.0


@pytest.mark.example
def test_the_tuner_and_the_report_say_the_same_of_a_tuned_file(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    flags = ["--slo", "interactive", "--rate", "1", "--jobs", "1"]
    assert tune([str(written), *flags, "--policy", "goodput", "--out", str(out)]) == 0
    tuned = json.loads((out / "summary.json").read_text())
    words = [*flags, "--policy", "global", "--policy", "fixed"]
    words += ["--policy-file", str(out / "policy.json"), "-o", str(tmp_path / "report")]
    assert capacity([str(written), *words]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    choice = report["fleets"][0]["choice"]
    assert choice["replica_rate"] == 1.0
    for name in ("mean", "low", "high"):
        expected = tuned["gains"]["global"][name]
        assert choice["gains"]["tuned"][name] == pytest.approx(expected, abs=1e-6)
    assert tuned["roll_out"] or choice["policy"] != "tuned"
