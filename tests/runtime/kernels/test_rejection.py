"""Rejection over ragged rows: the offline rule, and the target's distribution as its law."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sglang_dspark.draft.evaluation import rejection as offline
from sglang_dspark.draft.evaluation.sampling import draw
from sglang_dspark.runtime.kernels.head import RowChoice, draft_block
from sglang_dspark.runtime.kernels.lengths import assign_lengths
from sglang_dspark.runtime.kernels.rejection import verify_chain
from tests.runtime.kernels.kernel_cases import (
    EIGHTHS,
    FAILS,
    PAPER,
    PASSES,
    appendix_a_survivals,
    chain_inputs,
    first_token_law,
    random_chain,
    retrospective,
    served_p_value,
)

seeds = st.integers(0, 2**31)


@pytest.mark.law
@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 9), st.integers(1, 6), st.integers(2, 40))
def test_ragged_rows_are_judged_as_the_offline_rule_judges_padded_ones(
    seed: int, requests: int, slots: int, vocabulary: int
) -> None:
    inputs = chain_inputs(requests=requests, slots=slots, vocabulary=vocabulary, seed=seed)
    accepted_R, next_R = verify_chain(**inputs)
    lengths_R, uniform = inputs["lengths_R"], inputs["uniform_RT"]
    target_RTV = torch.full((requests, slots + 1, vocabulary), torch.nan)
    for i, (start, length) in enumerate(zip(inputs["start_R"], lengths_R, strict=True)):
        target_RTV[i, : length + 1] = inputs["target_MV"][start : start + length + 1]
    expected_R = offline.accepted_run(
        drafts_RK=inputs["drafts_RK"],
        draft_RKV=inputs["draft_RKV"],
        target_RTV=target_RTV,
        lengths_R=lengths_R,
        uniform_RK=uniform[:, :-1],
    )
    assert torch.equal(accepted_R, expected_R)
    weights_RV = offline.next_weights(
        draft_RKV=inputs["draft_RKV"],
        target_RTV=target_RTV,
        lengths_R=lengths_R,
        accepted_R=accepted_R,
    )
    assert torch.equal(next_R, draw(weights=weights_RV, uniform=uniform[:, -1]))


@pytest.mark.law
@settings(deadline=None, max_examples=40)
@given(seeds)
def test_a_token_that_the_target_rules_out_is_never_served(seed: int) -> None:
    inputs = chain_inputs(requests=30, slots=3, vocabulary=8, seed=seed)
    target_MV = inputs["target_MV"]
    target_MV[torch.rand_like(target_MV) < 0.6] = 0
    target_MV[:, 3] += 1e-3
    target_MV /= target_MV.sum(-1, keepdim=True)
    inputs["uniform_RT"][:, -1] = torch.tensor([0.0, 1.0, 0.5]).repeat(10)
    accepted_R, next_R = verify_chain(**inputs)
    for i, (run, token) in enumerate(zip(accepted_R, next_R, strict=True)):
        rows = target_MV[inputs["start_R"][i] :]
        assert rows[run, token] > 0
        for k in range(int(run)):
            assert rows[k, inputs["drafts_RK"][i, k]] > 0


@pytest.mark.example
def test_equal_distributions_accept_everything_and_an_empty_residual_falls_back_to_the_target() -> (
    None
):
    even = torch.full((1, 1, 2), 0.5)
    inputs = {
        "drafts_RK": torch.zeros(1, 1, dtype=torch.int64),
        "draft_RKV": even,
        "target_MV": torch.full((2, 2), 0.5),
        "start_R": torch.zeros(1, dtype=torch.int64),
        "lengths_R": torch.ones(1, dtype=torch.int64),
        "uniform_RT": torch.tensor([[1 - 2**-53, 0.6]], dtype=torch.float64),
    }
    accepted_R, next_R = verify_chain(**inputs)
    assert (accepted_R.tolist(), next_R.tolist()) == ([1], [1])
    # Both q and p lie below each other's last bit: rejected by a hair, nothing left of p - q.
    inputs["target_MV"] = torch.tensor([[0.49999997, 0.5], [0.5, 0.5]])
    assert [int(x) for x in verify_chain(**inputs)] == [0, 1]


@pytest.mark.example
def test_what_is_no_distribution_at_all_still_gives_a_token_of_the_vocabulary() -> None:
    inputs = chain_inputs(requests=4, slots=2, vocabulary=6, seed=0)
    inputs["target_MV"][:] = torch.nan
    accepted_R, next_R = verify_chain(**inputs)
    assert accepted_R.tolist() == [0] * 4
    assert ((next_R >= 0) & (next_R < 6)).all()


def fixed(length: int) -> object:
    return lambda drafts_RK: torch.full((len(drafts_RK),), length)


def by_first_column(drafts_RK: Tensor) -> Tensor:
    """Lengths that differ between requests and do not look at drafts: 0, 1, 2, 0, 1, 2, ..."""
    return torch.arange(len(drafts_RK)) % 3


@pytest.mark.law
@pytest.mark.parametrize("lengths_of", [fixed(0), fixed(1), fixed(2), by_first_column])
def test_what_is_served_is_distributed_as_the_target(lengths_of: object) -> None:
    for seed in range(3):
        assert (
            served_p_value(
                verify_chain,
                target_VV=random_chain(seed, 5),
                drafter_VV=random_chain(seed + 9, 5),
                lengths_of=lengths_of,  # type: ignore[arg-type]
                requests=60_000,
                seed=seed,
            )
            > PASSES
        )


def accepts_by_p_alone(**inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The broken rule "accept x with probability p(x)"."""
    ones = torch.ones_like(inputs["draft_RKV"])
    accepted_R, _ = verify_chain(**{**inputs, "draft_RKV": ones})
    return accepted_R, resampled(inputs, accepted_R)


