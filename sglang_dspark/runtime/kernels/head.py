"""The sequential head of a draft block: bias, probabilities and a draw, slot by slot.

Owns the order within a slot (Markov bias from the token before, the request's own temperature, the
draw) and that nothing of the size of the block's logits is made a second time. Knows neither the
backbone nor what verifies the block. Paper 3.1.

A request's top-k, top-p and min-p are the target's business: acceptance leaves exactly its filtered
distribution whatever drafts are drawn from, and filtering them would sort the vocabulary in every
slot. Upstream and DeepSpec draft by temperature alone too.

Shapes: R requests, K slots, D hidden, V vocabulary, r Markov rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sglang_dspark.draft.evaluation.decode import headless_confidence
from sglang_dspark.draft.evaluation.sampling import GREEDY_BELOW, draw
from sglang_dspark.draft.model.heads import ConfidenceHead, MarkovHead

SCRATCH_WEIGHTS = 2**22
"""Weights that a running sum handles at a time: bounds the scratch, whatever R is."""

BIAS_TILE = 2**14
"""Tokens of W2 that the PyTorch version turns to float32 at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RowChoice:
    """How each request's draft tokens are chosen, and the randomness they are chosen with."""

    temperature_R: Tensor
    """float32; below ``GREEDY_BELOW`` (0, say) the most likely token is taken."""
    uniform_RK: Tensor
    """float64 in [0, 1), one for each slot; 1 counts as the number before it."""

    def of(self, picked: Tensor) -> RowChoice:
        """The choice for some of the requests."""
        return RowChoice(
            temperature_R=self.temperature_R[picked], uniform_RK=self.uniform_RK[picked]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class DraftBlock:
    """What the drafter proposes, and the very weights it was drawn from."""

    tokens_RK: Tensor
    """int64."""
    weights_RKV: Tensor
    """float32 probabilities q; one-hot for greedy requests. The storage that held the logits."""
    confidence_RK: Tensor
    """float32 raw logits; column k says nothing of token k, only of those before it."""

    @classmethod
    def nothing(cls, requests: int, gamma: int, *, vocab_size: int, device: Any) -> DraftBlock:
        """No request is drafted for: confidences of -inf."""
        return cls(
            tokens_RK=torch.zeros(requests, gamma, dtype=torch.int64, device=device),
            weights_RKV=torch.zeros(requests, gamma, vocab_size, device=device),
            confidence_RK=torch.full((requests, gamma), -torch.inf, device=device),
        )

    def fill(self, picked: Tensor, part: DraftBlock) -> None:
        """Take in what was drafted for some of the requests."""
        self.tokens_RK[picked] = part.tokens_RK
        self.weights_RKV[picked] = part.weights_RKV
        self.confidence_RK[picked] = part.confidence_RK


class FillsSlot(Protocol):
    """One slot: ``fill_slot`` below, or the Triton version."""

    def __call__(
        self,
        *,
        logits_RV: Tensor,
        latent_Rr: Tensor | None,
        weight_Vr: Tensor | None,
        choice: RowChoice,
        uniform_R: Tensor,
    ) -> Tensor:
        """Logits to probabilities in place, bias included; the tokens [R] drawn from them."""


@torch.no_grad()
def draft_block(
    *,
    markov_head: MarkovHead | None,
    confidence_head: ConfidenceHead | None,
    hidden_RKD: Tensor,
    logits_RKV: Tensor,
    anchors_R: Tensor,
    chooser: RowChoice,
    slot: FillsSlot | None = None,
) -> DraftBlock:
    """Token k is drawn from softmax((logits_k + W2 u(W1[token k-1])) / T); token -1 is the anchor.

    ``logits_RKV``, float32 base logits, becomes the probabilities: nothing of its size is made a
    second time. A slot's scratch is ``BIAS_TILE`` x (r + R) floats in PyTorch, an eighth of a byte
    for each request and token in Triton; a draw in PyTorch adds at most 48 bytes for each of
    max(V, ``SCRATCH_WEIGHTS``) weights, whatever R is. What is drawn is drawn from exactly the
    float32 values returned, by inverting their running sum at ``chooser.uniform_RK[:, k]``. Greedy
    requests take the lowest of equally likely tokens. Without a confidence head the logits are
    ``headless_confidence``'s. ``slot`` overrides the choice by device.
    """
    _check(markov_head, hidden_RKD, logits_RKV, anchors_R, chooser)
    if slot is None:
        slot = fill_slot
        if logits_RKV.is_cuda:
            from sglang_dspark.runtime.kernels import triton_head

            slot = triton_head.fill_slot
    weight_Vr = None if markov_head is None else markov_head.markov_w2.weight
    previous_R, state_Rr, latent_Rr = anchors_R, None, None
    tokens, embeddings = [], []
    for k in range(logits_RKV.shape[1]):
        if markov_head is not None:
            latent_Rr, embedding_Rr, state_Rr = markov_head.step(
                hidden_RD=hidden_RKD[:, k], previous_R=previous_R, state_Rr=state_Rr
            )
            embeddings.append(embedding_Rr)
        previous_R = slot(
            logits_RV=logits_RKV[:, k],
            latent_Rr=latent_Rr,
            weight_Vr=weight_Vr,
            choice=chooser,
            uniform_R=chooser.uniform_RK[:, k],
        )
        tokens.append(previous_R)
    if confidence_head is None:
        confidence_RK = headless_confidence(logits_RKV)
    else:
        embedding_RKr = torch.stack(embeddings, 1) if embeddings else None
        confidence_RK = confidence_head(hidden=hidden_RKD, embedding=embedding_RKr)
    return DraftBlock(
        tokens_RK=torch.stack(tokens, 1),
        weights_RKV=logits_RKV,
        confidence_RK=confidence_RK.float(),
    )


def fill_slot(
    *,
    logits_RV: Tensor,
    latent_Rr: Tensor | None,
    weight_Vr: Tensor | None,
    choice: RowChoice,
    uniform_R: Tensor,
) -> Tensor:
    """``FillsSlot`` in PyTorch: the reference, and what runs on CPU."""
    if latent_Rr is not None and weight_Vr is not None:
        latent = latent_Rr.float()
        for start in range(0, len(weight_Vr), BIAS_TILE):
            tile = weight_Vr[start : start + BIAS_TILE].float()
            logits_RV[:, start : start + BIAS_TILE] += latent @ tile.T
    greedy_R = choice.temperature_R < GREEDY_BELOW
    most, best_R1 = logits_RV.max(-1, keepdim=True)
    logits_RV -= most
    logits_RV /= torch.where(greedy_R, 1.0, choice.temperature_R)[:, None]
    logits_RV.exp_()
    logits_RV /= logits_RV.sum(-1, keepdim=True)
    logits_RV.masked_fill_(greedy_R[:, None], 0.0)
    logits_RV.scatter_add_(-1, best_R1, greedy_R[:, None].float())
    if bool(greedy_R.all()):
        return best_R1.squeeze(-1)
    return drawn(logits_RV, uniform_R=uniform_R)


def drawn(weights_RV: Tensor, *, uniform_R: Tensor) -> Tensor:
    """Tokens [R] from weights >= 0, as ``evaluation.sampling.draw``; a row of NaN gives any."""
    last = weights_RV.shape[-1] - 1
    # A uniform that was rounded to 1 would draw beyond the last token of any weight.
    uniform_R = uniform_R.double().clamp(max=1 - 2**-53)
    rows = max(1, SCRATCH_WEIGHTS // (last + 1))
    parts = [
        draw(weights=weights, uniform=uniform)
        for weights, uniform in zip(
            torch.split(weights_RV, rows), torch.split(uniform_R, rows), strict=True
        )
    ]
    # A number that is no number must not become an index beyond the vocabulary.
    return torch.cat(parts).clamp(max=last)


def _check(
    markov_head: MarkovHead | None,
    hidden_RKD: Tensor,
    logits_RKV: Tensor,
    anchors_R: Tensor,
    chooser: RowChoice,
) -> None:
    requests, slots, vocabulary = logits_RKV.shape
    if logits_RKV.dtype != torch.float32 or logits_RKV.stride(-1) != 1:
        raise ValueError(
            f"base logits are {logits_RKV.dtype} with strides {logits_RKV.stride()}; give float32, "
            "the vocabulary innermost: they become the probabilities"
        )
    shapes = (tuple(hidden_RKD.shape[:2]), tuple(chooser.uniform_RK.shape), len(anchors_R))
    if shapes != ((requests, slots), (requests, slots), requests):
        raise ValueError(
            f"hidden states {shapes[0]}, uniforms {shapes[1]} and {shapes[2]} anchors do not fit "
            f"logits of {requests} requests and {slots} slots; give one of each a slot"
        )
    if markov_head is not None and markov_head.markov_w2.weight.shape[0] != vocabulary:
        raise ValueError(
            f"the Markov head knows {markov_head.markov_w2.weight.shape[0]} tokens, the logits "
            f"have {vocabulary}; cut the logits to the drafter's vocabulary"
        )
