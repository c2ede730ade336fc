"""Refusals and versions, one by one, without SGLang: each names what is wrong and what to do."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.runtime import refusals, versions

SERVED = {name: served for name, served, *_ in refusals.SERVER_FLAGS}


class Recurrent:
    """A text config of the kind that SGLang keeps SSM states for."""

    mamba2_cache_params = None


def model_config(**changes: Any) -> SimpleNamespace:
    plain = SimpleNamespace(architectures=["TinyForCausalLM"])
    fields = {
        "hf_config": plain,
        "hf_text_config": plain,
        "is_generation": True,
        "is_encoder_decoder": False,
        "is_hybrid_swa": False,
    }
    return SimpleNamespace(**{**fields, **changes})


def drafter() -> DrafterConfig:
    return DrafterConfig(
        architecture="Qwen3DSparkModel",
        model_type="qwen3",
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        activation="silu",
        rms_norm_eps=1e-6,
        num_hidden_layers=1,
        num_target_layers=3,
        block_size=4,
        mask_token_id=39,
        target_layer_ids=(0, 1),
        target_text_config={"rope_theta": 10_000.0},
    )


@pytest.mark.example
@pytest.mark.parametrize("algorithm", [None, "EAGLE", "DFLASH", ""])
def test_other_algorithms_do_not_ask(algorithm: str | None) -> None:
    assert not refusals.asks(SimpleNamespace(speculative_algorithm=algorithm))
    assert refusals.asks(SimpleNamespace(speculative_algorithm="dspark"))


@pytest.mark.example
def test_a_plain_server_is_served() -> None:
    refusals.check_server_args(SimpleNamespace(**SERVED, tp_size=2, page_size=16))


@pytest.mark.example
@pytest.mark.parametrize("name", SERVED)
def test_every_listed_server_flag_is_refused_with_a_remedy(name: str) -> None:
    value = {int: 2, str: "decode"}.get(type(SERVED[name]), True)
    given = SimpleNamespace(**{**SERVED, name: value})
    with pytest.raises(ValueError, match=r"DSPARK does not serve with .*; .*, or drop") as caught:
        refusals.check_server_args(given)
    assert str(caught.value).startswith("--" + name.replace("_", "-"))


@pytest.mark.example
def test_an_off_value_that_is_not_the_default_is_served() -> None:
    refusals.check_server_args(
        SimpleNamespace(**{**SERVED, "enable_lora": False, "lora_paths": []})
    )


@pytest.mark.example
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"is_generation": False}, "generates no text"),
        ({"is_encoder_decoder": True}, "is an encoder-decoder"),
        ({"hf_text_config": Recurrent()}, "has linear-attention or SSM layers"),
        ({"is_hybrid_swa": True}, "two KV pools.*--disable-hybrid-swa-memory"),
    ],
)
def test_targets_that_ragged_verification_would_spoil_are_refused(
    changes: dict[str, Any], sentence: str
) -> None:
    refusals.check_target(model_config())
    with pytest.raises(ValueError, match=f"TinyForCausalLM .*{sentence}"):
        refusals.check_target(model_config(**changes))


@pytest.mark.example
@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "num_hidden_layers"])
def test_a_drafter_of_another_target_is_refused(key: str) -> None:
    own = {"hidden_size": 32, "vocab_size": 40, "num_hidden_layers": 3}
    refusals.check_drafter(drafter(), SimpleNamespace(**own))
    with pytest.raises(ValueError, match=f"{key} {own[key]}, this one has 99; give"):
        refusals.check_drafter(drafter(), SimpleNamespace(**{**own, key: 99}))


@pytest.mark.example
@pytest.mark.parametrize("name", [name for name, *_ in refusals.REQUEST_FIELDS])
@pytest.mark.parametrize("value", ["x", ["x"], [[0.5]], True, 1, object()])
def test_a_request_that_sets_a_listed_field_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"DSPARK does not serve .*; "):
        refusals.check_request(SimpleNamespace(**{name: value}))


@pytest.mark.example
@pytest.mark.parametrize("value", [None, False, "", [], [None, None], {}])
def test_a_field_that_is_empty_is_not_set(value: object) -> None:
    names = [name for name, *_ in refusals.REQUEST_FIELDS]
    refusals.check_request(SimpleNamespace(**dict.fromkeys(names, value), return_logprob=True))


@pytest.mark.example
@pytest.mark.parametrize("method", refusals.WEIGHT_UPDATES)
def test_weights_stay_for_dspark_alone(method: str) -> None:
    rest = refusals.WEIGHT_UPDATES[method]
    hook = refusals._keep_weights(rest)

    async def original(*_: Any) -> str:
        return "updated"

    def answer(algorithm: str | None) -> Any:
        manager = SimpleNamespace(server_args=SimpleNamespace(speculative_algorithm=algorithm))
        return asyncio.run(hook(original, manager, object()))

    assert answer(None) == "updated"
    assert answer("DSPARK") == (False, refusals.WEIGHTS_STAY, *rest)


@pytest.mark.example
@pytest.mark.parametrize("local", ["", "+cpu"])
def test_the_verified_version_is_the_workers(local: str) -> None:
    text = versions.WORKER_VERSION + local
    assert versions.lane(text, built_in=False) == "worker"
    assert versions.lane(text, built_in=True) == "steer"


@pytest.mark.example
@pytest.mark.parametrize("text", ["0.5.16", "0.5.21", "0.6.0", "1.0"])
def test_later_versions_are_steered(text: str) -> None:
    assert versions.lane(text, built_in=True) == "steer"
    assert versions.lane(text, built_in=False) == "steer"


@pytest.mark.example
@pytest.mark.parametrize("text", ["0.5.11", "0.5.15", "0.5.15.post2", "0.5.15.post1.dev3", "", "x"])
def test_versions_of_no_lane_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"install sglang==0\.5\.15\.post1"):
        versions.lane(text, built_in=False)


@pytest.mark.example
@pytest.mark.parametrize("tokens", [[5, -1], [100], [3, 10**12, 4]])
def test_tokens_outside_the_vocabulary_are_refused(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match=r"input_ids has .* 0 to 99; tokenize"):
        refusals.check_tokens(tokens, 100)


@pytest.mark.example
@pytest.mark.parametrize("tokens", [None, [], [0, 99], "text", [[1]], [1.5]])
def test_tokens_of_the_vocabulary_pass_and_other_types_are_left_to_sglang(tokens: object) -> None:
    refusals.check_tokens(tokens, 100)
