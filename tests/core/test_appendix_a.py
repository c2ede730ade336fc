"""Losslessness by exact enumeration: what is served is distributed as the target would sample.

Every draft of a toy chain is enumerated with its probability, planned by the policy under test,
verified by rejection sampling and continued by the target, without random numbers. The paper's
Appendix A counterexample is one of the cases; a retrospective policy fails the same checks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sglang_dspark.core.state import Floats
from sglang_dspark.core.tables import (
    EARLY_STOP,
    FIXED,
    GLOBAL,
    GOODPUT,
    SGLANG,
    THRESHOLD,
    PolicyTables,
)
from tests.core.plain_policies import PLENTY, costs_of, lengths_of, policy_of

Plan = Callable[[Floats], list[int]]
"""From the current survivals [R, K] to lengths."""

VOCABULARY = 2
START = 0


def sequences(length: int) -> Iterator[tuple[int, ...]]:
    return itertools.product(range(VOCABULARY), repeat=length)


def chain_probability(chain: Floats, tokens: Sequence[int]) -> float:
    """Of ``tokens`` after START in the Markov chain [previous, next]."""
    steps = zip((START, *tokens), tokens, strict=False)
    return float(np.prod([chain[previous, token] for previous, token in steps]))


def served(target: Floats, drafter: Floats, draft: Sequence[int], length: int) -> Floats:
    """Probability of each sequence of K + 1 served tokens, the draft and its length given.

    Rejection sampling over the first ``length`` tokens, the target for everything after.
    """
    horizon = len(draft) + 1
    result = []
    for tokens in sequences(horizon):
        total, alive = 0.0, 1.0
        for i, proposed in enumerate(draft[:length]):
            previous = tokens[i - 1] if i else START
            p, q = target[previous], drafter[previous]
            accept = min(1.0, p[proposed] / q[proposed])
            residual = np.maximum(p - q, 0.0)
            if accept < 1.0:
                after = (START, *tokens)[i + 1 :]
                rest = np.prod([target[a, b] for a, b in itertools.pairwise(after)])
                chosen = residual[tokens[i]] / residual.sum()
                total += alive * (1 - accept) * chosen * float(rest)
            if tokens[i] != proposed:
                alive = 0.0
                break
            alive *= accept
        if alive:
            after = (START, *tokens)[length:]
            total += alive * np.prod([target[a, b] for a, b in itertools.pairwise(after)])
        result.append(total)
    return np.array(result)


def joint_distribution(
    plan: Plan, target: Floats, drafter: Floats, confidence: Floats, requests: int
) -> Floats:
    """Of all requests' served sequences: an array with one axis per request.

    ``confidence`` [R, K, previous token] is what the head says of position k after that token.
    """
    positions = confidence.shape[1]
    total = np.zeros((VOCABULARY ** (positions + 1),) * requests)
    for drafts in itertools.product(sequences(positions), repeat=requests):
        survival = np.ones((requests, positions))
        for r, draft in enumerate(drafts):
            before = (START, *draft[:-1])
            survival[r] = np.cumprod([confidence[r, k, x] for k, x in enumerate(before)])
        outer = np.array(1.0)
        for draft, length in zip(drafts, plan(survival), strict=True):
            weighted = chain_probability(drafter, draft) * served(target, drafter, draft, length)
            outer = np.multiply.outer(outer, weighted)
        total += outer
    return total


def by_target(target: Floats, positions: int, requests: int) -> Floats:
    one = np.array([chain_probability(target, tokens) for tokens in sequences(positions + 1)])
    outer: Floats = np.array(1.0)
    for _ in range(requests):
        outer = np.multiply.outer(outer, one)
    return outer


SPS = (1.0, 0.5, 0.45)
PAPER_COSTS = costs_of([0.0, *(1 / rate for rate in SPS)])
PAPER_TARGET = np.array([[0.7, 0.3], [0.7, 0.3]])
PAPER_DRAFTER = np.array([[0.5, 0.5], [0.5, 0.5]])
PAPER_CONFIDENCE = np.array([[[0.8, 0.8], [0.9, 0.0]]])
"""c_1 = 0.8; c_2 = 0.9 after token A, 0 after token B."""


def first_token(plan: Plan) -> Floats:
    """Distribution of the first served token in the paper's example."""
    joint = joint_distribution(plan, PAPER_TARGET, PAPER_DRAFTER, PAPER_CONFIDENCE, 1)
    return joint.reshape(VOCABULARY, -1).sum(axis=1)


