"""The seam to transformers: captured states, logits, and a cache with one length per request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DeepseekV4Config,
    DeepseekV4ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.gemma4 import (
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
)
from transformers.models.gemma4_unified import Gemma4UnifiedForCausalLM, Gemma4UnifiedTextConfig

from sglang_dspark.draft.model import recipes
from sglang_dspark.draft.model import target as target_module
from sglang_dspark.draft.model.target import Target
from tests.draft import tiny_v4

VOCABULARY = 61
CLOSE = {"rtol": 1e-3, "atol": 3e-4}
"""Sums are made in another order; a wrong mask or position is wrong by 0.1 and more."""


def qwen3(**changes: Any) -> Any:
    text = recipes.laptop_target(vocab_size=VOCABULARY, hidden=32, layers=4) | changes
    return Qwen3ForCausalLM(Qwen3Config(**text | {"num_attention_heads": 2}))


def gemma4(**changes: Any) -> Any:
    kinds = ["sliding_attention", "full_attention"] * 3
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "layer_types": kinds,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "sliding_window": 6,
        "final_logit_softcapping": 5.0,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCABULARY,
    }
    return Gemma4ForCausalLM(Gemma4TextConfig(**text | changes))


def small_gemma4() -> Any:
    """The traits of the E2B and E4B: per-layer inputs and shared keys and values."""
    return gemma4(
        hidden_size_per_layer_input=4,
        num_kv_shared_layers=2,
        attention_k_eq_v=False,
    )


def unified_gemma4() -> Any:
    """The 12B's kind."""
    text = gemma4().config.to_dict()
    drop = ("hidden_size_per_layer_input", "vocab_size_per_layer_input", "model_type")
    kept = {key: value for key, value in text.items() if key not in drop}
    return Gemma4UnifiedForCausalLM(Gemma4UnifiedTextConfig(**kept))


def sharp(model: Any) -> Any:
    """Give a fresh model opinions, so that differences show."""
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25, generator=random)
    return model.eval()


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": False}


def qwen3_moe(**changes: Any) -> Any:
    """One dense layer among routed ones."""
    moe = {"num_experts": 4, "moe_intermediate_size": 16, "mlp_only_layers": [1], **EXPERTS}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL | moe | changes))


def llama(**changes: Any) -> Any:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    return LlamaForCausalLM(LlamaConfig(**SMALL | {"rope_parameters": rope} | changes))


def gpt_oss(**changes: Any) -> Any:
    """Sinks, experts, a window in every other layer."""
    more = {
        "num_local_experts": 4,
        "sliding_window": 6,
        "attn_implementation": "eager",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        **EXPERTS,
    }
    return GptOssForCausalLM(GptOssConfig(**SMALL | more | changes))


def deepseek_v4(**changes: Any) -> Any:
    """Every kind of layer and of routing; windows of 8 tokens, of 4 and 16 compressed."""
    model = DeepseekV4ForCausalLM(DeepseekV4Config(**tiny_v4.target_config(VOCABULARY) | changes))
    tiny_v4.draw_tables(model)
    return model


MODELS = [qwen3, gemma4, small_gemma4, unified_gemma4, qwen3_moe, llama, gpt_oss, deepseek_v4]
CAPTURE = (2, -1, 0)


@pytest.mark.law
@pytest.mark.parametrize("make", MODELS)
def test_captured_states_are_the_raw_outputs_in_the_order_asked_for(make: Any) -> None:
    model = sharp(make())
    target = Target.from_model(model, capture=CAPTURE)
    tokens = torch.randint(0, VOCABULARY, (2, 19))
    hidden, captured = target.prefill(tokens_BS=tokens)
    with torch.no_grad():
        theirs = model(tokens, output_hidden_states=True)
    torch.testing.assert_close(target.logits(hidden), theirs.logits)
    raw = [theirs.hidden_states[layer + 1] for layer in CAPTURE]
    states = torch.cat([state.mean(2) if state.ndim == 4 else state for state in raw], dim=-1)
    torch.testing.assert_close(captured, states)
    assert (target.layers, target.hidden_size, target.vocab_size) == (
        model.config.num_hidden_layers,
        32,
        VOCABULARY,
    )


@pytest.mark.law
@pytest.mark.parametrize("make", MODELS)
def test_padding_on_the_right_changes_nothing_and_elsewhere_is_refused(make: Any) -> None:
    target = Target.from_model(sharp(make()), capture=CAPTURE)
    tokens = torch.randint(0, VOCABULARY, (2, 12))
    whole = target.prefill(tokens_BS=tokens)
    mask = torch.ones_like(tokens)
    mask[1, 7:] = 0
    padded = target.prefill(tokens_BS=tokens.masked_fill(mask == 0, 3), mask=mask)
    for mine, theirs in zip(padded, whole, strict=True):
        torch.testing.assert_close(mine[1, :7], theirs[1, :7], **CLOSE)
    with pytest.raises(ValueError, match="pad sequences on the right"):
        target.prefill(tokens_BS=tokens, mask=mask.flip(1))


