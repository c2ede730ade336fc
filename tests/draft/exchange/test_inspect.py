"""What inspect tells of a checkpoint: each thing that is wrong, and of a good one nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_dspark.commands import run
from sglang_dspark.draft.exchange.convert import convert
from sglang_dspark.draft.exchange.inspect import inspected
from sglang_dspark.draft.model.checkpoint import save_drafter
from tests.draft import independent_v4 as plain
from tests.draft.tiny_pairs import tiny_drafter, tiny_target

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter whose weights have moved from where they began, and its target beside it."""
    folder = tmp_path_factory.mktemp("good")
    target = tiny_target()
    drafter = tiny_drafter(target)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=random)).add_(0.01)
    drafter.embed_tokens.weight.data = target.embed_weight.clone()
    drafter.lm_head.weight.data = target.lm_head_weight.clone()
    save_drafter(drafter, folder / "drafter")
    target.model.save_pretrained(folder / "target")
    return folder


def changed(
    good: Path,
    out: Path,
    *,
    config: Callable[[dict[str, Any]], object] = lambda value: None,
    weights: Callable[[Tensors], object] = lambda tensors: None,
) -> Path:
    out.mkdir()
    value = json.loads((good / "drafter" / "config.json").read_text())
    tensors = load_file(good / "drafter" / "model.safetensors")
    config(value)
    weights(tensors)
    (out / "config.json").write_text(json.dumps(value))
    save_file(tensors, out / "model.safetensors")
    return out


