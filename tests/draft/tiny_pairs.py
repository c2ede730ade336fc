"""A tiny target and drafter that agree often but not always, for tests of decoding.

The target is random, sharp enough to have opinions; the drafter is taught on its samples for a few
seconds, so that every path of a round is taken: full acceptance, early rejection, residuals.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from sglang_dspark.draft.data.sampler import answer_tokens
from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.draft.model.model import Drafter
from sglang_dspark.draft.model.target import Target

VOCABULARY = 40
GAMMA = 4
MASK = VOCABULARY - 1
CAPTURE = (0, 1)
PROMPT = [3, 1, 4]


def tiny_target(*, hidden: int = 32, layers: int = 3, seed: int = 0) -> Target:
    """A random Qwen3 whose next-token entropies are around 2 nats."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.25,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    return Target.from_model(Qwen3ForCausalLM(config), capture=CAPTURE)


def tiny_drafter(
    target: Target, *, markov_rank: int = 8, head: str = "vanilla", confident: bool = True
) -> Drafter:
    """An untaught drafter for ``tiny_target``."""
    config = DrafterConfig(
        architecture="Qwen3DSparkModel",
        model_type="qwen3",
        vocab_size=VOCABULARY,
        hidden_size=target.hidden_size,
        intermediate_size=2 * target.hidden_size,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        activation="silu",
        rms_norm_eps=1e-6,
        num_hidden_layers=1,
        num_target_layers=target.layers,
        block_size=GAMMA,
        mask_token_id=MASK,
        target_layer_ids=CAPTURE,
        num_anchors=8,
        markov_rank=markov_rank,
        markov_head_type=head,
        enable_confidence_head=confident,
        confidence_head_with_markov=confident and markov_rank > 0,
        target_text_config={"rope_theta": 10_000.0},
    )
    torch.manual_seed(1)
    return Drafter(config, embed=target.embed_weight, lm_head=target.lm_head_weight)


def teach(drafter: Any, target: Target, *, steps: int, learning_rate: float = 1e-2) -> None:
    """Distil the target into the drafter on the target's own samples."""
    length, batch, anchors = 24, 64, 8
    sampled = answer_tokens(
        target,
        [PROMPT] * 512,
        sampling=Sampling(),
        max_tokens=length - len(PROMPT),
        stops=set(),
        generator=torch.Generator().manual_seed(7),
    )
    tokens_NS = torch.tensor([PROMPT + row for row in sampled])
    weights = [p for p in drafter.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(weights, lr=learning_rate)
    rng = torch.Generator().manual_seed(8)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        tokens_BS = tokens_NS[torch.randint(len(tokens_NS), (batch,), generator=rng)]
        hidden_BSD, captured_BSC = target.prefill(tokens_BS=tokens_BS)
        teacher_BSV = target.logits(hidden_BSD).softmax(-1)
        first, last = len(PROMPT), length - GAMMA
        anchor_BA = torch.randint(first, last, (batch, anchors), generator=rng)
        rows_BA = torch.arange(batch)[:, None].expand(-1, anchors)
        slots_BAK = anchor_BA[..., None] + torch.arange(GAMMA)
        previous_NK = tokens_BS[rows_BA[..., None], slots_BAK].flatten(0, 1)
        p_NKV = teacher_BSV[rows_BA[..., None], slots_BAK].flatten(0, 1)
        hidden_BAKD = drafter.hidden(
            context_BSD=drafter.context(captured_BSC=captured_BSC),
            anchor_tokens_BA=tokens_BS[rows_BA, anchor_BA],
            anchor_index_BA=anchor_BA,
        )
        logits_NKV, confidence_NK = drafter.logits(
            hidden_NKD=hidden_BAKD.flatten(0, 1), previous_NK=previous_NK
        )
        gap_NK = (logits_NKV.softmax(-1) - p_NKV).abs().sum(-1)
        loss = gap_NK.mean() - 0.1 * (p_NKV * logits_NKV.log_softmax(-1)).sum(-1).mean()
        if confidence_NK is not None:
            loss = loss + torch.nn.functional.binary_cross_entropy_with_logits(
                confidence_NK, 1 - 0.5 * gap_NK.detach()
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
