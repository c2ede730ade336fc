"""Kind ``roofline``: parameter counts, formulas worked by hand, and what the fit reproduces."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.roofline import (
    Drafter,
    Efficiency,
    GpuSheet,
    ModelConfig,
    RooflineCost,
    sglang_request_tiers,
)


def toy(**changes: Any) -> RooflineCost:
    """One layer of 22 weights, a head of 6, on a GPU of 10 flop/s and 2 byte/s."""
    fields: dict[str, Any] = {
        "model": ModelConfig(
            num_hidden_layers=1,
            hidden_size=2,
            intermediate_size=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=2,
            vocab_size=3,
            tie_word_embeddings=True,
        ),
        "gpu": GpuSheet(
            name="toy", flops=10.0, memory_bytes_per_s=2.0, memory_bytes=1000, limit_watts=9.0
        ),
        "efficiency": Efficiency(
            basis="assumed",
            mfu=1.0,
            mbu=1.0,
            step_s=100.0,
            draft_step_s=50.0,
            logit_passes=0.0,
            source="a toy",
        ),
        "drafter": None,
        "origin": "analytic",
    }
    return RooflineCost(**(fields | changes))


@pytest.mark.example
def test_a_forward_takes_the_longer_of_reading_and_multiplying() -> None:
    cost = toy()
    assert cost.model.layer_params == 2 * (2 + 2) * 2 + 3 * 2 * 1
    assert cost.model.head_params == 6
    assert cost.verify_s(1) == 100 + 28 * 2 / 2
    assert cost.verify_s(10) == 100 + 2 * 28 * 10 / 10


@pytest.mark.example
def test_sampling_passes_over_the_logits() -> None:
    cost = toy()
    passes = dataclasses.replace(cost.efficiency, logit_passes=2.0)
    more = dataclasses.replace(cost, efficiency=passes).verify_s(5) - cost.verify_s(5)
    assert more == pytest.approx(5 * 2 * 3 * 4 / 2)


@pytest.mark.example
def test_drafting_is_one_backbone_pass_and_gamma_head_steps() -> None:
    drafter = Drafter(gamma=2, num_hidden_layers=1, num_target_layers=1, markov_rank=1)
    cost = toy(drafter=drafter)
    assert cost.drafter_params == 22 + 2 * 2 + 2 * 3
    assert cost.draft_s(0) == 0.0
    assert cost.draft_s(1) == 50 + 32 * 2 / 2 + 2 * (3 * 2 / 2)
    assert cost.draft_s(10) == 50 + 2 * 32 * 20 / 10 + 2 * (2 * 3 * 10 / 10)


@pytest.mark.example
def test_prefill_context_and_memory_follow_from_the_config() -> None:
    cost = toy()
    prefill, memory = cost.prefill_cost(), cost.memory()
    assert prefill.token_s == 2 * 22 / 10
    assert prefill.pair_s == 8 / 10
    assert prefill.floor_s == prefill.base_s + 22 * 2 / 2
    assert cost.context_cost().token_s == 8 / 2
    assert (memory.weights_bytes, memory.kv_bytes_per_token) == (56, 8)
    assert memory.pool_tokens == (880 - 56) // 8
    assert cost.draft_cost() is None
    assert cost.graph_tiers().tiers_tokens[:9] == (1, 2, 3, 4, 5, 6, 7, 8, 10)


@pytest.mark.example
def test_the_drafter_keeps_kv_of_its_own_layers() -> None:
    gpu = dataclasses.replace(toy().gpu, memory_bytes=10_000)
    cost = toy(drafter=Drafter(gamma=7, num_hidden_layers=3), gpu=gpu)
    assert cost.memory().kv_bytes_per_token == 8 * (1 + 3)
    assert cost.graph_tiers().tiers_tokens[0] == 8


@pytest.mark.example
def test_the_ladder_is_sglangs() -> None:
    assert sglang_request_tiers(12) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]
    assert len(sglang_request_tiers(128)) == 35  # as many as SGLang PR #35413 states
    assert sglang_request_tiers(300)[-4:] == [248, 256, 272, 288]


@pytest.mark.example
@pytest.mark.parametrize(
    ("name", "billions"),
    [("qwen3-4b", 4.02), ("qwen3-8b", 8.19), ("qwen3-14b", 14.77), ("gemma-12b", 11.77)],
)
def test_configs_have_the_parameters_their_model_cards_state(name: str, billions: float) -> None:
    roofline = load_cost_model(f"h100-{name}-analytic").roofline
    assert roofline is not None
    assert roofline.model.weights_bytes / 2e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.law
@given(tokens=st.integers(1, 4000), requests=st.integers(1, 500))
def test_bigger_steps_and_slower_gpus_never_take_less(tokens: int, requests: int) -> None:
    slow = load_cost_model("h100-qwen3-8b-analytic").roofline
    fast = load_cost_model("h200-qwen3-8b-analytic").roofline
    assert slow is not None
    assert fast is not None
    assert slow.verify_s(tokens) >= fast.verify_s(tokens)
    assert slow.draft_s(requests) >= fast.draft_s(requests)
    assert slow.verify_s(tokens + 1) >= slow.verify_s(tokens)
    assert slow.draft_s(requests + 1) >= slow.draft_s(requests)


@pytest.mark.golden
def test_the_fit_reproduces_the_published_endpoints() -> None:
    analytic = load_cost_model("h200-qwen3-14b-analytic")
    ours = analytic.tables(1024, 128)
    theirs = load_cost_model("h200-qwen3-14b-sglang-pr35413").tables(1024, 128)
    assert analytic.fit_error is not None
    worst = analytic.fit_error.max_rel
    assert worst < 0.011
    for m in (8, 16, 1024):
        assert ours.verify_s[m] == pytest.approx(theirs.verify_s[m], rel=worst * 1.001)
    for r in (1, 2, 128):
        assert ours.draft_s[r] == pytest.approx(theirs.draft_s[r], rel=worst * 1.001)


@pytest.mark.golden
def test_published_parameters_of_the_efficiency_stay_what_they_are() -> None:
    roofline = load_cost_model("h200-qwen3-14b-analytic").roofline
    assert roofline is not None
    efficiency = roofline.efficiency
    assert (efficiency.basis, efficiency.mfu, efficiency.mbu) == ("fitted", 0.723, 0.8)
    assert (efficiency.step_s, efficiency.draft_step_s) == (0.001449, 0.000277)
    assert "are assumed" in efficiency.source


@pytest.mark.example
@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("efficiency", {"mfu": 1.2}, "mfu 1.2 exceeds the data sheet; use <= 1"),
        ("efficiency", {"mbu": 0.0}, "mbu 0 must be a finite number above 0"),
        ("efficiency", {"basis": "felt"}, "efficiency basis 'felt' is not known"),
        ("model", {"num_hidden_layers": 0}, "num_hidden_layers 0 must be a finite number"),
        ("gpu", {"flops": -1.0}, "flops -1 must be a finite number above 0"),
    ],
)
def test_impossible_hardware_is_refused(part: str, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(getattr(toy(), part), **changes)


@pytest.mark.example
def test_a_roofline_is_never_passed_off_as_measured() -> None:
    with pytest.raises(ValueError, match="origin 'measured' is not known; use one of analytic"):
        toy(origin="measured")
