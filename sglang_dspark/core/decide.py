"""Every budget policy's decision, as compiled functions over arrays.

This is the code that runs in the server and inside the simulator's kernel, unchanged. It sees
survival probabilities and a cost table; it has no clock, no state and no random numbers.

All policies maximise, or approximate, expected committed tokens per second (paper 3.2.2)::

    (R + sum of the B best survivals) / T(R, R + B)

Symbols: R requests, K draft positions, B extra tokens beyond one per request, M = R + B.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_dspark.core.compiled import compiled, inlined
from sglang_dspark.core.costs.tables import CostTables, decode_step_seconds
from sglang_dspark.core.goodput import (
    Circumstances,
    choose_drafts,
    cycle_seconds,
    fill_candidates,
    priced_budget,
    step_seconds,
    token_price,
)
from sglang_dspark.core.ranking import MOST_BINS, assign_slots, sort_candidates
from sglang_dspark.core.state import Bools, Floats, Ints

NO_DRAFT, FIXED, THRESHOLD, NO_GAIN, EXHAUSTED, KV_ROOM = range(6)
"""Indices into ``sglang_dspark.core.state.STOP_REASONS``."""

TABLE_FLAT, TABLE_SPS, TABLE_ADDITIVE = range(3)

SGLANG = 5
"""``code`` of the ``sglang`` policy, whose survivals are in SGLang's arithmetic."""
GOODPUT = 6
"""``code`` of the ``goodput`` policy, which decides whom to draft for."""


class PolicyTables(NamedTuple):
    """A policy's parameters as compiled code reads them."""

    code: int
    length: int
    threshold: float
    table: int
    """One of the ``TABLE_`` constants; only the ``sglang`` policy looks."""
    steps_per_s: Floats
    """[M+1] SGLang's steps-per-second table, floor lookup applied."""
    alpha_s: Floats
    """[R+1] bias and request part of SGLang's additive table."""
    theta_s: Floats
    """[M+1] token part of SGLang's additive table."""
    min_gain: float = 0.0
    """Least predicted gain for verifying or drafting less; this and the next: ``goodput`` only."""
    probe_rounds: int = 1
    """Steps after which a request that is not drafted for is drafted for again."""
    ttft_s: float = np.inf
    tpot_s: float = np.inf
    slack_weight: float = 0.0
    priority_weight: float = 0.0


class Workspace(NamedTuple):
    """Arrays the decision writes into, so that a step allocates nothing."""

    values: Floats
    counts: Ints
    lengths: Ints
    draft_next: Bools
    notes: Floats
    weighted: Floats
    """[R, K] survivals times weights."""
    prior: Floats
    shuffled: Floats


def make_workspace(max_requests: int, gamma: int) -> Workspace:
    """A workspace for up to ``max_requests`` requests, each of ``gamma`` draft tokens."""
    return Workspace(
        values=np.empty(max(max_requests * gamma, 1)),
        counts=np.empty(MOST_BINS + 1, dtype=np.int64),
        lengths=np.zeros(max(max_requests, 1), dtype=np.int64),
        draft_next=np.zeros(max(max_requests, 1), dtype=np.bool_),
        notes=np.full(max(max_requests, 1), np.nan),
        weighted=np.empty((max(max_requests, 1), gamma)),
        prior=np.empty(gamma),
        shuffled=np.empty(max(max_requests, 1)),
    )


@compiled
def _reference_step_s(costs: CostTables, tokens: int, requests: int) -> float:
    """T(R, M) at the cost model's reference context, drafting for everyone."""
    context = requests * costs.context_reference_tokens
    return decode_step_seconds(costs, tokens, requests, requests, context)


@compiled
def best_budget(costs: CostTables, candidates: Floats, total: int, requests: int, room: int) -> int:
    """The B in 0..min(total, room) with the most expected tokens per second; the first on ties.

    ``candidates`` [total] are survivals in descending order. A global argmax: a step curve with
    stairs or a cliff does not trap it.
    """
    limit = min(total, room)
    if limit <= 0:
        return 0
    verify_s = costs.verify_s
    last = verify_s.size - 1
    # Everything but the target's forward is the same for every B.
    rest_s = _reference_step_s(costs, requests, requests) - verify_s[min(requests, last)]
    if requests + limit > last:
        rest_s = np.nan
    expected = float(requests)
    best = 0
    best_rate = expected / _reference_step_s(costs, requests, requests)
    for b in range(1, limit + 1):
        expected += candidates[b - 1]
        if rest_s == rest_s:
            step_s = rest_s + verify_s[requests + b]
        else:
            step_s = _reference_step_s(costs, requests + b, requests)
        rate = expected / step_s
        if rate > best_rate:
            best_rate = rate
            best = b
    return best


