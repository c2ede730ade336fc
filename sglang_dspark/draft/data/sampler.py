"""Batched sampling from a target with a KV cache, for targets small enough to hold here.

Owns the decoding loop. Knows nothing of prompts, text or files; one token per row and step, no
drafter (``sglang_dspark.draft.evaluation.decode`` has that one).
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch

from sglang_dspark.draft.evaluation.sampling import Sampling, draw, probabilities, uniforms
from sglang_dspark.draft.model.target import Target


@torch.no_grad()
def answer_tokens(
    target: Target,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    max_tokens: int,
    stops: Set[int],
    generator: torch.Generator,
) -> list[list[int]]:
    """An answer of 1 to ``max_tokens`` tokens to each prompt, its stop token included.

    The same prompts, order and generator give the same answers: row i's draw at step t is number
    (t, i) of the generator, whether or not other rows have ended.
    """
    count, longest = len(prompts), max(len(prompt) for prompt in prompts)
    if min(len(prompt) for prompt in prompts) < 1:
        raise ValueError("a prompt has no tokens; give at least one")
    limit = getattr(target.config, "max_position_embeddings", None)
    if limit is not None and longest + max_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and an answer of {max_tokens} exceed the target's "
            f"{limit} positions; lower --max-tokens or shorten the prompt"
        )
    device = target.device
    cache = target.new_cache(requests=count, capacity=longest + max_tokens)
    padded = torch.zeros(count, longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = torch.tensor(prompt)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    hidden_RTD, _ = target.extend(cache, tokens_RT=padded.to(device), lengths=lengths.tolist())
    hidden_RD = hidden_RTD[torch.arange(count, device=device), (lengths - 1).to(device)]
    live = list(range(count))
    answers: list[list[int]] = [[] for _ in prompts]
    for step in range(max_tokens):
        uniform = uniforms(count, generator=generator)[live]
        weights = probabilities(logits=target.logits(hidden_RD), sampling=sampling)
        drawn = draw(weights=weights, uniform=uniform).tolist()
        for row, token in zip(live, drawn, strict=True):
            answers[row].append(token)
        kept = [i for i, token in enumerate(drawn) if token not in stops]
        live = [live[i] for i in kept]
        if not live or step == max_tokens - 1:
            break
        hidden_RTD, _ = target.extend(
            cache,
            tokens_RT=torch.tensor([[drawn[i]] for i in kept], device=device),
            rows=None if len(live) == count else live,
        )
        hidden_RD = hidden_RTD[:, 0]
    return answers
