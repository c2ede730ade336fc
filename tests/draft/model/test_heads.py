"""The sequential heads: the same law step by step and teacher-forced."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.draft.model.model import Drafter
from tests.draft.independent import reference_config


def drafter_of(**changes: Any) -> Drafter:
    torch.manual_seed(1)
    drafter = Drafter(DrafterConfig.from_dict(reference_config("qwen3", **changes), where="test"))
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return drafter.double()


@pytest.mark.law
@pytest.mark.parametrize("head", ["none", "vanilla", "gated", "rnn"])
def test_stepping_gives_the_teacher_forced_logits_and_confidences(head: str) -> None:
    changes = {"markov_rank": 0, "confidence_head_with_markov": False}
    drafter = drafter_of(**(changes if head == "none" else {"markov_head_type": head}))
    hidden = torch.randn(3, 5, 24, dtype=torch.float64)
    previous = torch.randint(0, 67, (3, 5))
    wanted, wanted_confidence = drafter.logits(hidden_NKD=hidden, previous_NK=previous)
    assert wanted_confidence is not None
    state = None
    for k in range(5):
        logits, confidence, state = drafter.step(
            hidden_RD=hidden[:, k], previous_R=previous[:, k], state=state
        )
        torch.testing.assert_close(logits, wanted[:, k])
        torch.testing.assert_close(confidence, wanted_confidence[:, k])


@pytest.mark.law
@pytest.mark.parametrize(("head", "reach"), [("vanilla", 1), ("gated", 1), ("rnn", 5)])
def test_only_the_rnn_remembers_tokens_before_the_previous_one(head: str, reach: int) -> None:
    drafter = drafter_of(markov_head_type=head)
    hidden = torch.randn(1, 5, 24, dtype=torch.float64)
    first = torch.randint(0, 67, (1, 5))
    second = first.clone()
    second[0, 0] = (first[0, 0] + 1) % 67
    gaps = [
        (a - b).abs().amax().item()
        for a, b in zip(
            drafter.logits(hidden_NKD=hidden, previous_NK=first)[0][0],
            drafter.logits(hidden_NKD=hidden, previous_NK=second)[0][0],
            strict=True,
        )
    ]
    assert [gap > 0 for gap in gaps] == [k < reach for k in range(5)]


@pytest.mark.example
def test_the_vanilla_bias_is_a_row_of_the_low_rank_product() -> None:
    drafter = drafter_of()
    assert drafter.markov_head is not None
    hidden = torch.randn(1, 5, 24, dtype=torch.float64)
    previous = torch.tensor([[3, 0, 66, 3, 9]])
    bias = drafter.logits(hidden_NKD=hidden, previous_NK=previous)[0] - drafter.base_logits(hidden)
    head = drafter.markov_head
    product = head.markov_w1.weight @ head.markov_w2.weight.T
    torch.testing.assert_close(bias[0], product[previous[0]])


@pytest.mark.law
def test_a_confidence_head_without_markov_ignores_the_previous_token() -> None:
    drafter = drafter_of(confidence_head_with_markov=False)
    hidden = torch.randn(2, 5, 24, dtype=torch.float64)
    one, other = (
        drafter.logits(hidden_NKD=hidden, previous_NK=torch.full((2, 5), token))[1]
        for token in (1, 2)
    )
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)


@pytest.mark.example
def test_confidence_logits_are_float32_in_half_precision_models() -> None:
    drafter = drafter_of().bfloat16()
    hidden = torch.randn(2, 5, 24, dtype=torch.bfloat16)
    confidence = drafter.logits(hidden_NKD=hidden, previous_NK=torch.zeros(2, 5).long())[1]
    assert confidence is not None
    assert confidence.dtype == torch.float32
