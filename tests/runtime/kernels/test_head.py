"""The sequential head in PyTorch: its law, its ties and its memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.draft.evaluation.decode import headless_confidence
from sglang_dspark.draft.evaluation.sampling import Sampling, draw, probabilities
from sglang_dspark.runtime.kernels.head import SCRATCH_WEIGHTS, RowChoice, draft_block
from tests.draft.training.peak_memory import PeakMemory
from tests.runtime.kernels.kernel_cases import block_inputs, heads

KINDS = ("vanilla", "gated", "rnn")
SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=1.3),
)
"""One a request: what a server's batch mixes."""


def mixed(uniform_RK: torch.Tensor) -> RowChoice:
    return RowChoice(
        temperature_R=torch.tensor([s.temperature for s in SAMPLINGS]),
        uniform_RK=uniform_RK,
    )


@pytest.mark.law
@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_is_drafted_as_each_request_alone_by_the_offline_sampler(kind: str) -> None:
    markov, confidence = heads(kind, vocabulary=40)
    given = block_inputs(requests=len(SAMPLINGS), slots=4, vocabulary=40)
    given["chooser"] = mixed(given["chooser"].uniform_RK)
    base = given["logits_RKV"].clone()
    block = draft_block(markov_head=markov, confidence_head=confidence, **given)
    for i, sampling in enumerate(SAMPLINGS):
        previous, state = given["anchors_R"][i : i + 1], None
        for k in range(4):
            hidden = given["hidden_RKD"][i : i + 1, k]
            latent, embedding, state = markov.step(
                hidden_RD=hidden, previous_R=previous, state_Rr=state
            )
            logits = base[i, k] + markov.markov_w2(latent)[0]
            expected = probabilities(logits=logits, sampling=sampling)
            torch.testing.assert_close(block.weights_RKV[i, k], expected, rtol=2e-5, atol=1e-9)
            logit = confidence(hidden=hidden, embedding=embedding)[0]
            torch.testing.assert_close(block.confidence_RK[i, k], logit)
            previous = block.tokens_RK[i, k : k + 1]


@pytest.mark.law
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from(KINDS))
def test_tokens_are_drawn_from_exactly_the_weights_that_are_returned(seed: int, kind: str) -> None:
    markov, _ = heads(kind, vocabulary=30)
    given = block_inputs(requests=len(SAMPLINGS), slots=3, vocabulary=30, seed=seed)
    choice = given["chooser"] = mixed(given["chooser"].uniform_RK)
    block = draft_block(markov_head=markov, confidence_head=None, **given)
    again = draw(weights=block.weights_RKV, uniform=choice.uniform_RK)
    assert torch.equal(block.tokens_RK, again)
    drawn = block.weights_RKV.gather(-1, block.tokens_RK[..., None])
    assert (drawn > 0).all()
    assert block.weights_RKV.data_ptr() == given["logits_RKV"].data_ptr()
    logits = headless_confidence(block.weights_RKV).float()
    assert torch.equal(block.confidence_RK, logits)


@pytest.mark.example
def test_greedy_requests_take_the_lowest_of_equally_likely_tokens() -> None:
    logits = torch.tensor([[[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]])
    block = draft_block(
        markov_head=None,
        confidence_head=None,
        hidden_RKD=torch.zeros(1, 2, 1),
        logits_RKV=logits,
        anchors_R=torch.zeros(1, dtype=torch.int64),
        chooser=RowChoice(
            temperature_R=torch.zeros(1), uniform_RK=torch.full((1, 2), 0.99, dtype=torch.float64)
        ),
    )
    assert block.tokens_RK.tolist() == [[1, 0]]
    assert block.weights_RKV.tolist() == [[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]


@pytest.mark.example
def test_bfloat16_weights_add_their_bias_in_float32() -> None:
    markov, _ = heads("vanilla", vocabulary=50, dtype=torch.bfloat16)
    given = block_inputs(requests=3, slots=1, vocabulary=50, dtype=torch.bfloat16)
    base = given["logits_RKV"].clone()
    block = draft_block(markov_head=markov, confidence_head=None, **given)
    latent = markov.markov_w1.weight[given["anchors_R"]].double()
    logits = base[:, 0].double() + latent @ markov.markov_w2.weight.double().T
    exact = (logits[1] / given["chooser"].temperature_R[1].double()).softmax(-1)
    torch.testing.assert_close(block.weights_RKV[1, 0].double(), exact, rtol=1e-5, atol=1e-9)


@pytest.mark.law
def test_a_block_needs_no_second_tensor_of_its_size() -> None:
    """96 requests of 50,000 tokens, 8 slots: 154 MB of logits, a fraction of it on top."""
    requests, slots, vocabulary, rank = 96, 8, 50_000, 64
    markov, confidence = heads("vanilla", vocabulary=vocabulary, rank=rank)
    given = block_inputs(requests=requests, slots=slots, vocabulary=vocabulary)
    given["chooser"] = replace(given["chooser"], temperature_R=torch.ones(requests))
    with torch.no_grad(), PeakMemory() as memory:
        draft_block(markov_head=markov, confidence_head=confidence, **given)
    bias = 2**14 * (rank + requests) * 4
    small = 2 * requests * slots * (rank + 12 + 16) * 4 + requests * 100
    bound = max(bias, 48 * max(vocabulary, SCRATCH_WEIGHTS)) + small
    assert memory.peak <= bound, f"{memory.peak} bytes, documented {bound}"
    assert memory.largest < given["logits_RKV"].nbytes / 4


@pytest.mark.example
def test_numbers_that_are_none_do_not_become_tokens_beyond_the_vocabulary() -> None:
    given = block_inputs(requests=4, slots=2, vocabulary=9)
    given["logits_RKV"][1] = torch.nan
    block = draft_block(markov_head=None, confidence_head=None, **given)
    assert ((block.tokens_RK >= 0) & (block.tokens_RK < 9)).all()


@pytest.mark.example
def test_what_does_not_fit_is_refused_with_the_remedy() -> None:
    markov, _ = heads("vanilla", vocabulary=9)
    given = block_inputs(requests=2, slots=2, vocabulary=9)

    def refused(text: str, **changed: object) -> None:
        with pytest.raises(ValueError, match=text):
            draft_block(markov_head=markov, confidence_head=None, **{**given, **changed})

    refused("give float32", logits_RKV=given["logits_RKV"].double())
    refused("cut the logits", logits_RKV=torch.zeros(2, 2, 10))
    refused("give one of each a slot", anchors_R=torch.zeros(3, dtype=torch.int64))