@pytest.mark.law
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cached_rounds_with_rejections_equal_one_pass_over_what_was_kept(
    make: Any, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_module, "QUERY_CHUNK", 4)  # prompts in several pieces
    model = sharp(make())
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip("its attention has sinks")
    model.set_attn_implementation(attention)
    target = Target.from_model(model, capture=CAPTURE)
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (3, 30), generator=random)
    hidden, captured = target.prefill(tokens_BS=tokens)
    logits = target.logits(hidden)
    cache = target.new_cache(requests=3, capacity=30)

    def check(out: tuple[Tensor, Tensor], rows: list[int], kept: list[int]) -> None:
        for i, (row, count) in enumerate(zip(rows, kept, strict=True)):
            here = slice(int(cache.lengths[row]) - count, int(cache.lengths[row]))
            torch.testing.assert_close(out[0][i, :count], logits[row, here], **CLOSE)
            torch.testing.assert_close(out[1][i, :count], captured[row, here], **CLOSE)

    prompt = [5, 11, 1]
    out = target.step(cache, tokens_RT=tokens[:, :11], lengths=prompt)
    check(out, [0, 1, 2], prompt)
    for turn in range(5):
        rows = [[0, 1, 2], [2, 0], [1], [0, 1, 2], [1, 2]][turn]
        kept = [int(torch.randint(1, 4, (), generator=random)) for _ in rows]
        start = cache.lengths[rows].tolist()
        # Drafts of which the last ones are wrong, then forgotten.
        drafts = torch.full((len(rows), 4), 9)
        for i, (row, first, count) in enumerate(zip(rows, start, kept, strict=True)):
            drafts[i, :count] = tokens[row, first : first + count]
        every = rows == [0, 1, 2]
        out = target.step(cache, tokens_RT=drafts, rows=None if every else rows)
        cache.crop(rows=rows, lengths=[s + k for s, k in zip(start, kept, strict=True)])
        check(out, rows, kept)


@pytest.mark.example
def test_a_text_model_inside_a_multimodal_wrapper_is_found() -> None:
    text = gemma4().config.to_dict()
    config = Gemma4Config(text_config=text, vision_config=None, audio_config=None)
    model = sharp(Gemma4ForConditionalGeneration(config))
    target = Target.from_model(model, capture=(1,))
    tokens = torch.arange(9)[None]
    hidden, captured = target.prefill(tokens_BS=tokens)
    with torch.no_grad():
        theirs = model(tokens, output_hidden_states=True)
    torch.testing.assert_close(target.logits(hidden), theirs.logits)
    torch.testing.assert_close(captured, theirs.hidden_states[2])


@pytest.mark.example
def test_layers_that_cannot_be_captured_are_refused() -> None:
    target = Target.from_model(qwen3())
    for layer in (3, 4, -2):
        with pytest.raises(ValueError, match=f"cannot capture layer {layer} of a target with 4"):
            target.capture([layer])
    hidden, captured = target.prefill(tokens_BS=torch.zeros(1, 3, dtype=torch.int64))
    assert captured.shape == (1, 3, 0)
    assert not hidden.requires_grad


@pytest.mark.example
def test_cache_refusals_say_what_does_not_fit() -> None:
    target = Target.from_model(qwen3())
    cache = target.new_cache(requests=2, capacity=4)
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="5 tokens do not fit the cache's 4"):
        target.extend(cache, tokens_RT=tokens)
    with pytest.raises(ValueError, match="one length <= 5"):
        target.extend(cache, tokens_RT=tokens, lengths=[6, 1])
    with pytest.raises(ValueError, match="for 1 rows"):
        target.extend(cache, tokens_RT=tokens, rows=[0])
    target.extend(cache, tokens_RT=tokens, lengths=[4, 0])
    assert cache.lengths.tolist() == [4, 0]
    with pytest.raises(ValueError, match="cannot crop row 1 to 1"):
        cache.crop(rows=[1], lengths=[1])


@pytest.mark.example
def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    config = OlmoConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    with pytest.raises(ValueError, match="'olmo' is not supported; supported: qwen3, gemma4") as e:
        Target.from_model(OlmoForCausalLM(config))
    assert "TargetFamily in sglang_dspark/draft/model/families.py" in str(e.value)
    with pytest.raises(ValueError, match=r"no config\.json"):
        Target.from_pretrained(tmp_path)


@pytest.mark.example
def test_a_saved_target_loads_frozen_and_equal(tmp_path: Path) -> None:
    model = sharp(qwen3())
    model.save_pretrained(tmp_path)
    target = Target.from_pretrained(tmp_path, capture=(0,))
    tokens = torch.arange(9)[None]
    ours = target.prefill(tokens_BS=tokens)[0]
    assert torch.equal(ours, Target.from_model(model).prefill(tokens_BS=tokens)[0])
    assert not any(p.requires_grad for p in target.model.parameters())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot load the target"):
        Target.from_pretrained(tmp_path)
