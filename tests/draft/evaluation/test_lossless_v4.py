"""Losslessness over a DeepSeek-V4 pair with every kind of layer, contexts beyond three windows.

What 50,000 tokens say is ``python -m benchmarks.v4_pair``; here are fewer, of a smaller pair.
"""

from __future__ import annotations

import functools

import pytest
import torch

from sglang_dspark.draft.data.sampler import answer_tokens
from sglang_dspark.draft.evaluation import rejection
from sglang_dspark.draft.evaluation.decode import VerifyAll, speculate
from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.draft.model.deepseek_v4.drafter import BundledDrafter
from sglang_dspark.draft.model.target import Target
from tests.draft import tiny_v4
from tests.draft.evaluation.lossless_checks import (
    LEAST,
    pair_law,
    pairs_p,
    place_counts,
    uniform_p,
)
from tests.draft.tiny_pairs import GAMMA, MASK, VOCABULARY, teach

REQUESTS, NEW_TOKENS = 500, 10
LONG_PROMPT = torch.randint(0, VOCABULARY, (27,), generator=torch.Generator().manual_seed(4))


@functools.cache
def pair() -> tuple[Target, BundledDrafter]:
    target = tiny_v4.sharp_target(VOCABULARY)
    drafter = tiny_v4.drafter_of(target, mask=MASK, gamma=GAMMA)
    assert target.captured == (target.layers - 1,)
    teach(drafter, target, steps=40)
    return target, drafter


def decode(
    prompts: list[list[int]], sampling: Sampling, new_tokens: int
) -> tuple[list[list[int]], float]:
    """(tokens, drafts accepted in a round)."""
    target, drafter = pair()
    decoded = speculate(
        target=target,
        drafter=drafter,
        prompts=prompts,
        sampling=sampling,
        planner=VerifyAll(GAMMA),
        new_tokens=new_tokens,
        generator=torch.Generator().manual_seed(6),
    )
    return decoded.tokens, float(decoded.log.accepted.mean())


@pytest.mark.law
def test_greedy_is_token_identical_to_the_target_alone_across_windows() -> None:
    """Ragged prompts of 1 to 40 tokens; windows of 8, entries of 4 and 16 tokens."""
    target, _ = pair()
    random = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 41, (60,), generator=random).tolist()
    prompts = [torch.randint(0, VOCABULARY, (n,), generator=random).tolist() for n in lengths]
    wanted = answer_tokens(
        target,
        prompts,
        sampling=Sampling(temperature=0),
        max_tokens=24,
        stops=set(),
        generator=torch.Generator().manual_seed(0),
    )
    tokens, accepted = decode(prompts, Sampling(temperature=0), 24)
    assert tokens == wanted
    assert 0.05 < accepted < GAMMA - 0.3
    assert len({tuple(row) for row in tokens}) > 30


@pytest.mark.law
def test_sampled_tokens_are_distributed_as_the_target_samples_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """5,000 tokens a temperature behind a prompt of 27; a broken rule is caught by as many."""
    target, _ = pair()
    prompt = LONG_PROMPT.tolist()
    law = pair_law(target, Sampling(), prompt)

    def p_value(temperature: float) -> float:
        sampling = Sampling(temperature=temperature)
        tokens, accepted = decode([prompt] * REQUESTS, sampling, NEW_TOKENS)
        assert accepted > 0.2
        sampled = torch.tensor(tokens)
        p = uniform_p(place_counts(target, sampling, prompt, sampled))
        return min(p, pairs_p(law, sampled)) if temperature == 1 else p

    assert p_value(0.7) > LEAST
    assert p_value(1.0) > LEAST
    monkeypatch.setattr(rejection, "residual", lambda *, target_RV, draft_RV: target_RV)
    assert p_value(1.0) < LEAST
