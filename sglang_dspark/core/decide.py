"""Every budget policy's decision, as compiled functions over arrays.

This is the code that runs in the server and inside the simulator's kernel, unchanged. It sees
survival probabilities and a cost table; it has no clock, no state and no random numbers.

All policies maximise, or approximate, expected committed tokens per second (paper 3.2.2)::

    (R + sum of the B best survivals) / T(R, R + B)

where T prices the shape of the step too: verifying everything is uniform, fewer tokens are ragged.

Symbols: R requests, K draft positions, B extra tokens beyond one per request, M = R + B.
"""

from __future__ import annotations

import numpy as np

from sglang_dspark.core.compiled import compiled, inlined
from sglang_dspark.core.costs.tables import (
    DECIDED,
    PLAIN,
    RAGGED,
    UNIFORM,
    CostTables,
    decode_step_seconds,
)
from sglang_dspark.core.goodput import Circumstances, goodput_budget, plan_goodput, step_seconds
from sglang_dspark.core.ranking import assign_slots, sort_candidates
from sglang_dspark.core.state import (
    AS_FIXED,
    BELOW_THRESHOLD,
    EXHAUSTED,
    KV_ROOM,
    NO_DRAFT,
    NO_GAIN,
    Floats,
    Ints,
)
from sglang_dspark.core.tables import (
    EARLY_STOP,
    FIXED,
    GLOBAL,
    GOODPUT,
    NONE,
    TABLE_ADDITIVE,
    TABLE_FLAT,
    TABLE_SPS,
    THRESHOLD,
    PolicyTables,
    Workspace,
)

_LOOK_AHEAD = 16
"""Candidates between two looks at whether the rest can still win."""
_ROUNDING = 1.0 + 1e-9
"""More than sums of thousands of survivals are off by."""


@compiled
def _reference_step_s(costs: CostTables, tokens: int, requests: int, shape: int) -> float:
    """T(R, M) at the cost model's reference context, drafting for everyone."""
    context = requests * costs.context_reference_tokens
    return decode_step_seconds(costs, tokens, requests, requests, context, shape)


@compiled
def step_shape(policy: PolicyTables, lengths: Ints, rows: int, columns: int, drafted: int) -> int:
    """The shape of the step that verifies ``lengths[:rows]`` of up to ``columns``.

    ``none`` is a server that does not speculate, whatever else the same server would have drafted.
    ``goodput`` decides from old confidences and prices whether there is anything to decide: where
    it verifies all that was drafted, nobody waits for a confidence.
    """
    if policy.code == NONE:
        return PLAIN
    for r in range(1, rows):
        if lengths[r] != lengths[0]:
            return RAGGED
    if not policy.reads_confidences or drafted == 0 or rows == 0:
        return UNIFORM
    if lengths[0] < columns:
        return RAGGED
    return UNIFORM if policy.code == GOODPUT else DECIDED


@compiled
def best_budget(
    costs: CostTables, candidates: Floats, total: int, requests: int, columns: int, room: int
) -> int:
    """The B in 0..min(total, room) with the most expected tokens per second; the first on ties.

    ``candidates`` [total] are survivals in descending order, of ``columns`` positions each. A
    global argmax: a step curve with stairs or a cliff does not trap it. Ragged steps dear enough
    leave it none and all.
    """
    limit = min(total, room)
    if limit <= 0:
        return 0
    ragged_s = costs.ragged_s
    first_s = _reference_step_s(costs, requests, requests, RAGGED)
    whole_s = np.inf  # of a step in which everyone verifies everything
    if costs.shaped and limit == requests * columns:
        whole_s = _reference_step_s(costs, requests + limit, requests, DECIDED)
    # Everything but the target's forward is the same for every B.
    last = ragged_s.size - 1
    rest_s = first_s - ragged_s[min(requests, last)]
    if requests + limit > last or costs.ragged_floor_s > 0.0 or costs.overlapped_s > 0.0:
        rest_s = np.nan
    expected = float(requests)
    best = 0
    best_rate = expected / first_s
    most_ragged = limit if whole_s == np.inf else limit - 1
    for b in range(1, most_ragged + 1):
        expected += candidates[b - 1]
        if rest_s == rest_s:
            step_s = rest_s + ragged_s[requests + b]
        else:
            step_s = _reference_step_s(costs, requests + b, requests, RAGGED)
        rate = expected / step_s
        if rate > best_rate:
            best_rate = rate
            best = b
        # Ragged steps get no faster, and none of the rest is worth more than this one.
        if b % _LOOK_AHEAD == 0:
            most = expected + (limit - b) * candidates[b - 1]
            if most * _ROUNDING < best_rate * min(step_s, whole_s):
                return best
    if most_ragged < limit and (expected + candidates[limit - 1]) / whole_s > best_rate:
        return limit
    return best


