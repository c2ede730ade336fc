"""The seam to target models: hidden states out, next-token logits out, a KV cache for decoding.

Owns what is particular to transformers: where the decoder, its layers and the lm_head are, and
hooks that keep the captured layers only. In what kinds of targets differ is ``families``; the cache
is ``target_cache``. Knows nothing of drafters. Text models work alone or inside their multimodal
wrappers.

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
from sglang_dspark.draft.model.families import family_of, text_model_type
from sglang_dspark.draft.model.target_cache import TargetCache
from sglang_dspark.files import read_json

QUERY_CHUNK = 512
"""Tokens that one forward with a cache takes, so that its mask stays [R, 512, L]."""


class Target:
    """A frozen target model behind the few calls that drafters, data and decoding need."""

    def __init__(self, model: Any, *, capture: Sequence[int] = ()) -> None:
        config = model.config.get_text_config()
        self.family = family_of(config.model_type)
        if config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError(
                f"the target uses {config._attn_implementation!r} attention; load it with "
                f"attn_implementation={self.family.attention!r}"
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
        family = family_of(text_model_type(read_json(Path(path) / "config.json")), where=str(path))
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(path),
                dtype=dtype or "auto",
                attn_implementation=family.attention,
                local_files_only=True,
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
        last = self.layers - (1 if self.family.last_layer else 2)
        for layer in layers:
            if not -1 <= layer <= last:
                reason = "" if self.family.last_layer else ", the last layer's state is normed"
                raise ValueError(
                    f"cannot capture layer {layer} of a target with {self.layers} layers; use -1 "
                    f"(embeddings) to {last}{reason}"
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
        return self.family.cache(config=self.config, requests=requests, capacity=capacity)

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
        asked = tokens
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
        if tokens % QUERY_CHUNK < self.family.least_tokens and tokens % QUERY_CHUNK:
            more = self.family.least_tokens - tokens % QUERY_CHUNK
            tokens_RT, tokens = torch.nn.functional.pad(tokens_RT, (0, more)), tokens + more
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
        return torch.cat(hidden, 1)[:, :asked], torch.cat(captured, 1)[:, :asked]

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
        full_RTL = near_RTL = slots_L <= positions_RT[..., None]
        if window := getattr(self.config, "sliding_window", None):
            near_RTL = full_RTL & (slots_L > positions_RT[..., None] - window)
        masks: Any = self._as_mask(near_RTL)
        if self.family.masks_by_layer:
            masks = {"full_attention": self._as_mask(full_RTL), "sliding_attention": masks}
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
                state = output[0] if isinstance(output, tuple) else output
                # Streams [B, S, n, D] stand for their mean; embeddings have none yet.
                streams = self.family.streams and state.ndim == 4
                taken[layer] = state.mean(dim=2) if streams else state

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
