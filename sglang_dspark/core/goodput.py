"""The ``goodput`` policy, whole: its prices, its choice of whom to draft for, and its plan.

Compiled functions over arrays, called by ``sglang_dspark.core.decide``. Knows no clock, no file and
no random numbers; what it may see beside survivals comes in ``Circumstances``.

Law. A budget is worth its expected weighted tokens per second::

    (sum_r w_r + sum of w_r a_rk over the verified tokens) / T(R, M, drafted, context)

where T prices the context that is really there, drafting for those drafted for, and the shape of
the step: verifying all that was drafted is uniform and needs no decision. A draft is worth
its seconds at the rate of the whole cycle, the prefill steps until the next decode step included.
Verifying less than everything, and drafting for fewer than everyone, need a predicted gain of at
least ``min_gain``.

Lossless for the reason ``global`` is: the budget knows only older confidences, a weight is one
number for all positions of a request and knows only the past, and for whom the next step drafts is
decided before its tokens exist.

Symbols: R requests, K draft positions, M tokens in the step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_dspark.core.compiled import compiled
from sglang_dspark.core.costs.tables import (
    LEAST_CONTEXT_SHARE,
    RAGGED,
    UNIFORM,
    CostTables,
    decode_step_seconds,
    draft_seconds,
    prefill_seconds,
)
from sglang_dspark.core.ranking import assign_slots, nth_least, sort_candidates
from sglang_dspark.core.state import EXHAUSTED, KV_ROOM, NO_DRAFT, NO_GAIN, Bools, Floats, Ints
from sglang_dspark.core.tables import PolicyTables, Workspace

LEAST_WEIGHT = 0.25
"""What tokens are worth to every request that is far from its pace: all such are equal, so that
where nobody is in danger nothing is given up for anybody."""

PREFILL_MEMORY = 1 / 32
"""Weight of the newest decode step in ``prefills_per_step``: an engine keeps the average."""

_NEWEST = 0.2
"""Weight of the newest draft in a request's note."""
_HEARSAY = 0.1
"""Over R: further gain that is asked for where trimming costs something of its own. Old confidences
promise it, which say the less of the current ones the fewer requests they are averaged over."""
_PROBE_ALL = 4
"""Where nobody is drafted for, times ``probe_rounds`` until everyone is: a probe costs them all."""
_AT_ONCE = 16
"""One request of so many is newly left out in a step."""


class Circumstances(NamedTuple):
    """What a step is like beside its survivals; only ``goodput`` looks. Arrays may be longer."""

    stale_age: Ints
    """[R] steps since the stale row was drafted; 0 where there is none."""
    note: Floats
    """[R] what the last plan noted of each request, see ``choose_drafts``; NaN for none."""
    weight: Floats
    """[R] what a token of the request is worth, in (0, 1]."""
    context_tokens: float
    """Context tokens summed over the requests; NaN: the cost model's reference."""
    prefills_per_step: float
    """Prefill steps for each decode step, an average that the newest adds ``PREFILL_MEMORY`` to."""


@compiled
def slack_seconds(
    ttft_bound_s: float, tpot_bound_s: float, ttft_s: float, since_first_s: float, generated: int
) -> float:
    """Seconds until a request with ``generated`` tokens falls behind the pace of its SLO.

    The pace is the first token and one more for each TPOT since. Negative: behind. +inf without a
    bound on TPOT, and where the first token came too late: nothing is left to save.
    """
    if tpot_bound_s == np.inf or ttft_s > ttft_bound_s:
        return np.inf
    return generated * tpot_bound_s - since_first_s


