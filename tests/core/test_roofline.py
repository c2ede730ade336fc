"""Kind ``roofline``: parameter counts, formulas worked by hand, and what the fit reproduces."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.cost import load_cost_model
from sglang_dspark.core.roofline import (
    Drafter,
    Efficiency,
    GpuSheet,
    ModelConfig,
    RooflineCost,
    sglang_request_tiers,
)


def toy(**changes: Any) -> RooflineCost:
    """One layer of 14 weights, a head of 6, on a GPU of 10 flop/s and 2 byte/s."""
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
    assert cost.model.layer_params == 14 + 8  # attention 2 (2 + 2) 2, MLP 3 x 2 x 1
    assert cost.model.head_params == 6


@pytest.mark.example
@pytest.mark.parametrize(
    ("name", "billions"),
    [("qwen3-4b", 4.02), ("qwen3-8b", 8.19), ("qwen3-14b", 14.77), ("gemma-12b", 11.77)],
)
def test_configs_have_the_parameters_their_model_cards_state(name: str, billions: float) -> None:
    roofline = load_cost_model(f"h100-{name}-analytic").roofline
    assert roofline is not None
    assert roofline.model.weights_bytes / 2e9 == pytest.approx(billions, rel=2e-3)