@compiled
def early_stop_budget(
    costs: CostTables, candidates: Floats, total: int, requests: int, room: int
) -> int:
    """Algorithm 1: the number of candidates before the first that does not raise throughput.

    It knows one curve, that of ragged steps: with a uniform step's price for its start it would end
    there, below the cost of the first ragged one.
    """
    limit = min(total, room)
    if limit <= 0:
        return 0
    expected = float(requests)
    rate = expected / _reference_step_s(costs, requests, requests, RAGGED)
    for b in range(limit):
        expected += candidates[b]
        next_rate = expected / _reference_step_s(costs, requests + b + 1, requests, RAGGED)
        if next_rate <= rate:
            return b
        rate = next_rate
    return limit


@compiled
def sglang_budget(
    policy: PolicyTables, candidates: Floats, total: int, requests: int
) -> tuple[int, float]:
    """SGLang's own argmax (dspark_planner.compute_verify_token_budget) and its step seconds.

    The first maximum wins, over a table read by floor lookup (``sps``), or linearly and flat past
    the last probe (``additive``); with no table the most tokens always win.
    """
    if policy.table == TABLE_FLAT or requests == 0:
        return total, np.nan
    last = policy.steps_per_s.size - 1
    if policy.table == TABLE_ADDITIVE:
        last = policy.theta_s.size - 1
        floor_s = policy.alpha_s[min(requests, policy.alpha_s.size - 1)]
    else:
        floor_s = 0.0
    best = 0
    best_rate = -1.0
    best_step_s = np.nan
    extra = 0.0
    for b in range(total + 1):
        if b > 0:
            extra += candidates[b - 1]
        m = min(requests + b, last)
        if policy.table == TABLE_SPS:
            rate = (requests + extra) * policy.steps_per_s[m]
        else:
            rate = (requests + extra) / (floor_s + policy.theta_s[m])
        if rate > best_rate:
            best_rate = rate
            best = b
    m = min(requests + best, last)
    if policy.table == TABLE_SPS:
        best_step_s = 1.0 / policy.steps_per_s[m]
    else:
        best_step_s = floor_s + policy.theta_s[m]
    return best, best_step_s


@inlined
def stale_budget(
    policy: PolicyTables, costs: CostTables, stale_survival: Floats, room: int, work: Workspace
) -> tuple[int, float, int]:
    """(budget, predicted step seconds or NaN, candidates) of a policy that decides by old survival.

    The part of ``decide`` that an engine may run before the step's tokens are drafted.
    """
    rows, columns = stale_survival.shape
    total = sort_candidates(stale_survival, work.values, work.counts)
    step_s = np.nan
    if policy.code == GLOBAL:
        budget = best_budget(costs, work.values, total, rows, columns, room)
    else:
        budget, step_s = sglang_budget(policy, work.values, total, rows)
        budget = min(budget, room)
    return budget, step_s, total


def early_budget(
    policy: PolicyTables,
    costs: CostTables,
    stale_survival: Floats,
    around: Circumstances,
    work: Workspace,
) -> tuple[int, float]:
    """(budget, predicted step seconds or NaN) before the draft, everyone drafted for, room for all.

    Of policies that decide by old survivals: ``GLOBAL``, ``SGLANG`` and ``GOODPUT``.
    """
    room = 2**62
    if policy.code == GOODPUT:
        rows = stale_survival.shape[0]
        everyone = np.ones(stale_survival.shape)
        budget, _, _, _ = goodput_budget(
            policy, costs, everyone, stale_survival, around, room, work
        )
        shape = RAGGED if budget < everyone.size else UNIFORM
        return budget, step_seconds(costs, rows + budget, rows, rows, around, shape)
    budget, step_s, _ = stale_budget(policy, costs, stale_survival, room, work)
    return budget, step_s