def replaces_by_the_target(**inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The broken rule "after a rejection sample from p"."""
    accepted_R, _ = verify_chain(**inputs)
    rows = inputs["target_MV"][inputs["start_R"] + accepted_R]
    return accepted_R, draw(weights=rows, uniform=inputs["uniform_RT"][:, -1])


def resampled(inputs: dict[str, Tensor], accepted_R: Tensor) -> Tensor:
    rows = torch.arange(len(accepted_R))
    last = inputs["draft_RKV"].shape[1] - 1
    target_RV = inputs["target_MV"][inputs["start_R"] + accepted_R]
    rest = offline.residual(
        target_RV=target_RV, draft_RV=inputs["draft_RKV"][rows, accepted_R.clamp(max=last)]
    )
    weights = torch.where((accepted_R < inputs["lengths_R"])[:, None], rest, target_RV)
    return draw(weights=weights, uniform=inputs["uniform_RT"][:, -1])


@pytest.mark.example
@pytest.mark.parametrize("broken", [accepts_by_p_alone, replaces_by_the_target])
def test_the_same_check_catches_a_broken_rule(broken: object) -> None:
    p_value = served_p_value(
        broken,  # type: ignore[arg-type]
        target_VV=random_chain(0, 5),
        drafter_VV=random_chain(9, 5),
        lengths_of=fixed(2),  # type: ignore[arg-type]
        requests=60_000,
        seed=0,
    )
    assert p_value < FAILS


@pytest.mark.law
@pytest.mark.parametrize("length", [0, 1, 2])
def test_the_first_served_token_has_exactly_the_targets_probabilities(length: int) -> None:
    """By enumeration; the broken rules are off by eighths."""

    def law(verify: object) -> Tensor:
        return first_token_law(verify, lengths_of=fixed(length), **EIGHTHS)  # type: ignore[arg-type]

    exact = EIGHTHS["target_V"].double()
    torch.testing.assert_close(law(verify_chain), exact, rtol=0, atol=1e-12)
    for broken in (accepts_by_p_alone, replaces_by_the_target) if length else ():
        assert (law(broken) - exact).abs().max() > 0.01


@pytest.mark.example
def test_the_retrospective_search_of_appendix_a_serves_the_wrong_distribution() -> None:
    """Each request by its own current confidences: both tokens after A, none after B."""
    found = first_token_law(verify_chain, lengths_of=retrospective, **PAPER)
    torch.testing.assert_close(found, torch.tensor([0.85, 0.15]).double(), rtol=0, atol=1e-7)
    assert paper_p_value(retrospective) < FAILS


def paper_p_value(lengths_of: object) -> float:
    return served_p_value(
        verify_chain,
        target_VV=PAPER["target_V"].expand(2, 2),
        drafter_VV=PAPER["draft_V"].expand(2, 2),
        lengths_of=lengths_of,  # type: ignore[arg-type]
        requests=20_000,
        seed=1,
    )


@pytest.mark.law
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_a_budget_set_beforehand_is_right_in_appendix_a_however_current_the_ranking(
    share: float,
) -> None:
    """Slots go by the current survivals; only their number was fixed before."""

    def lengths_of(drafts_RK: Tensor) -> Tensor:
        survival_RK = appendix_a_survivals(drafts_RK)
        return assign_lengths(survival_RK=survival_RK, budget=round(share * 2 * len(drafts_RK)))

    assert paper_p_value(lengths_of) > PASSES


@pytest.mark.law
def test_drafted_ranked_and_verified_by_the_kernels_a_block_is_served_as_the_target_samples() -> (
    None
):
    """All three together, on a drafter without a head: q is the softmax of its logits."""
    vocabulary, requests = 6, 60_000
    base = random_chain(3, vocabulary)[0].log()
    target = random_chain(4, vocabulary)
    torch.manual_seed(0)
    block = draft_block(
        markov_head=None,
        confidence_head=None,
        hidden_RKD=torch.zeros(requests, 2, 1),
        logits_RKV=base.expand(requests, 2, vocabulary).clone(),
        anchors_R=torch.zeros(requests, dtype=torch.int64),
        chooser=RowChoice(
            temperature_R=torch.full((requests,), 0.7),
            uniform_RK=torch.rand(requests, 2, dtype=torch.float64),
        ),
    )
    lengths_R = torch.arange(requests) % 2 + 1
    previous = torch.cat([torch.zeros(requests, 1, dtype=torch.int64), block.tokens_RK], 1)
    rows = torch.arange(3) <= lengths_R[:, None]
    accepted_R, next_R = verify_chain(
        drafts_RK=block.tokens_RK,
        draft_RKV=block.weights_RKV,
        target_MV=target[previous[rows]],
        start_R=(lengths_R + 1).cumsum(0) - lengths_R - 1,
        lengths_R=lengths_R,
        uniform_RT=torch.rand(requests, 3, dtype=torch.float64),
    )
    first = torch.where(accepted_R > 0, block.tokens_RK[:, 0], next_R)
    counts = torch.bincount(first, minlength=vocabulary) / requests
    deviation = (counts - target[0]) / (target[0] * (1 - target[0]) / requests).sqrt()
    assert deviation.abs().max() < 5


@pytest.mark.example
def test_what_does_not_fit_is_refused_with_the_remedy() -> None:
    inputs = chain_inputs(requests=2, slots=2, vocabulary=4, seed=0)
    with pytest.raises(ValueError, match="give float32"):
        verify_chain(**{**inputs, "target_MV": inputs["target_MV"].double()})
    with pytest.raises(ValueError, match="one more than positions"):
        verify_chain(**{**inputs, "uniform_RT": inputs["uniform_RT"][:, :-1]})
