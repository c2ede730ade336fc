"""How urgent SGLang's running requests are: their priority, and the time until they miss their SLO.

Owns which of SGLang's times and numbers these are. Knows neither what a policy makes of them nor
SGLang's classes: a request is what has these attributes.

Shapes: R requests in the step.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sglang_dspark.core.state import Bools, Floats, Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class Urgency:
    """As ``BatchState`` takes it; empty where a server knows nothing."""

    slo_slack_s: Floats = field(default_factory=lambda: np.empty(0))
    priority: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))


NOTHING_URGENT = Urgency()


def priorities(requests: Sequence[Any], *, low_first: bool) -> Ints:
    """[R] larger is more urgent, 0 for a request that was sent without a priority.

    ``low_first``: SGLang's --schedule-low-priority-values-first.
    """
    # SGLang gives a request without a priority the last place in any order, a number at the end of
    # the range: as a weight it would drown the others.
    unset = (None, sys.maxsize, -sys.maxsize - 1)
    given = [0 if request.priority in unset else request.priority for request in requests]
    # Clients send what they like; only what fits an integer here has an order.
    found = np.array([max(-sys.maxsize, min(sys.maxsize, one)) for one in given], dtype=np.int64)
    return -found if low_first else found


def slack_s(
    requests: Sequence[Any],
    context_tokens_R: Ints,
    *,
    tpot_s: float,
    ttft_s: float = np.inf,
    now_s: float,
) -> Floats:
    """[R] seconds until the request's next token is late; negative when it is.

    A request's g tokens so far earn it g times ``tpot_s`` from its first token on. +inf where there
    is nothing to keep: the first token was later than ``ttft_s``, or is not known yet, which under
    overlap scheduling is so in a request's first step. g is counted from the KV cache, which is up
    to date there, and not from the outputs, which are a step behind.

    ``context_tokens_R``: tokens in the KV cache, all but the last of each request. ``now_s`` is of
    ``time.perf_counter``, as SGLang's times are; arrival is when the scheduler took the request in.
    """
    arrival_R = np.array([request.time_stats.scheduler_recv_time for request in requests])
    first_R = np.array([request.time_stats.prefill_finished_time for request in requests])
    prompt_R = np.array([len(request.origin_input_ids) for request in requests])
    generated_R = context_tokens_R - prompt_R + 1
    lost_R: Bools = (first_R == 0.0) | (first_R - arrival_R > ttft_s)
    return np.where(lost_R, np.inf, first_R + tpot_s * generated_R - now_s)
