"""DeepSeek-V4's drafter: stages of transformers' own V4 layers over a window of target states.

Owns the forward pass, for training (blocks at given anchors) and for decoding (a cache of one
vector a token and stage: keys are values). Has the calls of ``model.Drafter``, so that losses,
decoding and evaluation do not know which they have. Knows neither files nor their names.

The last ``sliding_window`` context tokens before the anchor and all of the block's slots are
seen by every slot of the block alike, whatever its own position; a learned sink takes the rest.
The streams are collapsed by ``hc_head``; ``norm`` of that goes to the target's lm_head, the
confidence reads it without the norm. Sources: DeepSeek's inference code as SGLang 0.5.23 follows
it (``deepseek_v4_dspark``). Its FP8 round trip of cached keys is not imitated.

Shapes: as in ``model``; n streams, W window, E head size, L = W + K keys of a block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as v4

from sglang_dspark.draft.model.deepseek_v4.config import BundledConfig
from sglang_dspark.draft.model.deepseek_v4.names import Layout
from sglang_dspark.draft.model.ends import frozen_embedding, frozen_lm_head, initialise
from sglang_dspark.draft.model.heads import ConfidenceHead, MarkovHead
from sglang_dspark.draft.model.model import Blockwise, DraftCache, cache_places

ATTENTION = "dspark_window"
"""Name under which ``window_attention`` is known to transformers."""

_WIDE = ("hc.", "hc_head.", "sinks", "e_score_correction_bias", "norm.weight")

_CACHE_ARGUMENT = (
    "cache"
    if "cache" in inspect.signature(v4.DeepseekV4Attention.forward).parameters
    else "past_key_values"
)
"""Since transformers 5.24 it is called what it is."""


def window_attention(
    module: nn.Module,
    query_NHKE: Tensor,
    key_N1LE: Tensor,
    value_N1LE: Tensor,
    attention_mask: Tensor,
    scaling: float,
    s_aux: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Multi-query softmax attention with a sink a head -> [N, K, H, E]; mask true where seen.

    The heads are folded into the query axis: the one key is never repeated for each of them.
    """
    blocks, heads, slots, size = query_NHKE.shape
    folded = query_NHKE.reshape(blocks, heads * slots, size)
    scores = (folded @ key_N1LE[:, 0].transpose(1, 2)).view(blocks, heads, slots, -1) * scaling
    wide = scores if scores.dtype == torch.float64 else scores.float()
    wide = wide.masked_fill(~attention_mask, -torch.inf)
    sinks = s_aux.to(wide.dtype).view(1, -1, 1, 1).expand(blocks, -1, slots, 1)
    weights = torch.cat([wide, sinks], dim=-1).softmax(-1)[..., :-1].to(value_N1LE.dtype)
    out = weights.flatten(1, 2) @ value_N1LE[:, 0]
    return out.view(blocks, heads, slots, size).transpose(1, 2), None


def is_wide(name: str) -> bool:
    """Whether a parameter stays float32 whatever the model computes in, as released."""
    return any(part in name for part in _WIDE)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, window_attention)


