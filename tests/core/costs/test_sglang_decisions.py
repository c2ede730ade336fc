"""Recorded decisions of SGLang's own planner: policy ``sglang`` takes them from the file it had.

``sglang_decisions.json`` was written with SGLang 0.5.21 (``python -m
tests.runtime.steer.record_decisions``), which ``tests/runtime/steer/test_tables.py`` asks again.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_dspark.core import Planner, load_cost_model, parse_policy
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.decide import stale_budget
from sglang_dspark.core.tables import make_workspace

RECORDED: dict[str, Any] = json.loads(
    Path(__file__).with_name("sglang_decisions.json").read_text(encoding="utf-8")
)
TABLES: list[dict[str, Any]] = RECORDED["tables"]
STEPS = 64
"""Confidences are recorded in so many equal steps, which float32 holds exactly."""


def loaded(path: Path, recorded: dict[str, Any]) -> CostModel:
    """The table as ``--cost-model`` takes it."""
    path.write_text(json.dumps(recorded["table"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_cost_model(path)


def taken(model: CostModel, policy: str, recorded: dict[str, Any]) -> list[tuple[int, float]]:
    """What the policy decides in the recorded states: budgets and seconds."""
    found = []
    for state in recorded["states"]:
        confidences = np.array(state["confidences"], dtype=np.float32) / np.float32(STEPS)
        rows, gamma = confidences.shape
        planner = Planner(
            policy=parse_policy(policy).policy, cost_model=model, gamma=gamma, max_requests=rows
        )
        budget, seconds, _ = stale_budget(
            planner.policy_tables,
            planner.costs,
            np.cumprod(confidences, axis=1, dtype=np.float32).astype(np.float64),
            2**62,
            make_workspace(rows, gamma),
        )
        found.append((int(budget), float(seconds)))
    return found


@pytest.mark.golden
@pytest.mark.parametrize(
    "recorded", TABLES, ids=[f"{one['kind']}-{one['shape']}" for one in TABLES]
)
def test_policy_sglang_decides_as_sglang_did(recorded: dict[str, Any], tmp_path: Path) -> None:
    found = taken(loaded(tmp_path / "table.json", recorded), "sglang", recorded)
    assert [budget for budget, _ in found] == [one["budget"] for one in recorded["states"]]
    wanted = [one["step_s"] for one in recorded["states"]]
    assert [seconds for _, seconds in found] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.law
def test_many_of_them_are_others_where_times_only_rise(tmp_path: Path) -> None:
    """Law: the states tell the file from its running maximum, by which steps are priced."""
    others = 0
    for recorded in TABLES:
        model = loaded(tmp_path / "table.json", recorded)
        priced = dataclasses.replace(model, sglang_sps=None, sglang_additive=None)
        policy = "sglang" if recorded["kind"] == "sps" else "sglang:additive"
        budgets = [budget for budget, _ in taken(priced, policy, recorded)]
        differ = sum(
            budget != one["budget"] for budget, one in zip(budgets, recorded["states"], strict=True)
        )
        assert not differ or recorded["shape"] != "rising"
        others += differ
    assert others > 50


@pytest.mark.law
def test_the_recorded_tables_are_of_every_kind_and_most_fall() -> None:
    kinds = {(one["kind"], one["shape"]) for one in TABLES}
    assert kinds == {
        (kind, shape)
        for kind in ("sps", "additive")
        for shape in ("rising", "falling", "noisy", "outlier", "dip")
    }
    budgets = {one["budget"] for table in TABLES for one in table["states"]}
    assert len(budgets) > 20