@pytest.mark.law
def test_of_a_good_drafter_there_is_nothing_to_say(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(good / "drafter"), "--target", str(good / "target"), "--block-size", "4"]
    assert run("draft inspect", arguments) == 0
    said = capsys.readouterr().out
    assert "nothing suspicious" in said
    assert "gamma 4 (block_size 4), 1 layers, captures [0, 1], mask 39" in said
    assert "Markov vanilla of rank 8, confidence" in said
    assert "yes  DeepSpec: from_pretrained" in said
    assert run("draft inspect", [*arguments, "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["convention"], about["suspicious"]) == ("DeepSpec: flat keys", [])
    assert {one["loads"] for one in about["loaders"]} == {True}


def fill(value: float, *parts: str) -> Callable[[Tensors], None]:
    """Every own tensor whose name has one of the parts."""

    def change(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if any(part in name for part in parts) and "embed" not in name and "lm_" not in name:
                tensor.fill_(value)

    return change


def fresh_markov(tensors: Tensors) -> None:
    random = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if "markov" in name:
            noise = torch.randn(tensor.shape, generator=random)
            tensor.copy_(0.02 * (noise - noise.mean()) / noise.std())


def set_keys(**keys: Any) -> Callable[[dict[str, Any]], object]:
    return lambda value: value.update(keys)


def halves(*parts: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if any(part in name for part in parts):
                tensors[name] = tensor.half()

    return change


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "norms of 1": ({"weights": fill(1.0, "norm")}, "norm weights are exactly 1.0: it was never"),
    "weights of 0": (
        {"weights": fill(0.0, "weight")},
        "all of its own weights are 0: it was never trained",
    ),
    "Markov head of 0": ({"weights": fill(0.0, "markov_w2")}, "Markov head is 0 and biases noth"),
    "fresh Markov head": ({"weights": fresh_markov}, "as fresh ones do: the head was not trained"),
    "constant confidence": (
        {"weights": fill(0.0, "confidence_head")},
        "its confidence head is constant",
    ),
    "mask token is eos": ({"config": set_keys(eos_token_id=39)}, "is the target's eos_token_id"),
    "two dtypes": ({"weights": halves("mlp")}, "matrices have float16 and float32: save them"),
    "float16": ({"weights": halves("weight")}, "stored as float16, targets compute in bfloat16"),
    "layers not ascending": (
        {"config": set_keys(target_layer_ids=[1, 0])},
        r"captured layers \[1, 0\] do not ascend",
    ),
    "another convention": (
        {"config": set_keys(sample_from_anchor=False)},
        "slot 0 proposes nothing; taken for DeepSpec's",
    ),
    "no Markov head": (
        {
            "config": lambda v: v.update(markov_rank=0, enable_confidence_head=False),
            "weights": lambda t: [t.pop(n) for n in list(t) if "_head." in n and n[0] != "l"],
        },
        "it has no Markov head: SGLang refuses",
    ),
}


@pytest.mark.law
@pytest.mark.parametrize("name", CASES)
def test_what_is_suspicious_is_named(name: str, good: Path, tmp_path: Path) -> None:
    changes, said = CASES[name]
    about = inspected(changed(good, tmp_path / "c", **changes))
    assert len(about["suspicious"]) == 1, about["suspicious"]
    assert re.search(said, about["suspicious"][0])


@pytest.mark.law
def test_flag_and_file_are_compared(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("draft inspect", [str(good / "drafter"), "--block-size", "7"]) == 1
    assert "its block_size is 4, the flag says 7" in capsys.readouterr().out
    assert run("draft inspect", [str(good / "drafter"), "--block-size", "0"]) == 2


@pytest.mark.law
def test_copied_layers_and_a_stranger_s_embedding_are_told(good: Path, tmp_path: Path) -> None:
    def twice(tensors: Tensors) -> None:
        for name in list(tensors):
            if name.startswith("layers.0."):
                tensors[name.replace("layers.0.", "layers.1.")] = tensors[name].clone()
        tensors["embed_tokens.weight"] += 1

    folder = changed(
        good,
        tmp_path / "c",
        config=set_keys(num_hidden_layers=2, layer_types=["full_attention"] * 2),
        weights=twice,
    )
    says = inspected(folder, target=good / "target")["suspicious"]
    assert len(says) == 2
    assert "its 2 layers are copies of one another" in says[0]
    assert "its embed_tokens.weight is not the target's" in says[1]


@pytest.mark.law
def test_every_convention_is_named_with_who_loads_it(good: Path, tmp_path: Path) -> None:
    found = {}
    for to in ("generic", "speculators"):
        convert(good / "drafter", tmp_path / to, to=to)
        about = inspected(tmp_path / to)
        assert about["suspicious"] == []
        found[to] = [one["loads"] for one in about["loaders"]]
    assert found == {
        "generic": [False, True, True, True],
        "speculators": [False, False, True, True],
    }


@pytest.mark.law
def test_a_bundled_drafter_is_told_and_turned_into_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = plain.bundled_config(n_routed_experts=2, num_experts_per_tok=1)
    stored, _ = plain.quantise(plain.random_weights(config), config)
    folder = plain.write(tmp_path / "v4", config, stored)
    about = inspected(folder)
    assert about["convention"].startswith("DeepSeek-V4: dspark_* keys")
    assert (about["gamma"], about["layers"], about["captured"]) == (5, 3, [2, 4, 5])
    assert [one["loads"] for one in about["loaders"]] == [False, True, False, True]
    assert about["suspicious"] == [
        "it is quantised: it is made plain on reading and cannot be trained in place"
    ]
    assert run("draft convert", [str(folder), str(tmp_path / "own"), "--to", "folder"]) == 0
    assert inspected(tmp_path / "own")["suspicious"] == []
    assert run("draft convert", [str(folder), str(tmp_path / "x"), "--to", "generic"]) == 2
    assert "is DeepSeek-V4's own kind" in capsys.readouterr().err


@pytest.mark.law
def test_what_is_no_drafter_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("draft inspect", [str(tmp_path / "nowhere")]) == 2
    assert "no such checkpoint folder" in capsys.readouterr().err
    assert run("draft inspect", [str(tmp_path)]) == 2
    assert "config.json: cannot read" in capsys.readouterr().err
