"""The seam to target models: hidden states out, next-token logits out, a KV cache for decoding.

Owns what is particular to transformers: where the decoder, its layers and the lm_head are, hooks
that keep the captured layers only, and a cache with one length per request. Knows nothing of
drafters. Supported: Qwen3 (dense) and Gemma4 text models, alone or inside their multimodal
wrappers; others work when their decoder takes the same arguments, see ``SUPPORTED``.

Shapes: B or R requests, S or T tokens, D hidden, C = m*D captured, V vocabulary, N key/value
heads, L cached tokens, E head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sglang_dspark.draft.model.ends import capped

SUPPORTED = ("qwen3", "gemma4_text", "gemma4_unified_text")
"""``model_type`` of the text configs that are tested; any other is refused."""

QUERY_CHUNK = 512
"""Tokens that one forward with a cache takes, so that its mask stays [R, 512, L]."""


class TargetCache:
    """Keys and values of every layer, one row a request; a token's slot is its position.

    Rows have their own lengths. Slots beyond a row's length hold leftovers (rejected tokens,
    padding) that no query sees, since a query at position p sees slots <= p and writes its own
    first; so cropping after a rejection moves a length and no data.
    """

    def __init__(self, *, requests: int, capacity: int) -> None:
        self.requests = requests
        self.capacity = capacity
        self.lengths = torch.zeros(requests, dtype=torch.int64)
        self.limit: int = 0
        """Slots that the forward at hand may see."""
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows_R: Tensor | None = None
        self._slots_RT = torch.empty(0, dtype=torch.int64)

    def crop(self, *, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Keep the first ``lengths[i]`` tokens of row ``rows[i]``; 0 frees it."""
        for row, length in zip(rows, lengths, strict=True):
            if not 0 <= length <= self.lengths[row]:
                raise ValueError(
                    f"cannot crop row {row} to {length} tokens; it holds {int(self.lengths[row])}"
                )
            self.lengths[row] = length

    def writing(self, *, rows: Sequence[int] | None, slots_RT: Tensor) -> None:
        """The next forward's keys go to these slots of these rows (all)."""
        self._rows_R = None if rows is None else torch.tensor(rows)
        self._slots_RT = slots_RT
        stored = slots_RT[slots_RT < self.capacity]
        self.limit = int(stored.max()) + 1 if stored.numel() else 1

    def update(
        self, keys_RNTE: Tensor, values_RNTE: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """What transformers' attention calls: store the new, return all up to the limit."""
        device = keys_RNTE.device
        if layer not in self._layers:
            heads, size = keys_RNTE.shape[1], keys_RNTE.shape[3]
            shape = (self.requests, heads, self.capacity + 1, size)
            self._layers[layer] = (keys_RNTE.new_zeros(shape), values_RNTE.new_zeros(shape))
        rows_R = torch.arange(self.requests) if self._rows_R is None else self._rows_R
        picked_R, slots_RT = rows_R.to(device), self._slots_RT.to(device)
        result = []
        for store, new_RNTE in zip(self._layers[layer], (keys_RNTE, values_RNTE), strict=True):
            store[picked_R[:, None], :, slots_RT] = new_RNTE.transpose(1, 2)
            seen = store[:, :, : self.limit]
            result.append(seen if self._rows_R is None else seen[picked_R])
        return result[0], result[1]

    def get_seq_length(self, *_: Any) -> int:
        """Asked for by transformers when positions are not given; they always are."""
        return int(self.lengths.max())


class Target:
    """A frozen target model behind the few calls that drafters, data and decoding need."""

    def __init__(self, model: Any, *, capture: Sequence[int] = ()) -> None:
        config = model.config.get_text_config()
        if config.model_type not in SUPPORTED:
            raise ValueError(
                f"target model_type {config.model_type!r} is not supported; "
                f"supported: {', '.join(SUPPORTED)}"
            )
        if config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError(
                f"the target uses {config._attn_implementation!r} attention; load it with "
                "attn_implementation='sdpa'"
            )
        self.model = model.eval().requires_grad_(False)
        inner = model.model
        self.decoder: Any = getattr(inner, "language_model", inner)
        # Since transformers 5.24 the argument is called what it is.
        named = inspect.signature(self.decoder.forward).parameters
        self._cache_argument = "cache" if "cache" in named else "past_key_values"
        self.config = config
        self.vocab_size: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        self.layers: int = config.num_hidden_layers
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.captured: tuple[int, ...] = ()
        self.capture(capture)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        capture: Sequence[int] = (),
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> Target:
        """Load a local folder in transformers' format; ``dtype`` None keeps the file's."""
        from transformers import AutoModelForCausalLM

        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"{path}: no config.json; give a folder with a transformers model")
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(path), dtype=dtype or "auto", attn_implementation="sdpa", local_files_only=True
            )
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{path}: cannot load the target: {reason}; save it again") from None
        return cls(cast(nn.Module, model).to(device), capture=capture)

    @classmethod
    def from_model(cls, model: Any, *, capture: Sequence[int] = ()) -> Target:
        """Wrap a transformers causal language model; it is put in eval mode and frozen."""
        return cls(model, capture=capture)

    def capture(self, layers: Sequence[int]) -> None:
        """Choose the layers whose raw outputs are captured, -1 the embeddings, in this order."""
        for layer in layers:
            if not -1 <= layer < self.layers - 1:
                raise ValueError(
                    f"cannot capture layer {layer} of a target with {self.layers} layers; use -1 "
                    f"(embeddings) to {self.layers - 2}, the last layer's state is normed"
                )
        self.captured = tuple(layers)

    @property
    def device(self) -> torch.device:
        """Where its embeddings are."""
        return self.embed_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its embeddings."""
        return self.embed_weight.dtype

    @property
    def embed_weight(self) -> Tensor:
        """[V, D], to share with a drafter."""
        return cast(Tensor, self.decoder.embed_tokens.weight)

    @property
    def lm_head_weight(self) -> Tensor:
        """[V, D], to share with a drafter."""
        return cast(Tensor, self.model.lm_head.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., V] of final-normed states [..., D], softcap included."""
        return capped(self.model.lm_head(hidden), self.softcap)

    @torch.no_grad()
    def prefill(self, *, tokens_BS: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(final-normed states [B, S, D], captured states [B, S, C]) without a cache.

        ``mask`` [B, S] marks real tokens and must be right-padded: attention is causal, so real
        tokens never see the padding and the mask needs no further use.
        """
        if mask is not None and bool((mask.int().diff(dim=1) > 0).any()):
            raise ValueError("the mask has padding before tokens; pad sequences on the right")
        with self._hooks() as taken:
            hidden_BSD = self.decoder(input_ids=tokens_BS, use_cache=False).last_hidden_state
        return hidden_BSD, self._joined(taken, hidden_BSD)

    def new_cache(self, *, requests: int, capacity: int) -> TargetCache:
        """An empty cache; ``capacity`` counts tokens that may be rejected too."""
        return TargetCache(requests=requests, capacity=capacity)

    @torch.no_grad()
    def extend(
        self,
        cache: TargetCache,
        *,
        tokens_RT: Tensor,
        lengths: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Append tokens to the rows: (final-normed states [R, T, D], captured [R, T, C]).

        Row i takes the first ``lengths[i]`` of its T tokens (all); the rest is padding, whose
        outputs mean nothing. Positions continue the row's. Prompts and verification alike.
        """
        count, tokens = tokens_RT.shape
        rows_R = torch.arange(cache.requests) if rows is None else torch.tensor(rows)
        grown_R = torch.full((count,), tokens) if lengths is None else torch.tensor(lengths)
        start_R = cache.lengths[rows_R]
        if len(rows_R) != count or len(grown_R) != count or bool((grown_R > tokens).any()):
            raise ValueError(
                f"tokens are {tuple(tokens_RT.shape)} for {len(rows_R)} rows and lengths "
                f"{grown_R.tolist()}; give one row of tokens and one length <= {tokens} to each"
            )
        if int((start_R + grown_R).max()) > cache.capacity:
            raise ValueError(
                f"{int((start_R + grown_R).max())} tokens do not fit the cache's "
                f"{cache.capacity}; make it larger"
            )
        positions_RT = start_R[:, None] + torch.arange(tokens)
        # Padding is stored in the one slot that no query reads.
        slots_RT = positions_RT.where(torch.arange(tokens) < grown_R[:, None], cache.capacity)
        hidden, captured = [], []
        for first in range(0, tokens, QUERY_CHUNK):
            part = slice(first, first + QUERY_CHUNK)
            cache.writing(rows=rows, slots_RT=slots_RT[:, part])
            out = self._forward_cached(cache, tokens_RT[:, part], positions_RT[:, part])
            hidden.append(out[0])
            captured.append(out[1])
        cache.lengths[rows_R] = start_R + grown_R
        return torch.cat(hidden, 1), torch.cat(captured, 1)

    def step(
        self,
        cache: TargetCache,
        *,
        tokens_RT: Tensor,
        lengths: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``extend`` and the logits of every token: (logits [R, T, V], captured [R, T, C])."""
        hidden_RTD, captured_RTC = self.extend(
            cache, tokens_RT=tokens_RT, lengths=lengths, rows=rows
        )
        return self.logits(hidden_RTD), captured_RTC

    def _forward_cached(
        self, cache: TargetCache, tokens_RT: Tensor, positions_RT: Tensor
    ) -> tuple[Tensor, Tensor]:
        positions_RT = positions_RT.to(tokens_RT.device)
        slots_L = torch.arange(cache.limit, device=tokens_RT.device)
        full_RTL = slots_L <= positions_RT[..., None]
        masks = {"full_attention": self._as_mask(full_RTL)}
        if window := getattr(self.config, "sliding_window", None):
            near_RTL = full_RTL & (slots_L > positions_RT[..., None] - window)
            masks["sliding_attention"] = self._as_mask(near_RTL)
        with self._hooks() as taken:
            hidden_RTD = self.decoder(
                input_ids=tokens_RT,
                attention_mask=masks,
                position_ids=positions_RT,
                use_cache=True,
                **{self._cache_argument: cache},
            ).last_hidden_state
        return hidden_RTD, self._joined(taken, hidden_RTD)

    def _as_mask(self, seen_RTL: Tensor) -> Tensor:
        """[R, 1, T, L] as the attention implementation takes it."""
        if self.config._attn_implementation == "sdpa":
            return seen_RTL[:, None]
        hidden = torch.zeros(seen_RTL.shape, dtype=self.dtype, device=seen_RTL.device)
        return hidden.masked_fill(~seen_RTL, torch.finfo(self.dtype).min)[:, None]

    @contextmanager
    def _hooks(self) -> Iterator[dict[int, Tensor]]:
        """Collect the captured layers' outputs, and nothing else, during one forward."""
        taken: dict[int, Tensor] = {}
        handles = []
        for layer in set(self.captured):
            module: nn.Module = (
                self.decoder.embed_tokens if layer == -1 else self.decoder.layers[layer]
            )

            def keep(_: nn.Module, __: Any, output: Any, layer: int = layer) -> None:
                taken[layer] = output[0] if isinstance(output, tuple) else output

            handles.append(module.register_forward_hook(keep))
        try:
            yield taken
        finally:
            for handle in handles:
                handle.remove()

    def _joined(self, taken: dict[int, Tensor], like: Tensor) -> Tensor:
        if not self.captured:
            return like.new_empty((*like.shape[:-1], 0))
        return torch.cat([taken[layer] for layer in self.captured], dim=-1)
