"""The nouns: what a batch state refuses, and what a plan adds up to."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from sglang_dspark.core.state import BatchState, VerifyPlan


def state_of(**fields: Any) -> BatchState:
    values: dict[str, Any] = {
        "logits": np.zeros((2, 3)),
        "stale_logits": np.zeros((2, 3)),
        "stale_age": np.full(2, 2),
        "context_tokens": np.full(2, 100),
    }
    return BatchState(**{**values, **fields})


@pytest.mark.example
def test_a_state_knows_its_size() -> None:
    state = state_of()
    assert (state.requests, state.gamma) == (2, 3)


@pytest.mark.example
@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("logits", np.zeros(3), r"logits have shape \(3,\); give \[requests, positions\]"),
        ("stale_logits", np.zeros((2, 2)), r"stale_logits have shape \(2, 2\), logits \(2, 3\)"),
        ("stale_age", np.zeros(3, int), "stale_age must have one entry for each of 2 requests"),
        ("context_tokens", np.zeros(1, int), "context_tokens must have one entry for each of 2"),
        ("slo_slack_s", np.zeros(5), "slo_slack_s must be empty or have 2 entries"),
        ("priority", np.zeros(1, int), "priority must be empty or have 2 entries"),
        ("logits", np.array([[0.0] * 3, [0.0, np.nan, 0.0]]), "logits of request 1 are NaN"),
        (
            "stale_logits",
            np.array([[np.nan] * 3, [0.0, 0.0, np.nan]]),
            "stale_logits of request 1 are NaN in part",
        ),
    ],
)
def test_a_state_that_contradicts_itself_is_refused(field: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        state_of(**{field: value})


@pytest.mark.example
def test_the_state_has_no_field_that_tells_outcomes() -> None:
    names = {field.name for field in dataclasses.fields(BatchState)}
    assert not [n for n in names if "accept" in n or "output" in n or "target" in n]


@pytest.mark.example
def test_a_plan_counts_one_token_for_each_request_besides_the_drafted() -> None:
    plan = VerifyPlan(
        lengths=np.array([2, 0, 7]),
        draft_next=np.ones(3, dtype=bool),
        predicted_step_s=0.01,
        expected_tokens=5.0,
        stop_reason="no-gain",
    )
    assert plan.step_tokens == 12
