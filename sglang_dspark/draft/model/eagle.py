"""The autoregressive baseline: one Eagle3-style layer that feeds its own states back.

Owns the recurrence, for training (teacher-forced, unrolled over the block so that it learns from
its own states) and for decoding. Same calls as ``Drafter``, so that losses, decoding and
evaluation do not know which they have. As small as it can be: no tree, no reduced vocabulary; its
checkpoints are this project's own, not those of other Eagle3 implementations.

Input j is (state of the tokens before j, embedding of token j); its output, normed, gives the
logits of token j+1. For j up to the anchor s the state is the target's, fc of three captured
layers at j-1; beyond, the drafter's own output at j-1. Inputs see each other causally, from 1 on.

Shapes: as in ``model``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.draft.model.ends import (
    capped,
    embedded,
    frozen_embedding,
    frozen_lm_head,
    initialise,
)
from sglang_dspark.draft.model.layers import (
    MLP,
    Attention,
    RMSNorm,
    Rope,
    anchor_groups,
    attend,
    block_attention,
)
from sglang_dspark.draft.model.model import DraftCache, cache_places


@dataclass(kw_only=True)
class EagleRound:
    """Where a round of decoding stands."""

    cache: DraftCache
    rows: Sequence[int] | None
    """Cache rows at hand, None for all."""
    anchor_R: Tensor
    """Index of the round's first input."""
    index_R: Tensor
    """Index of the next input."""
    state_RD: Tensor
    """Its state."""


