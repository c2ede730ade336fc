"""What a policy says of itself is true of its plans."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import POLICIES, choices, load_policy, policy_forms
from sglang_dspark.core.state import BatchState, Floats

GAMMA, MOST = 4, 24
CLIFFS = load_cost_model("b300x4-dsv4-flash-vllm")
SMOOTH = dataclasses.replace(load_cost_model("h100-qwen3-8b-analytic"), draft=CLIFFS.draft)


def planner_of(name: str, model: CostModel) -> Planner:
    return Planner(policy=POLICIES[name](), cost_model=model, gamma=GAMMA, max_requests=MOST)


PLANNERS = {name: (planner_of(name, CLIFFS), planner_of(name, SMOOTH)) for name in POLICIES}


def state_of(logits: Floats, stale: Floats, **fields: Floats) -> BatchState:
    rows = logits.shape[0]
    return BatchState(
        logits=logits,
        stale_logits=stale,
        stale_age=np.full(rows, 2),
        context_tokens=np.full(rows, 1000),
        **fields,
    )


def confidences(rng: np.random.Generator, rows: int) -> Floats:
    """Three batches of logits, none so low that its token is not worth a slot."""
    return rng.normal(1.5, 1.5, (3, rows, GAMMA)).clip(-2.0, None)


@pytest.mark.law
@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=25)
@given(rows=st.integers(1, MOST), seed=st.integers(0, 2**32))
def test_what_a_policy_does_without_it_does_not_look_at(name: str, rows: int, seed: int) -> None:
    kind, (planner, elsewhere) = POLICIES[name], PLANNERS[name]
    rng = np.random.default_rng(seed)
    logits, stale, other = confidences(rng, rows)
    plan = planner.plan(state_of(logits, stale))
    if not kind.reads_confidences:
        assert len(set(plan.lengths.tolist())) == 1
        assert planner.plan(state_of(other, other)).lengths.tolist() == plan.lengths.tolist()
    if not kind.needs_prices:
        assert elsewhere.plan(state_of(logits, stale)).lengths.tolist() == plan.lengths.tolist()
    if not kind.drafts:
        assert plan.lengths.sum() == 0
    if not kind.chooses_drafts:
        assert (plan.draft_next == kind.drafts).all()
        assert np.isnan(plan.note).all()
    if kind.decides_early:  # the current confidences change no sum
        assert planner.plan(state_of(other, stale)).lengths.sum() == plan.lengths.sum()
    if not kind.as_sglang:
        exact = 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(planner.survival(logits), exact.cumprod(axis=1), rtol=1e-12)


@pytest.mark.example
@pytest.mark.parametrize("name", POLICIES)
def test_what_a_policy_asks_for_it_looks_at(name: str) -> None:
    kind, (planner, elsewhere) = POLICIES[name], PLANNERS[name]
    seen = {"confidences": False, "prices": False, "late": False, "choice": False, "float32": False}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        logits, stale, other = confidences(rng, MOST)
        plan = planner.plan(state_of(logits, stale))
        lengths = plan.lengths.tolist()
        seen["confidences"] |= planner.plan(state_of(other, other)).lengths.tolist() != lengths
        seen["prices"] |= elsewhere.plan(state_of(logits, stale)).lengths.tolist() != lengths
        for each in (planner, elsewhere):
            first, second = (each.plan(state_of(now, stale)).lengths for now in (logits, other))
            seen["late"] |= bool(first.sum() != second.sum())
        seen["choice"] |= not np.isnan(plan.note).all()
        found = planner.survival(logits)
        seen["float32"] |= bool((found == found.astype(np.float32)).all())
    assert seen == {
        "confidences": kind.reads_confidences,
        "prices": kind.needs_prices,
        "late": not kind.decides_early,
        "choice": kind.chooses_drafts,
        "float32": kind.as_sglang,
    }


@pytest.mark.example
def test_help_and_remedies_are_made_of_what_policies_say() -> None:
    assert policy_forms() == (
        "none, fixed[:LENGTH], threshold[:THRESHOLD], early_stop, global, sglang[:TABLE], goodput"
    )
    assert choices(lambda kind: not kind.needs_prices) == "none, fixed or threshold:0.6"
    assert choices(lambda kind: kind.chooses_drafts) == "goodput"
    for kind in POLICIES.values():
        assert kind.summary
        assert "\n" not in kind.summary
        assert len(kind.summary) < 80


@pytest.mark.example
@pytest.mark.parametrize("fact", ["name", "code", "drafts", "axes"])
def test_a_policy_file_cannot_change_a_fact(fact: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(f'{{"schema_version": 1, "policy": "fixed", "parameters": {{"{fact}": 1}}}}')
    with pytest.raises(ValueError, match=f"parameters: unknown key '{fact}'; known keys: length"):
        load_policy(path)
