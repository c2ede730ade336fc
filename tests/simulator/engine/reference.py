"""The engine's law in plain Python: lists, dictionaries, one function per rule, no speed.

Parity tests replay small cases here and in the compiled kernel and compare the bytes. It shares
with the kernel only the leaves (random draws, step prices) and the policy, which it calls the way
a server does: ``BatchState`` in, ``VerifyPlan`` out. One replica, open loop.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

import numpy as np

from sglang_dspark.core.costs.tables import (
    DECIDED,
    PLAIN,
    RAGGED,
    UNIFORM,
    decode_step_seconds,
    prefill_seconds,
    without_overlap,
)
from sglang_dspark.core.goodput import PREFILL_MEMORY
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.state import BatchState, Floats
from simulator.acceptance.tables import begin_request, draw_round
from simulator.engine.layout import COMPLETED, REJECTED, TRUNCATED, Engine, Records
from simulator.fleet.scenario import Scenario, request_records


@dataclass(eq=False)
class _Request:
    number: int
    prompt: int
    limit: int
    wanted: int
    most_new: int
    domain: int
    blocks: list[int]
    difficulty: float = 0.0
    state: float = 0.0
    generated: int = 0
    kv: int = 0
    goal: int = 0
    rounds: int = 0
    undrafted: int = 0
    retractions: int = 0
    verified: int = 0
    accepted: int = 0
    locked: list[int] = field(default_factory=list)
    logits: list[Floats] = field(default_factory=list)
    """Of its rounds since admission, what was known after each; NaN while nothing was."""
    ages: list[int] = field(default_factory=list)
    """How many rounds old each of those is."""
    drafts: bool = True
    note: float = math.nan
    first_s: float = 0.0
    finish_s: float = 0.0


@dataclass(frozen=True)
class ReferenceStep:
    """One engine step: what the kernel's step log must say too."""

    start_s: float
    duration_s: float
    requests: int
    computed_tokens: int
    verify_tokens: int
    committed_tokens: int
    prefill_tokens: int


