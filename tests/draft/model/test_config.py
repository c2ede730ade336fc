"""config.json: read and written to the byte, and refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config
from transformers.models.gemma4 import Gemma4TextConfig

from sglang_dspark.draft.model import recipes
from sglang_dspark.draft.model.config import DrafterConfig
from tests.draft.independent import reference_config

FAMILIES = ["qwen3", "gemma4"]


def parse(raw: dict[str, Any]) -> DrafterConfig:
    return DrafterConfig.from_dict(raw, where="here")


def as_transformers_writes(raw: dict[str, Any]) -> str:
    return json.dumps(raw, indent=2, sort_keys=True) + "\n"


@pytest.mark.law
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"markov_head_type": "rnn", "attention_bias": True},
        {"confidence_head_with_markov": False},
        {"num_hidden_layers": 1, "layer_types": ["full_attention"]},
        {"a_key_of_tomorrow": {"x": [1, None, 0.5]}, "dtype": "bfloat16"},
    ],
)
def test_reading_and_writing_gives_the_same_bytes(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    text = as_transformers_writes(reference_config(family, **changes))
    (tmp_path / "config.json").write_text(text)
    config = DrafterConfig.read(tmp_path)
    assert parse(config.to_dict()) == config
    config.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text


@pytest.mark.example
def test_keys_of_absent_heads_are_neither_needed_nor_written(tmp_path: Path) -> None:
    raw = reference_config("qwen3", markov_rank=0, enable_confidence_head=False)
    del raw["markov_head_type"], raw["confidence_head_with_markov"]
    config = parse(raw)
    assert (config.head, config.to_dict()) == ("none", raw)


@pytest.mark.example
def test_derived_names_read_as_the_rest_of_the_package_asks() -> None:
    config = parse(reference_config("gemma4", markov_head_type="gated"))
    assert (config.gamma, config.layers_captured, config.head) == (5, (-1, 1, 3), "gated")
    assert (config.head_dim, config.num_key_value_heads, config.softcap) == (8, 1, 2.0)
    assert config.keys_are_values
    assert config.rope == {
        "rope_theta": 1e6,
        "rope_type": "proportional",
        "partial_rotary_factor": 0.5,
    }
    qwen = parse(reference_config("qwen3"))
    assert (qwen.head_dim, qwen.num_key_value_heads, qwen.softcap) == (8, 2, None)
    assert not qwen.keys_are_values


@pytest.mark.example
def test_rope_is_read_from_the_older_keys_too() -> None:
    raw = reference_config("qwen3", rope_theta=5000.0, rope_scaling=None)
    del raw["rope_parameters"]
    assert parse(raw).rope == {"rope_theta": 5000.0, "rope_type": "default"}
    raw["rope_scaling"] = {"type": "yarn", "factor": 4.0}
    assert parse(raw).rope["rope_type"] == "yarn"


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3", {"architectures": ["LlamaModel"]}, r"architectures is \['LlamaModel'\]"),
    ("qwen3", {"architectures": []}, "architectures is"),
    ("qwen3", {"mask_token_id": 67}, "mask_token_id 67 is outside the vocabulary of 67"),
    ("qwen3", {"mask_token_id": -1}, "mask_token_id -1"),
    ("qwen3", {"target_layer_ids": [1, 5]}, "captures the target's last layer 5"),
    ("qwen3", {"target_layer_ids": [1, 6]}, "layer 6 does not exist"),
    ("qwen3", {"target_layer_ids": [-2]}, "layer -2 does not exist"),
    ("qwen3", {"target_layer_ids": []}, "distinct and at least one"),
    ("qwen3", {"target_layer_ids": [1, 1]}, "distinct and at least one"),
    ("qwen3", {"markov_head_type": "lstm"}, "'lstm' is unknown; known: vanilla, gated, rnn"),
    ("qwen3", {"markov_rank": -1}, "markov_rank is -1"),
    ("qwen3", {"markov_rank": 0}, "needs a Markov head"),
    ("qwen3", {"markov_rank": "6"}, "markov_rank"),
    ("qwen3", {"block_size": 0}, "block_size is 0"),
    ("qwen3", {"hidden_size": 24.5}, "hidden_size"),
    ("qwen3", {"num_key_value_heads": 3}, "no multiple"),
    ("qwen3", {"head_dim": 7}, "odd"),
    ("qwen3", {"hidden_act": "relu"}, "'relu' is unknown"),
    ("qwen3", {"layer_types": ["sliding_attention"]}, "full_attention"),
    ("qwen3", {"tie_word_embeddings": True}, "set it to false"),
    ("qwen3", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "'dynamic'"),
    ("qwen3", {"rope_parameters": {"rope_type": "default"}}, "rope_theta is None"),
    ("gemma4", {"final_logit_softcapping": 0}, "must be > 0 or null"),
    ("gemma4", {"enable_moe_block": True}, "enable_moe_block"),
    ("gemma4", {"hidden_size_per_layer_input": 8}, "hidden_size_per_layer_input"),
]


@pytest.mark.example
@pytest.mark.parametrize(("family", "changes", "reason"), REFUSALS)
def test_a_wrong_value_is_refused_with_its_reason(
    family: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse(reference_config(family, **changes))
    assert str(caught.value).startswith("here: ")
    assert "\n" not in str(caught.value)


@pytest.mark.law
@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_a_drafter_reads_is_required(family: str) -> None:
    raw = reference_config(family)
    known = ["global_head_dim", "hidden_activation", "num_global_key_value_heads"]
    known += ["head_dim", "hidden_act", "num_key_value_heads"] if family == "qwen3" else []
    known += [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "rms_norm_eps",
    ]
    known += [
        "rms_norm_eps",
        "num_hidden_layers",
        "num_target_layers",
        "block_size",
        "mask_token_id",
    ]
    known += ["target_layer_ids", "num_anchors", "markov_rank", "markov_head_type"]
    known += ["enable_confidence_head", "confidence_head_with_markov", "architectures"]
    for key in known:
        if key in raw:
            with pytest.raises(ValueError, match=f"here: {key} is"):
                parse({name: value for name, value in raw.items() if name != key})


@pytest.mark.example
def test_released_recipes_have_the_released_shapes() -> None:
    shapes = {
        recipes.qwen3_4b: (2560, 32, 36, (1, 9, 17, 25, 33)),
        recipes.qwen3_8b: (4096, 32, 36, (1, 9, 17, 25, 33)),
        recipes.qwen3_14b: (5120, 40, 40, (1, 10, 19, 28, 37)),
    }
    for recipe, (hidden, heads, layers, captured) in shapes.items():
        config = recipe()
        assert (config.hidden_size, config.num_attention_heads) == (hidden, heads)
        assert (config.num_target_layers, config.layers_captured) == (layers, captured)
        assert (config.gamma, config.num_hidden_layers, config.num_anchors) == (7, 5, 512)
        assert (config.markov_rank, config.head, config.mask_token_id) == (256, "vanilla", 151669)
        # The captured layers are not hand-picked numbers but one rule.
        assert recipes.spread_layers(layers) == captured


def gemma4_text(layers: int = 48) -> dict[str, Any]:
    config = Gemma4TextConfig(
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=16,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        final_logit_softcapping=30.0,
        hidden_size_per_layer_input=0,
    )
    text: dict[str, Any] = json.loads(config.to_json_string())
    return text


@pytest.mark.example
def test_gemma4_recipe_takes_the_full_attention_shape_of_its_target() -> None:
    text = gemma4_text()
    config = recipes.gemma4_12b({"model_type": "gemma4", "text_config": text})
    assert config.layers_captured == (5, 17, 29, 41, 46)
    assert (config.head_dim, config.num_key_value_heads, config.mask_token_id) == (16, 1, 4)
    assert config.keys_are_values
    assert "per_layer_config" not in config.to_dict()
    assert config.to_dict()["global_head_dim"] == 16


@pytest.mark.law
@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(2, 70),
    gamma=st.integers(1, 16),
    rank=st.sampled_from([0, 4]),
    confidence=st.booleans(),
)
def test_any_target_gets_a_valid_drafter_that_survives_json(
    layers: int, gamma: int, rank: int, confidence: bool
) -> None:
    text = recipes.laptop_target(layers=layers, vocab_size=100)
    config = recipes.dspark(
        text, mask_token_id=99, gamma=gamma, markov_rank=rank, confidence=confidence
    )
    assert parse(json.loads(config.to_json())) == config
    assert config.num_target_layers == layers
    assert list(config.layers_captured) == sorted(config.layers_captured)
    eagle = recipes.eagle3(text, mask_token_id=99, gamma=gamma)
    assert parse(json.loads(eagle.to_json())) == eagle


@pytest.mark.example
def test_recipes_differ_from_the_paper_s_only_where_their_name_says() -> None:
    text = recipes.laptop_target(vocab_size=100)
    full, five = (make(text, mask_token_id=99) for make in (recipes.dspark, recipes.dspark5))
    assert (five.gamma, five.num_hidden_layers, full.gamma) == (5, 3, 7)
    dflash = recipes.dflash(text, mask_token_id=99)
    assert (dflash.head, dflash.enable_confidence_head) == ("none", False)
    assert dflash.num_hidden_layers == full.num_hidden_layers
    small = recipes.laptop(text, mask_token_id=99)
    assert (small.num_hidden_layers, small.markov_rank) == (2, 64)
    Qwen3Config(**text)  # and transformers takes the target's


@pytest.mark.example
def test_recipes_refuse_targets_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="'olmo' has no drafter family; known: qwen3, qwen3_moe"):
        recipes.dspark({"model_type": "olmo"}, mask_token_id=0)
    with pytest.raises(ValueError, match="no num_hidden_layers"):
        recipes.dspark({"model_type": "qwen3"}, mask_token_id=0)
    with pytest.raises(ValueError, match="1 layer has none to capture"):
        recipes.dspark(recipes.laptop_target(layers=1), mask_token_id=0)


@pytest.mark.example
def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json: cannot read"):
        DrafterConfig.read(tmp_path / "nowhere.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: a config is a JSON object"):
        DrafterConfig.read(tmp_path)
