"""Policy ``sglang`` decides as SGLang's planner: on random states, from the file it exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sglang_dspark.core import Planner, load_cost_model
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.sglang_files import SpsAdditiveTable, SpsTable
from sglang_dspark.core.costs.sglang_tables import from_additive, from_sps, to_additive, to_sps
from sglang_dspark.core.policy import SGLangPlanner
from sglang_dspark.runtime.steer.decision import fill_logits

GAMMAS = range(1, 16)
STATES_EACH = 380
"""For each of 15 draft lengths and two tables: 11,400 states."""


def confidences(rng: np.random.Generator, rows: int, gamma: int) -> Tensor:
    """float32 [R, K] of many kinds: spread out, nearly sure, hopeless, tied, exactly 0 and 1."""
    kind = rng.integers(5)
    z = rng.normal(rng.uniform(-2, 4), rng.uniform(0.2, 4), (rows, gamma))
    if kind == 0:
        z += 12.0
    found = torch.from_numpy(1 / (1 + np.exp(-z))).float()
    if kind == 1:
        found = (found * 16).round() / 16
    if kind == 2:
        found = found[rng.integers(rows, size=rows)].contiguous()
    if kind == 3:
        found[torch.from_numpy(rng.random((rows, gamma)) < 0.1)] = 1.0
        found[torch.from_numpy(rng.random((rows, gamma)) < 0.05)] = 0.0
    return found


def random_costs(rng: np.random.Generator, table: str) -> CostModel:
    """Random probes, with stairs, plateaus and cliffs."""
    sizes = np.unique(rng.integers(1, 3000, rng.integers(2, 60)))
    steps = rng.exponential(1e-5, sizes.size) * rng.choice([0.0, 0.2, 1.0, 3.0], sizes.size)
    seconds = np.maximum.accumulate(rng.uniform(0.002, 0.004) + steps * sizes)
    if table == "sps":
        return from_sps(
            SpsTable(
                sample_batch_tokens=tuple(sizes.tolist()),
                sample_steps_per_sec=tuple((1 / seconds).tolist()),
                max_batch_tokens=int(sizes[-1]),
            )
        )
    requests = np.unique(rng.integers(1, 256, rng.integers(2, 12)))
    return from_additive(
        SpsAdditiveTable(
            bias_seconds=float(seconds[0]),
            bs_probes=tuple(requests.tolist()),
            alpha_seconds=tuple(np.sort(rng.exponential(1e-3, requests.size)).tolist()),
            m_probes=tuple(sizes.tolist()),
            theta_seconds=tuple((seconds - seconds[0]).tolist()),
        )
    )


@pytest.mark.law
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("table", ["sps", "additive"])
def test_random_states_get_sglangs_budget_and_lengths(
    table: str, gamma: int, sglang: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng([gamma, len(table)])
    cfg = sglang.DSparkScheduleConfig(gamma=gamma)
    models = [random_costs(rng, table) for _ in range(3)]
    models.append(load_cost_model("h200-qwen3-8b-analytic"))
    most_budgets = set()
    for model in models:
        exported = to_sps(model, gamma) if table == "sps" else to_additive(model)
        exported.save(tmp_path / "table.json")
        theirs = sglang.load_sps_table_from_path(str(tmp_path / "table.json"))
        planner = Planner(
            policy=SGLangPlanner(table=table), cost_model=model, gamma=gamma, max_requests=256
        )
        for _ in range(STATES_EACH // len(models)):
            rows = int(np.exp(rng.uniform(0, np.log(257))))
            stale, now = confidences(rng, rows, gamma), confidences(rng, rows, gamma)
            fresh = torch.from_numpy(rng.random(rows) < 0.9)
            survival = torch.where(fresh.view(-1, 1), torch.cumprod(stale, dim=1), 1.0)
            wanted = sglang.compute_verify_token_budget(
                history_survival_probs=survival, sps_table=theirs, cfg=cfg
            )
            logits, current = np.empty((rows, gamma)), np.empty((rows, gamma))
            fill_logits(stale.numpy(), fresh.numpy(), logits)
            fill_logits(now.numpy(), np.ones(rows, dtype=np.bool_), current)
            budget, seconds = planner.budget(logits)
            assert budget == wanted.budget
            assert seconds == pytest.approx(wanted.predicted_step_seconds, rel=1e-12)
            lengths = sglang.ScheduleVerifyLensTopk.execute(confidence=now, budget=budget, cfg=cfg)
            assert planner.assign(current, budget).tolist() == (lengths - 1).tolist()
            most_budgets.add(budget)
    assert len(most_budgets) > 20


@pytest.mark.law
def test_survival_is_sglangs_to_the_last_bit() -> None:
    rng = np.random.default_rng(5)
    model = load_cost_model("h200-qwen3-8b-analytic")
    planner = Planner(policy=SGLangPlanner(), cost_model=model, gamma=7, max_requests=256)
    for _ in range(200):
        c = confidences(rng, 256, 7)
        logits = np.empty((256, 7))
        fill_logits(c.numpy(), np.ones(256, dtype=np.bool_), logits)
        np.testing.assert_array_equal(planner.survival(logits), torch.cumprod(c, dim=1).numpy())
