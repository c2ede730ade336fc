"""DSpark's draft model as SGLang loads and runs it.

Owns its forward pass over blocks, how captured target states become keys and values in SGLang's
KV pool, and which tensors a checkpoint must bring. ``sglang_dspark.draft`` is the reference: the
config is parsed there, the heads are its modules, and the tensors are those of its ``Drafter``.
Knows nothing of batches, of verification or of how tokens are drawn.

A block is the anchor and K-1 mask tokens at positions s .. s+K-1. Its queries see the context
keys and values of positions < s and the block's own slots, both ways.

Shapes: R requests, K = gamma slots, T tokens end to end, V vocabulary, D hidden, C = m*D captured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from sglang.srt.distributed import tensor_model_parallel_all_gather
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.runtime_context import get_parallel
from torch import Tensor, nn
from torch.nn.functional import embedding

from sglang_dspark.draft.model.checkpoint import SHARED
from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.draft.model.conventions import flat_config
from sglang_dspark.draft.model.ends import capped
from sglang_dspark.draft.model.heads import ConfidenceHead, MarkovHead
from sglang_dspark.draft.model.model import Drafter
from sglang_dspark.runtime.worker.draft_layers import DraftLayer, DraftRope, check_shards

STACKED = {
    "q_proj": ("qkv_proj", "q"),
    "k_proj": ("qkv_proj", "k"),
    "v_proj": ("qkv_proj", "v"),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""A checkpoint's linear map -> SGLang's fused one and its shard there."""


def drafter_config(hf_config: Any) -> DrafterConfig:
    """The drafter's config from the one SGLang read; ``ValueError`` tells what is wrong with it.

    Takes what SGLang's own drafters are written with as well: ``DSparkDraftModel`` as the
    architecture, and keys in ``dflash_config``.
    """
    value = dict(hf_config.to_dict())
    where = f"drafter {getattr(hf_config, '_name_or_path', '') or 'config'}"
    value = flat_config(value, where=where).value
    if not value.get("sample_from_anchor", True):
        raise ValueError(
            f"{where}: sample_from_anchor is false, but slot k must predict the token after it; "
            "use a DSpark drafter, not an infilling one"
        )
    # Only training reads it, and drafters from elsewhere lack it.
    value.setdefault("num_anchors", 1)
    config = DrafterConfig.from_dict(value, where=where)
    if config.family.autoregressive:
        raise ValueError(
            f"{where}: {config.architecture} drafts token by token; give a DSpark drafter"
        )
    return config


