"""What of SGLang the steer lane hooks, calls or reads, and how each of it must look.

Owns the list, and the check in a running process. A release that is only unpacked is checked by
``releases``. Imports neither SGLang nor torch.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COMPONENTS = "sglang.srt.speculative.dspark_components"
PLANNER = f"{COMPONENTS}.dspark_planner"
OBSERVERS = f"{COMPONENTS}.dspark_observability"
SCHEDULER = "sglang.srt.managers.scheduler"
VERIFIED = "0.5.21"
"""The release on which the lane's tests run."""
REMEDY = (
    f"install sglang=={VERIFIED} or another release that docs/serving.md lists, or set "
    "SGLANG_PLUGINS=none to run SGLang's own DSPARK"
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A function or class of SGLang."""

    module: str
    name: str
    parameters: tuple[str, ...]
    """Without self and cls; of a class, those of its construction."""
    exact: bool = True
    """Whether these are all; otherwise only the ones that a hook reads."""
    code: bool = False
    """Whether its body is part of SGLang's decision, which ``sglang`` equals."""

    @property
    def path(self) -> str:
        """Dotted, as the hook registry takes it."""
        return f"{self.module}.{self.name}"

    def difference(self, found: tuple[str, ...]) -> str:
        """What tells ``found`` from the expected parameters; empty when nothing does."""
        if self.exact and sorted(found) != sorted(self.parameters):
            return f"takes ({', '.join(found)}), not ({', '.join(self.parameters)})"
        missing = [name for name in self.parameters if name not in found]
        return f"takes no {', '.join(missing)}" if missing else ""


def _planner(name: str, *parameters: str, code: bool = False) -> Target:
    return Target(module=PLANNER, name=name, parameters=parameters, code=code)


_RESOLVED = ("resolved", "req_pool_indices_cpu")
_RELAYED = ("confidence", "generation", "req_pool_indices_cpu")
_CHOICE = ("confidence", "budget", "cfg")
INIT = Target(
    module=PLANNER,
    name="DSparkVerifyPlanner.__init__",
    parameters=("draft_model", "gamma", "model_runner", "device", "tp_rank"),
    exact=False,
)
CONTEXT = _planner("DSparkVerifyPlanner.prepare_verify_budget", "batch", "future_map")
CONTEXT_NOW = _planner(
    "DSparkVerifyPlanner.compute_budget_sync", "confidence", "prefix_lens", "req_pool_indices"
)
BUDGET_OF_STEP = _planner("DSparkVerifyPlanner._budget_from_resolved", *_RESOLVED, code=True)
BUDGET = _planner(
    "HostConfidenceBudgetPlanner.compute_budget", *_RELAYED, "current_generation", code=True
)
LAYOUT = Target(
    module=PLANNER,
    name="DSparkVerifyPlanner.schedule_layout",
    parameters=("confidence", "budget", "req_pool_indices"),
    exact=False,
)
LENGTHS = _planner("ScheduleVerifyLensTopk.execute", "args", "kwargs")
BEGIN = Target(module=OBSERVERS, name="DsparkStepObservers.begin_step", parameters=())
SEGMENT = Target(module=OBSERVERS, name="DsparkStepObservers.segment", parameters=("name",))
OBSERVE = Target(
    module=OBSERVERS,
    name="DsparkStepObservers.observe_verify_step",
    parameters=("reqs", "layout", "confidence", "prefix_lens", "correct_len"),
    exact=False,
)
PREFILL = Target(module=OBSERVERS, name="DsparkStepObservers.note_prefill_step", parameters=())
STATE = Target(module=SCHEDULER, name="Scheduler.get_internal_state", parameters=("recv_req",))

TARGETS = (
    INIT,
    CONTEXT,
    CONTEXT_NOW,
    BUDGET_OF_STEP,
    BUDGET,
    LAYOUT,
    LENGTHS,
    BEGIN,
    SEGMENT,
    OBSERVE,
    PREFILL,
    STATE,
    _planner("HostConfidenceBudgetPlanner._shift_to_lag", *_RELAYED, code=True),
    _planner("HostConfidenceBudgetPlanner._two_steps_prior_survival", "lagged_confidence",
             "lagged_generation", "current_generation", code=True),
    _planner("compute_verify_token_budget", "history_survival_probs", "sps_table", "cfg",
             code=True),
    _planner("ScheduleVerifyLensTopk.torch", *_CHOICE),
    _planner("VerifyBudgetDecision", "budget", "predicted_step_seconds", "predicted_theta"),
    Target(module="sglang.srt.speculative.ragged_verify", name="RaggedVerifyLayout",
           parameters=("verify_lens",), exact=False),
    Target(module="sglang.srt.managers.io_struct", name="GetInternalStateReqOutput",
           parameters=("internal_state",), exact=False),
)  # fmt: skip
"""Hooked first, then what is called or equalled."""

ATTRIBUTES = {
    "DSparkVerifyPlanner": (
        "_budget_planner", "_is_verify_all", "_schedule_cfg", "carries_confidence",
        "is_compact_mode", "lag_steps", "gamma", "device",
    ),
    "HostConfidenceBudgetPlanner": (
        "cfg", "sps_table", "forced_budget_frac", "last_decision", "lag_steps", "carry_steps",
    ),
}  # fmt: skip
"""What the hooks read or set of ``PLANNER``'s objects."""


def check(resolve: Callable[[str], Any] = pkgutil.resolve_name) -> None:
    """``ValueError`` naming the first target that this process's SGLang lacks or has changed."""
    for target in TARGETS:
        try:
            found = resolve(target.path)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"SGLang has no {target.path} ({error}); {REMEDY}") from None
        problem = target.difference(_live_parameters(found))
        if problem:
            raise ValueError(f"SGLang's {target.path} {problem}; {REMEDY}")


def _live_parameters(found: Any) -> tuple[str, ...]:
    names = tuple(inspect.signature(found).parameters)
    return tuple(name for name in names if name not in ("self", "cls"))