class ReferenceEngine:
    """Call ``run``; then read ``requests`` and ``steps``."""

    def __init__(self, scenario: Scenario) -> None:
        most = scenario.places()
        self.gamma = scenario.acceptance.gamma
        trace = scenario.trace
        self.engine: Engine = scenario.compiled_engine()
        self.truth = scenario.cost_model.tables(most * (self.gamma + 1), most)
        if scenario.engine.disable_overlap_schedule:
            self.truth = without_overlap(self.truth)
        self.planner = Planner(
            policy=scenario.policy.policy,
            cost_model=scenario.belief or scenario.cost_model,
            gamma=self.gamma,
            max_requests=most,
            calibration=scenario.policy.calibration,
        )
        self.speculative = scenario.policy.policy.drafts
        self.acceptance = scenario.acceptance.tables(trace.domain_names)
        self.records: Records = request_records(scenario)
        self.requests = [self._make(r, scenario) for r in range(len(trace))]
        self.waiting: deque[_Request] = deque()
        self.running: list[_Request] = []
        self.chunked: _Request | None = None
        self.batch_full = False
        self.ratio = self.engine.first_new_token_ratio
        self.free = self.engine.pool_pages
        self.locks: dict[int, int] = {}
        self.unused: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self.now_s = 0.0
        self.drafts_new = True
        self.prefills = self.prefills_wait = self.leaving = 0
        self.formed_s = 0.0
        self.ended: list[tuple[int, int]] = []
        """(tokens verified, context) of those that ended in the last step."""
        self.prefills_per_step = 0.0
        self.steps: list[ReferenceStep] = []

    def _make(self, r: int, scenario: Scenario) -> _Request:
        trace, row = scenario.trace, self.records[r]
        blocks: list[int] = []
        if self.engine.block_tokens:
            listed = trace.prefix_blocks[trace.prefix_offsets[r] : trace.prefix_offsets[r + 1]]
            blocks = listed[: int(row["prompt_tokens"]) // self.engine.block_tokens].tolist()
        domain = int(row["domain"])
        request = _Request(
            number=r,
            prompt=int(row["prompt_tokens"]),
            limit=int(row["output_limit"]),
            wanted=int(trace.output_tokens[r]),
            most_new=int(trace.max_new_tokens[r]),
            domain=domain,
            blocks=blocks,
        )
        drawn = begin_request(self.acceptance, self.engine.seed, r, domain, request.limit)
        request.difficulty, request.state = drawn
        return request

    # KV memory

    def _pages(self, tokens: int) -> int:
        return max(0, -(-tokens // self.engine.page_tokens))

    def _private(self, request: _Request, extra: int = 0) -> int:
        shared = len(request.locked) * self.engine.block_tokens
        return self._pages(request.kv + extra - shared)

    def _block_pages(self) -> int:
        return self.engine.block_tokens // self.engine.page_tokens

    def _available(self) -> int:
        return self.free + len(self.unused) * self._block_pages()

    def _evict(self, pages: int) -> bool:
        if self._available() < pages:
            return False
        while self.free < pages:
            block, _ = self.unused.popitem(last=False)
            del self.locks[block]
            self.free += self._block_pages()
        return True

    def _lock(self, request: _Request, block: int) -> None:
        self.unused.pop(block, None)
        self.locks[block] = self.locks.get(block, 0) + 1
        request.locked.append(block)

    def _unlock(self, request: _Request) -> None:
        while request.locked:
            block = request.locked.pop()
            self.locks[block] -= 1
            if self.locks[block] == 0:
                self.unused[block] = None

    def _share(self, request: _Request) -> None:
        size = self.engine.block_tokens
        for block in request.blocks[len(request.locked) :]:
            if (len(request.locked) + 1) * size > request.kv:
                break
            if block in self.locks:
                self.free += self._block_pages()
            self._lock(request, block)

    # Admission and prefill

    def _assumed(self, request: _Request) -> int:
        page = self.engine.page_tokens
        pool = self.engine.pool_pages * page
        most = min(self.engine.admission_new_tokens, pool - 2 * page - request.prompt)
        if request.most_new:
            most = min(most, request.most_new)
        return max(0, most - request.generated)

    def _form_batch(self) -> list[tuple[_Request, int]]:
        engine, page = self.engine, self.engine.page_tokens
        if not self.running:
            self._drop_finished()
        elif self.prefills_wait:
            self.prefills_wait -= 1
            return []
        held = len(self.running) + self.leaving
        crowded = held > 0 and engine.max_running - held < engine.min_free_slots
        if self.chunked is None and (self.batch_full or not self.waiting or crowded):
            return []
        riding = len(self.running) if engine.mixed_chunk else 0
        chunk_left = engine.chunk_tokens - riding
        input_left = engine.max_prefill_tokens - riding
        reserved = float(riding)
        for request in self.running:
            reserved += self.ratio * self._assumed(request)
        batch: list[tuple[_Request, int]] = []

        def take(request: _Request, tokens: int) -> bool:
            need = self._private(request, tokens) - self._private(request)
            if not self._evict(need):
                return False
            self.free -= need
            batch.append((request, tokens))
            return True

        if self.chunked is not None:
            request = self.chunked
            todo = request.goal - request.kv
            tokens = min(todo, chunk_left, self._available() * page)
            if tokens <= 0 or not take(request, tokens):
                return []
            chunk_left -= tokens
            input_left -= tokens
            if tokens == todo:
                self.chunked = None
                reserved += self._assumed(request) + page
        while self.waiting and chunk_left > 0 and input_left > 0:
            if held + len(batch) >= engine.max_running:
                self.batch_full = True
                break
            request = self.waiting[0]
            for block in request.blocks:
                if block not in self.locks:
                    break
                self._lock(request, block)
            goal = request.prompt + request.generated
            cached = min(len(request.locked) * engine.block_tokens, goal - 1)
            extend = goal - cached
            new = self._assumed(request)
            if extend + new + page >= self._available() * page - reserved:
                self._unlock(request)
                self.batch_full = bool(self.running or batch)
                break
            if extend > input_left and batch:
                self._unlock(request)
                break
            tokens = min(extend, chunk_left)
            request.kv = cached
            if not take(request, tokens):
                request.kv = 0
                self._unlock(request)
                break
            self.waiting.popleft()
            request.goal = goal
            chunk_left -= tokens
            input_left -= tokens
            if tokens < extend:
                self.chunked = request
            else:
                reserved += new + page
        return batch

    def _prefill(self, batch: list[tuple[_Request, int]]) -> None:
        start_s = self.now_s
        self.prefills += 1
        self.prefills_wait = self.engine.prefill_decode_interval
        if self.engine.mixed_chunk:
            self._make_room(1)
        riding = list(self.running) if self.engine.mixed_chunk else []
        self.ended = []
        new = sum(tokens for _, tokens in batch)
        pairs = 0.0
        for request, tokens in batch:
            pairs += tokens * (request.kv + 0.5 * tokens)
        pairs += float(sum(request.kv for request in riding))
        self.now_s += prefill_seconds(self.truth, new + len(riding), pairs) + self.truth.host_s
        committed = 0
        if riding:
            self._drop_finished()
            committed = self._commit([0] * len(riding), [0] * len(riding))
            self.batch_full = self.batch_full and len(self.running) == len(riding)
        for request, tokens in batch:
            request.kv += tokens
            self._share(request)
            if request.kv < request.goal:
                continue
            if request.generated == 0:
                request.first_s = self.now_s
            request.generated += 1
            committed += 1
            if request.generated >= request.limit:
                self._finish(request, 1)
                self.batch_full = False
                self.leaving += self.engine.overlap
            else:
                request.logits, request.ages = [], []
                request.drafts, request.note = self.drafts_new, math.nan
                self.running.append(request)
        self._log(start_s, len(batch) + len(riding), new + len(riding), 0, committed, new)

    # Decode

    def _make_room(self, step_tokens: int) -> None:
        def fits() -> bool:
            need = sum(self._private(q, step_tokens) - self._private(q) for q in self.running)
            return self._evict(need)

        engine = self.engine
        if fits():
            lower = self.ratio - engine.new_token_ratio_decay
            self.ratio = max(lower, engine.least_new_token_ratio)
            return
        while len(self.running) > 1:
            order = [(q.generated, -q.prompt, -i) for i, q in enumerate(self.running)]
            victim = self.running.pop(order.index(min(order)))
            self.free += self._private(victim)
            self._unlock(victim)
            victim.kv = 0
            victim.retractions += 1
            self.waiting.append(victim)
            if fits():
                break
        generated = sum(q.generated for q in self.running)
        assumed = sum(q.generated + self._assumed(q) for q in self.running)
        self.ratio = min(1.0, (generated + 20 * len(self.running)) / (assumed + 1.0))
        self.batch_full = False

    def _decode(self) -> None:
        start_s = self.now_s
        self._drop_finished()
        self._make_room(self.gamma + 1 if self.speculative else 1)
        ended, self.ended = self.ended if self.engine.overlap else [], []
        rows = len(self.running)
        outcomes = [self._draw(q) for q in self.running] if self.speculative else [0] * rows
        drafted = sum(q.drafts for q in self.running) if self.speculative else 0
        context = float(sum(q.kv for q in self.running))
        lengths = self._plan(ended) if self.speculative and rows else [0] * rows
        shape = self._shape(lengths, drafted)
        computed = rows + sum(lengths) + sum(verified for verified, _ in ended)
        batch, verified = rows + len(ended), sum(lengths)
        drafted += len(ended) if self.speculative else 0
        context += float(sum(kv for _, kv in ended))
        self.now_s += decode_step_seconds(self.truth, computed, batch, drafted, context, shape)
        committed = self._commit(lengths, outcomes)
        self.leaving += rows - len(self.running)
        self._log(start_s, rows, computed, verified, committed, 0)

    def _draw(self, q: _Request) -> int:
        """The request's round happens, drafted for or not; what is not drafted nobody sees."""
        drawn = np.empty(self.gamma)
        accepted, q.state = draw_round(
            self.acceptance, self.engine.seed, q.number, q.rounds, q.domain,
            q.difficulty, q.state, q.generated - 1, drawn,
        )  # fmt: skip
        if q.drafts:
            q.logits.append(drawn)
            q.ages.append(0)
            return accepted
        q.undrafted += 1
        q.logits.append(q.logits[-1] if q.logits else np.full(self.gamma, np.nan))
        q.ages.append(q.ages[-1] + 1 if q.ages else 0)
        return 0

    def _plan(self, ended: list[tuple[int, int]]) -> list[int]:
        more = sum(verified for verified, _ in ended)
        planner, alone = self.planner, (self.planner.costs, self.planner.policy_tables)
        if more:
            costs, tables = alone
            planner.costs = costs._replace(
                verify_s=costs.verify_s[more:].copy(),
                ragged_s=costs.ragged_s[more:].copy(),
                plain_s=costs.plain_s[more:].copy(),
            )
            planner.policy_tables = tables._replace(
                steps_per_s=tables.steps_per_s[min(more, tables.steps_per_s.size - 1) :].copy(),
                theta_s=tables.theta_s[min(more, tables.theta_s.size - 1) :].copy(),
            )
        lengths = self._planned()
        planner.costs, planner.policy_tables = alone
        return lengths

    def _planned(self) -> list[int]:
        lag, nothing = self.engine.lag_steps, np.full(self.gamma, np.nan)
        self.prefills_per_step += PREFILL_MEMORY * (self.prefills - self.prefills_per_step)
        self.prefills = 0
        stale = [q.logits[-1 - lag] if len(q.logits) > lag else nothing for q in self.running]
        known = [not np.isnan(row[0]) for row in stale]
        ages = [
            q.ages[-1 - lag] + lag if k else 0 for q, k in zip(self.running, known, strict=True)
        ]
        plan = self.planner.plan(
            BatchState(
                logits=np.array(
                    [
                        q.logits[-1] if q.drafts else np.full(self.gamma, -np.inf)
                        for q in self.running
                    ]
                ),
                stale_logits=np.array(stale),
                stale_age=np.array(ages, np.int64),
                context_tokens=np.array([q.kv for q in self.running]),
                slo_slack_s=np.array([self._slack_s(q) for q in self.running]),
                note=np.array([q.note for q in self.running]),
                priority=np.array([self.records["priority"][q.number] for q in self.running]),
                prefills_per_step=self.prefills_per_step,
                kv_room_tokens=self._available() * self.engine.page_tokens,
            )
        )
        for q, drafts, note in zip(self.running, plan.draft_next, plan.note, strict=True):
            q.drafts, q.note = bool(drafts), float(note)
        self.drafts_new = bool(plan.draft_next.any())
        return [int(length) for length in plan.lengths]

    def _shape(self, lengths: list[int], drafted: int) -> int:
        """What the step is: ragged, uniform by decision, or uniform because nobody decided."""
        policy = self.planner.policy
        if not self.speculative:
            return PLAIN
        if len(set(lengths)) > 1:
            return RAGGED
        if not policy.reads_confidences or not drafted:
            return UNIFORM
        if set(lengths) != {self.gamma}:
            return RAGGED
        return UNIFORM if policy.chooses_drafts else DECIDED

    def _slack_s(self, q: _Request) -> float:
        tables = self.planner.policy_tables
        ttft_s = q.first_s - float(self.records["arrival_s"][q.number])
        if math.isinf(tables.tpot_s) or ttft_s > tables.ttft_s:
            return math.inf
        return q.generated * tables.tpot_s - (self.now_s - q.first_s)

    def _commit(self, lengths: list[int], outcomes: list[int]) -> int:
        committed = 0
        staying = []
        for q, length, outcome in zip(self.running, lengths, outcomes, strict=True):
            emitted = min(min(outcome, length) + 1, q.limit - q.generated)
            before = self._private(q)
            q.verified += length
            q.accepted += emitted - 1
            q.kv += emitted
            self.free -= self._private(q) - before
            q.generated += emitted
            q.rounds += 1
            committed += emitted
            if q.generated >= q.limit:
                self._finish(q, length + 1)
            else:
                staying.append(q)
        self.running = staying
        return committed

    def _finish(self, request: _Request, verified: int) -> None:
        self.ended.append((verified, request.kv))
        request.finish_s = self.now_s
        self.free += self._private(request)
        self._unlock(request)

    def _drop_finished(self) -> None:
        staying = len(self.ended) if self.engine.overlap else 0
        if self.leaving > staying:
            self.leaving, self.batch_full = staying, False

    def _log(
        self, start_s: float, requests: int, computed: int, verify: int, committed: int, new: int
    ) -> None:
        duration_s = self.now_s - start_s
        self.steps.append(
            ReferenceStep(start_s, duration_s, requests, computed, verify, committed, new)
        )

    def run(self) -> Records:
        """Replay to the end; returns request records comparable to ``Outcome.requests``."""
        arriving = deque(
            (float(self.records["arrival_s"][q.number]), q)
            for q in self.requests
            if self.records["status"][q.number] != REJECTED
        )
        while True:
            while arriving and arriving[0][0] <= self.formed_s:
                self.waiting.append(arriving.popleft()[1])
            start_s = self.now_s
            if batch := self._form_batch():
                self._prefill(batch)
            elif self.running or (self.engine.overlap and self.ended):
                self._decode()
            elif self.formed_s < self.now_s:
                self.formed_s = self.now_s
                continue
            elif arriving:
                self.now_s = self.formed_s = max(self.now_s, arriving[0][0])
                continue
            else:
                return self._written()
            self.formed_s = start_s if self.engine.overlap else self.now_s

    def _written(self) -> Records:
        for q in self.requests:
            row = self.records[q.number]
            if row["status"] == REJECTED:
                continue
            row["first_token_s"], row["finish_s"] = q.first_s, q.finish_s
            row["generated"], row["retractions"] = q.generated, q.retractions
            row["verified"], row["accepted"], row["rounds"] = q.verified, q.accepted, q.rounds
            row["undrafted"] = q.undrafted
            row["status"] = COMPLETED if q.limit == q.wanted else TRUNCATED
        return self.records
