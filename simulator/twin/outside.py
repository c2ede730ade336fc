"""The seconds of a first token that no engine step explains: HTTP, tokens and text, both ways.

Owns their measurement, where a client's clock meets the steps' own, and the draws of a replay.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.tables import prefill_seconds
from simulator.twin.timings import Segment

Floats = npt.NDArray[np.float64]

_FEW = 8
"""Requests of a step that leaves places in the batch, so that nobody waits for one."""
_LEAST = 10
"""Requests that one of the medians is taken of at least."""
_ALONE_S = 0.05
"""The time before it in which nothing else may happen to a request that finds the engine idle."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outside:
    """Seconds of a first token outside the engine.

    A server that sleeps takes longer to answer than one that works, which takes a request up
    between two steps.
    """

    idle_s: float
    """Of a request that finds no step running."""
    busy_s: float
    """Of any other."""
    spread_s: Floats
    """Differences from these, to draw from."""
    notes: tuple[str, ...] = ()
    """What the recording did not show."""

    def draw(self, idle: npt.NDArray[np.bool_], seed: int) -> Floats:
        """For each request, whether it finds the engine idle."""
        spread_s = np.random.default_rng(seed).choice(self.spread_s, idle.size)
        return np.maximum(np.where(idle, self.idle_s, self.busy_s) + spread_s, 0.0)

    @staticmethod
    def of(segments: Sequence[Segment], model: CostModel) -> Outside:
        """Measured where a client's clock meets the steps' own, medians throughout.

        Idle: what the first token took beyond the prefill. Busy: its way in and its way out. The
        way in is the time for which as many requests seem to be taken up too early as too late,
        by the step after which they were; the way out ends where their first decode step begins.
        How much both vary is what the way back of last tokens does. One of the two stands for the
        other where the recording shows too little of that; ``ValueError`` without either.
        """
        idle: list[float] = []
        busy_in: list[float] = []
        busy_out: list[float] = []
        back: list[float] = []
        for segment in segments:
            _observe(segment, model, idle, busy_in, busy_out, back)
        notes = []
        idle_s = float(np.median(idle)) if len(idle) >= _LEAST else None
        busy_s = None
        if len(busy_out) >= _LEAST:
            busy_s = max(float(np.median(busy_in) + np.median(busy_out)), 0.0)
        if idle_s is None and busy_s is None:
            raise ValueError(
                f"only {len(idle)} requests found the server idle and {len(busy_out)} lightly "
                "busy; record longer, or at a lower load"
            )
        for name, value, other in (("idle", idle_s, busy_s), ("busy", busy_s, idle_s)):
            if value is None and other is not None:
                notes.append(
                    f"fewer than {_LEAST} requests found the server {name}: their time outside the "
                    f"engine is taken as that of the others, {1e3 * other:.1f} ms"
                )
        known = [value for value in (idle_s, busy_s) if value is not None]
        return Outside(
            idle_s=known[0],
            busy_s=known[-1],
            spread_s=np.array(back) - np.median(back),
            notes=tuple(notes),
        )


def _observe(
    segment: Segment,
    model: CostModel,
    idle: list[float],
    busy_in: list[float],
    busy_out: list[float],
    back: list[float],
) -> None:
    """Append what one segment shows."""
    tables = model.tables(1, 1)
    begin = np.array([step.end_s - step.step_s for step in segment.steps])
    end = np.array([step.end_s for step in segment.steps]) + tables.host_s
    sent = sorted(one.sent_s for one in segment.seen)
    first: dict[str, int] = {}
    for number, step in enumerate(segment.steps):
        for rid in step.request_ids:
            first.setdefault(rid, number)
    last = {rid: step.end_s for step in segment.steps for rid in step.request_ids}
    for one in segment.seen:
        if one.rid not in first or not np.isfinite(one.first_s):
            continue
        back.append(one.end_s - last[one.rid])
        number = first[one.rid]
        few = segment.steps[number].requests <= _FEW
        if few and number > 1 and end[number - 1] > one.sent_s:
            busy_in += [end[number - 2] - one.sent_s, end[number - 1] - one.sent_s]
            busy_out.append(one.first_s - begin[number])
            continue
        near = bisect_left(sent, one.first_s) - bisect_right(sent, one.sent_s - _ALONE_S)
        if near == 1 and (number == 0 or end[number - 1] < one.sent_s - _ALONE_S):
            new = one.prompt_tokens - (one.cached_tokens or 0)
            pairs = new * ((one.cached_tokens or 0) + 0.5 * new)
            engine_s = prefill_seconds(tables, new, pairs) + tables.host_s
            idle.append(one.first_s - one.sent_s - engine_s)
