"""Checkpoints: the published layout loads and computes the same, defects are refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from sglang_dspark.draft.model import recipes, tensors
from sglang_dspark.draft.model.checkpoint import (
    build_drafter,
    drafter_for,
    load_drafter,
    save_drafter,
)
from sglang_dspark.draft.model.model import Drafter
from sglang_dspark.draft.model.target import Target
from tests.draft import independent
from tests.draft.independent import reference_config, reference_weights

TOLERANCE = 1e-5


def publish(folder: Path, raw: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    """A checkpoint folder in the published layout, not written by the package."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(raw, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def published(folder: Path, family: str = "qwen3", **changes: Any) -> Path:
    raw = reference_config(family, **changes)
    return publish(folder, raw, reference_weights(raw))


HEADS = [
    {"markov_head_type": "vanilla"},
    {"markov_head_type": "gated"},
    {"markov_head_type": "rnn"},
    {"markov_rank": 0, "enable_confidence_head": False},
    {"confidence_head_with_markov": False},
]


@pytest.mark.law
@pytest.mark.parametrize("family", ["qwen3", "gemma4"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("more", [{}, {"attention_k_eq_v": False}])
def test_a_published_checkpoint_computes_what_the_plain_implementation_does(
    family: str, head: dict[str, Any], more: dict[str, Any], tmp_path: Path
) -> None:
    raw = reference_config(family, **head, **more)
    weights = reference_weights(raw, seed=7)
    drafter = load_drafter(publish(tmp_path / "step_1", raw, weights))
    assert isinstance(drafter, Drafter)
    random = torch.Generator().manual_seed(8)
    captured = torch.randn(1, 14, 3 * 24, generator=random)
    anchors, index = [5, 60, 31], [0, 6, 14]
    previous = torch.randint(0, 67, (3, 5), generator=random)
    with torch.no_grad():
        context = drafter.context(captured_BSC=captured)
        hidden = drafter.hidden(
            context_BSD=context,
            anchor_tokens_BA=torch.tensor([anchors]),
            anchor_index_BA=torch.tensor([index]),
        )[0]
        logits, confidence = drafter.logits(hidden_NKD=hidden, previous_NK=previous)
    plain_context = independent.context(weights, captured[0], raw)
    assert (context[0] - plain_context).abs().max() < TOLERANCE
    for a, (token, place) in enumerate(zip(anchors, index, strict=True)):
        states = independent.block(weights, plain_context, token, place, raw)
        assert (hidden[a] - states).abs().max() < TOLERANCE
        wanted, wanted_confidence = independent.heads(weights, states, previous[a].tolist(), raw)
        assert (logits[a] - wanted).abs().max() < TOLERANCE
        assert (confidence is None) == (wanted_confidence is None)
        if confidence is not None and wanted_confidence is not None:
            assert (confidence[a] - wanted_confidence).abs().max() < TOLERANCE


@pytest.mark.law
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "gemma4"])
def test_loading_and_saving_gives_the_same_bytes(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    raw = reference_config(family, markov_head_type="gated")
    weights = {name: tensor.to(dtype) for name, tensor in reference_weights(raw).items()}
    first = publish(tmp_path / "theirs", raw, weights)
    save_drafter(load_drafter(first), tmp_path / "ours")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (first / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def edit(folder: Path, **changes: Any) -> None:
    """Change config.json's keys."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder: Path, change: Any) -> None:
    """Change the tensors."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def truncate(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - keep)


def with_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.1.mlp.up_proj.weight"][3, 3] = float("nan")


DEFECTS: list[tuple[Any, str]] = [
    (lambda f: rewrite(f, lambda t: t.pop("fc.weight")), r"tensor 'fc.weight' is missing \(1 "),
    (lambda f: rewrite(f, lambda t: t.pop("lm_head.weight")), "'lm_head.weight' is missing; give"),
    (lambda f: rewrite(f, lambda t: t.update(x=torch.ones(1))), "tensor 'x' is unexpected"),
    (
        lambda f: rewrite(f, lambda t: t.update({"norm.weight": torch.ones(25)})),
        r"'norm.weight' has shape \[25\], config.json asks for \[24\]",
    ),
    (
        lambda f: rewrite(f, lambda t: t.update({"norm.weight": torch.ones(24).int()})),
        "'norm.weight' is torch.int32; quantised",
    ),
    (lambda f: rewrite(f, with_nan), "'layers.1.mlp.up_proj.weight' has NaN or infinite"),
    (lambda f: edit(f, markov_head_type="gated"), "'markov_head.gate_proj.bias' is missing"),
    (lambda f: edit(f, enable_confidence_head=False), "'confidence_head.proj.bias' is unexpected"),
    (lambda f: edit(f, num_hidden_layers=1), "'layers.1.input_layernorm.weight' is unexpected"),
    (lambda f: edit(f, target_layer_ids=[0, 1]), r"'fc.weight' has shape \[24, 72\]"),
    (lambda f: edit(f, mask_token_id=67), "mask_token_id 67 is outside the vocabulary of 67"),
    (lambda f: edit(f, target_layer_ids=[0, 1, 5]), "captures the target's last layer 5"),
    (lambda f: edit(f, markov_head_type="lstm"), "'lstm' is unknown"),
    (lambda f: edit(f, architectures=["Qwen4DSparkModel"]), "Qwen4DSparkModel"),
    (lambda f: truncate(f, 10), "not a complete safetensors file"),
    (lambda f: (f / "model.safetensors").write_bytes(b""), "not a complete safetensors file"),
    (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors: no such file"),
    (lambda f: (f / "config.json").unlink(), r"config\.json: cannot read"),
    (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
]


@pytest.mark.example
@pytest.mark.parametrize(("break_it", "reason"), DEFECTS)
def test_every_defect_is_refused_in_one_sentence_that_names_the_place(
    break_it: Any, reason: str, tmp_path: Path
) -> None:
    folder = published(tmp_path / "step_1")
    load_drafter(folder)  # it was sound
    break_it(folder)
    with pytest.raises(ValueError, match=reason) as caught:
        load_drafter(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.example
def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such checkpoint folder"):
        load_drafter(tmp_path / "step_9")


# Targets.


def target_of(**changes: Any) -> Target:
    torch.manual_seed(0)
    text = recipes.laptop_target(vocab_size=67, hidden=64, layers=6) | changes
    return Target.from_model(Qwen3ForCausalLM(Qwen3Config(**text)))


@pytest.mark.example
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab_size": 68}, "vocab_size is 67 but the target has 68"),
        ({"num_hidden_layers": 7}, "num_target_layers is 6 but the target has 7"),
        ({"hidden_size": 32}, "hidden_size is 64 but the target has 32"),
    ],
)
def test_a_drafter_of_another_target_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    config = recipes.dspark(
        recipes.laptop_target(vocab_size=67, hidden=64, layers=6), mask_token_id=66, depth=1
    )
    save_drafter(build_drafter(config), tmp_path / "step_1")
    load_drafter(tmp_path / "step_1", target=target_of())
    with pytest.raises(ValueError, match=reason):
        load_drafter(tmp_path / "step_1", target=target_of(**changes))
    with pytest.raises(ValueError, match=reason):
        drafter_for(config, target_of(**changes))


@pytest.mark.example
def test_a_drafter_of_another_family_is_refused(tmp_path: Path) -> None:
    folder = published(tmp_path / "gemma", "gemma4", hidden_size=64, final_logit_softcapping=None)
    with pytest.raises(ValueError, match="for gemma4_text or gemma4_unified_text targets"):
        load_drafter(folder, target=target_of())


@pytest.mark.example
def test_embedding_and_lm_head_are_optional_when_the_target_lends_them(tmp_path: Path) -> None:
    target = target_of()
    config = recipes.dspark(
        recipes.laptop_target(vocab_size=67, hidden=64, layers=6), mask_token_id=66, depth=1
    )
    drafter = drafter_for(config, target)
    save_drafter(drafter, tmp_path / "small", include_shared=False)
    save_drafter(drafter, tmp_path / "whole")  # tied embeddings: stored twice all the same
    assert set(load_file(tmp_path / "whole" / "model.safetensors")) - set(
        load_file(tmp_path / "small" / "model.safetensors")
    ) == {"embed_tokens.weight", "lm_head.weight"}
    with pytest.raises(ValueError, match="give the target, whose copy will be used"):
        load_drafter(tmp_path / "small")
    for folder, share in (("small", False), ("whole", True)):
        loaded = load_drafter(tmp_path / folder, target=target, share=share)
        assert loaded.lm_head.weight.data_ptr() == target.lm_head_weight.data_ptr()
        assert loaded.embed_tokens.weight.data_ptr() == target.embed_weight.data_ptr()
        assert not loaded.lm_head.weight.requires_grad
        assert loaded.fc.weight.requires_grad
    own = load_drafter(tmp_path / "whole", target=target)
    assert own.lm_head.weight.data_ptr() != target.lm_head_weight.data_ptr()
    assert torch.equal(own.lm_head.weight, target.lm_head_weight)


@pytest.mark.example
def test_a_sharded_checkpoint_loads(tmp_path: Path) -> None:
    folder = published(tmp_path / "step_1")
    whole = load_drafter(folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, tensor in load_drafter(folder).state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
    (folder / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"b\.safetensors: no such file"):
        load_drafter(folder)


@pytest.mark.law
def test_a_crash_while_writing_leaves_the_old_checkpoint_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = published(tmp_path / "step_1")
    before = (folder / "model.safetensors").read_bytes()
    drafter = load_drafter(folder)
    with torch.no_grad():
        drafter.norm.weight.add_(1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(ValueError, match=r"cannot write the checkpoint: No space left"):
        save_drafter(drafter, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]
    monkeypatch.undo()
    save_drafter(drafter, folder)
    assert torch.equal(load_drafter(folder).norm.weight, drafter.norm.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]


@pytest.mark.example
def test_a_dtype_can_be_asked_for(tmp_path: Path) -> None:
    loaded = load_drafter(published(tmp_path / "step_1"), dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert not loaded.training
