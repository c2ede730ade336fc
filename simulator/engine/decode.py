"""One decode step, compiled: draft -> plan -> verify -> commit, and retraction when KV is short.

The plan is ``sglang_dspark.core.decide.decide``, the function the server calls; what the target
would accept (``memory.outcome``) is drawn here and never shown to it. Retraction follows SGLang
0.5.21, managers/schedule_batch.py (retract_decode).
"""

from __future__ import annotations

import numpy as np

from sglang_dspark.core.compiled import compiled, inlined
from sglang_dspark.core.costs.tables import CostTables, decode_step_seconds
from sglang_dspark.core.decide import decide
from sglang_dspark.core.goodput import PREFILL_MEMORY, Circumstances, fill_weights, slack_seconds
from sglang_dspark.core.state import Floats
from sglang_dspark.core.survival import fill_survival_rows, fill_survival_rows_float32
from sglang_dspark.core.tables import PolicyTables, Workspace
from simulator.acceptance.tables import AcceptanceTables, begin_request, draw_round
from simulator.engine.ended import policy_beside, prices_beside
from simulator.engine.kv_cache import (
    available_pages,
    evict_until,
    pages_of,
    private_pages,
    release_kv,
)
from simulator.engine.latency import count_itl, itl_bin
from simulator.engine.layout import DECODE_STEP, WAITING, Engine, Memory, Records, Step
from simulator.engine.lifecycle import (
    assumed_new_tokens,
    context_tokens,
    drop_finished,
    finish_request,
    note_end,
    push_waiting,
    take_ended,
)

_RETRACT_DECODE_STEPS = 20  # SGLang's SGLANG_RETRACT_DECODE_STEPS


@compiled
def pages_for_decode(memory: Memory, engine: Engine, step_tokens: int) -> int:
    """Pages to allocate so that every running request can hold ``step_tokens`` more."""
    need = 0
    for i in range(memory.state[0].running):
        r = memory.running[i]
        request = memory.requests[r]
        shared = request.locked_blocks * engine.block_tokens
        need += pages_of(engine, request.kv_len + step_tokens - shared)
        need -= private_pages(memory, engine, r)
    return need


@compiled
def _retract_one(memory: Memory, engine: Engine) -> None:
    """Send the running request with the fewest output tokens back to the queue.

    Ties: the longest prompt, then the last in the batch. Its output so far is kept and will be
    prefilled again.
    """
    state = memory.state[0]
    victim = 0
    for i in range(1, state.running):
        a = memory.requests[memory.running[i]]
        b = memory.requests[memory.running[victim]]
        if a.generated < b.generated or (
            a.generated == b.generated and a.prompt_tokens >= b.prompt_tokens
        ):
            victim = i
    r = memory.running[victim]
    memory.free_slots[memory.running.size - state.running] = memory.requests[r].slot
    for i in range(victim, state.running - 1):
        memory.running[i] = memory.running[i + 1]
    state.running -= 1
    release_kv(memory, engine, r)
    memory.requests[r].status = WAITING
    memory.requests[r].retractions += 1
    state.retractions += 1
    push_waiting(memory, r)


@inlined
def make_room(memory: Memory, engine: Engine, step_tokens: int) -> None:
    """Evict cached blocks, then retract requests, until the next decode step fits."""
    state = memory.state[0]
    if state.running * (step_tokens // engine.page_tokens + 2) <= state.free_pages or evict_until(
        memory, engine, pages_for_decode(memory, engine, step_tokens)
    ):
        state.new_token_ratio = max(
            state.new_token_ratio - engine.new_token_ratio_decay, engine.least_new_token_ratio
        )
        return
    while state.running > 1:
        _retract_one(memory, engine)
        if evict_until(memory, engine, pages_for_decode(memory, engine, step_tokens)):
            break
    generated = 0
    assumed = 0
    for i in range(state.running):
        r = memory.running[i]
        generated += memory.requests[r].generated
        assumed += memory.requests[r].generated + assumed_new_tokens(memory, engine, r)
    ratio = (generated + _RETRACT_DECODE_STEPS * state.running) / (assumed + 1.0)
    state.new_token_ratio = min(1.0, ratio)
    state.batch_full = 0


@compiled
def begin_requests(requests: Records, seed: int, acceptance: AcceptanceTables) -> None:
    """Draw every request's difficulty; once, before the first step."""
    for r in range(requests.size):
        request = requests[r]
        request.difficulty, request.step_state = begin_request(
            acceptance, seed, r, request.domain, request.output_limit
        )


