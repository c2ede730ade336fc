"""DeepSeek-V4's bundled drafter computes what a plain second implementation does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sglang_dspark.draft.model import recipes
from sglang_dspark.draft.model.checkpoint import load_drafter
from sglang_dspark.draft.model.deepseek_v4.config import BundledConfig
from sglang_dspark.draft.model.deepseek_v4.drafter import BundledDrafter
from sglang_dspark.draft.model.deepseek_v4.names import default_layout, plain_names
from tests.draft import independent_v4 as plain

TOLERANCE = 1e-5
TOKENS = 40
ANCHORS, INDEX = [5, 60, 31, 2, 44], [0, 3, 8, 27, 40]
"""Without context, within the window (8), exactly it, and five windows on."""


def captured(seed: int = 8) -> torch.Tensor:
    return torch.randn(TOKENS, 3 * 24, generator=torch.Generator().manual_seed(seed))


def loaded(folder: Path, **choices: Any) -> BundledDrafter:
    drafter = load_drafter(folder, **choices)
    assert isinstance(drafter, BundledDrafter)
    return drafter


def blocks(drafter: BundledDrafter) -> tuple[torch.Tensor, torch.Tensor]:
    """(context, slot states [A, K, D]) of the anchors above."""
    with torch.no_grad():
        context = drafter.context(captured_BSC=captured()[None])
        states = drafter.hidden(
            context_BSD=context,
            anchor_tokens_BA=torch.tensor([ANCHORS]),
            anchor_index_BA=torch.tensor([INDEX]),
        )
    return context[0], states[0]


def compare(drafter: BundledDrafter, weights: plain.Weights, config: dict[str, Any]) -> None:
    """States, logits and confidences of every anchor to 1e-5."""
    context, states = blocks(drafter)
    their_context = plain.context(weights, captured(), config)
    assert (context - their_context).abs().max() < TOLERANCE
    random = torch.Generator().manual_seed(9)
    for a, (anchor, index) in enumerate(zip(ANCHORS, INDEX, strict=True)):
        theirs = plain.block(weights, their_context, anchor, index, config)
        assert (states[a] - theirs).abs().max() < TOLERANCE
        drafts = torch.randint(0, 67, (4,), generator=random).tolist()
        previous = [anchor, *drafts]
        with torch.no_grad():
            logits, confidence = drafter.logits(
                hidden_NKD=states[None, a], previous_NK=torch.tensor([previous])
            )
        their_logits, their_confidence = plain.heads(weights, theirs, previous, config)
        assert (logits[0] - their_logits).abs().max() < TOLERANCE
        assert (confidence is None) == (their_confidence is None)
        if confidence is not None and their_confidence is not None:
            assert (confidence[0] - their_confidence).abs().max() < TOLERANCE


VARIANTS = [
    {},
    {"dspark_n_routed_experts": 4, "dspark_num_experts_per_tok": 2},
    {"dspark_markov_rank": 0},
    {"enable_confidence_head": False},
    {"confidence_head_with_markov": False, "dspark_markov_head_type": "vanilla"},
    {"sliding_window": 50, "sample_from_anchor": True, "enable_confidence_head": None},
]


@pytest.mark.law
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_released_checkpoint_computes_what_the_plain_implementation_does(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    config = plain.bundled_config(**changes)
    if "enable_confidence_head" in changes and changes["enable_confidence_head"] is None:
        config_plain = {k: v for k, v in config.items() if v is not None}
    else:
        config_plain = config
    weights = plain.random_weights(config_plain)
    compare(loaded(plain.write(tmp_path / "c", config, weights)), weights, config_plain)


@pytest.mark.law
def test_stages_may_route_by_a_table_of_tokens(tmp_path: Path) -> None:
    config = plain.bundled_config()
    weights = plain.random_weights(config, hashed=(0, 2))
    drafter = loaded(plain.write(tmp_path / "c", config, weights))
    assert drafter.config.routing == ("hash_moe", "moe", "hash_moe")
    compare(drafter, weights, config)


@pytest.mark.law
@pytest.mark.parametrize("width", [(24, 20), (136, 40)], ids=["part of a block", "two blocks"])
def test_fp8_blocks_and_fp4_experts_are_read_as_they_are_meant(
    width: tuple[int, int], tmp_path: Path
) -> None:
    """Wider than a block of 128 and a group of 32, with a rest; the config says so as released."""
    config = plain.bundled_config(
        hidden_size=width[0],
        head_dim=width[0],
        moe_intermediate_size=width[1],
        n_routed_experts=2,
        num_experts_per_tok=1,
        quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
        expert_dtype="fp4",
    )
    stored, meant = plain.quantise(plain.random_weights(config), config)
    drafter = loaded(plain.write(tmp_path / "c", config, stored), dtype=torch.float32)
    state = drafter.state_dict()
    wq = "self_attn.q_a_proj.weight"
    assert torch.equal(state[f"layers.1.{wq}"], meant["mtp.1.attn.wq_a.weight"])
    up = [meant[f"mtp.2.ffn.experts.1.w{i}.weight"] for i in (1, 3)]
    assert torch.equal(state["layers.2.mlp.experts.gate_up_proj"][1], torch.cat(up))
    if width[0] == 24:
        compare(drafter, meant, config)
    half = loaded(tmp_path / "c")
    assert half.dtype == torch.bfloat16
    assert half.layers[0].attn_hc.fn.dtype == torch.float32
    _, states = blocks(half) if width[0] == 24 else (None, torch.zeros(1))
    assert bool(torch.isfinite(states).all())


@pytest.mark.law
def test_a_round_over_the_cache_is_a_block_over_the_whole_context(tmp_path: Path) -> None:
    config = plain.bundled_config()
    drafter = loaded(plain.write(tmp_path / "c", config, plain.random_weights(config)))
    context, wanted = blocks(drafter)
    cache = drafter.new_cache(requests=5, capacity=TOKENS + 5)
    # In two goes, the second of other lengths.
    first = [index // 2 for index in INDEX]
    for start, stop in (([0] * 5, first), (first, INDEX)):
        parts = [context[a:b] for a, b in zip(start, stop, strict=True)]
        lengths = [b - a for a, b in zip(start, stop, strict=True)]
        drafter.append(cache, rows=range(5), context_TD=torch.cat(parts), lengths=lengths)
    states, _ = drafter.begin(
        cache, anchor_tokens_R=torch.tensor(ANCHORS), anchor_index_R=torch.tensor(INDEX)
    )
    torch.testing.assert_close(states, wanted, rtol=0, atol=TOLERANCE)
    rows = [3, 1]
    some, _ = drafter.begin(
        cache,
        anchor_tokens_R=torch.tensor([ANCHORS[r] for r in rows]),
        anchor_index_R=torch.tensor([INDEX[r] for r in rows]),
        rows=rows,
    )
    torch.testing.assert_close(some, wanted[rows], rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="append it first"):
        drafter.begin(
            cache, anchor_tokens_R=torch.tensor([1]), anchor_index_R=torch.tensor([4]), rows=[0]
        )


@pytest.mark.law
def test_gradients_reach_every_trained_weight_and_recomputing_changes_none(tmp_path: Path) -> None:
    config = plain.bundled_config(n_routed_experts=3, num_experts_per_tok=2)
    drafter = loaded(plain.write(tmp_path / "c", config, plain.random_weights(config)))

    def gradients() -> dict[str, torch.Tensor]:
        drafter.zero_grad(set_to_none=True)
        states = drafter.hidden(
            context_BSD=drafter.context(captured_BSC=captured()[None]),
            anchor_tokens_BA=torch.tensor([ANCHORS]),
            anchor_index_BA=torch.tensor([INDEX]),
        )[0]
        previous = torch.arange(25).view(5, 5)
        logits, confidence = drafter.logits(hidden_NKD=states, previous_NK=previous)
        assert confidence is not None
        (logits.square().mean() + confidence.square().mean()).backward()  # type: ignore[no-untyped-call]
        return {n: p.grad.clone() for n, p in drafter.named_parameters() if p.grad is not None}

    kept = gradients()
    trained = {name for name, p in drafter.named_parameters() if p.requires_grad}
    assert trained == set(kept)
    assert not {name for name, grad in kept.items() if not bool(grad.abs().sum() > 0)}
    drafter.checkpointing = True
    again = gradients()
    for name, grad in kept.items():
        torch.testing.assert_close(again[name], grad, rtol=1e-5, atol=1e-8)


@pytest.mark.golden
def test_the_recipe_for_v4_flash_has_the_released_shapes() -> None:
    """Of the facts that are published: keys, and the tensors that name them."""
    config = recipes.deepseek_v4_flash()
    value = config.to_dict()
    assert {k: v for k, v in value.items() if k.startswith("dspark_")} == {
        "dspark_block_size": 5,
        "dspark_markov_rank": 256,
        "dspark_noise_token_id": 128799,
        "dspark_target_layer_ids": [40, 41, 42],
    }
    assert BundledConfig.from_dict(value, where="x") == config
    with torch.device("meta"):
        state = BundledDrafter(config).state_dict()
    names = plain_names(config, default_layout(config))
    found = {theirs: tuple(state[ours].shape) for theirs, ours in names.items()}
    wanted = plain.shapes({**value, "dspark_markov_rank": 256})
    small = {n: s for n, s in wanted.items() if ".experts." not in n and n.startswith("mtp.")}
    assert found == small
    assert found["mtp.0.main_proj.weight"] == (4096, 12288)
    assert found["mtp.2.confidence_head.proj.weight"] == (1, 4096 + 256)
    assert found["mtp.1.attn.wo_a.weight"] == (8 * 1024, 64 * 512 // 8)
    assert tuple(state["layers.2.mlp.experts.gate_up_proj"].shape) == (256, 2 * 2048, 4096)
