"""The decoder's bookkeeping: what policies see, what is accepted with, where requests end."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from sglang_dspark.core import BatchState, Planner, VerifyPlan, load_cost_model, parse_policy
from sglang_dspark.draft.data.sampler import answer_tokens
from sglang_dspark.draft.evaluation import decode, rejection
from sglang_dspark.draft.evaluation.decode import VerifyAll, headless_confidence, speculate
from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.draft.model import recipes
from sglang_dspark.draft.model.checkpoint import drafter_for
from sglang_dspark.draft.model.model import Drafter
from sglang_dspark.draft.model.target import Target
from tests.draft.tiny_pairs import (
    CAPTURE,
    GAMMA,
    MASK,
    VOCABULARY,
    teach,
    tiny_drafter,
    tiny_target,
)

GREEDY = Sampling(temperature=0)
PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5], [8, 9, 7, 9]] * 8


@functools.cache
def pair() -> tuple[Target, Drafter]:
    target = tiny_target()
    drafter = tiny_drafter(target)
    teach(drafter, target, steps=25)
    return target, drafter


def run(planner: Any = None, *, drafter: Any = None, seed: int = 0, **changes: Any) -> Any:
    target, taught = pair()
    drafter = drafter or taught
    target.capture(drafter.config.layers_captured)
    try:
        return speculate(
            target=target,
            drafter=drafter,
            generator=torch.Generator().manual_seed(seed),
            planner=planner or VerifyAll(GAMMA),
            **{"prompts": PROMPTS, "sampling": Sampling(), "new_tokens": 20, **changes},
        )
    finally:
        target.capture(CAPTURE)


def greedy_alone(new_tokens: int = 20) -> list[list[int]]:
    return answer_tokens(
        pair()[0],
        PROMPTS,
        sampling=GREEDY,
        max_tokens=new_tokens,
        stops=set(),
        generator=torch.Generator(),
    )


class Watching(VerifyAll):
    """Keeps every state it is shown; verifies varying lengths and skips some drafts."""

    def __init__(self, *, skip: bool = False) -> None:
        super().__init__(GAMMA)
        self.states: list[BatchState] = []
        self.skip = skip

    def plan(self, state: BatchState) -> VerifyPlan:
        """Lengths that depend on request and step only."""
        self.states.append(state)
        step, rows = len(self.states), np.arange(state.requests)
        drafted = state.logits[:, 0] > -np.inf
        wanted = (rows + step) % 3 > 0 if self.skip else np.ones(state.requests, dtype=bool)
        return VerifyPlan(
            lengths=np.where(drafted, (rows * 7 + step) % (GAMMA + 1), 0),
            draft_next=wanted,
            predicted_step_s=0.0,
            expected_tokens=0.0,
            stop_reason="fixed",
        )


@pytest.mark.law
def test_a_policy_sees_confidences_of_now_and_of_two_rounds_ago_and_the_context() -> None:
    watching = Watching()
    decoded = run(watching, new_tokens=40)
    log = decoded.log
    known = {
        (int(request), int(step)): logits
        for request, step, logits in zip(log.request, log.step, log.logits, strict=True)
    }
    live = list(range(len(PROMPTS)))
    context = [len(prompt) for prompt in PROMPTS]
    for step, state in enumerate(watching.states):
        rows = [r for r in live if (r, step) in known]
        assert state.requests == len(rows)
        for i, r in enumerate(rows):
            np.testing.assert_array_equal(state.logits[i], known[r, step])
            assert state.context_tokens[i] == context[r]
            if step < 2:
                assert np.isnan(state.stale_logits[i]).all()
                assert state.stale_age[i] == 0
            else:
                np.testing.assert_array_equal(state.stale_logits[i], known[r, step - 2])
                assert state.stale_age[i] == 2
        for i in np.flatnonzero(log.step == step):
            context[int(log.request[i])] += 1 + int(log.accepted[i])


@pytest.mark.law
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_accepted_with_the_very_probabilities_they_were_drawn_from(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    import copy

    target, drafter = pair()
    model, drafter = copy.deepcopy((target.model, drafter))
    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []
    checks = 0
    draw, accepted_run = decode.draw, rejection.accepted_run

    def watched_draw(*, weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        tokens = draw(weights=weights, uniform=uniform)
        drawn.append((weights, tokens))
        return tokens

    def watched_run(**given: torch.Tensor) -> torch.Tensor:
        nonlocal checks
        for k, (weights, tokens) in enumerate(drawn[-GAMMA:]):
            assert weights.dtype == torch.float32
            assert torch.equal(given["draft_RKV"][:, k], weights)
            assert torch.equal(given["drafts_RK"][:, k], tokens)
            checks += 1
        return accepted_run(**given)

    monkeypatch.setattr(decode, "draw", watched_draw)
    monkeypatch.setattr(rejection, "accepted_run", watched_run)
    speculate(
        target=Target(model.to(dtype), capture=CAPTURE),
        drafter=drafter.to(dtype),
        prompts=PROMPTS,
        sampling=Sampling(top_p=0.9),
        planner=VerifyAll(GAMMA),
        new_tokens=12,
        generator=torch.Generator().manual_seed(0),
    )
    assert checks > 2 * GAMMA


@pytest.mark.law
def test_ragged_lengths_and_skipped_drafts_change_nothing_when_greedy() -> None:
    watching = Watching(skip=True)
    decoded = run(watching, sampling=GREEDY)
    assert decoded.tokens == greedy_alone()
    drafted = np.isfinite(decoded.log.logits[:, 0])
    assert 0.2 < drafted.mean() < 0.9
    assert (decoded.log.lengths[~drafted] == 0).all()


@pytest.mark.law
@pytest.mark.parametrize("kind", ["gated", "rnn", "no head", "no confidence", "eagle3"])
def test_every_kind_of_drafter_is_lossless_when_greedy(kind: str) -> None:
    target, _ = pair()
    drafter: Any
    if kind == "eagle3":
        config = recipes.eagle3(target.config.to_dict(), mask_token_id=MASK, gamma=GAMMA)
        torch.manual_seed(2)
        drafter = drafter_for(config, target)
    elif kind in ("gated", "rnn"):
        drafter = tiny_drafter(target, head=kind)
    else:
        drafter = tiny_drafter(
            target, markov_rank=0 if kind == "no head" else 8, confident=kind == "no head"
        )
    decoded = run(Watching(), drafter=drafter, sampling=GREEDY)
    assert decoded.tokens == greedy_alone()
    assert np.isfinite(decoded.log.logits).all()


@pytest.mark.example
def test_the_drafter_helps() -> None:
    decoded = run(new_tokens=40)
    assert decoded.log.accepted.mean() > 0.5
    assert len(decoded.log.step) < 0.7 * sum(len(row) for row in decoded.tokens)


@pytest.mark.example
def test_requests_end_with_their_first_stop_token_or_at_the_limit() -> None:
    stops = {1, 2, 3, 4}
    decoded = run(new_tokens=25, stops=stops)
    ended = [row for row in decoded.tokens if row[-1] in stops]
    assert all(not stops & set(row[:-1]) for row in decoded.tokens)
    assert all(len(row) == 25 for row in decoded.tokens if row[-1] not in stops)
    assert 0 < len(ended) <= len(PROMPTS)


@pytest.mark.example
def test_one_new_token_needs_no_round() -> None:
    decoded = run(new_tokens=1)
    assert [len(row) for row in decoded.tokens] == [1] * len(PROMPTS)
    assert len(decoded.log.step) == 0
    assert decoded.log.logits.shape == (0, GAMMA)


@pytest.mark.example
def test_the_same_seed_gives_the_same_tokens_and_another_other_ones() -> None:
    assert run(seed=1).tokens == run(seed=1).tokens
    assert run(seed=1).tokens != run(seed=2).tokens


@pytest.mark.example
def test_no_speculation_stops_drafting_after_the_first_plan() -> None:
    planner = Planner(
        policy=parse_policy("none").policy,
        cost_model=load_cost_model("h100-qwen3-4b-analytic"),
        gamma=GAMMA,
        max_requests=len(PROMPTS),
    )
    log = run(planner).log
    assert (log.lengths == 0).all()
    assert np.isinf(log.logits[log.step > 0]).all()


@pytest.mark.law
def test_a_headless_confidence_does_not_know_the_token_it_judges() -> None:
    weights = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    assert headless_confidence(weights)[0] == pytest.approx(np.log(0.7 / 0.3))
    assert torch.isfinite(headless_confidence(weights)).all()


@pytest.mark.example
def test_parts_of_the_time_are_told_apart() -> None:
    seconds = run().seconds
    assert set(seconds) == set(decode.PARTS)
    assert all(spent_s > 0 for spent_s in seconds.values())


@pytest.mark.example
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompts": [[1], []]}, "at least one token"),
        ({"prompts": []}, "at least one token"),
        ({"new_tokens": 0}, "ask for at least 1"),
        ({"planner": VerifyAll(GAMMA + 1)}, "build the planner with the drafter's gamma"),
    ],
)
def test_what_cannot_be_decoded_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        run(**changes)


@pytest.mark.example
def test_a_target_that_captures_other_layers_is_refused() -> None:
    target, drafter = pair()
    target.capture([1])
    try:
        with pytest.raises(ValueError, match=r"call target\.capture"):
            speculate(
                target=target,
                drafter=drafter,
                prompts=[[1]],
                sampling=GREEDY,
                planner=VerifyAll(GAMMA),
                new_tokens=4,
                generator=torch.Generator(),
            )
    finally:
        target.capture(CAPTURE)


@pytest.mark.example
def test_the_vocabulary_leaves_room_for_top_k() -> None:
    assert VOCABULARY > 20