class DSparkDraftModel(nn.Module):
    """The drafter, sharded by SGLang's linears; fc, norms and heads are on every rank."""

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__()
        mine = drafter_config(config)
        check_shards(mine, int(get_parallel().tp_size))
        self.config = config
        self.drafter_config = mine
        self.quant_config = quant_config
        self.gamma = mine.gamma
        self.mask_token_id = mine.mask_token_id
        self.vocab_size = mine.vocab_size
        # Ascending, as SGLang hands the captured states over whatever order it is asked for.
        self.layers_captured = tuple(sorted(mine.layers_captured))
        width, eps = mine.hidden_size, mine.rms_norm_eps
        longest = max(
            int(getattr(config, key, None) or 0)
            for key in ("max_position_embeddings", "context_len")
        )
        # A block may begin at the last position.
        rope = DraftRope(mine, positions=longest + mine.gamma)
        self.layers = nn.ModuleList(
            DraftLayer(
                mine, layer=i, rope=rope, quant_config=quant_config, prefix=f"{prefix}layers.{i}."
            )
            for i in range(mine.num_hidden_layers)
        )
        self.norm = RMSNorm(width, eps=eps)
        self.fc = nn.Linear(len(self.layers_captured) * width, width, bias=False)
        self.hidden_norm = RMSNorm(width, eps=eps)
        self.markov_head = MarkovHead(mine) if mine.markov_rank else None
        self.confidence_head = ConfidenceHead(mine) if mine.enable_confidence_head else None
        self.requires_grad_(False)
        # A tuple, so that the target's modules do not become this one's.
        self._ends: tuple[nn.Module, nn.Module, Any] | None = None
        self._embed_scale = 1.0

    # The ends, which are the target's.

    def share(self, target_model: nn.Module) -> None:
        """Take the target's embedding and lm_head; ``ValueError`` when it is another target's."""
        model, kind = cast(Any, target_model), type(target_model).__name__
        processor = getattr(model, "logits_processor", None)
        if processor is None or not hasattr(model, "get_input_embeddings"):
            raise ValueError(
                f"the target {kind} does not lend its embedding and logits; serve a target that "
                "SGLang itself implements"
            )
        embed, head = model.get_input_embeddings(), getattr(model, "lm_head", None)
        for name, module in (("embedding", embed), ("lm_head", head)):
            if getattr(module, "embedding_dim", None) is None:
                raise ValueError(
                    f"the target {kind} has no {name} to share on this rank; serve it without "
                    "pipeline parallelism"
                )
            self._check_end(name, module)
        self._check_target(target_model)
        self._ends = (embed, cast(nn.Module, head), processor)
        if self.drafter_config.family.scaled_embeddings:
            # Rounded to the embedding's dtype first, as in training; a number and no tensor, for
            # CUDA graphs take no copies from the host.
            exact = torch.tensor(self.drafter_config.hidden_size**0.5, dtype=torch.float64)
            self._embed_scale = float(exact.to(self.fc.weight.dtype))

    def _check_end(self, name: str, module: Any) -> None:
        rows = getattr(module, "org_vocab_size", None) or module.num_embeddings
        found = (int(rows), int(module.embedding_dim))
        wanted = (self.vocab_size, self.drafter_config.hidden_size)
        if found != wanted:
            raise ValueError(
                f"the target's {name} is {found}, the drafter wants {wanted}; it was made for "
                "another target"
            )

    def _check_target(self, target_model: nn.Module) -> None:
        theirs = getattr(target_model, "config", None)
        theirs = getattr(theirs, "text_config", theirs)
        for key, mine in (
            ("num_hidden_layers", self.drafter_config.num_target_layers),
            ("final_logit_softcapping", self.drafter_config.softcap),
        ):
            found = getattr(theirs, key, mine)
            if found != mine:
                raise ValueError(
                    f"the target's {key} is {found}, the drafter was made for {mine}; use the "
                    "target that it was trained for"
                )

    def _shared(self) -> tuple[nn.Module, nn.Module, Any]:
        if self._ends is None:
            raise ValueError("the drafter has no embedding yet; share the target's first")
        return self._ends

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [.., D], times sqrt(D) where the family scales them."""
        module = self._shared()[0]
        # SGLang's Gemma4 embedding scales by itself, but by a number that is not rounded.
        plain = isinstance(module, nn.Embedding)
        states = embedding(tokens, cast(Tensor, module.weight)) if plain else module(tokens)
        if self._embed_scale != 1.0:
            states = states * self._embed_scale
        return cast(Tensor, states).to(self.fc.weight.dtype)

    @torch.no_grad()
    def base_logits(self, hidden: Tensor) -> Tensor:
        """Float32 [T, V] of the target's lm_head and softcap on [T, D]; no Markov bias.

        A fresh contiguous tensor of the true vocabulary: SGLang's padding rows are cut off.
        """
        _, head, processor = self._shared()
        logits: Tensor = processor._compute_lm_head(hidden, head)
        if getattr(head, "tp_size", 1) > 1:
            # Padding is behind the last rank's rows only, so ranks in order are tokens in order.
            if getattr(head, "use_attn_tp_group", False):
                logits = get_parallel().attn_tp_group.all_gather(logits, dim=-1)
            else:
                logits = tensor_model_parallel_all_gather(logits, dim=-1)
        logits = logits[:, : self.vocab_size].float().contiguous()
        return capped(logits, self.drafter_config.softcap)

    # Context.

    @torch.no_grad()
    def context(self, captured_TC: Tensor) -> Tensor:
        """hidden_norm(fc(captured)): [T, C] -> [T, D]; layers in ``layers_captured``'s order."""
        if captured_TC.shape[-1] != self.fc.in_features:
            raise ValueError(
                f"captured target states are {captured_TC.shape[-1]} wide, the drafter wants "
                f"{self.fc.in_features}; have the target capture layers {self.layers_captured}"
            )
        states: Tensor = self.hidden_norm(self.fc(captured_TC.to(self.fc.weight.dtype)))
        return states

    @torch.no_grad()
    def write_context(
        self, pool: Any, *, locations_T: Tensor, positions_T: Tensor, context_TD: Tensor
    ) -> None:
        """Keys and values of every layer for these context tokens, into SGLang's KV pool."""
        if not len(context_TD):
            return
        for layer in self.layers:
            attention = cast(DraftLayer, layer).self_attn
            key, value = attention.keys_values(context_TD, positions_T)
            pool.set_kv_buffer(attention.attn, locations_T, key, value)

    def fit_pool(self, model_config: Any) -> None:
        """Tell SGLang the drafter's own key/value shape, before its KV pool is allocated.

        Gemma4's ``head_dim`` and ``num_key_value_heads`` are those of sliding layers; a drafter
        has none of them.
        """
        mine, text = self.drafter_config, model_config.hf_text_config
        for key in ("head_dim", "v_head_dim", "swa_head_dim", "swa_v_head_dim"):
            setattr(model_config, key, mine.head_dim)
            setattr(text, key, mine.head_dim)
        text.num_key_value_heads = mine.num_key_value_heads
        model_config.num_key_value_heads = mine.num_key_value_heads

    # Blocks.

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        forward_batch: Any,
        input_embeds: Tensor | None = None,
        get_embedding: bool = False,
        pp_proxy_tensors: Any = None,
    ) -> LogitsProcessorOutput:
        """Final-normed slot states [R*K, D] as ``hidden_states``; no logits.

        ``input_ids`` are blocks end to end; embeddings given in the batch or as an argument
        replace theirs.
        """
        # SGLang passes the batch's embeddings on in bfloat16, whatever the model computes in.
        given = getattr(forward_batch, "input_embeds", None)
        hidden = input_embeds if given is None else given
        hidden = self.embed(input_ids) if hidden is None else hidden.to(self.fc.weight.dtype)
        residual: Tensor | None = None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual, forward_batch)
        if residual is None:
            hidden = self.norm(hidden)
        else:
            hidden, _ = self.norm(hidden, residual)
        return LogitsProcessorOutput(next_token_logits=None, hidden_states=hidden)

    # Weights.

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load a whole checkpoint; ``ValueError`` names a missing, misshaped or unknown tensor.

        Embedding and lm_head are the target's: copies in the checkpoint are checked and dropped.
        """
        with torch.device("meta"):
            wanted = Drafter(self.drafter_config).state_dict()
        places = dict(self.named_parameters()) | dict(self.named_buffers())
        missing = set(wanted) - set(SHARED)
        for name, tensor in weights:
            self._check_tensor(name, tensor, wanted)
            missing.discard(name)
            if name not in SHARED:
                self._load(name, tensor, places)
        if missing:
            raise ValueError(
                f"drafter tensor {min(missing)!r} is missing ({len(missing)} in all); its "
                "config.json promises it, so convert or download the checkpoint again"
            )

    @staticmethod
    def _check_tensor(name: str, tensor: Tensor, wanted: Mapping[str, Tensor]) -> None:
        if name not in wanted:
            raise ValueError(
                f"drafter tensor {name!r} is unexpected; config.json describes another model"
            )
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"drafter tensor {name!r} has shape {list(tensor.shape)}, config.json asks for "
                f"{list(wanted[name].shape)}; config.json describes another model"
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"drafter tensor {name!r} is {tensor.dtype}; quantised drafters do not load"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"drafter tensor {name!r} has NaN or infinite weights; use an earlier checkpoint"
            )

    def _load(self, name: str, tensor: Tensor, places: Mapping[str, Tensor]) -> None:
        if name == "fc.weight":
            tensor = self._ascending(tensor)
        parts = name.split(".")
        linear = parts[-2] if len(parts) > 1 else ""
        if parts[0] != "layers" or linear not in STACKED:
            place = places[name]
            loader = getattr(place, "weight_loader", None)
            if loader is None:
                place.data.copy_(tensor)
            else:
                loader(place, tensor)
            return
        fused, shard = STACKED[linear]
        place = places[".".join([*parts[:-2], fused, parts[-1]])]
        loader = cast(Any, place).weight_loader
        loader(place, tensor, shard)
        if linear == "k_proj" and self.drafter_config.keys_are_values:
            loader(place, tensor, "v")

    def _ascending(self, fc_DC: Tensor) -> Tensor:
        """fc's columns for captured states in ascending order of their layers."""
        trained = self.drafter_config.layers_captured
        blocks = fc_DC.chunk(len(trained), dim=1)
        return torch.cat([blocks[trained.index(layer)] for layer in self.layers_captured], dim=1)


class Qwen3DSparkModel(DSparkDraftModel):
    """Under the name that Qwen3 checkpoints have."""


class Gemma4DSparkModel(DSparkDraftModel):
    """Under the name that Gemma4 checkpoints have."""


EntryClass = [DSparkDraftModel, Qwen3DSparkModel, Gemma4DSparkModel]
