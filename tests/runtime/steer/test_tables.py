"""``--policy sglang --cost-model TABLE``: SGLang's own decisions from the very file it has."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sglang_dspark.core import Planner, load_cost_model, parse_policy
from sglang_dspark.core.costs.sglang_files import SpsAdditiveTable, SpsTable
from sglang_dspark.core.costs.sglang_prices import falling
from sglang_dspark.runtime.steer.decision import fill_logits
from tests.core.costs.table_kinds import FILES, SHAPES
from tests.core.costs.test_sglang_decisions import TABLES
from tests.runtime.steer.record_decisions import asked
from tests.runtime.steer.test_parity import confidences

TABLES_EACH, STATES_EACH = 8, 50
"""For each of two kinds and five shapes: 4,000 decisions."""


@pytest.mark.law
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", FILES)
def test_a_users_file_gets_sglangs_decisions(
    kind: str, shape: str, sglang: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng([len(kind), SHAPES.index(shape)])
    path = tmp_path / "table.json"
    fell = 0
    for _ in range(TABLES_EACH):
        path.write_text(json.dumps(FILES[kind](rng, shape)))
        gamma = int(rng.integers(1, 16))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = load_cost_model(path)
        table = model.sglang_table
        assert isinstance(table, SpsTable if kind == "sps" else SpsAdditiveTable)
        assert len(said) == bool(falling(table))
        fell += len(said)
        theirs = sglang.load_sps_table_from_path(str(path))
        cfg = sglang.DSparkScheduleConfig(gamma=gamma)
        planner = Planner(
            policy=parse_policy("sglang").policy, cost_model=model, gamma=gamma, max_requests=64
        )
        for _ in range(STATES_EACH):
            rows = int(np.exp(rng.uniform(0, np.log(65))))
            stale, now = confidences(rng, rows, gamma), confidences(rng, rows, gamma)
            wanted = sglang.compute_verify_token_budget(
                history_survival_probs=torch.cumprod(stale, dim=1), sps_table=theirs, cfg=cfg
            )
            known = np.ones(rows, dtype=np.bool_)
            logits, current = np.empty((rows, gamma)), np.empty((rows, gamma))
            fill_logits(stale.numpy(), known, logits)
            fill_logits(now.numpy(), known, current)
            budget, seconds = planner.budget(logits)
            assert budget == wanted.budget
            assert seconds == pytest.approx(wanted.predicted_step_seconds, rel=1e-12)
            lengths = sglang.ScheduleVerifyLensTopk.execute(confidence=now, budget=budget, cfg=cfg)
            assert planner.assign(current, budget).tolist() == (lengths - 1).tolist()
    assert (fell == 0) == (shape == "rising")


@pytest.mark.law
def test_the_recorded_decisions_are_those_of_this_sglang(sglang: Any, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for recorded in TABLES:
        path.write_text(json.dumps(recorded["table"]))
        for state in recorded["states"]:
            assert asked(path, state["confidences"]) == state