class _Beside:
    """What a stage's attention takes for its cache: the block's keys beside the window's."""

    def __init__(self, window_NWE: Tensor) -> None:
        self.window_NWE = window_NWE

    def update(self, key_N1KE: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What transformers calls."""
        both = torch.cat([self.window_NWE[:, None].to(key_N1KE.dtype), key_N1KE], dim=2)
        return both, both


class BundledDrafter(Blockwise):
    """Three stages of multi-query attention, hyper-connections and MoE, and the heads."""

    def __init__(
        self, config: BundledConfig, embed: Tensor | None = None, lm_head: Tensor | None = None
    ) -> None:
        """As ``Drafter``; every stage's experts are made too."""
        super().__init__()
        self.config = config
        shape = config.stage_config
        shape._attn_implementation = ATTENTION
        width, eps = config.hidden_size, shape.rms_norm_eps
        self.embed_tokens = frozen_embedding(config, embed)
        self.main_proj = nn.Linear(config.stages * width, width, bias=False)
        self.main_norm = v4.DeepseekV4RMSNorm(width, eps=eps)
        self.layers = nn.ModuleList(
            v4.DeepseekV4DecoderLayer(shape, i) for i in range(config.stages)
        )
        self.hc_head = v4.DeepseekV4HyperHead(shape)
        self.norm = v4.DeepseekV4RMSNorm(width, eps=eps)
        self.lm_head = frozen_lm_head(config, lm_head)
        self.markov_head = MarkovHead(config) if config.markov_rank else None
        self.confidence_head = ConfidenceHead(config, bias=False) if config.confident else None
        self.streams: int = shape.hc_mult
        self.head_dim: int = shape.head_dim
        rope: Any = shape.rope_parameters["main"]
        self._rope = (float(rope["rope_theta"]), int(shape.qk_rope_head_dim))
        self.layout: Layout | None = None
        """How the checkpoint that it was read from writes it; None: as released."""
        self.checkpointing = False
        """Recompute each stage in the backward pass instead of keeping its activations."""
        initialise(self, std=config.initializer_range)
        _initialise_stages(self, std=config.initializer_range)

    def narrow(self, dtype: torch.dtype) -> BundledDrafter:
        """The matrices in ``dtype``; what must stay wide does, and so do the shared ends."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and not is_wide(name):
                parameter.data = parameter.data.to(dtype)
        return self

    # Context.

    def context(self, *, captured_BSC: Tensor) -> Tensor:
        """main_norm(main_proj(captured)): [..., C] -> [..., D]."""
        return cast(Tensor, self.main_norm(self.main_proj(captured_BSC.to(self.dtype))))

    @property
    def dtype(self) -> torch.dtype:
        """That of the stages' matrices, hence of what they compute."""
        return self.main_proj.weight.dtype

    def _cos_sin(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [..., E_rope / 2] of the sliding layers; no buffer, hence never cast."""
        theta, size = self._rope
        steps = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device) / size
        angles = positions[..., None].float() * (1.0 / theta**steps)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _keys(self, stage: int, context: Tensor, places: Tensor) -> Tensor:
        """A stage's keys, which are its values, of context [..., T, D] at places [..., T]."""
        attention = cast(Any, self.layers[stage]).self_attn
        keys = attention.kv_norm(attention.kv_proj(context))
        cos, sin = self._cos_sin(places, keys.dtype)
        return v4.apply_rotary_pos_emb(keys[..., None, :], cos, sin, -2)[..., 0, :]

    # The stages, over any number of blocks.

    def _block_states(
        self,
        anchor_tokens_N: Tensor,
        anchor_index_N: Tensor,
        window: Callable[[int], Tensor],
    ) -> Tensor:
        """Collapsed states [N, K, D]; ``window(i)`` gives stage i's keys [N, W, E]."""
        slots, count = self.config.gamma, len(anchor_tokens_N)
        masks = anchor_tokens_N.new_full((count, slots - 1), self.config.mask_token_id)
        tokens_NK = torch.cat([anchor_tokens_N[:, None], masks], dim=1)
        places_NK = anchor_index_N[:, None] + torch.arange(slots, device=anchor_index_N.device)
        embedded_NKD = self.embed_tokens(tokens_NK).to(self.dtype)
        hidden_NKnD = embedded_NKD[:, :, None].expand(-1, -1, self.streams, -1).contiguous()
        width = self.config.sliding_window
        back_W = torch.arange(-width, 0, device=anchor_index_N.device)
        seen_NW = anchor_index_N[:, None] + back_W >= 0
        seen_NL = torch.cat([seen_NW, seen_NW.new_ones(count, slots)], dim=1)
        shared = {
            "position_embeddings": {"main": self._cos_sin(places_NK, self.dtype)},
            "position_ids": places_NK,
            "attention_mask": seen_NL[:, None, None].expand(-1, 1, slots, -1),
            "input_ids": tokens_NK,
        }
        for stage, layer in enumerate(self.layers):
            if self.checkpointing and torch.is_grad_enabled():
                hidden_NKnD = checkpoint(
                    self._stage, layer, hidden_NKnD, window(stage), shared, use_reentrant=False
                )
            else:
                hidden_NKnD = self._stage(layer, hidden_NKnD, window(stage), shared)
        return cast(Tensor, self.hc_head(hidden_NKnD))

    @staticmethod
    def _stage(
        layer: Any, hidden_NKnD: Tensor, window_NWE: Tensor, shared: dict[str, Any]
    ) -> Tensor:
        return cast(Tensor, layer(hidden_NKnD, **shared, **{_CACHE_ARGUMENT: _Beside(window_NWE)}))

    def _window_places(self, anchor_index: Tensor) -> Tensor:
        """Context indices [..., W] that blocks anchored there see; below 0 where there are none."""
        back = torch.arange(-self.config.sliding_window, 0, device=anchor_index.device)
        return anchor_index[..., None] + back

    # Training and evaluation: many blocks of known sequences.

    def hidden(
        self,
        *,
        context_BSD: Tensor,
        anchor_tokens_BA: Tensor,
        anchor_index_BA: Tensor,
        tokens_BS: Tensor | None = None,
    ) -> Tensor:
        """Collapsed slot states [B, A, K, D] of blocks anchored at the given indices.

        Block a sees the window of context before anchor_index_BA[b, a] and its own slots. A
        stage gathers A windows of W keys a sequence: A * W * E numbers, whatever the length.
        """
        count, length = context_BSD.shape[:2]
        places_BAW = self._window_places(anchor_index_BA).clamp(min=0)
        rows_B11 = torch.arange(count, device=context_BSD.device)[:, None, None]
        places_BS = torch.arange(length, device=context_BSD.device).expand(count, -1)

        def window(stage: int) -> Tensor:
            return self._keys(stage, context_BSD, places_BS)[rows_B11, places_BAW].flatten(0, 1)

        states_NKD = self._block_states(
            anchor_tokens_BA.flatten(), anchor_index_BA.flatten(), window
        )
        return states_NKD.view(*anchor_index_BA.shape, *states_NKD.shape[1:])

    # Decoding: one block a request, over cached context.

    def new_cache(self, *, requests: int, capacity: int) -> DraftCache:
        """An empty cache of ``requests`` rows and ``capacity`` context tokens."""
        shape = (requests, 1, capacity, self.head_dim)
        keys = [self.main_proj.weight.new_zeros(shape) for _ in self.layers]
        return DraftCache(keys=keys, values=keys)

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
        """Add ``lengths[i]`` context tokens to row ``rows[i]``; ``context_TD`` is end to end."""
        rows_T, places_T = cache_places(cache, rows=rows, lengths=lengths, total=len(context_TD))
        rows_T, places_T = rows_T.to(context_TD.device), places_T.to(context_TD.device)
        for stage, store in enumerate(cache.keys_RNLE):
            store[rows_T, 0, places_T] = self._keys(stage, context_TD, places_T).to(store.dtype)

    @torch.no_grad()
    def hidden_cached(
        self,
        cache: DraftCache,
        *,
        anchor_tokens_R: Tensor,
        anchor_index_R: Tensor,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Collapsed slot states [R, K, D] of one round; ``rows`` picks cache rows (all)."""
        rows_R = cache.rows_with_context(rows, anchor_index_R)
        places_RW = self._window_places(anchor_index_R).clamp(min=0)
        picked_R1 = rows_R.to(places_RW.device)[:, None]

        def window(stage: int) -> Tensor:
            return cache.keys_RNLE[stage][picked_R1, 0, places_RW]

        return self._block_states(anchor_tokens_R, anchor_index_R, window)

    # Heads.

    def head_states(self, hidden: Tensor) -> Tensor:
        """What the lm_head reads: the normed states."""
        return cast(Tensor, self.norm(hidden))


def _initialise_stages(drafter: BundledDrafter, *, std: float) -> None:
    """What ``initialise`` does not know: experts, routers, sinks and hyper-connections."""
    for name, parameter in drafter.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("gate_up_proj", "down_proj", "fn", "hc_fn") or name.endswith("gate.weight"):
            nn.init.normal_(parameter, std=std)
        elif leaf in ("sinks", "base", "hc_base"):
            nn.init.zeros_(parameter)
        elif leaf in ("scale", "hc_scale"):
            nn.init.ones_(parameter)
