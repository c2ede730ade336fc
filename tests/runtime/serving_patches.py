"""What tests change in a server before it starts, see ``nursery``: its pace, or its correctness.

Each function is called once in a freshly forked server.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import torch

from sglang_dspark.core.state import BatchState, Floats, VerifyPlan


def quick_step_log() -> None:
    """Parts of the step log become visible after a fraction of a second."""
    from sglang_dspark.logs.step_log import StepLog

    assert StepLog.__init__.__kwdefaults__ is not None
    StepLog.__init__.__kwdefaults__["interval_s"] = 0.3


def accept_everything() -> None:
    """Every verified draft token passes: the drafter's distribution, not the target's."""
    from sglang_dspark.runtime.kernels import rejection

    rejection.acceptance_probability = (  # type: ignore[attr-defined]
        lambda *, target, draft: torch.ones_like(target).double()
    )


def resample_the_target() -> None:
    """A rejected token is replaced by a draw from p instead of the positive part of p - q."""
    from sglang_dspark.runtime.kernels import rejection

    rejection.residual = lambda *, target_RV, draft_RV: target_RV  # type: ignore[attr-defined]


def look_at_what_is_cut() -> None:
    """Verify all or nothing by the confidence of position 2, which has seen token 1.

    By its parity in quarters: whatever the context, some first tokens are verified and some not.
    """
    from sglang_dspark.core.planner import Planner

    plan = Planner.plan

    def peeking(self: Planner, state: BatchState) -> VerifyPlan:
        high = np.floor(4 * state.logits[:, 1]) % 2 == 0
        return dataclasses.replace(
            plan(self, state), lengths=np.where(high, self.gamma, 0).astype(np.int64)
        )

    Planner.plan = peeking  # type: ignore[method-assign]


def nan_confidences() -> None:
    """Every fifth step, the first request's confidences are NaN from position 3 on."""
    from sglang_dspark.runtime.worker.planning import StepPlanner

    plan, steps = StepPlanner.plan, itertools.count()

    def poisoned(self: StepPlanner, *, logits_RK: Floats, **state: Any) -> Any:
        if next(steps) % 5 == 0:
            logits_RK = logits_RK.copy()
            logits_RK[0, 2:] = np.nan
        return plan(self, logits_RK=logits_RK, **state)

    StepPlanner.plan = poisoned  # type: ignore[method-assign]
    quick_step_log()
