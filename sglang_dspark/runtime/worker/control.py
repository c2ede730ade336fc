"""What a measurement asks of a running server: pin the verified length, show the last steps.

    POST /set_internal_state {"server_args": {"dspark_force_length": 3, "dspark_recent_steps": 256}}
    GET  /server_info        -> internal_states[i].dspark_control

Owns the two settings, both off until asked for. A pinned step still drafts and never asks for less
than was drafted; it is marked as not the policy's, so that no replay takes it for one. Knows
neither SGLang's scheduler nor tensors; ``install`` alone touches SGLang.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from sglang_dspark.logs.records import StepRecord
from sglang_dspark.runtime.worker.planning import StepPlanner

FORCE, RECENT = "dspark_force_length", "dspark_recent_steps"
MOST_RECENT = 4096
COLUMNS = (
    "step",
    "end_s",
    "requests",
    "planned_tokens",
    "computed_tokens",
    "context_tokens",
    "accepted",
    "draft_s",
    "plan_s",
    "verify_s",
    "commit_s",
    "shape",
    "pinned",
)
"""Of one step, in this order. Tokens are sums over the requests, the anchors' rows among them."""


class Control:
    """The settings of one worker, and the steps since they were set."""

    def __init__(self, planner: StepPlanner) -> None:
        self._planner = planner
        self._recent: deque[tuple[Any, ...]] = deque(maxlen=0)

    def apply(self, asked: Mapping[str, Any]) -> None:
        """Set what is named; ``ValueError`` before anything changes."""
        for name, high in ((FORCE, self._planner.planner.gamma), (RECENT, MOST_RECENT)):
            value = asked.get(name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and 0 <= value <= high):
                raise ValueError(f"{name} {value!r} must be a whole number up to {high}, or null")
        if FORCE in asked:
            self._planner.forced_length = asked[FORCE]
        if RECENT in asked:
            self._recent = deque(self._recent, maxlen=asked[RECENT] or 0)

    def observe(self, record: StepRecord) -> None:
        """Remember the step, where any are asked for."""
        if self._recent.maxlen:
            self._recent.append(
                (
                    int(record.step),
                    float(record.end_s),
                    record.requests,
                    record.requests + int(record.plan.lengths.sum()),
                    int(record.computed_tokens),
                    int(record.state.context_tokens.sum()),
                    int(record.accepted.sum()),
                    float(record.draft_s),
                    float(record.plan_s),
                    float(record.verify_s),
                    float(record.commit_s),
                    record.shape,
                    bool(record.degraded),
                )
            )

    def shown(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "force_length": self._planner.forced_length,
            "gamma": self._planner.planner.gamma,
            "columns": list(COLUMNS),
            "steps": [list(step) for step in self._recent],
        }


class _Shown(dict[str, Any]):
    """A dictionary that is ``control.shown()`` whenever its items are read, as /server_info does
    with what it finds among the server's arguments."""

    def __init__(self, control: Control) -> None:
        super().__init__(control.shown())
        self._control = control

    def items(self) -> Any:
        """Fresh items."""
        self.update(self._control.shown())
        return super().items()

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (self._control.shown(),)


def install(planner: StepPlanner) -> Control:
    """A control that answers this process's /set_internal_state and shows in /server_info."""
    import logging

    from sglang.srt.managers.io_struct import SetInternalStateReq, SetInternalStateReqOutput
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import get_global_server_args

    control = Control(planner)
    get_global_server_args().dspark_control = _Shown(control)

    def set_state(original: Any, scheduler: Any, request: Any) -> Any:
        asked = {
            name: request.server_args[name]
            for name in (FORCE, RECENT)
            if name in request.server_args
        }
        if not asked:
            return original(scheduler, request)
        try:
            control.apply(asked)
        except ValueError as error:
            logging.getLogger(__name__).warning("%s", error)
            return SetInternalStateReqOutput(updated=False, server_args={})
        rest = {name: value for name, value in request.server_args.items() if name not in asked}
        if rest:
            return original(scheduler, SetInternalStateReq(server_args=rest))
        return SetInternalStateReqOutput(updated=True, server_args={})

    # The worker is made before the scheduler binds its handlers.
    HookRegistry.register(
        "sglang.srt.managers.scheduler.Scheduler.set_internal_state", set_state, HookType.AROUND
    )
    HookRegistry.apply_hooks()
    return control