@pytest.mark.example
def test_the_retrospective_search_of_appendix_a_serves_the_wrong_distribution() -> None:
    """A budget from the current confidences looks back through c_2 at the token it admits."""
    policy = policy_of(GLOBAL)
    assert lengths_of(policy, PAPER_COSTS, np.array([[0.8, 0.72]])) == [2]
    assert lengths_of(policy, PAPER_COSTS, np.array([[0.8, 0.0]])) == [0]
    found = first_token(lambda survival: lengths_of(policy, PAPER_COSTS, survival))
    np.testing.assert_allclose(found, [0.85, 0.15], rtol=1e-14)


@pytest.mark.example
def test_early_stopping_verifies_nothing_in_appendix_a_and_is_right() -> None:
    policy = policy_of(EARLY_STOP)
    assert lengths_of(policy, PAPER_COSTS, np.array([[0.8, 0.72]])) == [0]
    found = first_token(lambda survival: lengths_of(policy, PAPER_COSTS, survival))
    np.testing.assert_allclose(found, [0.7, 0.3], rtol=1e-14)


@pytest.mark.example
@pytest.mark.parametrize("stale", [[0.8, 0.72], [0.8, 0.0], [1.0, 1.0], [0.1, 0.1]])
def test_the_asynchronous_budget_is_right_in_appendix_a(stale: list[float]) -> None:
    for policy in (policy_of(GLOBAL), policy_of(GOODPUT, min_gain=0.01)):
        found = first_token(
            lambda survival, policy=policy: lengths_of(
                policy, PAPER_COSTS, survival, np.array([stale])
            )
        )
        np.testing.assert_allclose(found, [0.7, 0.3], rtol=1e-14)


@pytest.mark.example
def test_the_enumeration_sums_to_one_and_verify_all_matches_the_target() -> None:
    joint = joint_distribution(lambda _: [2], PAPER_TARGET, PAPER_DRAFTER, PAPER_CONFIDENCE, 1)
    assert joint.sum() == pytest.approx(1.0, rel=1e-14)
    np.testing.assert_allclose(joint, by_target(PAPER_TARGET, 2, 1), rtol=1e-13)


def chains() -> st.SearchStrategy[Floats]:
    """Transition matrices without impossible tokens."""
    first = st.integers(1, 19).map(lambda i: i / 20)
    return st.tuples(first, first).map(lambda p: np.array([[p[0], 1 - p[0]], [p[1], 1 - p[1]]]))


def confidences(requests: int, positions: int) -> st.SearchStrategy[Floats]:
    """[R, K, previous token]; few levels, so that survivals tie across requests."""
    n = requests * positions * VOCABULARY
    level = st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0])
    shape = (requests, positions, VOCABULARY)
    return st.lists(level, min_size=n, max_size=n).map(lambda v: np.array(v).reshape(shape))


def step_times() -> st.SearchStrategy[Floats]:
    step = st.sampled_from([0.0, 0.05, 0.2, 0.4, 1.0])
    return st.lists(step, min_size=7, max_size=7).map(
        lambda steps: np.concatenate([[0.0, 1.0], 1.0 + np.cumsum(steps)])
    )


