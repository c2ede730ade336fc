"""Asks the live planner of SGLang for a decision before the first request, and compares with core.

A hook that another plugin overrides, or a release that decides elsewhere, would go unnoticed
otherwise. Owns the state that is asked about.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import SGLangPlanner, policy_label
from sglang_dspark.core.state import BatchState
from sglang_dspark.runtime.steer import targets
from sglang_dspark.runtime.steer.decision import Decider, fill_logits

_MOST_ROWS = 8


def question(rows: int, gamma: int) -> Tensor:
    """float32 [R, K] confidences, all different, from likely to hopeless."""
    place = torch.arange(rows * gamma, dtype=torch.float64).reshape(rows, gamma)
    return (0.995 - 0.9 * (place * 0.6180339887498949 % 1.0) ** 3).float()


def compare(planner: Any, decider: Decider, cost_model: CostModel) -> None:
    """``ValueError`` when what ``planner`` answers is not what core plans.

    ``planner``: a ``DSparkVerifyPlanner`` with the hooks on it. Its own objects are left alone.
    """
    from sglang.srt.speculative.dspark_components import dspark_planner

    if decider.is_sglang:
        _same_table(planner._budget_planner.sps_table, decider, cost_model)
    gamma = decider.planner.gamma
    rows = min(_MOST_ROWS, decider.planner.max_requests)
    confidence = question(rows, gamma)
    known = torch.ones(rows, dtype=torch.int64)
    logits = np.empty((rows, gamma))
    fill_logits(confidence.numpy(), known.bool().numpy(), logits)
    state = BatchState(
        logits=logits,
        stale_logits=logits,
        stale_age=np.full(rows, decider.lag_steps),
        context_tokens=np.full(rows, int(decider.planner.costs.context_reference_tokens)),
    )
    wanted = decider.planner.plan(state).lengths
    if not decider.planner.decides_early:
        step = decider.nothing_known(rows)
        decider.plan_late(step, confidence.to(planner.device))
        found = decider.lengths(step, confidence.to(planner.device), int(wanted.sum()))
    else:
        host = copy.copy(planner._budget_planner)
        host.carry_steps = 0
        budget = host.compute_budget(
            confidence=confidence,
            generation=known,
            current_generation=known,
            req_pool_indices_cpu=torch.arange(rows),
        )
        found = (
            dspark_planner.ScheduleVerifyLensTopk.execute(
                confidence=confidence.to(planner.device), budget=budget, cfg=planner._schedule_cfg
            )
            - 1
        )
    if found.tolist() != wanted.tolist():
        raise ValueError(
            f"SGLang's planner verifies {found.tolist()} where the policy says {wanted.tolist()}: "
            f"another plugin decides too, or this release decides elsewhere; {targets.REMEDY}"
        )


def _same_table(theirs: Any, decider: Decider, cost_model: CostModel) -> None:
    """``ValueError`` when SGLang was given a table that the policy does not decide by."""
    if len(getattr(theirs, "sample_batch_tokens", ())) == 1:
        return  # none was given
    policy = decider.planner.policy
    if not isinstance(policy, SGLangPlanner):
        return
    given = policy.given(cost_model, decider.planner.gamma)
    ours = {} if given is None else dataclasses.asdict(given)
    if not ours or any(
        list(getattr(theirs, name, ())) != list(ours[name]) for name in ours if _is_list(ours[name])
    ):
        raise ValueError(
            f"--speculative-dspark-sps-table-path is not the table of cost model "
            f"{cost_model.name!r}, by which policy {policy_label(decider.planner.policy)} decides; "
            "leave it out"
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
