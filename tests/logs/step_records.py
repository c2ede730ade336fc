"""Random step records for the tests of the log and the metrics."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import GlobalBudget, PolicyFile
from sglang_dspark.core.state import STOP_REASONS, BatchState, VerifyPlan
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.logs.step_parts import PartHeader, header_of

GAMMA = 4
MAX_REQUESTS = 32
MODEL = load_cost_model("b300x4-dsv4-flash-vllm")


def header_with(
    policy: PolicyFile | None = None, cost_model: CostModel = MODEL, gamma: int = GAMMA
) -> PartHeader:
    return header_of(
        policy=policy or PolicyFile(policy=GlobalBudget()),
        cost_model=cost_model,
        gamma=gamma,
        max_requests=MAX_REQUESTS,
        versions={"sglang": "0.5.15.post1", "sglang_dspark": "0.1.0"},
    )


def random_state(rng: np.random.Generator, rows: int, gamma: int = GAMMA) -> BatchState:
    """Some requests without history, some without a draft, KV room short and SLOs now and then."""
    logits, stale = rng.normal(1.5, 2.0, (2, rows, gamma))
    missing = rng.random(rows) < 0.2
    stale[missing] = np.nan
    logits[rng.random(rows) < 0.1] = -np.inf
    optional: dict[str, Any] = {}
    if rng.random() < 0.5:
        optional = {
            "slo_slack_s": np.where(rng.random(rows) < 0.5, np.inf, rng.random(rows)),
            "priority": rng.integers(0, 9, rows),
            "note": np.where(rng.random(rows) < 0.3, np.nan, rng.random(rows)),
        }
    return BatchState(
        logits=logits,
        stale_logits=stale,
        stale_age=np.where(missing, 0, rng.integers(2, 40, rows)),
        context_tokens=rng.integers(1, 40_000, rows),
        prefills_per_step=float(rng.random()),
        kv_room_tokens=int(rng.choice([0, rows, rows + 3, 2**40, 2**62])),
        **optional,
    )


def random_plan(rng: np.random.Generator, state: BatchState) -> VerifyPlan:
    return VerifyPlan(
        lengths=rng.integers(0, state.gamma + 1, state.requests),
        draft_next=rng.random(state.requests) < 0.5,
        predicted_step_s=float(rng.choice([rng.random(), np.nan])),
        expected_tokens=float(rng.choice([rng.random(), np.inf])),
        stop_reason=str(rng.choice(STOP_REASONS)),
    )


def random_record(
    seed: int, *, step: int = 0, rows: int | None = None, planner: Planner | None = None
) -> StepRecord:
    """Planned by ``planner`` where there is one, at random otherwise."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(0, MAX_REQUESTS + 1)) if rows is None else rows
    state = random_state(rng, rows, planner.gamma if planner else GAMMA)
    plan = planner.plan(state) if planner else random_plan(rng, state)
    draft_s, plan_s, verify_s, commit_s = rng.random(4).tolist()
    return StepRecord(
        step=step,
        end_s=1.7e9 + rng.random(),
        request_ids=tuple(f"request-{seed}-{row}" for row in range(rows)),
        state=state,
        plan=plan,
        accepted=(rng.random(rows) * (plan.lengths + 1)).astype(np.int64),
        computed_tokens=plan.step_tokens,
        shape=str(rng.choice(["uniform", "ragged"])),
        draft_s=draft_s,
        plan_s=plan_s,
        verify_s=verify_s,
        commit_s=commit_s,
    )
