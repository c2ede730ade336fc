"""How urgent SGLang's running requests are: their priority, and the time until they fall behind.

Owns which of SGLang's times and numbers these are, and when a policy is worth reading them for.
Knows neither what a policy makes of them nor SGLang's classes.

Shapes: R requests in the step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sglang_dspark.core.goodput import slack_seconds
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.state import Floats, Ints

_FURTHEST = 10**6
"""Priorities beyond are taken for this: clients send any integer, and differences must fit one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Urgency:
    """As ``BatchState`` takes it; empty where a server knows nothing or the policy asks nothing."""

    slo_slack_s: Floats = field(default_factory=lambda: np.empty(0))
    priority: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))


NOTHING_URGENT = Urgency()


class UrgencyReader:
    """Reads what the policy asks for: the slack where it has a bound on the time per token.

    ``by_priority``: SGLang's --enable-priority-scheduling, without which it ignores priorities;
    ``low_first`` its --schedule-low-priority-values-first.
    """

    def __init__(self, planner: Planner, *, by_priority: bool, low_first: bool) -> None:
        self._tables = planner.policy_tables
        self._by_priority = by_priority and self._tables.priority_weight > 0
        self._low_first = low_first

    def read(self, requests: Sequence[Any], context_tokens_R: Ints) -> Urgency:
        """Of the step that is planned now; ``context_tokens_R``: in the KV cache."""
        found: dict[str, Any] = {}
        if self._tables.tpot_s < np.inf:
            found["slo_slack_s"] = slack_s(
                requests,
                context_tokens_R,
                ttft_s=self._tables.ttft_s,
                tpot_s=self._tables.tpot_s,
                now_s=time.perf_counter(),
            )
        if self._by_priority:
            found["priority"] = priorities(requests, low_first=self._low_first)
        return Urgency(**found) if found else NOTHING_URGENT


def priorities(requests: Sequence[Any], *, low_first: bool) -> Ints:
    """[R] larger is more urgent, 0 for a request that was sent without a priority."""
    # SGLang puts a request without a priority last by a number at the end of the range.
    unset = (None, sys.maxsize, -sys.maxsize - 1)
    given = [0 if request.priority in unset else request.priority for request in requests]
    found = np.array([max(-_FURTHEST, min(_FURTHEST, one)) for one in given], dtype=np.int64)
    return -found if low_first else found


def slack_s(
    requests: Sequence[Any], context_tokens_R: Ints, *, ttft_s: float, tpot_s: float, now_s: float
) -> Floats:
    """[R] ``core.goodput.slack_seconds`` of each request.

    The tokens so far are counted from the KV cache, which holds all but the last; under overlap
    scheduling the outputs are a step behind. So is the time of the first token: in a request's
    first step it is taken for now. Arrival is when the scheduler took the request in. ``now_s`` is
    of ``time.perf_counter``, as SGLang's times are.
    """
    slack_R = np.empty(len(requests))
    for r, request in enumerate(requests):
        times = request.time_stats
        first_s = times.prefill_finished_time or now_s
        generated = int(context_tokens_R[r]) - len(request.origin_input_ids) + 1
        slack_R[r] = slack_seconds(
            ttft_s, tpot_s, first_s - times.scheduler_recv_time, now_s - first_s, generated
        )
    return slack_R
