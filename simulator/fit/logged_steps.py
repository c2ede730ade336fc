"""A step log as the two fits read it: rounds for the acceptance, times for the costs.

Owns which rounds and which gaps between steps say something, and of what. Knows neither fit, and
no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_dspark.logs.records import StepRecord
from simulator.fit.acceptance import CensoredRounds
from simulator.fit.cost import StepTimes

Ints = npt.NDArray[np.int64]

_PAUSE_S = 5.0
"""A longer gap between two steps is not the engine's."""
_APART_S = 0.005
"""First tokens further apart than this come from two prefill steps."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What is known of a request beside its steps."""

    domain: str = ""
    cached_tokens: int = 0
    """Prompt tokens that the prefix cache spared it."""
    output_tokens: int = 0
    """Length of its answer; 0 where unknown."""
    first_s: float = math.nan
    """When its first token was there, on any clock; tells prefill steps apart."""


NO_ONE = Served()


@dataclass(frozen=True, kw_only=True, eq=False)
class Logged:
    """A step log as the two fits read it."""

    rounds: CensoredRounds
    domains: tuple[str, ...]
    """Names of ``rounds.domain``."""
    names: tuple[str, ...]
    """Request ids of ``rounds.request``."""
    output_tokens: Ints
    """[requests] length of each answer; where unknown what its steps committed, which may reach
    beyond the end of the text."""
    position: Ints
    """[N] output tokens before each round, the prefill's not counted."""
    record: Ints
    """[N] the step that each round was part of."""
    times: StepTimes
    steps: list[StepRecord]
    left_out: dict[str, int]
    """Why rounds were not used, and how many."""
    overlapping: float
    """Share of the steps whose parts take longer than the time since the step before."""


def prefill_batches(first_s: Sequence[float]) -> int:
    """How many prefill steps gave these requests their first tokens: those of one step are out
    within a few milliseconds, the next step's take a forward longer. 1 when times are unknown."""
    known = sorted(value for value in first_s if math.isfinite(value))
    return 1 + sum(after - before > _APART_S for before, after in pairwise(known))


def logged(records: Iterable[StepRecord], served: Mapping[str, Served]) -> Logged:
    """The records, which come in order within each server's run."""
    steps = [record for record in records if record.requests]
    if not steps:
        raise ValueError("the step log holds no step; record some traffic first")
    gamma = steps[0].state.gamma
    left_out = {
        "nothing drafted": 0,
        "a policy that never verifies": 0,
        "verified in full because the policy failed": 0,
    }
    numbers: dict[str, int] = {}
    counts: dict[str, int] = {}
    committed: dict[str, int] = {}
    rows: list[tuple[int, int, int, int, int, int, int]] = []
    logits: list[Any] = []
    names = [served.get(rid, NO_ONE).domain for step in steps for rid in step.request_ids]
    domains = sorted(set(names))
    code = {name: number for number, name in enumerate(domains)}
    for s, step in enumerate(steps):
        if step.state.gamma != gamma:
            raise ValueError(
                f"the log mixes draft lengths {gamma} and {step.state.gamma}; calibrate each alone"
            )
        for i, rid in enumerate(step.request_ids):
            number = numbers.setdefault(rid, len(numbers))
            order = counts[rid] = counts.get(rid, -1) + 1
            position = committed.get(rid, 0)
            committed[rid] = position + int(step.accepted[i]) + 1
            if step.degraded:
                left_out["verified in full because the policy failed"] += 1
            elif not np.isfinite(step.state.logits[i]).all():
                left_out["nothing drafted"] += 1
            elif step.plan.stop_reason == "no-draft":
                left_out["a policy that never verifies"] += 1
            else:
                domain = code[served.get(rid, NO_ONE).domain]
                length, kept = int(step.plan.lengths[i]), int(step.accepted[i])
                rows.append((number, order, domain, length, kept, s, position))
                logits.append(step.state.logits[i])
    columns = np.array(rows, dtype=np.int64).reshape(-1, 7).T
    return Logged(
        rounds=CensoredRounds(
            request=columns[0],
            step=columns[1],
            domain=columns[2],
            logits=np.array(logits).reshape(-1, gamma),
            verified=columns[3],
            accepted=columns[4],
        ),
        domains=tuple(domains),
        names=tuple(numbers),
        output_tokens=np.array(
            [served.get(rid, NO_ONE).output_tokens or committed[rid] + 1 for rid in numbers],
            np.int64,
        ),
        record=columns[5],
        position=columns[6],
        times=_step_times(steps, served, gamma),
        steps=steps,
        left_out={why: count for why, count in left_out.items() if count},
        overlapping=sum(_gap_s(*pair) < 0.0 for pair in pairwise(steps)) / len(steps),
    )


def _gap_s(before: StepRecord, step: StepRecord) -> float:
    """Seconds between two steps that no part of the second explains."""
    return step.end_s - before.end_s - step.step_s


def _step_times(steps: Sequence[StepRecord], served: Mapping[str, Served], gamma: int) -> StepTimes:
    count = len(steps)
    gap_s, prefill_gap_s = np.full(count, np.nan), np.full(count, np.nan)
    prefill_tokens, batches = np.zeros(count, np.int64), np.ones(count, np.int64)
    pairs = np.zeros(count)
    for s in range(1, count):
        before, step = steps[s - 1], steps[s]
        gap = _gap_s(before, step)
        if step.step != before.step + 1 or not 0.0 <= gap < _PAUSE_S:
            continue
        running = set(before.request_ids)
        new = [i for i, rid in enumerate(step.request_ids) if rid not in running]
        if not new:
            gap_s[s] = gap
        elif len(new) < step.requests:  # else the server may have been idle in between
            prefill_gap_s[s] = gap
            of = [served.get(step.request_ids[i], NO_ONE) for i in new]
            batches[s] = prefill_batches([one.first_s for one in of])
            for i, one in zip(new, of, strict=True):
                fresh = max(int(step.state.context_tokens[i]) - one.cached_tokens, 1)
                prefill_tokens[s] += fresh
                pairs[s] += fresh * (one.cached_tokens + 0.5 * fresh)
    return StepTimes(
        requests=np.array([step.requests for step in steps]),
        drafted=np.array([int(np.isfinite(step.state.logits[:, 0]).sum()) for step in steps]),
        tokens=np.array([step.computed_tokens for step in steps]),
        context_tokens=np.array([int(step.state.context_tokens.sum()) for step in steps]),
        uniform=np.array([step.shape == "uniform" for step in steps]),
        draft_s=np.array([step.draft_s for step in steps]),
        target_s=np.array([step.plan_s + step.verify_s + step.commit_s for step in steps]),
        gap_s=gap_s,
        prefill_gap_s=prefill_gap_s,
        prefill_tokens=prefill_tokens,
        prefill_pairs=pairs,
        prefill_batches=batches,
    )
