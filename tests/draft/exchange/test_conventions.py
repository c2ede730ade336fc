"""A drafter is the same in every convention, or refused; never accepted at a length of 1."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM

from sglang_dspark.draft.evaluation.decode import VerifyAll, speculate
from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.draft.exchange.convert import convert
from sglang_dspark.draft.model.checkpoint import load_drafter, save_drafter
from sglang_dspark.draft.model.conventions import flat_config
from sglang_dspark.draft.model.model import Drafter
from sglang_dspark.draft.model.target import Target
from tests.draft.independent import reference_config
from tests.draft.tiny_pairs import PROMPT, teach, tiny_drafter, tiny_target


@pytest.fixture(scope="module")
def pair() -> tuple[Target, Drafter]:
    target = tiny_target()
    drafter = tiny_drafter(target)
    teach(drafter, target, steps=40)
    return target, drafter


def rounds(target: Target, drafter: Any) -> tuple[list[list[int]], list[int]]:
    """Sampled tokens of a few answers, and what each round accepted."""
    target.capture(drafter.config.layers_captured)
    prompts = [PROMPT] * 24
    decoded = speculate(
        target=target,
        drafter=drafter,
        prompts=prompts,
        sampling=Sampling(),
        planner=VerifyAll(drafter.config.gamma),
        new_tokens=20,
        generator=torch.Generator().manual_seed(0),
    )
    return decoded.tokens, decoded.log.accepted.tolist()


@pytest.mark.law
@pytest.mark.parametrize("convention", ["generic", "speculators"])
def test_a_convention_accepts_what_its_deepspec_twin_does(
    convention: str, pair: tuple[Target, Drafter], tmp_path: Path
) -> None:
    target, drafter = pair
    save_drafter(drafter, tmp_path / "deepspec")
    convert(tmp_path / "deepspec", tmp_path / "other", to=convention)
    other = load_drafter(tmp_path / "other", target=target)
    wanted = rounds(target, load_drafter(tmp_path / "deepspec"))
    assert rounds(target, other) == wanted
    assert sum(wanted[1]) > 0.5 * len(wanted[1])
    # And back, to the byte where nothing is lost on the way.
    target.model.save_pretrained(tmp_path / "target")
    convert(tmp_path / "other", tmp_path / "back", to="deepspec", target=tmp_path / "target")
    for name in ("config.json", "model.safetensors"):
        first, second = ((tmp_path / folder / name) for folder in ("deepspec", "back"))
        assert first.read_bytes() == second.read_bytes(), name


def wild(folder: Path, drafter: Drafter, **changes: Any) -> Path:
    """As speculators writes it: depth untold, ends left out, one name more."""
    flat = drafter.config.to_dict()
    mine = ("markov_rank", "markov_head_type", "enable_confidence_head")
    mine += ("confidence_head_with_markov", "block_size", "mask_token_id")
    drop = {*mine, "target_layer_ids", "num_target_layers", "architectures", "num_anchors"}
    value = {
        "architectures": ["DSparkDraftModel"],
        "speculators_model_type": "dspark",
        "aux_hidden_state_layer_ids": [1, 2],
        "draft_vocab_size": drafter.config.vocab_size,
        "sample_from_anchor": True,
        "transformer_layer_config": {k: v for k, v in flat.items() if k not in drop},
        **{key: flat[key] for key in mine},
        **changes,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(value))
    tensors = {n: t for n, t in drafter.state_dict().items() if "embed" not in n and "lm_" not in n}
    tensors["verifier_norm.weight"] = torch.ones(4)
    save_file({n: t.clone() for n, t in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.law
def test_what_speculators_writes_loads_with_a_target(
    pair: tuple[Target, Drafter], tmp_path: Path
) -> None:
    target, drafter = pair
    folder = wild(tmp_path / "wild", drafter)
    assert rounds(target, load_drafter(folder, target=target)) == rounds(target, drafter)
    with pytest.raises(ValueError, match="does not say how many layers its target has"):
        load_drafter(folder)
    reduced = wild(tmp_path / "reduced", drafter, draft_vocab_size=12)
    with pytest.raises(ValueError, match="draft_vocab_size 12 of 40: drafters of a reduced"):
        load_drafter(reduced, target=target)
    tensors = load_file(folder / "model.safetensors") | {"d2t": torch.zeros(40)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="'d2t': drafters of a reduced vocabulary"):
        load_drafter(folder, target=target)


@pytest.mark.law
def test_a_drafter_that_proposes_nothing_from_its_anchor_is_read_so(tmp_path: Path) -> None:
    """gamma is one less than its slots, in every convention that can say it."""
    target = tiny_target()
    first = tiny_drafter(target)
    config = dataclasses.replace(first.config, sample_from_anchor=False)
    drafter = Drafter(config, embed=target.embed_weight, lm_head=target.lm_head_weight)
    drafter.load_state_dict(first.state_dict())
    assert (drafter.config.gamma, first.config.gamma) == (3, 4)
    wanted = rounds(target, drafter)
    assert wanted != rounds(target, first)
    save_drafter(drafter, tmp_path / "own")
    assert rounds(target, load_drafter(tmp_path / "own")) == wanted
    for to in ("generic", "speculators"):
        convert(tmp_path / "own", tmp_path / to, to=to)
        assert rounds(target, load_drafter(tmp_path / to, target=target)) == wanted
    with pytest.raises(ValueError, match=r"this one does not \(sample_from_anchor false"):
        convert(tmp_path / "own", tmp_path / "deepspec", to="deepspec")
    value = json.loads((tmp_path / "own" / "config.json").read_text()) | {"block_size": 1}
    (tmp_path / "own" / "config.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match="block_size 1 without sample_from_anchor proposes noth"):
        load_drafter(tmp_path / "own")


@pytest.mark.law
def test_the_slots_after_the_anchors_are_those_of_a_longer_block() -> None:
    target = tiny_target()
    long = tiny_drafter(target)
    short = Drafter(
        dataclasses.replace(long.config, sample_from_anchor=False),
        embed=target.embed_weight,
        lm_head=target.lm_head_weight,
    )
    short.load_state_dict(long.state_dict())
    random = torch.Generator().manual_seed(3)
    arguments = {
        "context_BSD": torch.randn(2, 9, 32, generator=random),
        "anchor_tokens_BA": torch.tensor([[3, 5], [7, 9]]),
        "anchor_index_BA": torch.tensor([[2, 9], [0, 5]]),
    }
    torch.testing.assert_close(short.hidden(**arguments), long.hidden(**arguments)[:, :, 1:])


@pytest.mark.law
def test_a_target_s_subfolder_is_its_drafter_s(
    pair: tuple[Target, Drafter], tmp_path: Path
) -> None:
    target, drafter = pair
    assert isinstance(target.model, Qwen3ForCausalLM)
    target.model.save_pretrained(tmp_path)
    save_drafter(drafter, tmp_path / "dspark", include_shared=False)
    assert rounds(target, load_drafter(tmp_path, target=target)) == rounds(target, drafter)
    save_drafter(drafter, tmp_path / "other")
    save_drafter(drafter, tmp_path / "other" / "dspark")
    with pytest.raises(ValueError, match="is a drafter and has another in dspark/"):
        load_drafter(tmp_path / "other")


def flat(**changes: Any) -> dict[str, Any]:
    return {**reference_config("qwen3"), **changes}


@pytest.mark.example
def test_nested_keys_count_and_the_second_block_wins() -> None:
    value = flat(architectures=["DSparkDraftModel"], mask_token_id=None, target_layer_ids=None)
    value["dflash_config"] = {"mask_token_id": 60, "target_layer_ids": [1, 3], "mask_token": "<m>"}
    value["dspark_config"] = {"mask_token_id": 61}
    read = flat_config(value, where="x").value
    assert (read["mask_token_id"], read["target_layer_ids"]) == (61, [1, 3])
    assert read["architectures"] == ["Qwen3DSparkModel"]
    assert not {"dflash_config", "dspark_config"} & set(read)


CASE_13 = [
    (flat(dflash_config={"block_size": 8}), "block_size is 5, but 8 in a nested block"),
    (flat(dspark_config={"mask_token_id": 3}), "mask_token_id is 66, but 3 in a nested block"),
    (flat(dflash_config={"selector_rank": 4}), "dflash_config.selector_rank is not supported"),
    (flat(dflash_config=[1]), r"dflash_config is \[1\]; it must be an object"),
    (flat(speculators_model_type="eagle3"), "speculators_model_type 'eagle3' is no DSpark"),
    (flat(speculators_model_type="dspark"), "transformer_layer_config is missing"),
    (
        flat(speculators_model_type="dspark", transformer_layer_config={"hidden_size": 24}),
        "transformer_layer_config is cut short",
    ),
    (flat(architectures=["DSparkMiniMaxDraftModel"]), "for MiniMax targets, which are not"),
    (flat(architectures=["LlamaForCausalLM"]), "is a target without a drafter in it"),
    (flat(architectures=["Qwen3Model"]), "its first must be one of Qwen3DSparkModel"),
    (
        flat(architectures=["DSparkDraftModel"], model_type="llama"),
        "DSparkDraftModel of model_type 'llama' is unknown; known: qwen3, gemma4_text",
    ),
]


@pytest.mark.law
@pytest.mark.parametrize(("value", "reason"), CASE_13, ids=[reason for _, reason in CASE_13])
def test_a_config_of_two_minds_is_refused(
    value: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match=reason):
        load_drafter(tmp_path)


@pytest.mark.law
def test_what_a_convention_cannot_say_is_refused(
    pair: tuple[Target, Drafter], tmp_path: Path
) -> None:
    target, drafter = pair
    save_drafter(drafter, tmp_path / "a")
    for to in ("folder", "bundle"):
        with pytest.raises(ValueError, match="only DeepSeek-V4's drafter can be a"):
            convert(tmp_path / "a", tmp_path / "b", to=to)
    with pytest.raises(ValueError, match="exists already"):
        convert(tmp_path / "a", tmp_path / "a", to="generic")
    save_drafter(tiny_drafter(target, head="rnn"), tmp_path / "rnn")
    with pytest.raises(ValueError, match="speculators' Markov head is vanilla, this one is rnn"):
        convert(tmp_path / "rnn", tmp_path / "b", to="speculators")
    assert not (tmp_path / "b").exists()