@compiled
def early_stop_budget(
    costs: CostTables, candidates: Floats, total: int, requests: int, room: int
) -> int:
    """Algorithm 1: the number of candidates before the first that does not raise throughput."""
    limit = min(total, room)
    if limit <= 0:
        return 0
    expected = float(requests)
    rate = expected / _reference_step_s(costs, requests, requests)
    for b in range(limit):
        expected += candidates[b]
        next_rate = expected / _reference_step_s(costs, requests + b + 1, requests)
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
    rows = stale_survival.shape[0]
    total = sort_candidates(stale_survival, work.values, work.counts)
    step_s = np.nan
    if policy.code == 4:
        budget = best_budget(costs, work.values, total, rows, room)
    else:
        budget, step_s = sglang_budget(policy, work.values, total, rows)
        budget = min(budget, room)
    return budget, step_s, total


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


@compiled
def goodput_budget(
    policy: PolicyTables,
    costs: CostTables,
    survival: Floats,
    stale_survival: Floats,
    around: Circumstances,
    room: int,
    work: Workspace,
) -> tuple[int, float, int, int]:
    """(budget, expected worth, candidates, requests drafted for) of the ``goodput`` policy.

    Of ``survival`` only what was drafted at all is looked at. Leaves the sorted candidates in
    ``work.values``.
    """
    rows = survival.shape[0]
    ranked = work.weighted[:rows]
    drafted = fill_candidates(survival, stale_survival, around, work.prior, ranked)
    total = sort_candidates(ranked, work.values, work.counts)
    budget, expected = priced_budget(
        costs, work.values, total, rows, drafted, room, policy.min_gain, around
    )
    return budget, expected, total, drafted


@compiled
def _plan_goodput(
    policy: PolicyTables,
    costs: CostTables,
    survival: Floats,
    stale_survival: Floats,
    around: Circumstances,
    room: int,
    work: Workspace,
) -> int:
    """Write lengths, notes and whom to draft for; return the stop reason."""
    rows, columns = survival.shape
    budget, expected, total, drafted = goodput_budget(
        policy, costs, survival, stale_survival, around, room, work
    )
    rate = expected / cycle_seconds(costs, rows + budget, rows, drafted, around)
    price = token_price(costs, work.values, total, budget, rows, columns, rate, around)
    choose_drafts(
        costs, survival, price, expected, rate, policy.min_gain, policy.probe_rounds, around,
        work.notes, work.values, work.shuffled, work.draft_next,
    )  # fmt: skip
    ranked = work.weighted[:rows]
    for r in range(rows):
        for k in range(columns):
            ranked[r, k] = around.weight[r] * survival[r, k]
    assign_slots(ranked, budget, work.lengths, work.values, work.counts)
    if budget < total:
        return KV_ROOM if budget == room else NO_GAIN
    return EXHAUSTED if drafted > 0 else NO_DRAFT


@inlined
def decide(
    policy: PolicyTables,
    costs: CostTables,
    survival: Floats,
    stale_survival: Floats,
    around: Circumstances,
    kv_room_tokens: int,
    work: Workspace,
) -> tuple[float, float, int]:
    """Write ``work.lengths[:R]``; return (predicted step seconds, expected tokens, stop reason).

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
    if policy.code == 0:
        reason = NO_DRAFT
    elif policy.code == 1 or policy.code == 2:
        reason = FIXED if policy.code == 1 else THRESHOLD
        limit = min(policy.length, columns) if policy.code == 1 else columns
        for r in range(rows):
            if survival[r, 0] == 0.0:
                continue  # nothing was drafted
            before = 1.0
            for k in range(limit):
                if policy.code == 2 and survival[r, k] < policy.threshold * before:
                    break
                before = survival[r, k]
                lengths[r] += 1
        if _cut_to_room(lengths, rows, columns, room):
            reason = KV_ROOM
    elif policy.code == 3:
        total = sort_candidates(survival, work.values, work.counts)
        budget = early_stop_budget(costs, work.values, total, rows, room)
        if budget < total:
            reason = KV_ROOM if budget == room else NO_GAIN
        assign_slots(survival, budget, lengths, work.values, work.counts)
    elif policy.code == GOODPUT and rows > 0:
        reason = _plan_goodput(policy, costs, survival, stale_survival, around, room, work)
    elif policy.code != GOODPUT:
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
    if policy.code == GOODPUT:
        step_s = step_seconds(costs, tokens, rows, drafted, around)
    elif step_s != step_s and policy.code == 0:
        context = rows * costs.context_reference_tokens
        step_s = decode_step_seconds(costs, tokens, rows, 0, context)
    elif step_s != step_s:
        step_s = _reference_step_s(costs, tokens, rows)
    return step_s, expected, reason
