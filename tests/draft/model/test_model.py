"""The backbone: who sees whom, in blocks and in a cache, without [T, T] masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Qwen3Config
from transformers.models.gemma4 import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from sglang_dspark.draft.model import layers
from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.draft.model.model import Drafter
from tests.draft.independent import reference_config, reference_weights
from tests.draft.training.peak_memory import PeakMemory

FAMILIES = ["qwen3", "gemma4"]


def drafter_of(family: str, **changes: Any) -> Drafter:
    raw = reference_config(family, **changes)
    drafter = Drafter(DrafterConfig.from_dict(raw, where="test"))
    drafter.load_state_dict(reference_weights(raw))
    return drafter


def context_of(drafter: Drafter, *, sequences: int, tokens: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    width = len(drafter.config.layers_captured) * drafter.config.hidden_size
    captured = torch.randn(sequences, tokens, width, generator=random)
    return drafter.context(captured_BSC=captured)


@pytest.mark.example
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["vanilla", "gated", "rnn"])
def test_parameters_are_named_and_shaped_as_the_checkpoint_s_tensors(
    family: str, head: str
) -> None:
    for changes in ({}, {"confidence_head_with_markov": False}, {"enable_confidence_head": False}):
        raw = reference_config(family, markov_head_type=head, **changes)
        drafter = Drafter(DrafterConfig.from_dict(raw, where="test"))
        mine = {name: tuple(tensor.shape) for name, tensor in drafter.state_dict().items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in reference_weights(raw).items()}
        assert mine == wanted


@pytest.mark.law
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_sees_exactly_the_context_before_its_anchor(family: str) -> None:
    drafter = drafter_of(family)
    context = context_of(drafter, sequences=1, tokens=12)
    tokens, index = torch.tensor([[7, 8, 9]]), torch.tensor([[0, 4, 11]])

    def states(context: Tensor) -> Tensor:
        return drafter.hidden(context_BSD=context, anchor_tokens_BA=tokens, anchor_index_BA=index)[
            0
        ]

    before = states(context)
    for changed in range(12):
        other = context.clone()
        other[0, changed] += 1.0
        moved = (states(other) - before).abs().amax(dim=(1, 2)) > 0
        assert moved.tolist() == [changed < i for i in index[0].tolist()]


@pytest.mark.law
@pytest.mark.parametrize("family", FAMILIES)
def test_slots_see_their_block_both_ways_and_no_other_block(family: str) -> None:
    drafter = drafter_of(family)
    context = context_of(drafter, sequences=1, tokens=12)
    index = torch.tensor([[4, 6]])

    def states(tokens: list[int]) -> Tensor:
        return drafter.hidden(
            context_BSD=context, anchor_tokens_BA=torch.tensor([tokens]), anchor_index_BA=index
        )[0]

    before, after = states([7, 8]), states([7, 9])
    assert torch.equal(before[0], after[0])
    assert bool(((before[1] - after[1]).abs().amax(-1) > 0).all())
    # Backwards too: another token in the last slot moves the first. (Its mask token cannot vary,
    # so give the slots other embeddings by giving the mask token another one.)
    with torch.no_grad():
        drafter.embed_tokens.weight[drafter.config.mask_token_id] += 1.0
    assert bool(((states([7, 9]) - after).abs().amax(-1) > 0).all())


@pytest.mark.law
@pytest.mark.parametrize("elements", [1, 2000, 20_000])
def test_states_and_gradients_do_not_depend_on_the_grouping(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = drafter_of("qwen3").double()
    index = torch.tensor([[0, 3, 9, 9, 30], [5, 1, 2, 28, 7]])
    tokens = torch.arange(10).view(2, 5)

    def run() -> tuple[Tensor, Tensor]:
        context = context_of(drafter, sequences=2, tokens=31).detach().requires_grad_()
        states = drafter.hidden(context_BSD=context, anchor_tokens_BA=tokens, anchor_index_BA=index)
        slope = torch.autograd.grad((states * states.detach().cos()).sum(), context)[0]
        return states.detach(), slope

    wanted = run()
    monkeypatch.setattr(layers, "MASK_ELEMENTS", elements)
    for mine, theirs in zip(run(), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.law
@settings(max_examples=100, deadline=None)
@given(
    index=st.lists(st.integers(0, 100_000), min_size=1, max_size=300),
    slots=st.integers(1, 16),
    groups=st.integers(1, 8),
)
def test_groups_cover_every_block_once_within_the_mask_bound(
    index: list[int], slots: int, groups: int
) -> None:
    limits = layers.anchor_groups(
        anchor_index_BA=torch.tensor([index]), slots=slots, query_groups=groups
    )
    assert [block for first, last, _ in limits for block in range(first, last)] == list(
        range(len(index))
    )
    for first, last, limit in limits:
        assert limit == max(index[first:last])
        own = (last - first) * slots
        assert last - first == 1 or groups * own * (limit + own) <= layers.MASK_ELEMENTS


@pytest.mark.law
def test_a_long_context_needs_no_square_of_it() -> None:
    drafter = drafter_of("qwen3")
    tokens, anchors = 20_000, 24
    context = context_of(drafter, sequences=1, tokens=tokens).detach()
    index = torch.linspace(1, tokens - 1, anchors).long()[None]
    with PeakMemory() as memory:
        states = drafter.hidden(
            context_BSD=context,
            anchor_tokens_BA=torch.zeros_like(index),
            anchor_index_BA=index,
        )
        states.sum().backward()
    assert memory.largest < tokens * tokens / 8
    assert memory.peak < 300 << 20  # a [T, T] mask alone is 400 MB as bool


# Decoding.


@pytest.mark.law
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_rounds_equal_blocks_whatever_was_appended_when(family: str) -> None:
    drafter = drafter_of(family)
    with torch.no_grad():
        context = context_of(drafter, sequences=3, tokens=20)
        cache = drafter.new_cache(requests=3, capacity=26)
        held = [0, 0, 0]
        random = torch.Generator().manual_seed(3)
        for _ in range(6):
            grown = torch.randint(0, 5, (3,), generator=random).tolist()
            grown = [min(g, 20 - h) for g, h in zip(grown, held, strict=True)]
            pieces = [
                context[r, h : h + g] for r, (h, g) in enumerate(zip(held, grown, strict=True))
            ]
            drafter.append(cache, rows=[0, 1, 2], context_TD=torch.cat(pieces), lengths=grown)
            held = [h + g for h, g in zip(held, grown, strict=True)]
            tokens, index = torch.tensor([1, 2, 3]), torch.tensor(held)
            wanted = drafter.hidden(
                context_BSD=context,
                anchor_tokens_BA=tokens[:, None],
                anchor_index_BA=index[:, None],
            )[:, 0]
            # Each round also writes its own slots into the cache, where the next append goes.
            mine = drafter.hidden_cached(cache, anchor_tokens_R=tokens, anchor_index_R=index)
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)
            some = drafter.hidden_cached(
                cache, anchor_tokens_R=tokens[[2, 0]], anchor_index_R=index[[2, 0]], rows=[2, 0]
            )
            torch.testing.assert_close(some, wanted[[2, 0]], rtol=1e-5, atol=1e-5)


@pytest.mark.law
def test_a_cropped_row_forgets_and_can_be_filled_anew() -> None:
    drafter = drafter_of("qwen3")
    with torch.no_grad():
        context = context_of(drafter, sequences=2, tokens=9)
        token, index = torch.tensor([5]), torch.tensor([6])

        def state(pieces: list[Tensor], crop: int | None) -> Tensor:
            cache = drafter.new_cache(requests=1, capacity=20)
            for piece in pieces:
                if crop is not None and cache.lengths[0]:
                    cache.crop(rows=[0], lengths=[crop])
                drafter.append(cache, rows=[0], context_TD=piece, lengths=[len(piece)])
            return drafter.hidden_cached(cache, anchor_tokens_R=token, anchor_index_R=index)

        straight = state([torch.cat([context[0, :3], context[1, 3:6]])], None)
        # Not to the bit: some processors sum a product of other shape in another order.
        again = state([context[0, :9], context[1, 3:6]], 3)
        assert torch.allclose(again, straight, rtol=1e-5, atol=1e-6)


@pytest.mark.example
def test_cache_refusals_name_the_row_and_the_room() -> None:
    drafter = drafter_of("qwen3")
    context = context_of(drafter, sequences=1, tokens=9)[0].detach()
    cache = drafter.new_cache(requests=2, capacity=8)
    with pytest.raises(ValueError, match="row 1 needs 9 token slots but the cache was made for 8"):
        drafter.append(cache, rows=[1], context_TD=context, lengths=[9])
    with pytest.raises(ValueError, match="9 context tokens for lengths"):
        drafter.append(cache, rows=[1], context_TD=context, lengths=[8])
    drafter.append(cache, rows=[1], context_TD=context[:4], lengths=[4])
    one = {"anchor_tokens_R": torch.tensor([1]), "rows": [1]}
    with pytest.raises(ValueError, match=r"anchors at \[5\].*hold \[4\]"):
        drafter.hidden_cached(cache, anchor_index_R=torch.tensor([5]), **one)
    with pytest.raises(ValueError, match="row 1 needs 9 token slots"):
        drafter.hidden_cached(cache, anchor_index_R=torch.tensor([4]), **one)
    with pytest.raises(ValueError, match="cannot crop row 1 to 5"):
        cache.crop(rows=[1], lengths=[5])


# Ends and embeddings.


@pytest.mark.example
def test_shared_ends_are_the_target_s_own_memory_and_never_trained() -> None:
    raw = reference_config("qwen3")
    config = DrafterConfig.from_dict(raw, where="test")
    embed = torch.nn.Parameter(torch.randn(67, 24))
    drafter = Drafter(config, embed=embed, lm_head=embed)
    assert drafter.embed_tokens.weight.data_ptr() == embed.data_ptr()
    assert drafter.lm_head.weight.data_ptr() == embed.data_ptr()
    frozen = {name for name, p in drafter.named_parameters() if not p.requires_grad}
    assert frozen == {"embed_tokens.weight", "lm_head.weight"}
    with pytest.raises(ValueError, match=r"is \(66, 24\), the drafter wants \(67, 24\)"):
        Drafter(config, embed=embed[:66])


@pytest.mark.law
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10_000.0},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ],
)
def test_rotary_embeddings_are_the_qwen3_target_s(rope: dict[str, Any]) -> None:
    raw = reference_config("qwen3", rope_parameters=rope)
    mine = layers.Rope(DrafterConfig.from_dict(raw, where="test"))
    theirs = Qwen3RotaryEmbedding(
        Qwen3Config(
            head_dim=8,
            hidden_size=24,
            num_attention_heads=4,
            max_position_embeddings=512,
            rope_parameters=rope,
        )
    )
    places = torch.tensor([[0, 1, 77, 500]])
    for ours, other in zip(
        mine(places, torch.float32), theirs(torch.zeros(1), places), strict=True
    ):
        assert torch.equal(ours, other)


@pytest.mark.law
def test_rotary_embeddings_are_the_gemma4_target_s() -> None:
    raw = reference_config("gemma4")
    config = Gemma4TextConfig(
        global_head_dim=8, head_dim=6, num_hidden_layers=1, rope_parameters=raw["rope_parameters"]
    )
    places = torch.tensor([[0, 1, 77, 500]])
    theirs = Gemma4TextRotaryEmbedding(config)(torch.zeros(1), places, "full_attention")
    mine = layers.Rope(DrafterConfig.from_dict(raw, where="test"))(places, torch.float32)
    for ours, other in zip(mine, theirs, strict=True):
        assert torch.equal(ours, other)


@pytest.mark.example
def test_half_precision_keeps_frequencies_in_float32() -> None:
    drafter = drafter_of("qwen3").bfloat16()
    assert drafter.rope.frequencies.dtype == torch.float32
    context = context_of(drafter, sequences=1, tokens=4)
    states = drafter.hidden(
        context_BSD=context,
        anchor_tokens_BA=torch.tensor([[1]]),
        anchor_index_BA=torch.tensor([[3]]),
    )
    assert states.dtype == torch.bfloat16
