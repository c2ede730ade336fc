"""Step logs of a server that never was: a known acceptance process, planned by a real policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.tables import decode_step_seconds, prefill_seconds
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import GlobalBudget, Policy
from sglang_dspark.core.state import BatchState, VerifyPlan
from sglang_dspark.logs.records import StepRecord
from simulator.acceptance.load import load_acceptance
from simulator.acceptance.tables import begin_request, draw_round

GAMMA = 7


@dataclass
class Log:
    """What the server wrote, and what it could not see."""

    records: list[StepRecord]
    whole_runs: list[int]
    """Tokens that the target would have accepted of every block, in the order of the records."""


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
) -> Log:
    """``requests`` at a time, each for ``rounds_each`` rounds; ``batch_sizes`` lets their number
    rise and fall. Steps take what ``truth`` says, times a noise that is never below 1."""
    acceptance = load_acceptance(profile)
    tables = acceptance.tables(list(acceptance.domains))
    domains = len(acceptance.domains)
    planner = Planner(
        policy=policy or GlobalBudget(), cost_model=planning, gamma=GAMMA, max_requests=requests
    )
    prices = truth.tables(requests * (GAMMA + 1), requests)
    rng = np.random.default_rng(seed)
    running: dict[int, list[Any]] = {}
    history: dict[int, list[Any]] = {}
    started, now_s = 0, 100.0
    log = Log(records=[], whole_runs=[])
    for step in range(steps):
        wanted = 1 + step // 20 % requests if batch_sizes else requests
        new_tokens, pairs = 0, 0.0
        while len(running) < wanted:
            difficulty, state = begin_request(tables, seed, started, started % domains, 100)
            prompt = int(rng.integers(20, 300))
            running[started] = [0, difficulty, state, prompt]
            history[started] = []
            new_tokens += prompt
            pairs += 0.5 * prompt**2
            started += 1
        if new_tokens:
            now_s += prefill_seconds(prices, new_tokens, pairs) + prices.host_s
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
        )
        seconds *= 1.0 + noise * rng.gamma(1.0)
        now_s += seconds
        log.records.append(_record(step, now_s, running, state, plan, accepted, seconds, prices))
        log.whole_runs += runs
        for number, kept in zip(list(running), accepted.tolist(), strict=True):
            running[number][3] += kept + 1
            if running[number][0] >= rounds_each or len(running) > wanted:
                del running[number]
    return log


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
