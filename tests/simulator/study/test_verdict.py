"""The verdict: gains by hand, sentences by case, and where differences begin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.fleet.fleet import simulate
from simulator.run import main
from simulator.slo import PRESETS
from simulator.study.metrics import measure
from simulator.study.report import format_table
from simulator.study.verdict import budget_matters_from, gain, merit_of, verdict
from tests.simulator.replay_scenes import cost_model, scenario, trace


def run_of(policy: str, **changes: Any) -> tuple[dict[str, Any], Any]:
    outcome = simulate(scenario(policy, trace(300, rate=2.0), **changes))
    row = {"policy": policy, "concurrency": changes.get("concurrency"), "saturated": False}
    row |= measure(outcome, PRESETS["standard"])
    return row, outcome.requests[outcome.scenario.judged_requests]


@pytest.mark.law
def test_a_closed_loops_gain_is_that_of_its_throughput() -> None:
    rows = {p: run_of(p, concurrency=8) for p in ("none", "fixed")}
    found = gain(
        rows["fixed"][0], rows["none"][0], rows["fixed"][1], rows["none"][1], "output_tok_s"
    )
    assert found is not None
    ratio = rows["fixed"][0]["output_tok_s"] / rows["none"][0]["output_tok_s"]
    assert found["mean"] == pytest.approx(ratio - 1, abs=1e-6)
    assert found["low"] < found["mean"] < found["high"]
    same = gain(rows["none"][0], rows["none"][0], rows["none"][1], rows["none"][1], "output_tok_s")
    assert same is not None
    assert (same["mean"], same["low"], same["high"]) == (0, 0, 0)


@pytest.mark.law
def test_an_open_loops_gain_is_that_of_the_time_per_token() -> None:
    (row, ours), (base, theirs) = run_of("fixed"), run_of("none")
    assert merit_of([row, base]) == "tok_s_user"
    found = gain(row, base, ours, theirs, "tok_s_user")
    assert found is not None
    decoding = [np.sum(r["finish_s"] - r["first_token_s"]) for r in (ours, theirs)]
    assert found["mean"] == pytest.approx(decoding[1] / decoding[0] - 1, rel=0.02)


def summary(gains: dict[str, tuple[float, float, float]], current: str = "global") -> Any:
    row = {"concurrency": 8, "drafted_share": 0.0, "requests_in_system_mean": 8.0}
    return {
        "current": current,
        "replicas": 1,
        "policies": [row | {"policy": name} for name in (current, *gains)],
        "differences": [
            {"policy": name, "concurrency": 8}
            | {"gain": dict(zip(("mean", "low", "high"), g, strict=True)) | {"of": "output_tok_s"}}
            for name, g in gains.items()
        ],
    }


@pytest.mark.example
@pytest.mark.parametrize(
    ("gains", "says"),
    [
        ({}, "At concurrency 8: global ran alone, there is nothing to compare."),
        (
            {"fixed": (0.004, 0.001, 0.007), "none": (-0.02, -0.05, 0.01)},
            "any policy will do: no other differs from global, which runs today, by more than 1 % "
            "in output tokens/s.",
        ),
        (
            {"fixed": (-0.3, -0.31, -0.29), "none": (-0.1, -0.12, -0.08)},
            "keep global, which runs today: no other has more output tokens/s; behind it: none "
            "-10%, fixed -30%.",
        ),
        (
            {
                "goodput": (0.05, 0.04, 0.06),
                "sglang": (0.045, 0.04, 0.05),
                "none": (-0.1, -0.2, -0.05),
            },
            "goodput has +5.0% [+4.0%, +6.0%] output tokens/s over global, which runs today "
            "(sglang within 1 % of it); behind global: none -10%.",
        ),
    ],
)  # fmt: skip
def test_a_sentence_to_act_on(gains: dict[str, tuple[float, float, float]], says: str) -> None:
    (sentence,) = verdict(summary(gains), cost_model(), 48)
    assert sentence.endswith(says)


@pytest.mark.example
def test_where_the_budget_begins_to_matter_by_hand() -> None:
    """A step takes 8.5 ms up to 100 tokens and 1 s beyond: 13 requests of 8 are too many."""
    costs = cost_model(
        table={
            "tokens": [1, 100, 101, 16384], "seconds": [0.0085, 0.0085, 1.0, 1.0],
            "between": "linear", "origin": "analytic",
        }
    )  # fmt: skip
    row = {"verified_by_length": [0] * 7 + [100], "accepted_by_length": [20] * 3 + [0] * 4 + [40]}
    found = budget_matters_from(row, costs)
    assert found == 14  # the powers of 2^(1/4) above 12.5
    assert (
        budget_matters_from({"verified_by_length": [5, 0], "accepted_by_length": [5, 0]}, costs)
        is None
    )


@pytest.mark.example
@pytest.mark.parametrize(
    ("places", "flags"),
    [(48, "14,28,56 --max-running-requests 56"), (56, "14,28,56")],
)
def test_what_to_try_is_a_load_that_decodes_together(places: int, flags: str) -> None:
    table = {
        "tokens": [1, 100, 101, 16384], "seconds": [0.0085, 0.0085, 1.0, 1.0],
        "between": "linear", "origin": "analytic",
    }  # fmt: skip
    told = summary({"fixed": (0.0, -0.1, 0.1)})
    told["policies"][0] |= {
        "drafted_share": 1.0, "verify_tokens_per_request_step": 8.0,
        "verified_by_length": [0] * 7 + [100], "accepted_by_length": [20] * 3 + [0] * 4 + [40],
    }  # fmt: skip
    assert verdict(told, cost_model(table=table), places)[-1].endswith(
        f"here there were 8.0. Try --concurrency {flags}."
    )


@pytest.mark.example
def test_differences_are_over_what_runs_today(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["chat", "--policy", "fixed", "--policy", "none", "--concurrency", "8", "--jobs", "1"]
    assert main([*flags, "--current", "sglang", "--out", str(tmp_path / "o")]) == 0
    found = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert found["current"] == "sglang"
    assert [row["policy"] for row in found["policies"]] == ["sglang", "fixed", "none"]
    assert {(d["policy"], d["versus"]) for d in found["differences"]} == {
        ("fixed", "sglang"), ("none", "sglang"),
    }  # fmt: skip
    assert found["verdict"][0] in capsys.readouterr().out
    assert main([*flags, "--out", str(tmp_path / "p")]) == 0
    assert json.loads((tmp_path / "p" / "summary.json").read_text())["current"] == "fixed"


@pytest.mark.example
def test_what_most_rows_share_gets_no_star() -> None:
    rows = [run_of("none", concurrency=4)[0] | {"load": None, "policy": p} for p in "abcd"]
    rows[0] = rows[0] | {"output_tok_s": rows[0]["output_tok_s"] * 2}
    table = format_table(rows)
    assert table.count("*") == 1
