"""What is served in the tests: prompts, their plain answers, prices of steps.

Owns the trained pair's two faces, folders for servers and models for offline checks. Whoever
imports this pays for torch.
"""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.schema import (
    ContextCost,
    DraftCost,
    GraphTiers,
    HostCost,
    PrefillCost,
    Provenance,
    StepTable,
    ValidRange,
)
from sglang_dspark.core.policy import Goodput, PolicyFile, save_policy
from sglang_dspark.draft.data.answers import load_tokenizer, prompt_tokens
from sglang_dspark.draft.data.prompts import Prompt
from sglang_dspark.draft.data.templates import templated_pairs
from sglang_dspark.draft.model.checkpoint import load_drafter
from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.draft.model.model import Drafter
from sglang_dspark.draft.model.target import Target
from tests.runtime.servers import Nursery, plain_arguments
from tests.runtime.serving_client import Job, serve

GAMMA = 7
"""Of the laptop run's drafter."""

TIE = 2e-4
"""Greedy answers with two logits this close somewhere are left out: the batch's shape moves a
float32 logit by up to 1e-5, and either token would be right."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Target and drafter, on disk and, when asked for, in this process."""

    target_folder: Path
    drafter_folder: Path

    @functools.cached_property
    def target(self) -> Target:
        """The target in transformers, for what its own distributions are."""
        loaded = Target.from_pretrained(self.target_folder)
        loaded.capture(DrafterConfig.read(self.drafter_folder).layers_captured)
        return loaded

    @functools.cached_property
    def drafter(self) -> Drafter:
        """The drafter, sharing the target's embedding."""
        drafter = load_drafter(self.drafter_folder, target=self.target, share=True)
        assert isinstance(drafter, Drafter)
        return drafter

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The target's."""
        return load_tokenizer(self.target_folder)

    def question(self, text: str) -> list[int]:
        """Tokens of a user's message, up to where the answer begins."""
        return prompt_tokens(self.tokenizer, Prompt(id="question", turns=(text,)), [])

    def conversation(self, number: int) -> list[int]:
        """Tokens of a question and its whole answer, from a held-out draw of the templates."""
        _, question, answer = templated_pairs(number + 1, seed=77)[number]
        tail = self.tokenizer.encode(answer, add_special_tokens=False)
        return [*self.question(question), *tail]

    def crossroads(self, count: int) -> list[list[int]]:
        """Prompts whose next token is forced and whose token after that is open.

        The first comes from the prefill; so every request meets its first speculated token in the
        same context, and there is something to choose.
        """
        found: list[list[int]] = []
        number = 0
        while len(found) < count:
            talk, number = torch.tensor(self.conversation(number)), number + 1
            hidden, _ = self.target.prefill(tokens_BS=talk[None])
            law_SV = self.target.logits(hidden[0]).softmax(-1)
            sure_S = law_SV[:-1].gather(-1, talk[1:, None])[:, 0] > 0.99
            open_S = law_SV.max(-1).values < 0.5
            # Place s says what token s + 1 is.
            places = torch.nonzero(sure_S[12:-1] & open_S[13:-1])[:, 0] + 12
            if len(places):
                found.append(talk[: int(places[number % len(places)]) + 1].tolist())
        return found


def worn(pair: Pair, folder: Path, *, noise: float = 1.0) -> Pair:
    """The pair with its drafter's opinions bent: a logit moves by about ``noise`` per token pair.

    The trained drafter is so close to the target that breaking the rule hardly shows.
    """
    shutil.copytree(pair.drafter_folder, folder)
    weights = load_file(folder / "model.safetensors")
    first, second = (weights[f"markov_head.markov_w{i}.weight"] for i in (1, 2))
    spread = noise / first.float().norm(dim=-1).mean()
    bend = torch.randn(second.shape, generator=torch.Generator().manual_seed(0)) * spread
    weights["markov_head.markov_w2.weight"] = second + bend.to(second.dtype)
    save_file(weights, folder / "model.safetensors")
    return Pair(target_folder=pair.target_folder, drafter_folder=folder)


