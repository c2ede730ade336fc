"""What a policy is told of SGLang's own requests: their priority, and how far ahead they are."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import numpy as np
import pytest

from sglang_dspark.core import Planner, load_cost_model
from sglang_dspark.core.policy import GlobalBudget, Goodput, Policy
from sglang_dspark.runtime.worker.urgency import UrgencyReader, priorities, slack_s

PROMPT = 10
PACED = Goodput(ttft_ms=500.0, tpot_ms=20.0, slack_weight=1.0, priority_weight=1.0)


def request(*, priority: int | None = None, first_s: float = 0.0, arrival_s: float = 0.0) -> Any:
    """One of SGLang's."""
    pytest.importorskip("sglang")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.sampling.sampling_params import SamplingParams

    one = Req("r", "", list(range(PROMPT)), SamplingParams(), priority=priority)
    one.time_stats.scheduler_recv_time = arrival_s
    if first_s:
        one.time_stats.set_prefill_finished_time(first_s)
    return one


def reader(policy: Policy, *, by_priority: bool = True) -> UrgencyReader:
    model = load_cost_model("h200-qwen3-8b-analytic")
    planner = Planner(policy=policy, cost_model=model, gamma=7, max_requests=4)
    return UrgencyReader(planner, by_priority=by_priority, low_first=False)


@pytest.mark.example
def test_a_request_is_ahead_of_its_pace_by_the_tokens_it_has() -> None:
    requests = [
        request(arrival_s=100.0, first_s=100.3),  # 5 tokens, 0.7 s after the first
        request(arrival_s=100.0, first_s=100.3),  # 50 of them
        request(arrival_s=100.0, first_s=100.6),  # the first was late
        request(arrival_s=100.8),  # a first step under overlap: the first token is on its way
        request(arrival_s=100.0),  # the same, too late
    ]
    context = np.array([PROMPT + 4, PROMPT + 49, PROMPT + 49, PROMPT, PROMPT])
    found = slack_s(requests, context, ttft_s=0.5, tpot_s=0.02, now_s=101.0)
    assert found.tolist() == pytest.approx([0.1 - 0.7, 1.0 - 0.7, np.inf, 0.02, np.inf])


@pytest.mark.example
def test_sglangs_priorities_are_larger_for_the_more_urgent() -> None:
    given = [3, -2, None, sys.maxsize, -sys.maxsize - 1, 10**30, -(10**30)]
    requests = [request(priority=one) for one in given]
    assert priorities(requests, low_first=False).tolist() == [3, -2, 0, 0, 0, 10**6, -(10**6)]
    assert priorities(requests, low_first=True).tolist() == [-3, 2, 0, 0, 0, -(10**6), 10**6]


@pytest.mark.example
@pytest.mark.parametrize(
    ("policy", "by_priority", "slack", "priority"),
    [
        (PACED, True, 1, 1),
        (PACED, False, 1, 0),
        (Goodput(tpot_ms=20.0), True, 1, 0),
        (Goodput(priority_weight=1.0), True, 0, 1),
        (Goodput(), True, 0, 0),
        (GlobalBudget(), True, 0, 0),
    ],
)
def test_only_what_the_policy_weighs_is_read(
    policy: Policy, by_priority: bool, slack: int, priority: int
) -> None:
    now_s = time.perf_counter()
    one = request(priority=2, arrival_s=now_s, first_s=now_s)
    found = reader(policy, by_priority=by_priority).read([one], np.array([PROMPT]))
    assert (found.slo_slack_s.size, found.priority.size) == (slack, priority)
    assert np.all(found.slo_slack_s <= 0.02)
    assert np.all(found.priority == 2)
