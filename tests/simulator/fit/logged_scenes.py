"""Step logs of a server that never was: a known acceptance process, planned by a real policy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.tables import UNIFORM, decode_step_seconds, prefill_seconds
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import GlobalBudget, Policy
from sglang_dspark.core.state import BatchState, VerifyPlan
from sglang_dspark.logs.records import StepRecord
from simulator.acceptance.load import load_acceptance
from simulator.acceptance.tables import begin_request, draw_round
from simulator.fit.served import Served
from tests.simulator.replay_scenes import cost_model

GAMMA = 7

TRUTH = cost_model(
    host={"step_s": 0.001, "origin": "analytic"},
    table={
        "tokens": [1, 64, 4096], "seconds": [0.0085, 0.0106, 0.25], "between": "linear",
        "origin": "analytic",
    },
    prefill={"base_s": 0.002, "token_s": 5e-5, "pair_s": 1e-8, "origin": "analytic"},
    context={"token_s": 1e-6, "reference_tokens": 100, "origin": "analytic"},
)  # fmt: skip

PLANNING = cost_model(
    table={
        "tokens": [1, 4096], "seconds": [0.002, 0.83], "between": "linear", "origin": "analytic",
    },
)  # fmt: skip
"""Tokens so dear that the policy trims."""


@dataclass
class Log:
    """What the server wrote, and what it could not see."""

    records: list[StepRecord]
    whole_runs: list[int]
    """Tokens that the target would have accepted of every block, in the order of the records."""
    served: dict[str, Served]
    """What the server measured of every request."""
    sent_s: dict[str, float]
    """When each arrived: while what ran before its prefill was formed did."""
    prompts: dict[str, int]
    outputs: dict[str, int]
    ended_s: dict[str, float]
    """Of those that ended within the log."""


def planned_log(
    planning: CostModel,
    truth: CostModel,
    *,
    policy: Policy | None = None,
    profile: str = "dspark-qwen3-4b",
    steps: int = 1500,
    requests: int = 16,
    rounds_each: int = 40,
    seed: int = 3,
    noise: float = 0.0,
    batch_sizes: bool = False,
    cached: bool = False,
    rate: float | None = None,
) -> Log:
    """``requests`` at a time, each for ``rounds_each`` rounds; ``batch_sizes`` lets their number
    rise and fall. Steps take what ``truth`` says, times a noise that is never below 1, prefills the
    same in the mean. ``cached``: three in four prompts are found in the prefix cache but for a few
    tokens, and of several that join at once each may get a prefill step of its own. ``rate``: they
    arrive at random, so many a second, and wait where all places are taken."""
    acceptance = load_acceptance(profile)
    tables = acceptance.tables(list(acceptance.domains))
    domains = len(acceptance.domains)
    planner = Planner(
        policy=policy or GlobalBudget(), cost_model=planning, gamma=GAMMA, max_requests=requests
    )
    prices = truth.tables(requests * (GAMMA + 1), requests)
    rng, pauses = np.random.default_rng(seed), np.random.default_rng((seed, 1))
    running: dict[int, list[Any]] = {}
    history: dict[int, list[Any]] = {}
    started, now_s, since_s, arrival_s = 0, 100.0, 99.99, 100.0
    log = Log(records=[], whole_runs=[], served={}, sent_s={}, prompts={}, outputs={}, ended_s={})
    for step in range(steps):
        wanted = 1 + step // 20 % requests if batch_sizes else requests
        while len(running) < wanted:
            if rate is not None:
                if arrival_s > now_s and running:
                    break
                now_s = max(now_s, arrival_s)
            joined: list[tuple[int, int]] = []
            while len(running) < wanted and (rate is None or arrival_s <= now_s):
                difficulty, state = begin_request(tables, seed, started, started % domains, 100)
                prompt, spared = _prompt(rng, cached)
                running[started] = [0, difficulty, state, prompt]
                history[started] = []
                joined.append((started, prompt - spared))
                name = f"request-{started}"
                log.served[name] = Served(cached_tokens=spared, on_step_clock=True)
                log.prompts[name], log.outputs[name] = prompt, 1
                log.sent_s[name] = arrival_s
                started += 1
                arrival_s += pauses.exponential(1.0 / rate) if rate else 0.0
            while joined:
                several = cached and rate is None
                count = int(rng.integers(1, len(joined) + 1)) if several else len(joined)
                if rate is None:
                    for number, _ in joined[:count]:
                        log.sent_s[f"request-{number}"] = pauses.uniform(since_s, now_s)
                since_s = now_s
                pause = noise * pauses.gamma(1.0)
                now_s = _prefill(log, joined[:count], running, prices, now_s, pause)
                del joined[:count]
        logits = np.empty((len(running), GAMMA))
        runs = []
        for i, (number, one) in enumerate(running.items()):
            run, one[2] = draw_round(
                tables, seed, number, one[0], number % domains, one[1], one[2], 0, logits[i]
            )
            one[0] += 1
            history[number].append(logits[i].copy())
            runs.append(run)
        stale = np.array(
            [history[n][-3] if len(history[n]) > 2 else np.full(GAMMA, np.nan) for n in running]
        )
        state = BatchState(
            logits=logits,
            stale_logits=stale,
            stale_age=np.where(np.isnan(stale[:, 0]), 0, 2),
            context_tokens=np.array([one[3] for one in running.values()]),
        )
        plan = planner.plan(state)
        accepted = np.minimum(runs, plan.lengths)
        seconds = decode_step_seconds(
            prices,
            plan.step_tokens,
            len(running),
            len(running),
            float(state.context_tokens.sum()),
            UNIFORM,
        )
        seconds *= 1.0 + noise * rng.gamma(1.0)
        since_s = now_s
        now_s += seconds
        log.records.append(_record(step, now_s, running, state, plan, accepted, seconds, prices))
        log.whole_runs += runs
        for number, kept in zip(list(running), accepted.tolist(), strict=True):
            running[number][3] += kept + 1
            log.outputs[f"request-{number}"] += kept + 1
            if running[number][0] >= rounds_each or (batch_sizes and len(running) > wanted):
                log.ended_s[f"request-{number}"] = now_s
                del running[number]
    return log


def _prompt(rng: np.random.Generator, cached: bool) -> tuple[int, int]:
    """(tokens, of them cached)."""
    prompt, spared = int(rng.integers(20, 300)), 0
    if cached:
        prompt += int(rng.integers(0, 500))
        spared = max(prompt - int(rng.integers(4, 120)), 0) if rng.random() < 0.75 else 0
    return prompt, spared


def _prefill(
    log: Log, batch: Any, running: dict[int, Any], prices: Any, now_s: float, noise: float
) -> float:
    """One prefill step of (number, new tokens); when it is over."""
    cached = [running[number][3] - fresh for number, fresh in batch]
    fresh = [tokens for _, tokens in batch]
    pairs = sum(f * (c + 0.5 * f) for f, c in zip(fresh, cached, strict=True))
    end_s = now_s + prefill_seconds(prices, sum(fresh), pairs) * (1.0 + noise) + prices.host_s
    for number, _ in batch:
        name = f"request-{number}"
        log.served[name] = dataclasses.replace(log.served[name], entry_s=now_s, first_s=end_s)
    return end_s


def _record(
    step: int,
    end_s: float,
    running: dict[int, Any],
    state: BatchState,
    plan: VerifyPlan,
    accepted: Any,
    seconds: float,
    prices: Any,
) -> StepRecord:
    """Parts of a step as a server times them; the loop's time is in none of them."""
    host_s = prices.host_s * seconds / max(seconds, 1e-12)
    draft_s = float(prices.draft_s[len(running)])
    return StepRecord(
        step=step,
        end_s=end_s,
        request_ids=tuple(f"request-{number}" for number in running),
        state=state,
        plan=plan,
        accepted=accepted.astype(np.int64),
        computed_tokens=plan.step_tokens,
        shape="uniform" if (plan.lengths == GAMMA).all() else "ragged",
        draft_s=draft_s,
        plan_s=0.0,
        verify_s=seconds - draft_s - host_s,
        commit_s=0.0,
    )