@compiled
def fill_weights(
    slack_s: Floats,
    priority: Ints,
    tpot_bound_s: float,
    slack_weight: float,
    priority_weight: float,
    out: Floats,
) -> None:
    """Write ``out[:R]``: what a token of each request is worth, in [``LEAST_WEIGHT``, 1].

    1 for a request on the pace of its SLO. The further it is from it the less can a token change:
    1 / (1 + slack_weight * a / 8) for one that is a tokens ahead, a / 32 for one that is behind;
    times exp(-priority_weight) for each level of priority below the highest.
    """
    rows = out.size
    highest = priority[0] if rows > 0 else 0
    for r in range(rows):
        highest = max(highest, priority[r])
    for r in range(rows):
        weight = 1.0
        if slack_weight > 0.0:
            ahead = slack_s[r] / tpot_bound_s
            weight /= 1.0 + slack_weight * max(ahead / 8.0, -ahead / 32.0)
        if priority_weight > 0.0:
            weight *= np.exp(-priority_weight * (highest - priority[r]))
        out[r] = max(weight, LEAST_WEIGHT)


@compiled
def fill_candidates(
    survival: Floats, stale: Floats, around: Circumstances, prior: Floats, out: Floats
) -> int:
    """Write w_r times the stale survivals of what was drafted into ``out``; return how many rows.

    A request without history is taken for the average of those with one (``prior`` [K] is scratch),
    or for one whose every draft survives while there is none. Rows that were not drafted are 0.
    """
    rows, columns = survival.shape
    known = 0
    prior[:columns] = 0.0
    for r in range(rows):
        if around.stale_age[r] > 0:
            known += 1
            for k in range(columns):
                prior[k] += stale[r, k]
    for k in range(columns):
        prior[k] = prior[k] / known if known > 0 else 1.0
    drafted = 0
    for r in range(rows):
        weight = around.weight[r]
        if survival[r, 0] == 0.0:
            out[r, :] = 0.0
            continue
        drafted += 1
        for k in range(columns):
            out[r, k] = weight * (stale[r, k] if around.stale_age[r] > 0 else prior[k])
    return drafted


@compiled
def step_seconds(
    costs: CostTables,
    tokens: int,
    requests: int,
    drafted: int,
    around: Circumstances,
    shape: int,
) -> float:
    """Seconds of one decode step at the context that is really there."""
    context = around.context_tokens
    if context != context:
        context = requests * costs.context_reference_tokens
    return decode_step_seconds(costs, tokens, requests, drafted, context, shape)


@compiled
def cycle_seconds(
    costs: CostTables,
    tokens: int,
    requests: int,
    drafted: int,
    around: Circumstances,
    shape: int,
) -> float:
    """Seconds of the step and of what every prefill step costs however short its prompts are.

    A cycle is a decode step and the prefill steps until the next. What a prompt's tokens add to
    them is left out: it comes with every request, sooner the more tokens are committed, and so
    changes no comparison.
    """
    prefill_s = prefill_seconds(costs, 1, 0.0) + costs.host_s
    step_s = step_seconds(costs, tokens, requests, drafted, around, shape)
    return step_s + around.prefills_per_step * prefill_s