def greedy_prompts(pair: Pair, *, count: int) -> list[list[int]]:
    """Prompts of 8 to about 120 tokens; eight or so share each beginning."""
    rng = random.Random(5)
    talks = [pair.conversation(number) for number in range((count + 7) // 8)]
    prompts = [talk[: rng.randint(8, len(talk))] for talk in talks for _ in range(8)]
    rng.shuffle(prompts)
    return prompts[:count]


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Prompts and what plain decoding makes of them."""

    prompts: list[list[int]]
    answers: list[list[int]]
    least_gap: float
    """Between the two largest logits, over all tokens of all answers."""


def greedy_sampling(new_tokens: int) -> dict[str, Any]:
    """The most likely token, so many times."""
    return {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}


def continuation_logits(
    target: Target, prompt: Sequence[int], answers_NS: torch.Tensor
) -> torch.Tensor:
    """[N, S, V] what the target says at every place of answers to one prompt."""
    start = torch.tensor(list(prompt)).expand(len(answers_NS), -1)
    whole = torch.cat([start, answers_NS], dim=1)
    hidden, _ = target.prefill(tokens_BS=whole)
    return target.logits(hidden[:, len(prompt) - 1 : -1])


def plain_answers(
    pair: Pair, nursery: Nursery, prompts: list[list[int]], *, keep: int, new_tokens: int
) -> Greedy:
    """Ask a server without speculation; transformers must agree, token for token."""
    sampling = greedy_sampling(new_tokens)
    jobs = [Job(prompt=prompt, sampling=sampling) for prompt in prompts]
    with nursery.start(plain_arguments(pair.target_folder)) as server:
        outcomes = serve(server.url, jobs, concurrency=8)
    kept: list[tuple[list[int], list[int], float]] = []
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        assert outcome.whole, outcome
        answer = torch.tensor([outcome.tokens])
        best = continuation_logits(pair.target, prompt, answer)[0].topk(2, dim=-1)
        gap = float((best.values[:, 0] - best.values[:, 1]).min())
        if gap >= TIE:
            assert best.indices[:, 0].tolist() == outcome.tokens
            kept.append((prompt, outcome.tokens, gap))
    assert len(kept) >= keep, f"{len(kept)} of {len(prompts)} answers are free of ties"
    del kept[keep:]
    return Greedy(
        prompts=[prompt for prompt, _, _ in kept],
        answers=[answer for _, answer, _ in kept],
        least_gap=min(gap for _, _, gap in kept),
    )


def write_costs(
    path: Path,
    *,
    token_share: float,
    requests: int,
    gamma: int = GAMMA,
    step_s: float = 0.005,
    draft_share: float = 0.0,
    context_share: float = 0.0,
) -> Path:
    """A cost model in which a token adds ``token_share`` of an empty step's time.

    Drafting for a request adds ``draft_share`` of it, a block takes 0.1 ms besides; a context token
    adds ``context_share``.
    """
    tokens = requests * (gamma + 1)
    CostModel(
        schema_version=1,
        name=path.stem,
        kind="table",
        provenance=Provenance(
            origin="analytic",
            source="made for a test",
            hardware="none",
            model="none",
            dtype="float32",
            tp=1,
            engine="none",
            date="2026-11-25",
            command="pytest",
        ),
        valid_range=ValidRange(
            tokens=(1, tokens), requests=(1, requests), context_tokens=(0, 4096)
        ),
        fit_error=None,
        table=StepTable(
            tokens=(1, tokens),
            seconds=(step_s * (1 + token_share), step_s * (1 + token_share * tokens)),
            between="linear",
            origin="analytic",
        ),
        draft=DraftCost(
            gamma=gamma,
            requests=(1, requests),
            seconds=(1e-4, 1e-4 + step_s * draft_share * (requests - 1)),
            between="linear",
            origin="analytic",
        ),
        context=ContextCost(token_s=step_s * context_share, reference_tokens=0, origin="analytic"),
        prefill=PrefillCost(base_s=0.001, token_s=1e-5, pair_s=0.0, origin="analytic"),
        host=HostCost(step_s=0.0, origin="analytic"),
        graphs=GraphTiers(tiers_tokens=(), beyond_last_s=0.0, origin="analytic"),
    ).save(path)
    return path


PROBE_ROUNDS = 6


def write_goodput(
    folder: Path, *, requests: int, token_share: float = 0.1, draft_share: float = 0.1
) -> tuple[Path, Path]:
    """(policy.json, cost model): ``goodput`` that weighs all it can, and what drafting costs.

    Contexts slow a step down.
    """
    policy = Goodput(
        probe_rounds=PROBE_ROUNDS,
        ttft_ms=2000.0,
        tpot_ms=5.0,
        slack_weight=1.0,
        priority_weight=0.2,
    )
    save_policy(folder / "policy.json", PolicyFile(policy=policy))
    costs = write_costs(
        folder / "dear-drafts.json",
        token_share=token_share,
        requests=requests,
        draft_share=draft_share,
        context_share=0.001,
    )
    return folder / "policy.json", costs
