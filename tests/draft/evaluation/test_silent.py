"""Failures that raise no error are told, and nothing is said of what is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sglang_dspark.draft.evaluation.lossless import FAILED, INCONCLUSIVE, PASSED, check_lossless
from sglang_dspark.draft.evaluation.silent import by_context, random_prompts, warnings_of
from sglang_dspark.draft.evaluation.speculation_profile import compared, profile_of
from sglang_dspark.logs.acceptance_log import read_rounds, write_rounds
from sglang_dspark.logs.rounds import Rounds
from sglang_dspark.logs.speculation_profile import read_profile
from tests.draft.tiny_pairs import PROMPT, tiny_drafter, tiny_target

GAMMA = 5


def recorded(
    rate: Any = 0.7, *, requests: int = 300, first: float | None = None, seed: int = 0
) -> Rounds:
    """Ten rounds a request at contexts of 100 to 5,000; ``rate`` of a token, by context."""
    rng = np.random.default_rng(seed)
    start = rng.integers(100, 5000, requests)
    context = (start[:, None] + 20 * np.arange(10)).ravel()
    chance = np.broadcast_to(rate(context) if callable(rate) else rate, context.shape)
    kept = rng.random((len(context), GAMMA)) < chance[:, None]
    if first is not None:
        kept[:, 0] = rng.random(len(context)) < first
    return Rounds(
        request=np.repeat(np.arange(requests), 10),
        step=np.tile(np.arange(10), requests),
        domain=np.repeat(np.where(np.arange(requests) % 2, "chat", "code"), 10),
        logits=np.zeros((len(context), GAMMA)),
        accepted=kept.cumprod(axis=1).sum(axis=1),
        temperature=np.ones(len(context)),
        context_tokens=context,
    )


@pytest.mark.law
def test_of_an_even_drafter_nothing_is_said() -> None:
    """Law: at most one of 40 honest recordings is suspected; the slope's error is honest."""
    suspected, scores = 0, []
    for seed in range(40):
        rounds = recorded(seed=seed, requests=120)
        suspected += bool(warnings_of(rounds))
        found = by_context(rounds)
        assert found is not None
        scores.append(float(found.slope.value / found.slope.error))
    assert suspected <= 1
    assert 0.6 < np.std(scores) < 1.5


@pytest.mark.law
def test_a_slope_over_the_context_is_flagged_within_domains() -> None:
    falling = recorded(lambda n: 0.85 - 0.06 * np.log2(n / 100))
    found = by_context(falling)
    assert found is not None
    assert [bucket.low for bucket in found.buckets] == [64, 128, 256, 512, 1024, 2048, 4096]
    assert sum(bucket.rounds for bucket in found.buckets) == len(falling)
    assert float(found.slope.value) < -5 * float(found.slope.error)
    assert "positions that are off by one look like this" in warnings_of(falling)[0]
    # A domain of long contexts that is hard is no slope.
    hard = recorded(0.9)
    chat = hard.domain == "chat"
    columns = hard.columns()
    columns["context_tokens"] = np.where(chat, hard.context_tokens * 4, hard.context_tokens)
    columns["accepted"] = np.where(chat, np.minimum(hard.accepted, 1), hard.accepted)
    assert warnings_of(Rounds(**columns)) == []


@pytest.mark.law
@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        (recorded(0.02), "it drafts at chance"),
        (recorded(0.8, first=0.2), "slots and tokens may be shifted"),
    ],
)
def test_chance_and_a_shift_are_told(rounds: Rounds, said: str) -> None:
    assert said in " ".join(warnings_of(rounds))


@pytest.mark.law
def test_the_log_keeps_contexts(tmp_path: Path) -> None:
    rounds = recorded(requests=3)
    write_rounds(tmp_path / "r.parquet", rounds)
    again = read_rounds(tmp_path / "r.parquet")
    assert again.context_tokens is not None
    assert rounds.context_tokens is not None
    assert (again.context_tokens == rounds.context_tokens).all()
    without = Rounds(**{k: v for k, v in rounds.columns().items() if k != "context_tokens"})
    assert by_context(without) is None
    assert warnings_of(without) == []


@pytest.mark.law
@pytest.mark.parametrize("vocabulary", [1000, 150_000])
def test_random_tokens_are_told_from_text(vocabulary: int) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, vocabulary, (40, 60)).tolist()
    assert "spread like random ones" in random_prompts(drawn, vocabulary)
    ranks = rng.zipf(1.2, (40, 60)) % vocabulary  # text: a few words make up most of it
    assert random_prompts(ranks.tolist(), vocabulary) == ""
    assert random_prompts(drawn[:3], vocabulary) == ""  # too few to say


@pytest.mark.law
def test_a_check_without_drafts_is_inconclusive_and_a_broken_cache_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tiny_target()
    drafter = tiny_drafter(target)
    prompts = [[*PROMPT, i] for i in range(8)]
    found = check_lossless(target, drafter, prompts, new_tokens=30)
    assert (found.outcome, found.identical) == (PASSED, 8)
    assert found.drafts_accepted > 0
    nothing = check_lossless(target, drafter, prompts, new_tokens=1)
    assert nothing.outcome == INCONCLUSIVE
    assert "inconclusive, no draft was accepted" in nothing.sentence
    right = target.step

    def wrong(*arguments: Any, **choices: Any) -> Any:
        logits, captured = right(*arguments, **choices)
        return torch.roll(logits, 1, dims=-1), captured

    monkeypatch.setattr(target, "step", wrong)
    assert check_lossless(target, drafter, prompts, new_tokens=30).outcome == FAILED


@pytest.mark.law
def test_a_profile_goes_out_and_comes_in(tmp_path: Path) -> None:
    rounds = recorded(0.7)
    file = tmp_path / "speculation_profile.json"
    file.write_text(json.dumps(profile_of(rounds, drafter="d", target="t", block_size=GAMMA)))
    value = json.loads(file.read_text())
    assert value["validation"]["mean_consistency"]["passed"]
    assert sum(value["acceptance_length_histogram"].values()) == len(rounds)
    profile = read_profile(file)
    assert profile.gamma == GAMMA
    assert profile.length == pytest.approx(1 + rounds.accepted.mean(), abs=1e-5)
    assert profile.conditional == pytest.approx([0.7] * GAMMA, abs=0.05)
    assert "they agree" in compared(recorded(0.7, seed=1), profile)
    assert "they differ" in compared(recorded(0.5), profile)