@inlined
def _copy(source: Floats, target: Floats) -> None:
    """Row to row, in a loop: numba's own assignment checks shapes in a thousand lines of code."""
    for k in range(source.size):
        target[k] = source[k]


@inlined
def draft(
    memory: Memory,
    engine: Engine,
    acceptance: AcceptanceTables,
    inverse_temperature: Floats,
    bias: Floats,
    as_sglang: bool,
) -> None:
    """Draw every running request's round: outcomes, current survivals, survivals ``lag`` ago.

    A request that is not drafted for draws its round all the same, so that its luck does not depend
    on the policy; nobody sees it, and its newest known survivals are carried forward.
    ``as_sglang``: survivals in the arithmetic of SGLang's own planner.
    """
    depth = engine.lag_steps + 1
    running = memory.state[0].running
    for i in range(running):
        r = memory.running[i]
        request = memory.requests[r]
        accepted, step_state = draw_round(
            acceptance,
            engine.seed,
            r,
            request.rounds,
            request.domain,
            request.difficulty,
            request.step_state,
            request.generated - 1,
            memory.logits[i],
        )
        request.step_state = step_state
        memory.outcome[i] = accepted
        if not request.drafts:
            memory.outcome[i] = 0
            memory.logits[i, 0] = -np.inf
    # All rows at once, which the compiler does several at a time.
    logits, survival = memory.logits[:running], memory.survival[:running]
    if as_sglang:
        fill_survival_rows_float32(logits, inverse_temperature, bias, survival)
    else:
        fill_survival_rows(logits, inverse_temperature, bias, survival)
    for i in range(running):
        request = memory.requests[memory.running[i]]
        place = request.history % depth
        if request.drafts:
            memory.ages[request.slot, place] = 0
            _copy(memory.survival[i], memory.ring[request.slot, place])
        else:
            request.undrafted += 1
            memory.state[0].undrafted += 1
            _carry_forward(memory, request.slot, place, depth, request.history)
        place = place + 1 if place + 1 < depth else 0
        known = request.history >= engine.lag_steps and memory.ages[request.slot, place] >= 0
        if known:
            _copy(memory.ring[request.slot, place], memory.stale[i])
            memory.stale_age[i] = memory.ages[request.slot, place] + engine.lag_steps
        else:
            memory.stale[i] = 1.0
            memory.stale_age[i] = 0


@compiled
def _carry_forward(memory: Memory, slot: int, place: int, depth: int, history: int) -> None:
    """Nothing was drafted: the newest known survivals are one step older; -1 while none are."""
    before = (place + depth - 1) % depth
    age = memory.ages[slot, before] if history > 0 else -1
    memory.ages[slot, place] = age + 1 if age >= 0 else -1
    _copy(memory.ring[slot, before], memory.ring[slot, place])


@inlined
def commit(memory: Memory, engine: Engine, work: Workspace, speculative: bool) -> tuple[int, int]:
    """Emit each request's accepted prefix and bonus token; return (tokens emitted, finished)."""
    state = memory.state[0]
    now_s = state.now_s
    common_s = state.last_decode_s
    common_gap_s = now_s - common_s
    common_bin = itl_bin(common_gap_s)
    emitted_all = 0
    verified_all = 0
    finished = 0
    kept = 0
    common = 0
    batch = state.running
    for i in range(batch):
        r = memory.running[i]
        request = memory.requests[r]
        emitted = 1
        if speculative:
            length = work.lengths[i]
            accepted = min(memory.outcome[i], length)
            emitted = min(accepted + 1, request.output_limit - request.generated)
            request.verified += length
            verified_all += length
            request.accepted += emitted - 1
            memory.length_counts[0, length] += 1
            memory.length_counts[1, accepted] += 1
        if engine.page_tokens == 1:
            state.free_pages -= emitted
            request.kv_len += emitted
        else:
            before = private_pages(memory, engine, r)
            request.kv_len += emitted
            state.free_pages -= private_pages(memory, engine, r) - before
        request.generated += emitted
        request.rounds += 1
        if speculative:
            request.history += 1
        emitted_all += emitted
        if request.last_emit_s == common_s:
            common += 1
            request.longest_itl_s = max(request.longest_itl_s, common_gap_s)
        else:
            count_itl(memory, request, now_s)
        request.last_emit_s = now_s
        if request.generated >= request.output_limit:
            memory.free_slots[memory.running.size - batch + finished] = request.slot
            note_end(memory, r, work.lengths[i] + 1 if speculative else 1)
            finish_request(memory, engine, r)
            finished += 1
        else:
            memory.running[kept] = r
            kept += 1
    memory.itl_counts[common_bin] += common
    state.running = kept
    state.last_decode_s = now_s
    state.decode_steps += 1
    state.request_steps += batch
    state.committed_tokens += emitted_all
    state.verified_tokens += verified_all
    state.accepted_tokens += emitted_all - batch
    return emitted_all, finished