LOSSLESS = {
    "fixed": policy_of(FIXED, length=2),
    "threshold": policy_of(THRESHOLD, threshold=0.5),
    "early_stop": policy_of(EARLY_STOP),
    "global": policy_of(GLOBAL),
    "sglang": policy_of(
        SGLANG, table=1, steps_per_s=np.array([1.0, 1.0, 1.0, 0.8, 0.8, 0.7, 0.4, 0.4, 0.3])
    ),
    "goodput": policy_of(GOODPUT),
    "goodput, cautious": policy_of(GOODPUT, min_gain=0.1, probe_rounds=4),
    "goodput, unequal": policy_of(GOODPUT),
}
UNEQUAL = {
    "weight": np.array([0.3, 1.0]),
    "stale_age": np.array([0, 5]),
    "note": np.array([np.nan, 0.2]),
    "prefills_per_step": 0.5,
}
"""Two requests of unequal worth, one without history."""


def gap(
    policy: PolicyTables,
    chains_and_heads: tuple[Floats, Floats, Floats],
    verify_s: Floats,
    stale: Floats | None,
    room: int = PLENTY,
    **around: Any,
) -> float:
    """Largest difference between what two requests are served and what the target samples."""
    target, drafter, confidence = chains_and_heads
    requests, positions, _ = confidence.shape
    costs = costs_of(verify_s)

    def plan(survival: Floats) -> list[int]:
        return lengths_of(policy, costs, survival, stale, room, **around)

    joint = joint_distribution(plan, target, drafter, confidence, requests)
    return float(np.abs(joint - by_target(target, positions, requests)).max())


@pytest.mark.law
@pytest.mark.parametrize("name", LOSSLESS)
@given(
    st.tuples(chains(), chains(), st.integers(2, 3).flatmap(lambda k: confidences(2, k))),
    step_times(),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0, 3, 4, 5, PLENTY]),
)
@settings(max_examples=15)
def test_two_requests_are_served_what_the_target_would_sample(
    name: str,
    toy: tuple[Floats, Floats, Floats],
    verify_s: Floats,
    past: float,
    room: int,
) -> None:
    """Jointly: neither request's tokens may lean on the other's, nor on its own confidences."""
    stale = np.cumprod(np.full(toy[2].shape[:2], past), axis=1)
    around = UNEQUAL if name == "goodput, unequal" else {}
    assert gap(LOSSLESS[name], toy, verify_s, stale, room, **around) < 1e-12


TOY = (
    np.array([[0.7, 0.3], [0.2, 0.8]]),
    np.array([[0.5, 0.5], [0.6, 0.4]]),
    np.array([[[0.8, 0.8], [0.9, 0.0]], [[0.7, 0.7], [0.6, 0.3]]]),
)


@pytest.mark.example
def test_the_same_check_catches_a_retrospective_budget() -> None:
    """Two requests, the current confidences passed off as stale: far from the target."""
    verify_s = np.array([0.0, 1.0, 1.1, 2.0, 2.1, 2.2, 2.3])
    assert gap(policy_of(GLOBAL), TOY, verify_s, stale=None) > 0.01
    assert gap(policy_of(GLOBAL), TOY, verify_s, stale=np.array([[0.8, 0.7]] * 2)) < 1e-14


@pytest.mark.law
@given(chains(), chains(), st.sampled_from([0.1, 0.4]))
@settings(max_examples=10)
def test_the_same_check_catches_a_plan_that_looks_at_the_token_itself(
    target: Floats, drafter: Floats, low: float
) -> None:
    """Verifying only where the first token is A is what causality forbids."""
    assume(abs(target[START, 0] - drafter[START, 0]) > 0.04)

    def peeking(survival: Floats) -> list[int]:
        return [1 if survival[0, 1] > low else 0]

    confidence = np.array([[[1.0, 1.0], [1.0, low]]])
    joint = joint_distribution(peeking, target, drafter, confidence, 1)
    assert np.abs(joint - by_target(target, 2, 1)).max() > 1e-5