@compiled
def priced_budget(
    costs: CostTables,
    candidates: Floats,
    total: int,
    requests: int,
    drafted: int,
    columns: int,
    room: int,
    min_gain: float,
    around: Circumstances,
) -> tuple[int, float]:
    """(B, expected weighted tokens): all that fits, unless fewer gain ``min_gain`` in tokens per
    second, what deciding and a ragged step cost included.

    B = R * K where everyone is drafted for and all is verified; where shapes have a price, tokens
    that are no candidates included: that is the uniform step.

    ``candidates`` [total] are weighted survivals in descending order. The price is the step's
    alone. With the prefills of the cycle in it, a step would seem to pay for deeper tokens, whose
    confidences deserve the least trust.
    """
    limit = min(total, room)
    base = 0.0
    for r in range(requests):
        base += around.weight[r]
    everything = requests * columns
    shape = RAGGED if drafted > 0 else UNIFORM
    step_s = step_seconds(costs, requests, requests, drafted, around, shape)
    # The parts that do not depend on B are added up once: a step's price is one addition then.
    ragged_s = costs.ragged_s
    last = ragged_s.size - 1
    extra_s = 0.0
    if around.context_tokens == around.context_tokens:
        extra_s = costs.context_s * (
            around.context_tokens - requests * costs.context_reference_tokens
        )
    first_s = ragged_s[min(requests, last)]
    rest_s = step_s - first_s - extra_s
    # Beyond the table, or with a context so short that a forward's floor holds, it is no sum.
    summed = requests + limit <= last and (1.0 - LEAST_CONTEXT_SHARE) * first_s + extra_s >= 0.0
    if costs.ragged_floor_s > 0.0 or costs.overlapped_s > 0.0:
        summed = False
    expected, best_expected = base, base
    best, best_rate = 0, base / step_s
    rate = best_rate
    for b in range(1, limit + 1):
        expected += candidates[b - 1]
        if summed:
            rate = expected / (rest_s + ragged_s[requests + b] + extra_s)
        else:
            rate = expected / step_seconds(costs, requests + b, requests, drafted, around, RAGGED)
        if rate > best_rate:
            best_rate = rate
            best = b
            best_expected = expected
    whole = limit
    if costs.shaped and limit == total and drafted == requests and room >= everything:
        tokens = requests + everything
        uniform_rate = expected / step_seconds(costs, tokens, requests, drafted, around, UNIFORM)
        if limit == everything or uniform_rate > rate:
            whole, rate = everything, uniform_rate
    asked = 1.0 + min_gain + (_HEARSAY / requests if costs.shaped else 0.0)
    if best_rate < asked * rate:
        return whole, expected
    return best, best_expected


@compiled
def token_price(
    costs: CostTables,
    candidates: Floats,
    total: int,
    budget: int,
    requests: int,
    columns: int,
    rate: float,
    around: Circumstances,
) -> float:
    """What one verified token has to be worth.

    The best candidate that was left out, if any was: its worth is what the last slot costs, on a
    smooth curve as well as below a cliff. Where everything is verified, the seconds that a token
    adds on average, at ``rate``.
    """
    if budget < total:
        return candidates[budget]
    total = max(total, budget)
    base_s = step_seconds(costs, requests, requests, 0, around, UNIFORM)
    if total > 0:
        all_s = step_seconds(costs, requests + total, requests, 0, around, UNIFORM)
        return rate * (all_s - base_s) / total
    one = step_seconds(costs, 2 * requests, requests, 0, around, UNIFORM) - base_s
    every = step_seconds(costs, requests * (columns + 1), requests, 0, around, UNIFORM) - base_s
    return rate * min(one / requests, every / (requests * columns))


