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


def step_times(
    steps: Sequence[StepRecord], served: Mapping[str, Served], *, chunk_tokens: int | None = None
) -> StepTimes:
    """Times of the steps, which come in order, and of what ran between them."""
    count = len(steps)
    plain_s, prefill_s = np.full(count, np.nan), np.full(count, np.nan)
    tokens = np.zeros(count, np.int64)
    batches, loops = np.ones(count, np.int64), np.full(count, 2)
    pairs, unknown = np.zeros(count), np.zeros(count, np.bool_)
    seen: set[str] = set(steps[0].request_ids)
    alone = _ended_at_once(steps, served)
    for s in range(1, count):
        before, step = steps[s - 1], steps[s]
        running = set(before.request_ids)
        joined = [i for i, rid in enumerate(step.request_ids) if rid not in running]
        back = any(step.request_ids[i] in seen for i in joined)
        seen.update(step.request_ids[i] for i in joined)
        gap = gap_s(before, step)
        begin_s = step.end_s - step.step_s
        if step.step != before.step + 1 or gap < 0.0 or back:
            continue
        if _any_within(alone, before.end_s, begin_s):
            continue
        if not joined:
            plain_s[s] = gap if gap < _PAUSE_S else np.nan
            continue
        of = [served.get(step.request_ids[i], NO_ONE) for i in joined]
        idle = len(joined) == step.requests  # then the server may have slept in between
        formed_s = min(one.entry_s if one.on_step_clock else math.nan for one in of)
        if idle and not (before.end_s <= formed_s < begin_s):
            continue
        took_s = begin_s - formed_s if idle else gap
        if took_s >= _PAUSE_S:
            continue
        context = [int(step.state.context_tokens[i]) for i in joined]
        cached = [min(one.cached_tokens or 0, c - 1) for one, c in zip(of, context, strict=True)]
        fresh = [c - spared for c, spared in zip(context, cached, strict=True)]
        prefill_s[s] = took_s
        batches[s] = prefill_batches(of, fresh, chunk_tokens)
        loops[s] = batches[s] + (0 if idle else 1)
        unknown[s] = any(one.cached_tokens is None for one in of)
        tokens[s] = sum(fresh)
        pairs[s] = sum(f * (spared + 0.5 * f) for f, spared in zip(fresh, cached, strict=True))
    return StepTimes(
        requests=np.array([step.requests for step in steps]),
        drafted=np.array([int(np.isfinite(step.state.logits[:, 0]).sum()) for step in steps]),
        tokens=np.array([step.computed_tokens for step in steps]),
        context_tokens=np.array([int(step.state.context_tokens.sum()) for step in steps]),
        uniform=np.array([step.shape == "uniform" for step in steps]),
        draft_s=np.array([step.draft_s for step in steps]),
        target_s=np.array([step.plan_s + step.verify_s + step.commit_s for step in steps]),
        gap_s=plain_s,
        prefill_gap_s=prefill_s,
        prefill_tokens=tokens,
        prefill_pairs=pairs,
        prefill_batches=batches,
        prefill_loops=loops,
        cached_unknown=unknown,
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
