"""Logits to probabilities, the draw, and the accept-or-resample rule by exact enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.draft.evaluation.rejection import (
    acceptance_probability,
    accepted_run,
    next_weights,
    residual,
)
from sglang_dspark.draft.evaluation.sampling import Sampling, draw, probabilities, uniforms

seeds = st.integers(0, 2**31)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_k=st.integers(0, 9),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 1.0),
)


def random_logits(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator)).to(dtype)


@pytest.mark.example
def test_greedy_takes_the_first_of_equally_likely_tokens() -> None:
    weights = probabilities(
        logits=torch.tensor([[1.0, 2.0, 2.0]]), sampling=Sampling(temperature=0)
    )
    assert weights.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.example
def test_filters_keep_what_they_say() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()

    def kept(**filters: float) -> list[float]:
        sampling = Sampling(**filters)  # type: ignore[arg-type]
        return [round(p, 4) for p in probabilities(logits=logits, sampling=sampling).tolist()]

    assert kept() == [0.5, 0.3, 0.15, 0.05]
    assert kept(top_k=2) == [0.625, 0.375, 0.0, 0.0]
    assert kept(top_k=99) == kept()
    assert kept(top_p=0.79) == [0.625, 0.375, 0.0, 0.0]
    assert kept(top_p=0.81) == [0.5263, 0.3158, 0.1579, 0.0]
    assert kept(min_p=0.29) == [0.5263, 0.3158, 0.1579, 0.0]
    assert kept(min_p=0.31) == [0.625, 0.375, 0.0, 0.0]
    assert kept(top_p=0.81, top_k=2) == kept(top_k=2)
    assert kept(temperature=0.5) == [0.6849, 0.2466, 0.0616, 0.0068]


@pytest.mark.law
@settings(deadline=None, max_examples=60)
@given(seed=seeds, sampling=samplings, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_probabilities_sum_to_one_and_keep_the_most_likely_token(
    seed: int, sampling: Sampling, dtype: torch.dtype
) -> None:
    logits = random_logits(seed, 5, 11, dtype=dtype)
    weights = probabilities(logits=logits, sampling=sampling)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))
    rows = torch.arange(5)
    assert (weights[rows, logits.float().argmax(-1)] == weights.max(-1).values).all()
    lowest_kept = torch.where(weights > 0, logits.float(), torch.inf).min(-1, keepdim=True).values
    assert (weights[logits.float() > lowest_kept] > 0).all()


@pytest.mark.law
@settings(deadline=None, max_examples=60)
@given(seed=seeds, zeros=st.lists(st.integers(0, 9), max_size=9))
def test_a_token_without_weight_is_never_drawn(seed: int, zeros: list[int]) -> None:
    weights = random_logits(seed, 10).softmax(-1)
    weights[zeros] = 0
    if not weights.sum():
        return
    uniform = uniforms(100, generator=torch.Generator().manual_seed(seed))
    uniform[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    drawn = draw(weights=weights.expand(100, -1), uniform=uniform)
    assert (weights[drawn] > 0).all()


@pytest.mark.example
def test_draws_invert_the_running_sum() -> None:
    weights = torch.tensor([0.25, 0.0, 0.5, 0.25])
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999], dtype=torch.float64)
    assert draw(weights=weights.expand(6, -1), uniform=uniform).tolist() == [0, 0, 2, 2, 3, 3]
    # Weights need not sum to 1.
    assert draw(weights=4 * weights.expand(6, -1), uniform=uniform).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.example
@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": 2}]
)
def test_values_out_of_range_are_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)  # type: ignore[arg-type]


@pytest.mark.law
@settings(deadline=None, max_examples=25)
@given(seed=seeds, length=st.integers(0, 2), sampling=samplings)
def test_what_is_committed_is_distributed_as_the_target_for_every_draft_length(
    seed: int, length: int, sampling: Sampling
) -> None:
    """Enumerates every draft of two tokens and sums its acceptances: no random numbers."""
    size = 3
    # Row 0: first position; row 1 + x: second position after token x; the rest: third position.
    target = probabilities(logits=random_logits(seed, 13, size), sampling=sampling).double()
    drafter = probabilities(logits=random_logits(seed + 1, 13, size), sampling=sampling).double()

    def row(table: torch.Tensor, before: tuple[int, ...]) -> torch.Tensor:
        return table[(0, 1, 4)[len(before)] + sum(x * size**i for i, x in enumerate(before))]

    committed: dict[tuple[int, ...], float] = {}
    for draft in itertools.product(range(size), repeat=2):
        chance = float(row(drafter, ())[draft[0]] * row(drafter, draft[:1])[draft[1]])
        if not chance:
            continue
        draft_RKV = torch.stack([row(drafter, draft[:k]) for k in range(2)])[None]
        target_RTV = torch.stack([row(target, draft[:k]) for k in range(3)])[None]
        alive = 1.0
        for run in range(length + 1):
            stop = 0.0
            if run < length:
                q, p = draft_RKV[0, run, draft[run]], target_RTV[0, run, draft[run]]
                stop = 1 - float(acceptance_probability(target=p, draft=q))
            weights = next_weights(
                draft_RKV=draft_RKV,
                target_RTV=target_RTV,
                lengths_R=torch.tensor([length]),
                accepted_R=torch.tensor([run]),
            )[0]
            ends = alive * stop if run < length else alive
            for token in range(size if ends > 1e-12 else 0):
                share = float(weights[token] / weights.sum())
                key = (*draft[:run], token)
                committed[key] = committed.get(key, 0.0) + chance * ends * share
            alive *= 1 - stop
    # Committed runs have different lengths: P(first token) and P(second | run goes on) suffice.
    first = [sum(v for key, v in committed.items() if key[0] == x) for x in range(size)]
    torch.testing.assert_close(torch.tensor(first).double(), row(target, ()), atol=1e-6, rtol=0)
    for x in range(size):
        going_on = {key: v for key, v in committed.items() if key[0] == x and len(key) > 1}
        total = sum(going_on.values())
        if total > 1e-3:
            second = [
                sum(v for key, v in going_on.items() if key[1] == y) / total for y in range(size)
            ]
            torch.testing.assert_close(
                torch.tensor(second).double(), row(target, (x,)), atol=1e-5, rtol=0
            )


@pytest.mark.example
def test_a_run_ends_at_the_first_rejection_and_at_its_length() -> None:
    half = torch.full((1, 3, 2), 0.5)
    target = torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]])

    def run(length: int, *uniform: float) -> int:
        return int(
            accepted_run(
                drafts_RK=torch.zeros(1, 3, dtype=torch.int64),
                draft_RKV=half,
                target_RTV=target,
                lengths_R=torch.tensor([length]),
                uniform_RK=torch.tensor([uniform], dtype=torch.float64),
            )
        )

    assert run(3, 0.99, 0.49, 0.99) == 3
    assert run(3, 0.99, 0.51, 0.0) == 1
    assert run(1, 0.99, 0.0, 0.0) == 1
    assert run(0, 0.0, 0.0, 0.0) == 0


@pytest.mark.example
def test_the_residual_of_equal_distributions_is_the_target() -> None:
    equal = torch.tensor([[0.25, 0.75]])
    assert torch.equal(residual(target_RV=equal, draft_RV=equal), equal)
    assert residual(target_RV=equal, draft_RV=torch.tensor([[0.5, 0.5]])).tolist() == [[0.0, 0.25]]


@pytest.mark.example
def test_uniforms_are_reproducible() -> None:
    one, other = (uniforms(4, 2, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, other)
    assert one.dtype == torch.float64
