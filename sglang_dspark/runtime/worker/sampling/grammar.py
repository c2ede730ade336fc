"""Which tokens a grammar allows at every row of a step.

Owns the walk of the drafts through each request's grammar and its way back. Knows nothing of the
grammar's language: SGLang's grammar objects accept, mask and roll back. Needs the grammars to be
current, which the scheduler sees to: a decode batch with a grammar is never overlapped.

Shapes: G requests with a grammar, N their rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sglang_dspark.runtime.worker.sampling.rows import on_device


def constrained(reqs: Sequence[Any]) -> list[int]:
    """Requests whose next token a grammar restricts; not those that it has seen the end of."""
    return [
        i
        for i, req in enumerate(reqs)
        if req.grammar is not None and not req.grammar.finished and not req.grammar.is_terminated()
    ]


def mask_rows(
    reqs: Sequence[Any],
    where: Sequence[int],
    logits_MV: Tensor,
    *,
    drafts_RK: Tensor,
    start_R: Tensor,
    lengths_R: Tensor,
) -> None:
    """-inf, in place, for tokens that are forbidden after drafts 1 to j.

    Rows after a draft that is itself forbidden, or after the grammar's end, stay as they are: the
    former are never reached, of the latter the scheduler drops what comes out.
    """
    here = on_device(where, dtype=torch.int64, device=logits_MV.device)
    lengths = lengths_R[here].tolist()
    starts = start_R[here].tolist()
    drafts = drafts_RK[here].tolist()
    rows = [
        start + j for start, length in zip(starts, lengths, strict=True) for j in range(length + 1)
    ]
    grammars = [reqs[i].grammar for i in where]
    mask = grammars[0].allocate_vocab_mask(
        vocab_size=logits_MV.shape[1], batch_size=len(rows), device="cpu"
    )
    first = 0
    for grammar, chain, length in zip(grammars, drafts, lengths, strict=True):
        _fill(grammar, chain[:length], mask[first : first + length + 1])
        first += length + 1
    rows_N = on_device(rows, dtype=torch.int64, device=logits_MV.device)
    logits_NV = logits_MV[rows_N]
    _apply(grammars[0], logits_NV, mask)
    logits_MV[rows_N] = logits_NV


def _fill(grammar: Any, drafts: Sequence[int], mask_TW: Tensor) -> None:
    """One request's rows; leaves the grammar as it was."""
    current, taken = grammar.current_token, 0
    try:
        grammar.fill_vocab_mask(mask_TW, 0)
        for j, token in enumerate(drafts):
            if not _allows(mask_TW[j], token):
                break
            grammar.accept_token(token)
            taken += 1
            if grammar.is_terminated():
                break
            grammar.fill_vocab_mask(mask_TW, j + 1)
    finally:
        if taken:
            grammar.rollback(taken)
        grammar.current_token = current


def _allows(words_W: Tensor, token: int) -> bool:
    word = token // 32
    return word < len(words_W) and bool(int(words_W[word]) >> (token % 32) & 1)


def _apply(grammar: Any, logits_NV: Tensor, mask_NW: Tensor) -> None:
    if logits_NV.is_cuda:
        mask_NW = grammar.move_vocab_mask(mask_NW, logits_NV.device)
        grammar.apply_vocab_mask(logits=logits_NV, vocab_mask=mask_NW)
    else:
        apply_packed_mask(logits_NV, mask_NW)


def apply_packed_mask(logits: Tensor, vocab_mask: Tensor) -> None:
    """-inf, in place, where a token's bit is 0: 32 tokens to the word, the lowest bit first.

    What SGLang's own application does with packed masks, on devices for which it has none. Tokens
    beyond the mask are forbidden.
    """
    bits = torch.arange(32, dtype=torch.int32, device=vocab_mask.device)
    forbidden = ((vocab_mask[..., None] >> bits) & 1 == 0).flatten(-2)[:, : logits.shape[1]]
    logits[:, : forbidden.shape[1]].masked_fill_(forbidden, float("-inf"))
    logits[:, forbidden.shape[1] :] = float("-inf")
