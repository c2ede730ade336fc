"""The sequential heads over a block's hidden states: Markov bias and confidence.

Own the one law of DSpark's semi-autoregression: bias = W2 u(e, h, state), e = W1[previous token],
and the confidence logit, linear in [h ; e]; and what a drafter that has them answers. Know nothing
of attention or of how tokens are sampled. Paper 3.1.

Shapes: R requests, N blocks, K slots, D hidden, r Markov rank, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sglang_dspark.draft.model.ends import capped


class MarkovHead(nn.Module):
    """Low-rank bias on the next token's logits given the previous token.

    vanilla: u = e. gated: u = sigmoid(gate([h ; e])) * e. rnn: joint([state ; e ; h]) gives gate,
    candidate and output; state' = g * state + (1 - g) * tanh(candidate), g = sigmoid(gate);
    u = tanh(output); the first state is zero.
    """

    def __init__(self, config: Any) -> None:
        """``config``: a drafter's, of any layout."""
        super().__init__()
        rank, hidden = config.markov_rank, config.hidden_size
        self.kind = config.head
        self.rank = rank
        self.markov_w1 = nn.Embedding(config.vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, config.vocab_size, bias=False)
        if self.kind == "gated":
            self.gate_proj = nn.Linear(hidden + rank, rank)
        elif self.kind == "rnn":
            self.joint_proj = nn.Linear(2 * rank + hidden, 3 * rank)

    def step(
        self, *, hidden_RD: Tensor, previous_R: Tensor, state_Rr: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One slot for any leading shape: (u, e, next state); bias = ``markov_w2(u)``."""
        embedding_Rr = self.markov_w1(previous_R)
        if self.kind == "vanilla":
            return embedding_Rr, embedding_Rr, None
        if self.kind == "gated":
            gate_Rr = torch.sigmoid(self.gate_proj(torch.cat([hidden_RD, embedding_Rr], dim=-1)))
            return gate_Rr * embedding_Rr, embedding_Rr, None
        if state_Rr is None:
            state_Rr = torch.zeros_like(embedding_Rr)
        joint = self.joint_proj(torch.cat([state_Rr, embedding_Rr, hidden_RD], dim=-1))
        gate_Rr, candidate_Rr, output_Rr = joint.chunk(3, dim=-1)
        gate_Rr = torch.sigmoid(gate_Rr)
        state_Rr = gate_Rr * state_Rr + (1 - gate_Rr) * torch.tanh(candidate_Rr)
        return torch.tanh(output_Rr), embedding_Rr, state_Rr

    def latent(self, *, hidden_NKD: Tensor, previous_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced block: (u_NKr, e_NKr). Only the rnn goes slot by slot."""
        if self.kind != "rnn":
            latent_NKr, embedding_NKr, _ = self.step(
                hidden_RD=hidden_NKD, previous_R=previous_NK, state_Rr=None
            )
            return latent_NKr, embedding_NKr
        state, steps = None, []
        for k in range(hidden_NKD.shape[1]):
            latent_Nr, embedding_Nr, state = self.step(
                hidden_RD=hidden_NKD[:, k], previous_R=previous_NK[:, k], state_Rr=state
            )
            steps.append((latent_Nr, embedding_Nr))
        return torch.stack([u for u, _ in steps], 1), torch.stack([e for _, e in steps], 1)


class ConfidenceHead(nn.Module):
    """Logit of the probability that a slot's token survives, given that its prefix did."""

    def __init__(self, config: Any, *, bias: bool = True) -> None:
        """``config``: a drafter's, of any layout; the bundled one has no ``bias``."""
        super().__init__()
        self.with_markov: bool = config.with_markov
        width = config.hidden_size + (config.markov_rank if self.with_markov else 0)
        self.proj = nn.Linear(width, 1, bias=bias)

    def forward(self, *, hidden: Tensor, embedding: Tensor | None) -> Tensor:
        """[..., D] and [..., r] -> [...], in float32 when the model computes in less."""
        if self.with_markov:
            assert embedding is not None
            hidden = torch.cat([hidden, embedding.to(hidden.dtype)], dim=-1)
        logit: Tensor = self.proj(hidden.to(self.proj.weight.dtype)).squeeze(-1)
        return logit if logit.dtype == torch.float64 else logit.float()


class Headed(nn.Module):
    """What every drafter with these heads makes of its slot states: logits and confidences.

    A subclass has ``config``, ``lm_head``, ``markov_head`` and ``confidence_head``.
    """

    config: Any
    lm_head: nn.Linear
    markov_head: MarkovHead | None
    confidence_head: ConfidenceHead | None

    def head_states(self, hidden: Tensor) -> Tensor:
        """What the lm_head reads of slot states [..., D]: the states, already normed."""
        return hidden

    def base_logits(self, hidden: Tensor) -> Tensor:
        """The target's lm_head and softcap on [..., D]; no Markov bias."""
        states = self.head_states(hidden).to(self.lm_head.weight.dtype)
        return capped(self.lm_head(states), self.config.softcap)

    def latent(
        self, *, hidden_NKD: Tensor, previous_NK: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(u_NKr, W2 [V, r], confidence_NK): logits are base + u W2^T; None where no head."""
        latent_NKr = embedding_NKr = weight_Vr = None
        if self.markov_head is not None:
            latent_NKr, embedding_NKr = self.markov_head.latent(
                hidden_NKD=hidden_NKD, previous_NK=previous_NK
            )
            weight_Vr = self.markov_head.markov_w2.weight
        confidence_NK = None
        if self.confidence_head is not None:
            confidence_NK = self.confidence_head(hidden=hidden_NKD, embedding=embedding_NKr)
        return latent_NKr, weight_Vr, confidence_NK

    def logits(self, *, hidden_NKD: Tensor, previous_NK: Tensor) -> tuple[Tensor, Tensor | None]:
        """Teacher-forced (logits_NKV, confidence_NK); slot 0's previous token is the anchor."""
        latent_NKr, weight_Vr, confidence_NK = self.latent(
            hidden_NKD=hidden_NKD, previous_NK=previous_NK
        )
        logits_NKV = self.base_logits(hidden_NKD)
        if latent_NKr is not None and weight_Vr is not None:
            bias = nn.functional.linear(latent_NKr.to(weight_Vr.dtype), weight_Vr)
            logits_NKV = logits_NKV + bias
        return logits_NKV, confidence_NK

    def step(
        self, *, hidden_RD: Tensor, previous_R: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """One slot while decoding: (logits_RV, confidence_R, next state); first state None."""
        logits_RV, embedding_Rr = self.base_logits(hidden_RD), None
        if self.markov_head is not None:
            latent_Rr, embedding_Rr, state = self.markov_head.step(
                hidden_RD=hidden_RD, previous_R=previous_R, state_Rr=state
            )
            weight_Vr = self.markov_head.markov_w2.weight
            bias_RV = nn.functional.linear(latent_Rr.to(weight_Vr.dtype), weight_Vr)
            logits_RV = logits_RV + bias_RV
        confidence_R = None
        if self.confidence_head is not None:
            confidence_R = self.confidence_head(hidden=hidden_RD, embedding=embedding_Rr)
        return logits_RV, confidence_R, state