@inlined
def _look_around(memory: Memory, policy: PolicyTables) -> None:
    """Fill in what ``goodput`` sees of each running request beside its survivals."""
    state = memory.state[0]
    requests = state.running
    for i in range(requests):
        request = memory.requests[memory.running[i]]
        memory.note[i] = request.note
        memory.priority[i] = request.priority
        memory.slack_s[i] = slack_seconds(
            policy.ttft_s,
            policy.tpot_s,
            request.first_token_s - request.arrival_s,
            state.now_s - request.first_token_s,
            request.generated,
        )
    fill_weights(
        memory.slack_s[:requests],
        memory.priority[:requests],
        policy.tpot_s,
        policy.slack_weight,
        policy.priority_weight,
        memory.weight[:requests],
    )


@inlined
def _take_choice(memory: Memory, work: Workspace) -> int:
    """Remember for whom the next step drafts, and the notes; return for how many this one did."""
    state = memory.state[0]
    drafted = 0
    state.drafts_new = 0
    for i in range(state.running):
        request = memory.requests[memory.running[i]]
        drafted += request.drafts
        request.drafts = work.draft_next[i]
        request.note = work.notes[i]
        state.drafts_new |= request.drafts
    return drafted


@inlined
def plan_and_time(
    memory: Memory,
    engine: Engine,
    truth: CostTables,
    belief: CostTables,
    policy: PolicyTables,
    work: Workspace,
    context: int,
    ended: tuple[int, int, int],
) -> tuple[int, float, float, float, int]:
    """Plan the drafted step: (tokens M, true seconds, predicted seconds, expected, reason).

    Those of ``ended`` are computed along: as many tokens of each as were verified of it last. A
    server plans them too, so that the plan leaves room for them below a graph tier or a cliff.
    """
    believed, asked = belief, policy
    if ended[1] > 0:
        believed = prices_beside(belief, ended[1])
        asked = policy_beside(policy, ended[1])
    state = memory.state[0]
    requests = state.running
    state.prefills_per_step += PREFILL_MEMORY * (state.prefills_since - state.prefills_per_step)
    state.prefills_since = 0
    room = available_pages(memory, engine) * engine.page_tokens
    if policy.chooses_drafts:
        _look_around(memory, policy)
    around = Circumstances(
        memory.stale_age,
        memory.note,
        memory.weight,
        float(context),
        state.prefills_per_step,
    )
    predicted_s, expected, reason, shape = decide(
        asked,
        believed,
        memory.survival[:requests],
        memory.stale[:requests],
        around,
        room,
        work,
    )
    tokens = requests
    for i in range(requests):
        tokens += work.lengths[i]
    drafted = requests if policy.drafts else 0
    if policy.chooses_drafts and requests > 0:
        drafted = _take_choice(memory, work)
    tokens += ended[1]
    drafted += ended[0] if policy.drafts else 0
    context += ended[2]
    step_s = decode_step_seconds(truth, tokens, requests + ended[0], drafted, float(context), shape)
    return tokens, step_s, predicted_s, expected, reason


@inlined
def decode_step(
    memory: Memory,
    engine: Engine,
    truth: CostTables,
    belief: CostTables,
    acceptance: AcceptanceTables,
    policy: PolicyTables,
    inverse_temperature: Floats,
    bias: Floats,
    work: Workspace,
) -> Step:
    """Draft for the running requests, plan, verify and commit."""
    state = memory.state[0]
    speculative = policy.drafts
    drop_finished(memory, engine)
    make_room(memory, engine, acceptance.gamma + 1 if speculative else 1)
    if speculative:
        draft(memory, engine, acceptance, inverse_temperature, bias, policy.as_sglang)
    ended = take_ended(memory, engine)
    requests = state.running
    context = context_tokens(memory)
    tokens, step_s, predicted_s, expected, reason = plan_and_time(
        memory, engine, truth, belief, policy, work, context, ended
    )
    state.now_s += step_s
    verified = tokens - ended[1] - requests
    committed, finished = commit(memory, engine, work, speculative)
    state.leaving += finished
    return Step(
        kind=DECODE_STEP,
        requests=requests,
        predicted_s=predicted_s,
        expected_tokens=expected,
        stop_reason=reason,
        computed_tokens=tokens,
        verify_tokens=verified,
        committed_tokens=committed,
        prefill_tokens=0,
        context_tokens=context,
        finished=finished,
    )
