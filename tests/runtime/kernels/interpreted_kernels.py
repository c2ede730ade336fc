"""The Triton kernels, run by Triton's interpreter on a CPU, against the PyTorch versions.

Collected by no name: ``test_triton`` runs this file in a process of its own, since
TRITON_INTERPRET must be set before triton is imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sglang_dspark.draft.evaluation.sampling import draw
from sglang_dspark.runtime.kernels import (
    lengths,
    rejection,
    triton_head,
    triton_lengths,
    triton_rejection,
)
from sglang_dspark.runtime.kernels.head import DraftBlock, RowChoice, draft_block
from tests.runtime.kernels.kernel_cases import (
    EIGHTHS,
    PAPER,
    PASSES,
    appendix_a_survivals,
    block_inputs,
    chain_inputs,
    first_token_law,
    heads,
    logits_with_marks,
    retrospective,
    served_p_value,
)

F32, BF16 = torch.float32, torch.bfloat16


def both(
    markov: Any, confidence: Any, given: dict[str, Any]
) -> tuple[DraftBlock, DraftBlock, RowChoice]:
    """The block by PyTorch and by Triton."""
    blocks = [
        draft_block(
            markov_head=markov,
            confidence_head=confidence,
            **{**given, "logits_RKV": given["logits_RKV"].clone()},
            slot=slot,
        )
        for slot in (None, triton_head.fill_slot)
    ]
    return blocks[0], blocks[1], given["chooser"]


@pytest.mark.law
@pytest.mark.parametrize(
    ("kind", "requests", "slots", "vocabulary", "rank", "dtype"),
    [
        ("vanilla", 5, 3, 1000, 16, F32),
        ("vanilla", 3, 2, 9001, 256, BF16),
        ("gated", 70, 2, 300, 40, BF16),
        ("rnn", 2, 7, 129, 512, F32),
        ("vanilla", 1, 15, 7, 1, F32),
        ("none", 4, 2, 500, 8, F32),
    ],
)
def test_a_block_by_triton_is_the_block_by_pytorch(
    kind: str, requests: int, slots: int, vocabulary: int, rank: int, dtype: Any
) -> None:
    markov, confidence = (None, None)
    if kind != "none":
        markov, confidence = heads(kind, vocabulary=vocabulary, rank=rank, dtype=dtype)
    given = block_inputs(requests=requests, slots=slots, vocabulary=vocabulary, dtype=dtype)
    plain, found, choice = both(markov, confidence, given)
    assert torch.equal(found.tokens_RK, plain.tokens_RK)
    torch.testing.assert_close(found.weights_RKV, plain.weights_RKV, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found.confidence_RK, plain.confidence_RK)
    again = draw(weights=found.weights_RKV, uniform=choice.uniform_RK)
    assert torch.equal(found.tokens_RK, again), "drawn from other weights than returned"


@pytest.mark.example
def test_greedy_ties_impossible_tokens_and_uniforms_at_the_ends() -> None:
    """Over several tiles: the lowest of equal tokens, no token of weight 0, -inf harmless."""
    logits = torch.full((4, 1, 9000), -torch.inf)
    logits[:, 0, [200, 5000, 8999]] = 1.0
    given = {
        "hidden_RKD": torch.zeros(4, 1, 1),
        "logits_RKV": logits,
        "anchors_R": torch.zeros(4, dtype=torch.int64),
        "chooser": RowChoice(
            temperature_R=torch.tensor([0.0, 1.0, 1.0, 2.0]),
            uniform_RK=torch.tensor([[0.9], [0.0], [1.0], [0.5]], dtype=torch.float64),
        ),
    }
    _, found, _ = both(None, None, given)
    assert found.tokens_RK.squeeze(-1).tolist() == [200, 200, 8999, 5000]
    assert found.weights_RKV[0, 0].sum() == 1


@pytest.mark.law
@pytest.mark.parametrize(
    ("requests", "slots", "vocabulary"), [(9, 7, 40), (20, 1, 300), (6, 3, 10_000), (2, 15, 4096)]
)
def test_chains_are_verified_as_by_pytorch(requests: int, slots: int, vocabulary: int) -> None:
    for seed in range(2):
        inputs = chain_inputs(
            requests=requests, slots=slots, vocabulary=vocabulary, seed=seed, near=0.8
        )
        # Not contiguous, as a slice of a padded vocabulary is not.
        padded = torch.nn.functional.pad(inputs["target_MV"], (0, 3))
        found = triton_rejection.verify_chain(**{**inputs, "target_MV": padded[:, :vocabulary]})
        expected = rejection.verify_chain(**inputs)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.law
def test_impossible_tokens_and_empty_residuals_are_handled_as_by_pytorch() -> None:
    for seed in range(5):
        inputs = chain_inputs(requests=8, slots=2, vocabulary=5, seed=seed, near=0.0)
        target_MV, start_R = inputs["target_MV"], inputs["start_R"]
        target_MV[torch.rand_like(target_MV) < 0.6] = 0
        target_MV[:, 3] += 1e-3
        # Below q by a hair everywhere: what is rejected leaves no residual.
        target_MV[start_R[::2]] = inputs["draft_RKV"][::2, 0] * (1 - 2**-22)
        inputs["uniform_RT"][:, :-1] = 1 - 2**-24
        inputs["uniform_RT"][:, -1] = torch.tensor([0.0, 1.0, 0.5, 0.25]).repeat(2)
        found, expected = triton_rejection.verify_chain(**inputs), rejection.verify_chain(**inputs)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert (target_MV[start_R + found[0], found[1]] > 0).all()


@pytest.mark.law
def test_what_is_no_distribution_still_gives_a_token_of_the_vocabulary() -> None:
    inputs = chain_inputs(requests=3, slots=2, vocabulary=6, seed=0)
    inputs["target_MV"][:] = torch.nan
    accepted_R, next_R = triton_rejection.verify_chain(**inputs)
    assert accepted_R.tolist() == [0] * 3
    assert ((next_R >= 0) & (next_R < 6)).all()


@pytest.mark.law
@pytest.mark.parametrize("length", [0, 1, 2])
def test_the_first_served_token_has_exactly_the_targets_probabilities(length: int) -> None:
    """By enumeration, which a rule that replaces rejected tokens from p does not pass."""

    def fixed(drafts_RK: torch.Tensor) -> torch.Tensor:
        return torch.full((len(drafts_RK),), length)

    def broken(**inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        accepted_R, _ = triton_rejection.verify_chain(**inputs)
        rows = inputs["target_MV"][inputs["start_R"] + accepted_R]
        return accepted_R, draw(weights=rows, uniform=inputs["uniform_RT"][:, -1])

    found = first_token_law(triton_rejection.verify_chain, lengths_of=fixed, **EIGHTHS)
    torch.testing.assert_close(found, EIGHTHS["target_V"].double(), rtol=0, atol=1e-12)
    if length == 1:
        wrong = first_token_law(broken, lengths_of=fixed, **EIGHTHS)
        assert (wrong - found).abs().max() > 0.01


@pytest.mark.law
def test_two_served_tokens_pass_a_chi_square_against_the_targets_chain() -> None:
    p_value = served_p_value(
        triton_rejection.verify_chain,
        target_VV=torch.tensor([[0.9, 0.1], [0.1, 0.9]]),
        drafter_VV=torch.tensor([[0.5, 0.5], [0.4, 0.6]]),
        lengths_of=lambda drafts_RK: 2 - torch.arange(len(drafts_RK)) % 2,
        requests=400,
        seed=5,
    )
    assert p_value > PASSES


@pytest.mark.law
def test_appendix_a_is_right_with_a_budget_set_beforehand_and_wrong_without() -> None:
    def beforehand(drafts_RK: torch.Tensor) -> torch.Tensor:
        budget = len(drafts_RK) * 5 // 4
        lengths_R = triton_lengths.assign_lengths(
            survival_RK=appendix_a_survivals(drafts_RK), budget=budget
        )
        assert int(lengths_R.sum()) == budget
        return lengths_R

    def law(lengths_of: Any) -> list[float]:
        return first_token_law(
            triton_rejection.verify_chain, lengths_of=lengths_of, **PAPER
        ).tolist()

    assert law(beforehand) == pytest.approx([0.7, 0.3], abs=1e-7)
    assert law(retrospective) == pytest.approx([0.85, 0.15], abs=1e-7)


@pytest.mark.law
@pytest.mark.parametrize(
    ("requests", "slots", "budgets"),
    [
        (1, 1, (-1, 0, 1, 2)),
        (1, 15, (0, 4, 16)),
        (3, 7, (1, 10, 22)),
        (40, 5, (70,)),
        (150, 7, (500,)),  # more candidates than one step compares
    ],
)
def test_lengths_and_survival_are_those_of_pytorch_to_the_bit(
    requests: int, slots: int, budgets: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(requests)
    inputs = logits_with_marks(rng, requests, slots)
    found, expected = triton_lengths.survival(**inputs), lengths.survival(**inputs)
    assert found.numpy().tobytes() == expected.numpy().tobytes()
    tied = torch.from_numpy(np.cumprod(rng.integers(1, 3, (requests, slots)) / 2, axis=1))
    for survival_RK in (expected, tied):
        for budget in budgets:
            assert torch.equal(
                triton_lengths.assign_lengths(survival_RK=survival_RK, budget=budget),
                lengths.assign_lengths(survival_RK=survival_RK, budget=budget),
            )
