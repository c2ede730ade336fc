"""The tuner: what it searches, what it finds, when it warns, and the command around it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.core.axis import Axis
from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.planner import compile_policy
from sglang_dspark.core.policy import POLICIES, PolicyFile, load_policy, parse_policy
from simulator.slo import PRESETS
from simulator.study.windows import Gain, cut_windows, split
from simulator.tune.bench import Bench, Load, Setting
from simulator.tune.command import main
from simulator.tune.guard import Examination, Guard
from simulator.tune.search import Search, score
from simulator.tune.space import families
from tests.simulator.replay_scenes import cost_model, scenario, trace
from tests.waiting import HUNG_S, wait_until

ROOT = Path(__file__).resolve().parents[3]
FAMILIES = families([], 7, Calibration(), PRESETS["interactive"])


@pytest.mark.law
@given(low=st.floats(0.01, 5), span=st.floats(1.5, 50), unit=st.floats(-1, 2), log=st.booleans())
def test_an_axis_stays_in_its_bounds_and_finds_its_way_back(
    low: float, span: float, unit: float, log: bool
) -> None:
    axis = Axis(name="x", low=low, high=low * span, log=log)
    value = axis.value(unit)
    assert axis.low * 0.995 <= value <= axis.high * 1.005
    assert 0 <= axis.unit(value) <= 1
    if 0 <= unit <= 1:
        assert axis.unit(value) == pytest.approx(unit, abs=0.02 * span)


@pytest.mark.law
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_point_of_every_family_is_a_policy_that_compiles(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(FAMILIES))
    point = [data.draw(st.floats(0, 1)) for _ in family.axes]
    file = family.build(point)
    compile_policy(file.policy, cost_model(), 7, 64)
    file.calibration.arrays(7)


@pytest.mark.example
def test_the_space_holds_every_policy_there_is_and_every_policy_s_defaults() -> None:
    assert set(POLICIES) == {family.policy for family in FAMILIES}
    for family in FAMILIES:
        default = family.build(family.default).policy
        named = POLICIES[family.policy](**family.held)
        if family.policy == "fixed":
            named = POLICIES["fixed"](length=7)
        assert default == named
        assert family.build(family.default) == family.build(family.draws()[0])


@pytest.mark.example
def test_a_temperature_is_applied_on_top_of_the_current_calibration() -> None:
    base = Calibration(temperatures=(1.0, 2.0), biases=(0.1, 0.2))
    (family,) = families(["global"], 2, base, PRESETS["interactive"])
    assert family.build(family.default).calibration == base
    found = family.build((1.0,)).calibration
    assert found.temperatures == (2.0, 4.0)
    assert found.biases == base.biases


def setting(model: CostModel | None = None, seed: int = 0) -> Setting:
    requests = trace(400, rate=20)
    changes = {"cost_model": model or cost_model(), "seed": seed}
    return Setting(
        base=scenario("fixed", requests, **changes),
        windows=cut_windows(requests),
        slo=PRESETS["interactive"],
    )


def search(
    names: list[str], model: CostModel | None = None, objective: str = "throughput",
    load: Load | None = None, current: str = "fixed",
) -> Search:  # fmt: skip
    return Search(
        bench=Bench(setting=setting(model)),
        families=families(names, 7, Calibration(), PRESETS["interactive"]),
        current=parse_policy(current),
        objective=objective,
        loads=[load or Load(concurrency=8)],
        windows=split(6)[0],
    )


@pytest.mark.law
@pytest.mark.parametrize("objective", ["throughput", "in_slo", "speed"])
def test_the_find_is_at_least_as_good_as_the_current_policy_and_every_default(
    objective: str,
) -> None:
    made = search(["threshold", "global", "early_stop"], objective=objective)
    best = made.run()
    seeds = [made.current, *(family.build(family.default) for family in made.families)]
    assert all(made.scores[best] >= made.scores[seed] for seed in seeds)
    assert made.scores[best].allowed
    assert made.scores[made.current].value == pytest.approx(1.0)


@pytest.mark.law
def test_the_search_sees_no_held_out_window_and_no_more_trials_than_it_said() -> None:
    made = search(["threshold", "global", "fixed"])
    made.run()
    assert {trial.window for trial in made.bench.known} == set(split(6)[0])
    assert len(made.bench.known) <= made.most_trials()


@pytest.mark.law
@pytest.mark.parametrize("best", [1, 3, 5])
def test_a_cliff_in_the_step_costs_is_found(best: int) -> None:
    """8 requests fit ``best`` drafts each before a step takes five times as long."""
    edge = 8 * (1 + best)
    table = {
        "tokens": [1, edge, edge + 1, 4096], "seconds": [0.01, 0.0101, 0.05, 0.06],
        "between": "linear", "origin": "analytic",
    }  # fmt: skip
    found = search(["fixed"], cost_model(table=table)).run()
    assert found.policy == POLICIES["fixed"](length=best)


@pytest.mark.law
def test_where_drafting_is_dear_plain_decoding_is_found() -> None:
    draft = {
        "gamma": 7, "requests": [1, 512], "seconds": [0.2, 0.2], "between": "linear",
        "origin": "analytic",
    }  # fmt: skip
    found = search([], cost_model(draft=draft)).run()
    assert found.policy.name == "none"


@pytest.mark.example
def test_lost_attainment_comes_after_any_policy_that_keeps_it() -> None:
    figures = {name: np.array([[2.0, 2.0]]) for name in ("throughput", "speed", "length_s")}
    current = figures | {"attainment": np.array([[0.9, 0.9]])}
    slower = {name: value / 4 for name, value in current.items()} | {
        "attainment": current["attainment"]
    }
    hasty = {name: value * 9 for name, value in current.items()} | {
        "attainment": current["attainment"] - 0.01
    }
    kept, lost = (score("throughput", f, current) for f in (slower, hasty))
    assert kept > lost
    assert (lost.allowed, kept.allowed) == (False, True)
    assert (lost.value, lost.speed) == (pytest.approx(-0.01), pytest.approx(9.0))


CLEAR = Gain(mean=0.05, low=0.02, high=0.08)
GOOD: dict[str, Any] = {
    "objective": "throughput",
    "windows": 16,
    "gains": {"global": CLEAR, "sglang": CLEAR},
    "rows": [],
    "attainment_lost": 0.0,
    "low_load": [
        {"concurrency": 1, "regret": 0.019, "best_other": "fixed"},
        {"concurrency": 4, "regret": 0.0, "best_other": "none"},
    ],
    "mistakes": [{"mistake": "confidence logits -0.5", "mean": 0.001}],
}


@pytest.mark.example
def test_the_guard_is_silent_where_nothing_speaks_against_a_rollout() -> None:
    assert Examination(**GOOD).reasons == []
    assert not Examination(**GOOD).no_difference


@pytest.mark.example
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            {"gains": {"global": Gain(mean=0.01, low=-0.001, high=0.021)}},
            ["within noise", "global"],
        ),
        (
            {"gains": {"global": CLEAR, "sglang": Gain(mean=-0.03, low=-0.05, high=-0.01)}},
            ["sglang is better", "-3.00%"],
        ),
        ({"attainment_lost": 0.01}, ["SLO attainment falls 1.0%"]),
        (
            {"low_load": [{"concurrency": 2, "regret": 0.021, "best_other": "fixed"}]},
            ["concurrency 2 it loses 2.1%", "fixed", "2%"],
        ),
        (
            {"mistakes": [{"mistake": "growth of step cost +20 %", "mean": -0.004}]},
            ["step cost +20 %", "turns into a loss", "-0.40%"],
        ),
    ],
)
def test_the_guard_gives_each_reason_a_sentence(change: dict[str, Any], parts: list[str]) -> None:
    (reason,) = Examination(**(GOOD | change)).reasons
    for part in parts:
        assert part in reason
    assert reason.endswith(".")


@pytest.mark.example
def test_the_guard_refuses_plain_decoding_that_pays_only_under_load() -> None:
    """8 tokens in a step take as long as 1, 64 take twenty times as long."""
    table = {
        "tokens": [1, 16, 17, 4096], "seconds": [0.01, 0.01, 0.2, 20.0], "between": "linear",
        "origin": "analytic",
    }  # fmt: skip
    bench = Bench(setting=setting(cost_model(table=table)))
    guard = Guard(
        bench=bench, incumbents={"fixed": parse_policy("fixed")}, low_load_others={},
        objective="throughput", loads=[Load(concurrency=16)], windows=split(6)[1],
    )  # fmt: skip
    found = guard.examine(parse_policy("none"))
    assert found.gains["fixed"].proven
    assert len(found.reasons) == 1
    assert "At concurrency 1 it loses" in found.reasons[0]
    assert {trial.window for trial in bench.known} == set(split(6)[1])
    assert {trial.draw for trial in bench.known}.isdisjoint({0})
    assert len(bench.known) <= guard.most_trials()


@pytest.mark.law
def test_windows_and_draws_have_seeds_of_their_own() -> None:
    made = setting()
    guard = Guard(
        bench=Bench(setting=made), incumbents={"fixed": parse_policy("fixed")}, low_load_others={},
        objective="throughput", loads=[Load()], windows=range(6),
    )  # fmt: skip
    file = parse_policy("global")
    trials = guard.bench.trials([file], [Load()], range(6), draws=range(3))
    assert len({made.scenario(trial).seed for trial in trials}) == 18
    other = setting(seed=1)
    assert {made.scenario(t).seed for t in trials}.isdisjoint(
        other.scenario(t).seed for t in trials
    )
    noted = dataclasses.replace(file, note="where from")
    assert made.scenario(dataclasses.replace(trials[0], policy=noted)).policy == file


@pytest.fixture(scope="module")
def short_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 420 requests of the shipped mixed trace, without its sidecar's prefixes."""
    path = tmp_path_factory.mktemp("given") / "short.jsonl"
    rows = [json.loads(x) for x in (ROOT / "traces" / "mixed.jsonl").read_text().splitlines()[:420]]
    for row in rows:
        row.pop("prefix_hashes", None)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(path: Path, out: Path, *more: str) -> list[str]:
    return [
        str(path), "--slo", "interactive", "--rate", "6", "--policy", "threshold", "--policy",
        "fixed", "--current", "sglang", *more, "--out", str(out),
    ]  # fmt: skip


