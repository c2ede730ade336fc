"""One ``StepRecord`` per verified step of the built-in DSPARK, for the step log and the metrics.

Owns the step's marks in time and the way of its outcome to the host: on CUDA by copies that are
looked at when they have arrived, a step or two later, never by waiting. Knows SGLang's tensors, no
hook. Nothing here may harm the server: what cannot be recorded is left out, with one warning.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_dspark.core.planner import Planner
from sglang_dspark.core.state import BatchState, Bools, Ints, VerifyPlan
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.runtime.observers import Observers
from sglang_dspark.runtime.steer.decision import StepDecision, logits_of

BROKEN = "confidences were NaN"
OTHER_LENGTHS = "SGLang assigned other lengths"
_MOST_PENDING = 64
"""Steps whose copies may be under way; the device is never so far behind."""


class StepClock:
    """Marks in one step, in order: ``seconds`` between any two, read when the step is over."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: dict[str, Any] = {}

    def mark(self, name: str) -> None:
        """Remember this moment, of the stream's work on CUDA."""
        if not self._cuda:
            self._marks[name] = time.perf_counter()
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks[name] = event

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Mark ``name`` and, when what runs inside is over, ``name end``."""
        self.mark(name)
        yield
        self.mark(f"{name} end")

    def seconds(self, start: str, end: str) -> float:
        """From one mark to another; 0 where one is missing. On CUDA both must have happened."""
        first, last = self._marks.get(start), self._marks.get(end)
        if first is None or last is None:
            return 0.0
        if self._cuda:
            return float(first.elapsed_time(last)) / 1000
        return float(last - first)

    @property
    def over(self) -> bool:
        """Whether the device has come to the last mark."""
        if not self._cuda or not self._marks:
            return True
        return bool(list(self._marks.values())[-1].query())


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A step whose outcome is on its way to the host."""

    step: int
    request_ids: tuple[str, ...]
    decision: StepDecision
    table: Tensor
    """[R, K + 3] logits; prefix length, accepted draft tokens, verified tokens with the anchor."""
    ragged: bool
    computed_tokens: int
    """0: the sum of the verified ones."""
    clock: StepClock


class StepObserver:
    """Collects steps in order and hands them to ``observers`` once the host knows their outcome.

    ``begin`` and ``part`` frame the step in time, ``decided`` says what was decided, ``end`` takes
    the outcome. A step that was not begun or not decided leaves no record.
    """

    def __init__(
        self, planner: Planner, observers: Observers, *, device: torch.device, lag_steps: int
    ) -> None:
        self._planner = planner
        self._observers = observers
        self._device = device
        self._lag_steps = lag_steps
        self._pending: deque[_Pending] = deque()
        self._steps = 0
        self.clock: StepClock | None = None

    def begin(self) -> None:
        """A step begins."""
        self.clock = StepClock(self._device)
        self.clock.mark("begin")

    def end(
        self,
        *,
        decision: StepDecision,
        request_ids: Sequence[str],
        confidence_RK: Tensor,
        prefix_R: Tensor,
        accepted_R: Tensor,
        verified_R: Tensor | None,
        ragged: bool,
    ) -> None:
        """A step is over; ``verified_R`` counts the anchor, None verifies everything.

        ``ragged``: the target computed only the verified tokens.
        """
        clock, self.clock = self.clock, None
        if clock is None:
            return
        full = self._planner.gamma + 1
        logits = decision.logits if decision.logits is not None else logits_of(confidence_RK)
        if verified_R is None:
            verified_R = torch.full_like(prefix_R, full)
        # One float64 table, since every copy to the host has a fixed cost; its integers are exact.
        counts = torch.stack((prefix_R.long(), accepted_R.long(), verified_R.long()), dim=1)
        table = torch.cat((logits, counts.double()), dim=1)
        self._steps += 1
        pending = _Pending(
            step=self._steps,
            request_ids=tuple(request_ids),
            decision=decision,
            table=_to_host(table),
            ragged=ragged,
            computed_tokens=0 if ragged else len(request_ids) * full,
            clock=clock,
        )
        clock.mark("end")
        self._pending.append(pending)
        if len(self._pending) > _MOST_PENDING:
            self._pending.popleft()
        self.collect()

    def collect(self) -> None:
        """Hand on every step whose outcome has arrived."""
        while self._pending and self._pending[0].clock.over:
            self._observers.observe(self._record(self._pending.popleft()))

    def _record(self, pending: _Pending) -> StepRecord:
        decision, clock = pending.decision, pending.clock
        table, gamma = pending.table.numpy(), self._planner.gamma
        logits = np.ascontiguousarray(table[:, :gamma])
        context, accepted, verified = table[:, gamma:].T.astype(np.int64)
        degraded = decision.degraded
        broken = np.isnan(logits).any(axis=1)
        if broken.any():
            logits = np.where(broken[:, None], 0.0, logits)
            degraded = degraded or BROKEN
        stale, given = decision.stale_logits, decision.given
        state = BatchState(
            logits=logits,
            stale_logits=stale,
            stale_age=np.where(np.isnan(stale[:, 0]), 0, self._lag_steps),
            context_tokens=context if given.context_tokens is None else given.context_tokens,
            prefills_per_step=given.prefills_per_step,
        )
        plan = self._planner.plan(state)
        if not degraded and not np.array_equal(plan.lengths, verified - 1):
            degraded = OTHER_LENGTHS
        if degraded:
            plan = as_verified(plan, verified - 1)
        return StepRecord(
            step=pending.step,
            end_s=time.time(),
            request_ids=pending.request_ids,
            state=state,
            plan=plan,
            accepted=accepted,
            computed_tokens=pending.computed_tokens or int(verified.sum()),
            shape="ragged" if pending.ragged else "uniform",
            draft_s=clock.seconds("begin", "draft end"),
            plan_s=clock.seconds("draft end", "target_verify"),
            verify_s=clock.seconds("target_verify", "target_verify end"),
            commit_s=clock.seconds("target_verify end", "end"),
            degraded=degraded,
        )


def as_verified(plan: VerifyPlan, lengths: Ints) -> VerifyPlan:
    """The plan that was carried out instead of the policy's, whose predictions it keeps."""
    drafts: Bools = np.ones(lengths.size, dtype=np.bool_)
    return dataclasses.replace(plan, lengths=lengths, draft_next=drafts, stop_reason="fixed")


def _to_host(tensor: Tensor) -> Tensor:
    """A copy on the host; on CUDA it is under way, and whole once a later event has happened."""
    if not tensor.is_cuda:
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
