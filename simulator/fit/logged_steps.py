"""A step log as the two fits read it: rounds for the acceptance, times for the costs.

Owns which rounds say something, and of what; ``gaps`` owns it of the times between steps. Knows
neither fit, and no file.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_dspark.logs.records import StepRecord
from simulator.fit.acceptance import CensoredRounds
from simulator.fit.cost import StepTimes
from simulator.fit.gaps import gap_s, step_times
from simulator.fit.served import NO_ONE, Served

Ints = npt.NDArray[np.int64]


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


def logged(
    records: Iterable[StepRecord],
    served: Mapping[str, Served],
    *,
    chunk_tokens: int | None = None,
    torn: Container[str] = (),
) -> Logged:
    """The records, which come in order within each server's run; ``chunk_tokens`` are the most
    that its prefill steps take, None where unknown; ``torn`` requests have rounds elsewhere, hence
    say nothing of the acceptance."""
    steps = [record for record in records if record.requests]
    if not steps:
        raise ValueError("the step log holds no step; record some traffic first")
    gamma = steps[0].state.gamma
    left_out = {
        "nothing drafted": 0,
        "a policy that never verifies": 0,
        "verified in full because the policy failed": 0,
        "not all of the request's rounds": 0,
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
            elif rid in torn:
                left_out["not all of the request's rounds"] += 1
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
        times=step_times(steps, served, chunk_tokens=chunk_tokens),
        steps=steps,
        left_out={why: count for why, count in left_out.items() if count},
        overlapping=sum(gap_s(*pair) < 0.0 for pair in pairwise(steps)) / len(steps),
    )
