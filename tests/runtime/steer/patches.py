"""What tests change in a forked server before it starts, see ``tests/runtime/nursery.py``."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import torch
from torch import Tensor


def quick_step_log() -> None:
    """Parts of the step log become visible after a fraction of a second."""
    from sglang_dspark.logs.step_log import StepLog

    defaults = StepLog.__init__.__kwdefaults__ or {
        name: parameter.default
        for name, parameter in inspect.signature(StepLog.__init__).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    defaults["interval_s"] = 0.3
    StepLog.__init__.__kwdefaults__ = defaults


def built_in() -> None:
    """SGLang's own DSPARK on a CPU, not steered."""
    from sglang_dspark.runtime.steer import cpu, hooks

    hooks.prepare = lambda server_args: None
    hooks.register = cpu.register


def failing_policy() -> None:
    """After the self-check, every third decision raises."""
    from sglang_dspark.core.planner import Planner

    quick_step_log()
    count = itertools.count()
    budget, plan = Planner.budget, Planner.plan

    def failing_budget(self: Planner, stale_logits: Any, **given: Any) -> Any:
        if next(count) % 3 == 2:
            raise RuntimeError("no luck")
        return budget(self, stale_logits, **given)

    def failing_plan(self: Planner, state: Any) -> Any:
        # Observing plans again, with the real contexts: that one must not fail.
        if not state.context_tokens.any() and next(count) % 3 == 2:
            raise RuntimeError("no luck")
        return plan(self, state)

    Planner.budget = failing_budget  # type: ignore[method-assign]
    Planner.plan = failing_plan  # type: ignore[method-assign]


def nan_confidences() -> None:
    """From the third decode step on, the first request's confidences are NaN now and then."""
    from sglang.srt.speculative.dspark_components import dspark_planner

    quick_step_log()
    count = itertools.count()
    original = dspark_planner.DSparkVerifyPlanner.compute_confidence_tensor

    def broken(self: Any, **given: Any) -> Any:
        found = original(self, **given)
        if next(count) % 4 == 3:
            found[0] = float("nan")
        return found

    dspark_planner.DSparkVerifyPlanner.compute_confidence_tensor = broken


def renamed_target() -> None:
    """As a release that decides under another name."""
    from sglang.srt.speculative.dspark_components import dspark_planner

    host = dspark_planner.HostConfidenceBudgetPlanner
    host.decide_budget = host.compute_budget
    del host.compute_budget


def changed_signature() -> None:
    """As a release whose decision takes something else."""
    from sglang.srt.speculative.dspark_components import dspark_planner

    def compute_budget(self: Any, *, confidence: Any, pool: Any) -> int:
        return 0

    dspark_planner.HostConfidenceBudgetPlanner.compute_budget = compute_budget


def deaf_planner() -> None:
    """As a release that has the targets and decides past them."""
    from sglang_dspark.runtime.steer.decision import Decider

    def each_one(self: Decider, decision: Any, confidence: Tensor, budget: int) -> Tensor:
        return torch.ones(len(confidence), dtype=torch.int64)

    Decider.lengths = each_one  # type: ignore[method-assign]
