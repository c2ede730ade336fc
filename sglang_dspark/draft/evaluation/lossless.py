"""Whether greedy answers with the drafter are the target's own, token for token.

Owns the comparison and its three outcomes: a check in which no draft was accepted shows nothing and
is inconclusive, not passed. Answers that part where two tokens are equally likely, to the rounding
of the target's own arithmetic, are told apart from those that part elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sglang_dspark.draft.data.sampler import answer_tokens
from sglang_dspark.draft.evaluation.decode import VerifyAll, speculate
from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.draft.model.target import Target

PASSED, FAILED, INCONCLUSIVE = "passed", "failed", "inconclusive"
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Logits nearer than this may swap when a token is computed beside others."""


@dataclass(frozen=True, kw_only=True)
class Lossless:
    """The outcome."""

    outcome: str
    """``passed``, ``failed`` or ``inconclusive``."""
    answers: int
    identical: int
    ties: int
    """Answers that part at a tie."""
    drafts_accepted: int

    @property
    def sentence(self) -> str:
        """For a reader."""
        numbers = (
            f"{self.identical} of {self.answers} greedy answers identical, {self.ties} part at a "
            f"tie, {self.drafts_accepted} drafts accepted"
        )
        if self.outcome == INCONCLUSIVE:
            return f"lossless: inconclusive, no draft was accepted ({numbers})"
        return f"lossless: {self.outcome} ({numbers})"


def check_lossless(
    target: Target, drafter: Any, prompts: Sequence[Sequence[int]], *, new_tokens: int
) -> Lossless:
    """Decode the prompts greedily with and without the drafter."""
    greedy = Sampling(temperature=0)
    decoded = speculate(
        target=target,
        drafter=drafter,
        prompts=prompts,
        sampling=greedy,
        planner=VerifyAll(drafter.config.gamma),
        new_tokens=new_tokens,
        generator=torch.Generator().manual_seed(0),
    )
    wanted = answer_tokens(
        target,
        prompts,
        sampling=greedy,
        max_tokens=new_tokens,
        stops=set(),
        generator=torch.Generator().manual_seed(0),
    )
    parted = [
        (prompt, mine, theirs)
        for prompt, mine, theirs in zip(prompts, decoded.tokens, wanted, strict=True)
        if mine != theirs
    ]
    ties = sum(_at_a_tie(target, *row) for row in parted)
    accepted = int(decoded.log.accepted.sum())
    outcome = PASSED if ties == len(parted) else FAILED
    if outcome == PASSED and not accepted:
        outcome = INCONCLUSIVE
    return Lossless(
        outcome=outcome,
        answers=len(prompts),
        identical=len(prompts) - len(parted),
        ties=ties,
        drafts_accepted=accepted,
    )


def _at_a_tie(
    target: Target, prompt: Sequence[int], mine: Sequence[int], theirs: Sequence[int]
) -> bool:
    """Whether the first token that differs is as likely as the other."""
    at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
    whole = torch.tensor([[*prompt, *theirs[:at]]], device=target.device)
    hidden, _ = target.prefill(tokens_BS=whole)
    logits = target.logits(hidden[0, -1]).float()
    gap = float((logits[mine[at]] - logits[theirs[at]]).abs())
    return gap < ROUNDING.get(target.dtype, 1e-3)