def interrupted(arguments: list[str], journal: Path, lines: int) -> str:
    """What the command says on stderr, stopped by Ctrl-C once its journal has ``lines``."""
    command = [sys.executable, "-m", "simulator.tune", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= lines, process)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=HUNG_S)
    assert process.returncode == 130, errors
    assert journal.read_bytes().count(b"\n") >= lines
    return errors


@pytest.mark.filterwarnings("ignore:up to")  # how many run at a time does not matter here
@pytest.mark.law
def test_the_same_bytes_for_any_number_of_jobs_also_after_ctrl_c(
    short_trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(flags(short_trace, one, "--jobs", "1")) == 0
    whole = json.loads((one / "summary.json").read_text())
    assert ("DO NOT ROLL OUT" in capsys.readouterr().out) == (not whole["roll_out"])
    again = flags(short_trace, two, "--jobs", "2")
    interrupted(again, two / "tune.journal", 10)
    assert sorted(p.name for p in two.iterdir()) == ["tune.journal"]
    interrupted(again, two / "tune.journal", whole["search"]["simulations"] + 3)
    partial = json.loads((two / "summary.json").read_text())
    assert partial["interrupted"] is True
    assert partial["roll_out"] is False
    assert partial["tuned"] == whole["tuned"]
    assert load_policy(two / "policy.json").policy == load_policy(one / "policy.json").policy
    assert main(again) == 0
    assert sorted(p.name for p in two.iterdir()) == ["policy.json", "summary.json"]
    for name in ("policy.json", "summary.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.example
def test_the_policy_file_loads_and_says_where_it_came_from(
    short_trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([
        str(short_trace), "--slo", "interactive", "--policy", "global", "--concurrency", "4,16",
        "--objective", "speed", "--current", "sglang", "--jobs", "1", "--out", str(tmp_path),
    ]) == 0  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    file = load_policy(tmp_path / "policy.json")
    assert isinstance(file, PolicyFile)
    assert summary["command"] in file.note
    assert summary["trace_sha256"] in file.note
    assert ("do NOT" in file.note) == (not summary["roll_out"])
    assert summary["gains"].keys() == {"global", "sglang", "fixed"}
    assert [row["load"] for row in summary["policies"]] == ["concurrency 4"] * 4 + [
        "concurrency 16"
    ] * 4
    assert summary["load"] == []
    assert bool(summary["reasons"]) == (not summary["roll_out"])
    printed = capsys.readouterr().out
    for part in ("Tuned:", "over sglang:", "At low load", "confidence logits × 1.25", "ROLL OUT"):
        assert part in printed


@pytest.mark.example
@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--policy", "globl"], ["globl", "threshold", "early_stop"]),
        (["--objective", "joy"], ["joy", "in_slo"]),
        (["--current", "absent.json"], ["absent.json"]),
        (["--slo", "fast"], ["fast", "interactive"]),
        (["--concurrency", "400"], ["too few", "fewer clients"]),
        (["--jobs", "0"], ["0", "at least 1"]),
        (["--rate", "0"], ["0", "above 0"]),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_leaves_nothing(
    more: list[str], parts: list[str], short_trace: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert main([str(short_trace), *more, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    for part in parts:
        assert part in line
    assert not out.exists()
