"""The times of a step log: of its steps, and of the gaps between them in which prompts ran.

Owns which gaps say something, and of what: a prefill is known by the requests that are new in the
step after it. Left out are gaps in which something else ran or may have: a request that came back
after it had lost its KV, one that ended with its first token, a pause, a step that was not logged.
Knows no fit and no file.

Shapes: S steps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sglang_dspark.logs.records import StepRecord
from simulator.fit.cost import StepTimes
from simulator.fit.served import NO_ONE, Served

_PAUSE_S = 5.0
"""A longer gap between two steps is not the engine's."""
_FORMED_APART_S = 0.001
"""Requests of one prefill step are noted within microseconds of each other."""
_APART_S = 0.005
"""First tokens further apart than this come from two prefill steps: those of one step are out
within a few milliseconds, the next step's take a forward longer."""


def gap_s(before: StepRecord, step: StepRecord) -> float:
    """Seconds between two steps that no part of the second explains."""
    return step.end_s - before.end_s - step.step_s


def prefill_batches(
    new: Sequence[Served], fresh: Sequence[int], chunk_tokens: int | None = None
) -> int:
    """How many prefill steps, at least, gave these requests their first tokens.

    Told apart by when they were formed, or else by their first tokens; 1 when neither is known.
    ``fresh`` are the tokens to prefill of each, of which a step takes ``chunk_tokens`` at most.
    """
    formed = all(math.isfinite(one.entry_s) for one in new)
    told = [one.entry_s if formed else one.first_s for one in new]
    times = [time_s if math.isfinite(time_s) else -math.inf for time_s in told]
    apart_s = _FORMED_APART_S if formed else _APART_S
    steps, before_s = 0, -math.inf
    for time_s in sorted(times):
        steps += time_s - before_s > apart_s
        before_s = max(before_s, time_s)
    return max(steps, 1, -(-sum(fresh) // chunk_tokens) if chunk_tokens else 1)


class _Prefills(NamedTuple):
    """What one gap held."""

    seconds: float
    tokens: int
    pairs: float
    steps: int
    loops: int
    cached_unknown: bool


def _prefills(
    before: StepRecord, step: StepRecord, joined: Sequence[int], of: Sequence[Served],
    chunk_tokens: int | None,
) -> _Prefills | None:  # fmt: skip
    """The prefills of the requests in these rows; None where the gap held more than them.

    Where nobody ran on, the server may have slept in between: then the gap begins when the first
    of them was formed, if that is known.
    """
    begin_s = step.end_s - step.step_s
    seconds, idle = gap_s(before, step), len(joined) == step.requests
    if idle:
        formed_s = min(one.entry_s if one.on_step_clock else math.nan for one in of)
        if not before.end_s <= formed_s < begin_s:
            return None
        seconds = begin_s - formed_s
    if seconds >= _PAUSE_S:
        return None
    context = [int(step.state.context_tokens[row]) for row in joined]
    cached = [min(one.cached_tokens or 0, c - 1) for one, c in zip(of, context, strict=True)]
    fresh = [c - spared for c, spared in zip(context, cached, strict=True)]
    steps = prefill_batches(of, fresh, chunk_tokens)
    return _Prefills(
        seconds=seconds,
        tokens=sum(fresh),
        pairs=sum(f * (spared + 0.5 * f) for f, spared in zip(fresh, cached, strict=True)),
        steps=steps,
        loops=steps + (0 if idle else 1),
        cached_unknown=any(one.cached_tokens is None for one in of),
    )


def step_times(
    steps: Sequence[StepRecord], served: Mapping[str, Served], *, chunk_tokens: int | None = None
) -> StepTimes:
    """Times of the steps, which come in order, and of what ran between them."""
    plain_s = np.full(len(steps), np.nan)
    nothing = _Prefills(math.nan, 0, 0.0, 1, 2, False)
    found = [nothing] * len(steps)
    seen: set[str] = set(steps[0].request_ids)
    at_once = _ended_at_once(steps, served)
    for s, (before, step) in enumerate(pairwise(steps), start=1):
        running = set(before.request_ids)
        joined = [row for row, rid in enumerate(step.request_ids) if rid not in running]
        names = [step.request_ids[row] for row in joined]
        back = any(rid in seen for rid in names)
        seen.update(names)
        gap = gap_s(before, step)
        if step.step != before.step + 1 or gap < 0.0 or back:
            continue
        if _any_within(at_once, before.end_s, step.end_s - step.step_s):
            continue
        if joined:
            of = [served.get(rid, NO_ONE) for rid in names]
            found[s] = _prefills(before, step, joined, of, chunk_tokens) or nothing
        elif gap < _PAUSE_S:
            plain_s[s] = gap
    return StepTimes(
        requests=np.array([step.requests for step in steps]),
        drafted=np.array([int(np.isfinite(step.state.logits[:, 0]).sum()) for step in steps]),
        tokens=np.array([step.computed_tokens for step in steps]),
        context_tokens=np.array([int(step.state.context_tokens.sum()) for step in steps]),
        uniform=np.array([step.shape == "uniform" for step in steps]),
        draft_s=np.array([step.draft_s for step in steps]),
        target_s=np.array([step.plan_s + step.verify_s + step.commit_s for step in steps]),
        gap_s=plain_s,
        prefill_gap_s=np.array([one.seconds for one in found]),
        prefill_tokens=np.array([one.tokens for one in found]),
        prefill_pairs=np.array([one.pairs for one in found]),
        prefill_batches=np.array([one.steps for one in found]),
        prefill_loops=np.array([one.loops for one in found]),
        cached_unknown=np.array([one.cached_unknown for one in found]),
    )


def _ended_at_once(steps: Sequence[StepRecord], served: Mapping[str, Served]) -> list[float]:
    """When requests that no step verified had their first token, on the steps' clock."""
    stepped = {rid for step in steps for rid in step.request_ids}
    return sorted(
        one.first_s
        for rid, one in served.items()
        if rid not in stepped and one.on_step_clock and math.isfinite(one.first_s)
    )


def _any_within(times_s: Sequence[float], low_s: float, high_s: float) -> bool:
    """Whether one of the sorted times lies between the two."""
    at = bisect_left(times_s, low_s)
    return at < len(times_s) and times_s[at] <= high_s
