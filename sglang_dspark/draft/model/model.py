"""The drafter: a parallel backbone with the target's states injected into every layer's K/V.

Owns the forward pass, for training (blocks at given anchors) and for decoding (a cache of context
keys and values). Parameters are named exactly as the checkpoint's tensors. Knows neither files nor
sampling; the heads after the backbone are in ``heads``, masks and groups in ``layers``.

Anchor first: slot k (0-based) of the block anchored at token index s predicts token s+k+1, and
sees context indices < s, never the anchor's own target state, and its block's slots both ways.
Without ``sample_from_anchor`` a block has one slot more, of which slot k predicts token s+k and
slot 0 nothing: the states of the others are all that is handed on, so that nobody else knows.

Shapes: B sequences, S context tokens, A anchors, R requests, K = gamma slots, V vocabulary,
D hidden, C = m*D captured, m captured layers, r Markov rank, N blocks, T tokens laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.draft.model.ends import (
    embedded,
    frozen_embedding,
    frozen_lm_head,
    initialise,
)
from sglang_dspark.draft.model.heads import ConfidenceHead, Headed, MarkovHead
from sglang_dspark.draft.model.layers import (
    MLP,
    Attention,
    RMSNorm,
    Rope,
    anchor_groups,
    attend,
    block_attention,
)


class DraftCache:
    """Context keys and values of every layer, one row a request, filled from index 0.

    A row's ``length`` is how many context tokens it holds. What lies beyond is scratch: a round
    writes its own slots there, ``append`` overwrites them.
    """

    def __init__(self, *, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys_RNLE = keys
        self.values_RNLE = values
        self.lengths = torch.zeros(keys[0].shape[0], dtype=torch.int64)
        self.last_RD: Tensor | None = None
        """Each row's last context state; the autoregressive baseline starts from it."""

    @property
    def capacity(self) -> int:
        """Context tokens a row can hold, a round's slots included."""
        return self.keys_RNLE[0].shape[2]

    def crop(self, *, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Forget context from the given lengths on; 0 frees a row for another request."""
        for row, length in zip(rows, lengths, strict=True):
            if not 0 <= length <= self.lengths[row]:
                raise ValueError(
                    f"cannot crop row {row} to {length} tokens; it holds {int(self.lengths[row])}"
                )
            self.lengths[row] = length

    def write(self, layer: int, rows: Tensor, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Store keys and values [..., N, E] at these rows and places, in the cache's dtype."""
        for store, new in ((self.keys_RNLE[layer], key), (self.values_RNLE[layer], value)):
            store[rows, :, places] = new.to(store.dtype)

    def rows_with_context(self, rows: Sequence[int] | None, anchor_index_R: Tensor) -> Tensor:
        """Cache rows [R] (None: all). ``ValueError`` unless each holds context to its anchor."""
        rows_R = torch.arange(len(self.lengths)) if rows is None else torch.tensor(rows)
        anchors = anchor_index_R.cpu()
        if bool((anchors > self.lengths[rows_R]).any()):
            raise ValueError(
                f"anchors at {anchors.tolist()} need that much context, but the rows hold "
                f"{self.lengths[rows_R].tolist()} tokens; append it first"
            )
        return rows_R

    def reserve(self, *, rows_R: Tensor, end_R: Tensor) -> None:
        """``ValueError`` unless every row has room up to its end."""
        if end_R.numel() and int(end_R.max()) > self.capacity:
            row = int(rows_R[int(end_R.argmax())])
            raise ValueError(
                f"row {row} needs {int(end_R.max())} token slots but the cache was made for "
                f"{self.capacity}; ask new_cache for the longest context plus a block"
            )


class DraftLayer(nn.Module):
    """Attention and MLP, with Gemma4's extra norms and scalar where the family has them."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        family = config.family
        self.self_attn = Attention(config)
        self.mlp = MLP(config)

        def norm() -> RMSNorm:
            return RMSNorm(
                config.hidden_size, eps=config.rms_norm_eps, in_float32=family.norm_in_float32
            )

        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.sandwich = family.sandwich
        if self.sandwich:
            self.pre_feedforward_layernorm = norm()
            self.post_feedforward_layernorm = norm()
            self.register_buffer("layer_scalar", torch.ones(1))

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Everything after attention: residuals, norms, MLP."""
        out = self.self_attn.output(attended)
        if not self.sandwich:
            hidden = hidden + out
            return hidden + cast(Tensor, self.mlp(self.post_attention_layernorm(hidden)))
        hidden = hidden + self.post_attention_layernorm(out)
        fed = self.mlp(self.pre_feedforward_layernorm(hidden))
        return (hidden + self.post_feedforward_layernorm(fed)) * cast(Tensor, self.layer_scalar)


class Blockwise(Headed):
    """A drafter whose whole block comes of one pass, before its heads go slot after slot."""

    def hidden_cached(
        self,
        cache: DraftCache,
        *,
        anchor_tokens_R: Tensor,
        anchor_index_R: Tensor,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Slot states [R, K, D] of one round over cached context."""
        raise NotImplementedError

    def begin(
        self,
        cache: DraftCache,
        *,
        anchor_tokens_R: Tensor,
        anchor_index_R: Tensor,
        rows: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(slot states [R, K, D], first ``state`` for ``step``) of one round."""
        hidden_RKD = self.hidden_cached(
            cache, anchor_tokens_R=anchor_tokens_R, anchor_index_R=anchor_index_R, rows=rows
        )
        return hidden_RKD, None


class Drafter(Blockwise):
    """DSpark's draft model; with ``markov_rank`` 0 and no confidence head it is DFlash."""

    def __init__(
        self, config: DrafterConfig, embed: Tensor | None = None, lm_head: Tensor | None = None
    ) -> None:
        """``embed`` and ``lm_head`` [V, D]: the target's weights, shared and never trained.

        Left out, both are made (for a checkpoint that brings its copies) and are just as frozen.
        """
        super().__init__()
        self.config = config
        width, eps = config.hidden_size, config.rms_norm_eps
        in_float32 = config.family.norm_in_float32
        self.embed_tokens = frozen_embedding(config, embed)
        self.layers = nn.ModuleList(DraftLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(width, eps=eps, in_float32=in_float32)
        self.fc = nn.Linear(len(config.target_layer_ids) * width, width, bias=False)
        self.hidden_norm = RMSNorm(width, eps=eps, in_float32=in_float32)
        self.lm_head = frozen_lm_head(config, lm_head)
        self.markov_head = MarkovHead(config) if config.markov_rank else None
        self.confidence_head = ConfidenceHead(config) if config.enable_confidence_head else None
        self.rope = Rope(config)
        self.checkpointing = False
        """Recompute each layer in the backward pass instead of keeping its activations."""
        initialise(self, std=config.initializer_range)

    # Context.

    def context(self, *, captured_BSC: Tensor) -> Tensor:
        """hidden_norm(fc(captured)): [..., C] -> [..., D]."""
        return cast(Tensor, self.hidden_norm(self.fc(captured_BSC.to(self.fc.weight.dtype))))

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [..., D], times sqrt(D) where the family scales them."""
        return embedded(self.config, self.embed_tokens, tokens).to(self.fc.weight.dtype)

    def _slots(self, anchor_tokens: Tensor, anchor_index: Tensor) -> tuple[Tensor, Tensor]:
        """Slot embeddings [..., T, D] and positions [..., T] of blocks anchored at [...]."""
        slots = self.config.block_size
        masks = anchor_tokens.new_full((*anchor_tokens.shape, slots - 1), self.config.mask_token_id)
        tokens = torch.cat([anchor_tokens[..., None], masks], dim=-1)
        return self.embed(tokens), anchor_index[..., None] + torch.arange(
            slots, device=anchor_index.device
        )

    def _proposing(self, hidden: Tensor) -> Tensor:
        """Final-normed states [..., K, D] of the slots that propose: the last K of [..., T, D]."""
        return cast(Tensor, self.norm(hidden[..., -self.config.gamma :, :]))

    # Training and evaluation: many blocks of known sequences.

    def hidden(
        self,
        *,
        context_BSD: Tensor,
        anchor_tokens_BA: Tensor,
        anchor_index_BA: Tensor,
        tokens_BS: Tensor | None = None,
    ) -> Tensor:
        """Final-normed slot states [B, A, K, D] of blocks anchored at the given indices.

        Block a sees context indices < anchor_index_BA[b, a] and its own slots. ``tokens_BS``, the
        sequences, are for the autoregressive baseline only. Memory: activations of A*K tokens
        plus S keys and values a layer, plus one group's mask (``layers``).
        """
        hidden_BAKD, positions_BAK = self._slots(anchor_tokens_BA, anchor_index_BA)
        dtype = hidden_BAKD.dtype
        places_S = torch.arange(context_BSD.shape[1], device=context_BSD.device)
        context_rope, block_rope = self.rope(places_S, dtype), self.rope(positions_BAK, dtype)
        limits = anchor_groups(
            anchor_index_BA=anchor_index_BA,
            slots=self.config.block_size,
            query_groups=self.config.num_attention_heads // self.config.num_key_value_heads,
        )

        def through(layer: DraftLayer, hidden_BAKD: Tensor) -> Tensor:
            attention, normed = layer.self_attn, layer.input_layernorm(hidden_BAKD)
            context_key, context_value = attention.keys_values(context_BSD, context_rope)
            block_key, block_value = attention.keys_values(normed, block_rope)
            attended = block_attention(
                query_BAKHE=attention.queries(normed, block_rope),
                context_key_BSNE=context_key,
                context_value_BSNE=context_value,
                block_key_BAKNE=block_key,
                block_value_BAKNE=block_value,
                anchor_index_BA=anchor_index_BA,
                limits=limits,
                scale=attention.scale,
            )
            return layer.finish(hidden_BAKD, attended)

        for module in self.layers:
            layer = cast(DraftLayer, module)
            if self.checkpointing and torch.is_grad_enabled():
                hidden_BAKD = checkpoint(through, layer, hidden_BAKD, use_reentrant=False)
            else:
                hidden_BAKD = through(layer, hidden_BAKD)
        return self._proposing(hidden_BAKD)

    # Decoding: one block a request, over cached context.

    def new_cache(self, *, requests: int, capacity: int) -> DraftCache:
        """An empty cache of ``requests`` rows; ``capacity`` counts a round's slots too."""
        weight, config = self.fc.weight, self.config
        shape = (requests, config.num_key_value_heads, capacity, config.head_dim)
        count = len(self.layers)
        return DraftCache(
            keys=[weight.new_zeros(shape) for _ in range(count)],
            values=[weight.new_zeros(shape) for _ in range(count)],
        )

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
        """Add ``lengths[i]`` context tokens to row ``rows[i]``; ``context_TD`` is end to end.

        ``tokens_T``, the token after each, is for the autoregressive baseline only.
        """
        device = context_TD.device
        rows_T, places_T = cache_places(cache, rows=rows, lengths=lengths, total=len(context_TD))
        rows_T, places_T = rows_T.to(device), places_T.to(device)
        rope = self.rope(places_T, context_TD.dtype)
        for i, module in enumerate(self.layers):
            key, value = cast(DraftLayer, module).self_attn.keys_values(context_TD, rope)
            cache.write(i, rows_T, places_T, key, value)

    @torch.no_grad()
    def hidden_cached(
        self,
        cache: DraftCache,
        *,
        anchor_tokens_R: Tensor,
        anchor_index_R: Tensor,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Final-normed slot states [R, K, D] of one round; ``rows`` picks cache rows (all).

        ``anchor_index_R`` may not exceed a row's length: context up to the anchor must be there.
        """
        rows_R, anchors = cache.rows_with_context(rows, anchor_index_R), anchor_index_R.cpu()
        slots = self.config.block_size
        cache.reserve(rows_R=rows_R, end_R=anchors + slots)
        longest = int(anchors.max()) + slots
        hidden_RKD, places_RK = self._slots(anchor_tokens_R, anchor_index_R)
        rope = self.rope(places_RK, hidden_RKD.dtype)
        picked = rows_R.to(hidden_RKD.device)
        seen = torch.arange(longest, device=picked.device) < places_RK[:, -1:, None] + 1
        mask_RKL = seen.expand(-1, slots, -1)
        for i, module in enumerate(self.layers):
            layer = cast(DraftLayer, module)
            attention, normed = layer.self_attn, layer.input_layernorm(hidden_RKD)
            key, value = attention.keys_values(normed, rope)
            cache.write(i, picked[:, None], places_RK, key, value)
            keys, values = cache.keys_RNLE[i], cache.values_RNLE[i]
            if rows is not None:
                keys, values = keys[picked], values[picked]
            attended = attend(
                attention.queries(normed, rope),
                keys[:, :, :longest],
                values[:, :, :longest],
                mask_RKL,
                attention.scale,
            )
            hidden_RKD = layer.finish(hidden_RKD, attended)
        return self._proposing(hidden_RKD)


def cache_places(
    cache: DraftCache, *, rows: Sequence[int], lengths: Sequence[int], total: int
) -> tuple[Tensor, Tensor]:
    """(row, index) of each of ``total`` tokens laid end to end; the rows grow by ``lengths``."""
    rows_R, grown_R = torch.tensor(rows, dtype=torch.int64), torch.tensor(lengths)
    if len(rows_R) != len(grown_R) or int(grown_R.sum()) != total:
        raise ValueError(
            f"{total} context tokens for lengths {list(lengths)} of rows {list(rows)}; "
            "give one length a row that sum to the tokens"
        )
    start_R = cache.lengths[rows_R]
    cache.reserve(rows_R=rows_R, end_R=start_R + grown_R)
    before_R = grown_R.cumsum(0) - grown_R
    places_T = torch.arange(total) + (start_R - before_R).repeat_interleave(grown_R)
    cache.lengths[rows_R] = start_R + grown_R
    return rows_R.repeat_interleave(grown_R), places_T