@compiled
def _cut_to_room(lengths: Ints, rows: int, columns: int, room: int) -> bool:
    """Shorten lengths to ``room`` tokens, position by position, request by request.

    The order never looks at survivals, so cutting cannot favour tokens by their value.
    """
    total = 0
    for r in range(rows):
        total += lengths[r]
    if total <= room:
        return False
    kept = 0
    for k in range(columns):
        for r in range(rows):
            if lengths[r] > k:
                if kept < room:
                    kept += 1
                else:
                    lengths[r] = k
    return True


@inlined
def decide(
    policy: PolicyTables,
    costs: CostTables,
    survival: Floats,
    stale_survival: Floats,
    around: Circumstances,
    kv_room_tokens: int,
    work: Workspace,
) -> tuple[float, float, int, int]:
    """Write ``work.lengths[:R]``; return (predicted step seconds, expected tokens, stop reason,
    shape).

    ``goodput`` also writes ``work.draft_next[:R]`` and ``work.notes[:R]``; under the others all are
    drafted for, or none, and nothing is noted.

    ``survival`` [R, K] is current, ``stale_survival`` [R, K] older, ones where there is no history.
    ``global``, ``sglang`` and ``goodput`` read the stale one, for the budget alone; the ranking is
    always current, which keeps all three lossless (architecture: asynchronous policy).
    """
    rows, columns = survival.shape
    lengths = work.lengths
    lengths[:rows] = 0
    room = max(kv_room_tokens - rows, 0)
    reason = EXHAUSTED
    step_s = np.nan
    if policy.code == NONE:
        reason = NO_DRAFT
    elif policy.code == FIXED or policy.code == THRESHOLD:
        reason = AS_FIXED if policy.code == FIXED else BELOW_THRESHOLD
        limit = min(policy.length, columns) if policy.code == FIXED else columns
        for r in range(rows):
            if survival[r, 0] == 0.0:
                continue  # nothing was drafted
            before = 1.0
            for k in range(limit):
                if policy.code == THRESHOLD and survival[r, k] < policy.threshold * before:
                    break
                before = survival[r, k]
                lengths[r] += 1
        if _cut_to_room(lengths, rows, columns, room):
            reason = KV_ROOM
    elif policy.code == EARLY_STOP:
        total = sort_candidates(survival, work.values, work.counts)
        budget = early_stop_budget(costs, work.values, total, rows, room)
        if budget < total:
            reason = KV_ROOM if budget == room else NO_GAIN
        assign_slots(survival, budget, lengths, work.values, work.counts)
    elif policy.code == GOODPUT:
        reason = plan_goodput(policy, costs, survival, stale_survival, around, room, work)
    else:
        budget, step_s, total = stale_budget(policy, costs, stale_survival, room, work)
        if budget < total:
            reason = KV_ROOM if budget == room else NO_GAIN
        assign_slots(survival, budget, lengths, work.values, work.counts)
    tokens = rows
    expected = float(rows)
    drafted = 0
    for r in range(rows):
        tokens += lengths[r]
        drafted += survival[r, 0] != 0.0
        for k in range(lengths[r]):
            expected += survival[r, k]
    shape = step_shape(policy, lengths, rows, columns, drafted)
    if policy.code == GOODPUT:
        step_s = step_seconds(costs, tokens, rows, drafted, around, shape)
    elif step_s != step_s and policy.code == NONE:
        context = rows * costs.context_reference_tokens
        step_s = decode_step_seconds(costs, tokens, rows, 0, context, shape)
    elif step_s != step_s:
        step_s = _reference_step_s(costs, tokens, rows, shape)
    return step_s, expected, reason, shape
