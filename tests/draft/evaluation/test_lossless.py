"""Losslessness over sampled tokens of a taught pair: speculation is plain sampling, only faster.

2 million tokens: every policy under every sampling rule, float32 and bfloat16. The same checks
reject three broken rules.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from sglang_dspark.core import BatchState, Planner, VerifyPlan, parse_policy
from sglang_dspark.core.costs.sglang_files import SpsTable
from sglang_dspark.core.costs.sglang_tables import from_sps
from sglang_dspark.draft.data.sampler import answer_tokens
from sglang_dspark.draft.evaluation import rejection
from sglang_dspark.draft.evaluation.decode import Decoded, PlansLengths, speculate
from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.draft.model.model import Drafter
from sglang_dspark.draft.model.target import Target
from tests.draft.evaluation.lossless_checks import (
    LEAST,
    pair_law,
    pairs_p,
    place_counts,
    two_sample_p,
    uniform_p,
)
from tests.draft.tiny_pairs import GAMMA, PROMPT, VOCABULARY, teach, tiny_drafter, tiny_target

REQUESTS, NEW_TOKENS = 3400, 12
POLICIES = ("none", "fixed", "threshold:0.6", "early_stop", "global", "sglang")
SAMPLINGS = {
    "T0.7": Sampling(temperature=0.7),
    "T1": Sampling(),
    "top-p": Sampling(top_p=0.9),
    "top-k": Sampling(top_k=20),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@functools.cache
def pair(dtype: torch.dtype = torch.float32) -> tuple[Target, Drafter]:
    """The taught pair; the bfloat16 one is the float32 one, rounded."""
    if dtype != torch.float32:
        target, drafter = pair()
        model, rounded = copy.deepcopy((target.model, drafter))
        return Target(model.to(dtype), capture=target.captured), rounded.to(dtype)
    target = tiny_target()
    drafter = tiny_drafter(target)
    teach(drafter, target, steps=150)
    return target, drafter


def planner(policy: str, requests: int = REQUESTS) -> Planner:
    """A policy on costs that make it choose: a verified token costs a third of a request."""
    sizes = range(1, requests * (GAMMA + 1) + 1)
    costs = SpsTable(
        sample_batch_tokens=tuple(sizes),
        sample_steps_per_sec=tuple(100 / (2 + m / requests) for m in sizes),
        max_batch_tokens=sizes[-1],
    )
    return Planner(
        policy=parse_policy(policy).policy,
        cost_model=from_sps(costs),
        gamma=GAMMA,
        max_requests=requests,
    )


def decode(
    plans: PlansLengths, sampling: Sampling, dtype: torch.dtype, seed: int
) -> tuple[Decoded, torch.Tensor]:
    target, drafter = pair(dtype)
    decoded = speculate(
        target=target,
        drafter=drafter,
        prompts=[PROMPT] * REQUESTS,
        sampling=sampling,
        planner=plans,
        new_tokens=NEW_TOKENS,
        generator=torch.Generator().manual_seed(seed),
    )
    return decoded, torch.tensor(decoded.tokens)


@pytest.mark.law
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SAMPLINGS)
def test_speculation_is_distributed_as_plain_sampling(name: str, dtype: str) -> None:
    """244,800 tokens a case, 40,800 of each policy."""
    sampling, kind = SAMPLINGS[name], DTYPES[dtype]
    target, _ = pair(kind)
    law = pair_law(target, sampling, PROMPT)
    found: dict[str, float] = {}
    samples, places = [], []
    for seed, policy in enumerate(POLICIES):
        decoded, tokens = decode(planner(policy), sampling, kind, seed)
        samples.append(tokens)
        places.append(place_counts(target, sampling, PROMPT, tokens))
        found[f"{policy} places"] = uniform_p(places[-1])
        found[f"{policy} pairs"] = pairs_p(law, tokens)
        verified = decoded.log.lengths.mean()
        assert (verified == 0) == (policy == "none")
        assert (verified == GAMMA) == (policy == "fixed")
    plain = answer_tokens(
        target,
        [PROMPT] * REQUESTS,
        sampling=sampling,
        max_tokens=NEW_TOKENS,
        stops=set(),
        generator=torch.Generator().manual_seed(100),
    )
    # ``none`` is plain sampling, so it is left out here.
    speculated = torch.cat(samples[1:])
    found["all places"] = uniform_p(np.sum(places[1:], axis=0))
    found["all pairs"] = pairs_p(law, speculated)
    found["all two-sample"] = two_sample_p(speculated, torch.tensor(plain))
    print(name, dtype, {check: float(f"{p:.3g}") for check, p in found.items()})
    assert speculated.numel() >= 200_000
    assert min(found.values()) > LEAST, found


class Retrospective:
    """Verifies all or nothing by the confidence of position 2, which has seen token 1."""

    gamma = GAMMA

    def plan(self, state: BatchState) -> VerifyPlan:
        """As ``Planner.plan``."""
        high = state.logits[:, 1] > np.median(state.logits[:, 1])
        return VerifyPlan(
            lengths=np.where(high, GAMMA, 0),
            draft_next=np.ones(state.requests, dtype=bool),
            predicted_step_s=1.0,
            expected_tokens=1.0,
            stop_reason="fixed",
        )


class LengthsByFirst:
    """The lossless twin of ``Retrospective``: by the confidence of position 1."""

    gamma = GAMMA

    def plan(self, state: BatchState) -> VerifyPlan:
        """As ``Planner.plan``."""
        logits = np.roll(state.logits, 1, axis=1)
        fields = {"stale_logits": logits, "stale_age": state.stale_age}
        return Retrospective().plan(
            BatchState(logits=logits, context_tokens=state.context_tokens, **fields)
        )


def rejected(plans: PlansLengths) -> float:
    """The smallest p-value of the checks at T = 1."""
    target, _ = pair()
    _, tokens = decode(plans, Sampling(), torch.float32, 11)
    law = pair_law(target, Sampling(), PROMPT)
    places = place_counts(target, Sampling(), PROMPT, tokens)
    return min(uniform_p(places), pairs_p(law, tokens))


@pytest.mark.law
def test_the_rule_as_it_is_is_not_rejected_by_what_catches_broken_ones() -> None:
    assert rejected(planner("fixed")) > LEAST


@pytest.mark.law
@pytest.mark.parametrize(
    ("function", "broken"),
    [
        ("acceptance_probability", lambda *, target, draft: torch.ones_like(target).double()),
        ("residual", lambda *, target_RV, draft_RV: target_RV),
        ("residual", lambda *, target_RV, draft_RV: (target_RV - draft_RV).abs()),
    ],
    ids=["accepts everything", "resamples the target", "residual of either sign"],
)
def test_a_broken_rule_is_caught(
    monkeypatch: pytest.MonkeyPatch, function: str, broken: Callable[..., torch.Tensor]
) -> None:
    monkeypatch.setattr(rejection, function, broken)
    assert rejected(planner("fixed")) < LEAST


@pytest.mark.law
def test_truncation_that_looks_at_what_it_cuts_is_caught() -> None:
    assert rejected(LengthsByFirst()) > LEAST
    assert rejected(Retrospective()) < LEAST


@pytest.mark.law
def test_greedy_is_token_identical_to_the_target_alone_on_600_ragged_prompts() -> None:
    """Every policy; requests end at a stop token or at the limit."""
    target, drafter = pair()
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, VOCABULARY, rng.integers(1, 12)).tolist() for _ in range(600)]

    def plain(stops: set[int]) -> list[list[int]]:
        return answer_tokens(
            target,
            prompts,
            sampling=Sampling(temperature=0),
            max_tokens=30,
            stops=stops,
            generator=torch.Generator().manual_seed(0),
        )

    tokens, counts = np.unique(np.concatenate(plain(set())), return_counts=True)
    stops = {int(token) for token in tokens[np.argsort(counts)[-4:-2]]}
    wanted = plain(stops)
    assert 20 < sum(len(row) < 30 for row in wanted) < 580
    for policy in POLICIES:
        decoded = speculate(
            target=target,
            drafter=drafter,
            prompts=prompts,
            sampling=Sampling(temperature=0),
            planner=planner(policy, len(prompts)),
            new_tokens=30,
            generator=torch.Generator().manual_seed(1),
            stops=stops,
        )
        assert decoded.tokens == wanted, policy
        assert len(decoded.log.accepted) <= sum(len(row) for row in wanted)