@compiled
def choose_drafts(
    costs: CostTables,
    survival: Floats,
    price: float,
    expected: float,
    rate: float,
    uneven_s: float,
    min_gain: float,
    probe_rounds: int,
    around: Circumstances,
    notes: Floats,
    gains: Floats,
    shuffled: Floats,
    out: Bools,
) -> None:
    """Write ``out[:R]``, for whom the next step drafts, and ``notes[:R]``; ``gains``
    and ``shuffled`` are scratch.

    ``expected`` tokens at ``rate`` is what this step brings. Nobody is drafted for where plain
    decoding is faster by ``min_gain``, and by half over R, since the confidences of a few requests
    say little; then all are probed together, every ``_PROBE_ALL`` times ``probe_rounds`` steps.
    Where shapes have a price a step may verify whole what it would rather trim, and one such step
    says nothing yet: there the average, too, has to be worth less than the drafting.

    Otherwise it goes by request. Its note is what its drafts have been worth above their ``price``,
    in tokens, on an exponential average: one draft tells little of the next, and the average of the
    worth is more than the worth of an average draft. Where that is less than its share of the
    drafting, seconds at ``rate``, it may be left out, if all that is lost to such requests is
    ``min_gain`` of the step and ``uneven_s``, what leaving some out makes it dearer by. Only the
    worst of each ``_AT_ONCE`` are, since their slots go to the others and lower the price. Who is
    left out is drafted for again after ``probe_rounds`` steps, sooner the less was missing.
    """
    rows, columns = survival.shape
    draft_s = draft_seconds(costs, rows)
    each = 0.0
    if rows > 1:
        each = rate * max(draft_s - draft_seconds(costs, 1), 0.0) / (rows - 1)
    base, losses = 0.0, 0.0
    drafted, oldest, evidence = 0, 0, 0
    average = 0.0
    for r in range(rows):
        weight = around.weight[r]
        base += weight
        notes[r] = around.note[r]
        gains[r] = 0.0
        if survival[r, 0] != 0.0:
            drafted += 1
            worth = 0.0
            for k in range(columns):
                worth += max(weight * survival[r, k] - price, 0.0)
            before = around.note[r]
            notes[r] = before + _NEWEST * (worth - before) if before == before else worth
        elif around.stale_age[r] > 0:
            oldest = max(oldest, around.stale_age[r])
        if notes[r] == notes[r]:
            evidence += 1
            average += notes[r]
            gains[r] = notes[r] - each
            losses += max(-gains[r], 0.0)
    if drafted == 0 and evidence > 0:
        out[:rows] = oldest >= _PROBE_ALL * probe_rounds
        return
    plain_rate = base / cycle_seconds(costs, rows, rows, 0, around, UNIFORM)
    pays = costs.shaped and average >= rate * draft_s
    if plain_rate >= (1.0 + min_gain + 0.5 / rows) * rate and not pays:
        out[:rows] = False
        return
    skip = losses > min_gain * expected + rate * uneven_s
    worst = 0.0
    if skip:
        for r in range(rows):
            shuffled[r] = gains[r]
        worst = nth_least(shuffled[:rows], rows // _AT_ONCE)
    for r in range(rows):
        out[r] = not skip or gains[r] >= 0.0
        if survival[r, 0] != 0.0:
            out[r] |= gains[r] > worst
        elif not out[r]:
            out[r] = around.stale_age[r] >= probe_rounds * min(-gains[r] / each, 1.0)


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
    rows, columns = survival.shape
    ranked = work.weighted[:rows, :columns]
    drafted = fill_candidates(survival, stale_survival, around, work.prior, ranked)
    total = sort_candidates(ranked, work.values, work.counts)
    budget, expected = priced_budget(
        costs, work.values, total, rows, drafted, columns, room, policy.min_gain, around
    )
    return budget, expected, total, drafted


@compiled
def plan_goodput(
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
    if rows == 0:
        return EXHAUSTED
    budget, expected, total, drafted = goodput_budget(
        policy, costs, survival, stale_survival, around, room, work
    )
    whole = drafted == 0 or budget == rows * columns
    tokens = rows + budget
    shape = UNIFORM if whole else RAGGED
    rate = expected / cycle_seconds(costs, tokens, rows, drafted, around, shape)
    uneven_s = 0.0
    if costs.shaped and budget >= total:
        uneven_s = step_seconds(costs, tokens, rows, drafted, around, RAGGED)
        uneven_s -= step_seconds(costs, tokens, rows, drafted, around, UNIFORM)
    price = token_price(costs, work.values, total, budget, rows, columns, rate, around)
    choose_drafts(
        costs, survival, price, expected, rate, uneven_s, policy.min_gain,
        policy.probe_rounds, around, work.notes, work.values, work.shuffled, work.draft_next,
    )  # fmt: skip
    if costs.shaped and budget == rows * columns:
        work.lengths[:rows] = columns
        return EXHAUSTED
    ranked = work.weighted[:rows, :columns]
    for r in range(rows):
        for k in range(columns):
            ranked[r, k] = around.weight[r] * survival[r, k]
    assign_slots(ranked, budget, work.lengths, work.values, work.counts)
    if budget < total:
        return KV_ROOM if budget == room else NO_GAIN
    return EXHAUSTED if drafted > 0 else NO_DRAFT