class Eagle(nn.Module):
    """Autoregressive drafter; train it with ``losses.DFLASH`` (cross-entropy) or any mix."""

    def __init__(
        self, config: DrafterConfig, embed: Tensor | None = None, lm_head: Tensor | None = None
    ) -> None:
        """As ``Drafter``; the config's architecture must be an autoregressive one."""
        super().__init__()
        if not config.family.autoregressive:
            raise ValueError(
                f"{config.architecture} is not autoregressive; make it a Drafter instead"
            )
        self.config = config
        width, in_float32 = config.hidden_size, config.family.norm_in_float32
        norms = [RMSNorm(width, eps=config.rms_norm_eps, in_float32=in_float32) for _ in range(4)]
        self.embed_tokens = frozen_embedding(config, embed)
        self.fc = nn.Linear(len(config.target_layer_ids) * width, width, bias=False)
        self.input_layernorm, self.hidden_norm, self.post_attention_layernorm, self.norm = norms
        self.self_attn = Attention(config, input_width=2 * width)
        self.mlp = MLP(config)
        self.lm_head = frozen_lm_head(config, lm_head)
        self.rope = Rope(config)
        initialise(self, std=config.initializer_range)

    def context(self, *, captured_BSC: Tensor) -> Tensor:
        """fc(captured): [..., C] -> [..., D]."""
        return cast(Tensor, self.fc(captured_BSC.to(self.fc.weight.dtype)))

    def _input(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The layer's attention input [..., 2D]."""
        embedding = embedded(self.config, self.embed_tokens, tokens).to(state.dtype)
        return torch.cat([self.input_layernorm(embedding), self.hidden_norm(state)], dim=-1)

    def _finish(self, state: Tensor, attended: Tensor) -> Tensor:
        """The next input's state."""
        state = state + self.self_attn.output(attended)
        return state + cast(Tensor, self.mlp(self.post_attention_layernorm(state)))

    def hidden(
        self,
        *,
        context_BSD: Tensor,
        anchor_tokens_BA: Tensor,
        anchor_index_BA: Tensor,
        tokens_BS: Tensor | None = None,
    ) -> Tensor:
        """Normed states [B, A, K, D]: slot k has read tokens up to s+k, target states up to s-1.

        Needs ``tokens_BS``, the sequences, for the tokens after the anchors.
        """
        if tokens_BS is None:
            raise ValueError("an autoregressive drafter needs tokens_BS to be teacher-forced")
        last = tokens_BS.shape[1] - 1
        places_S = torch.arange(1, last + 1, device=tokens_BS.device)
        context_key, context_value = self.self_attn.keys_values(
            self._input(context_BSD[:, :-1], tokens_BS[:, 1:]),
            self.rope(places_S, context_BSD.dtype),
        )
        seen_BA = (anchor_index_BA - 1).clamp(min=0)  # inputs 1..s-1, counted from 0
        rows_B1 = torch.arange(len(tokens_BS), device=tokens_BS.device)[:, None]
        state_BAD = context_BSD[rows_B1, seen_BA] * (anchor_index_BA > 0)[..., None]
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        limits = anchor_groups(
            anchor_index_BA=seen_BA, slots=self.config.gamma, query_groups=groups
        )
        keys: list[Tensor] = []
        values: list[Tensor] = []
        states = []
        for k in range(self.config.gamma):
            place_BA = anchor_index_BA + k
            token_BA = tokens_BS[rows_B1, place_BA.clamp(max=last)] if k else anchor_tokens_BA
            given = self._input(state_BAD, token_BA)[:, :, None]
            rope = self.rope(place_BA[..., None], given.dtype)
            key, value = self.self_attn.keys_values(given, rope)
            keys.append(key)
            values.append(value)
            attended = block_attention(
                query_BAKHE=self.self_attn.queries(given, rope),
                context_key_BSNE=context_key,
                context_value_BSNE=context_value,
                block_key_BAKNE=torch.cat(keys, dim=2),
                block_value_BAKNE=torch.cat(values, dim=2),
                anchor_index_BA=seen_BA,
                limits=limits,
                scale=self.self_attn.scale,
            )
            state_BAD = self._finish(state_BAD, attended[:, :, 0])
            states.append(self.norm(state_BAD))
        return torch.stack(states, dim=2)

    def new_cache(self, *, requests: int, capacity: int) -> DraftCache:
        """An empty cache; ``capacity`` counts a round's gamma inputs and one more."""
        config, weight = self.config, self.fc.weight
        shape = (requests, config.num_key_value_heads, capacity + 1, config.head_dim)
        cache = DraftCache(keys=[weight.new_zeros(shape)], values=[weight.new_zeros(shape)])
        cache.last_RD = weight.new_zeros(requests, config.hidden_size)
        return cache

    @torch.no_grad()
    def append(
        self,
        cache: DraftCache,
        *,
        rows: Sequence[int],
        context_TD: Tensor,
        lengths: Sequence[int],
        tokens_T: Tensor | None = None,
    ) -> None:
        """As ``Drafter.append``; ``tokens_T`` is the token after each context token."""
        if tokens_T is None or cache.last_RD is None:
            raise ValueError("an autoregressive drafter needs tokens_T, the token after each state")
        device = context_TD.device
        rows_T, places_T = cache_places(cache, rows=rows, lengths=lengths, total=len(context_TD))
        rows_T, places_T = rows_T.to(device), places_T.to(device) + 1
        key, value = self.self_attn.keys_values(
            self._input(context_TD, tokens_T), self.rope(places_T, context_TD.dtype)
        )
        cache.write(0, rows_T, places_T, key, value)
        end = 0
        for row, length in zip(rows, lengths, strict=True):
            end += length
            if length:
                cache.last_RD[row] = context_TD[end - 1]

    def begin(
        self,
        cache: DraftCache,
        *,
        anchor_tokens_R: Tensor,
        anchor_index_R: Tensor,
        rows: Sequence[int] | None = None,
    ) -> tuple[Tensor, EagleRound]:
        """(unused slot states [R, K, D], first state for ``step``); rows must end at the anchor."""
        lengths = cache.lengths if rows is None else cache.lengths[list(rows)]
        if cache.last_RD is None or anchor_index_R.tolist() != lengths.tolist():
            raise ValueError(
                f"anchors at {anchor_index_R.tolist()} but the rows end at {lengths.tolist()}; an "
                "autoregressive drafter starts from the last context state"
            )
        state_RD = cache.last_RD if rows is None else cache.last_RD[list(rows)]
        state_RD = state_RD * (anchor_index_R > 0)[:, None]
        start = EagleRound(
            cache=cache,
            rows=rows,
            anchor_R=anchor_index_R,
            index_R=anchor_index_R,
            state_RD=state_RD,
        )
        return state_RD[:, None].expand(-1, self.config.gamma, -1), start

    @torch.no_grad()
    def step(
        self, *, hidden_RD: Tensor, previous_R: Tensor, state: EagleRound
    ) -> tuple[Tensor, None, EagleRound]:
        """(logits_RV, None, next state); ``hidden_RD`` is not used."""
        cache, index_R = state.cache, state.index_R
        device = previous_R.device
        picked = torch.arange(len(previous_R)) if state.rows is None else torch.tensor(state.rows)
        cache.reserve(rows_R=picked, end_R=index_R.cpu() + 1)
        picked = picked.to(device)
        given = self._input(state.state_RD, previous_R)[:, None]
        rope = self.rope(index_R[:, None], given.dtype)
        key, value = self.self_attn.keys_values(given, rope)
        cache.write(0, picked, index_R, key[:, 0], value[:, 0])
        keys, values = cache.keys_RNLE[0], cache.values_RNLE[0]
        if state.rows is not None:
            keys, values = keys[picked], values[picked]
        longest = int(index_R.max()) + 1
        place_L = torch.arange(longest, device=device)
        # Input 0 is never context: only a round that starts with it has it.
        first_R1 = state.anchor_R.clamp(max=1)[:, None]
        mask_R1L = ((place_L >= first_R1) & (place_L <= index_R[:, None]))[:, None]
        query = self.self_attn.queries(given, rope)
        attended = attend(
            query, keys[:, :, :longest], values[:, :, :longest], mask_R1L, self.self_attn.scale
        )
        after_RD = self._finish(state.state_RD, attended[:, 0])
        following = replace(state, index_R=index_R + 1, state_RD=after_RD)
        return self.base_logits(self.norm(after_RD)), None, following

    def base_logits(self, hidden: Tensor) -> Tensor:
        """The target's lm_head and softcap on [..., D]."""
        return capped(self.lm_head(hidden.to(self.lm_head.weight.dtype)), self.config.softcap)

    def head_states(self, hidden: Tensor) -> Tensor:
        """What the lm_head reads: the states from ``hidden``, already normed."""
        return hidden

    def latent(self, *, hidden_NKD: Tensor, previous_NK: Tensor) -> tuple[None, None, None]:
        """No Markov bias and no confidence."""
        return None, None, None

    def logits(self, *, hidden_NKD: Tensor, previous_NK: Tensor) -> tuple[Tensor, None]:
        """(logits_NKV, None) of states from ``hidden``."""
        return self.base_logits(hidden_NKD), None
