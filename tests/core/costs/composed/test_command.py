"""``dspark prices build``: what it writes and says, and every wrong input in one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sglang_dspark.commands import main
from sglang_dspark.core.costs.composed.package import hub_configs
from sglang_dspark.core.costs.library import load_cost_model

pytest.importorskip("aiconfigurator_core", reason="the extra operators is not installed")

QWEN = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16",
    "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 32000,
    "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip


def build(*flags: str) -> int:
    return main(["prices", "build", *flags])


@pytest.mark.example
def test_a_config_becomes_a_cost_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny").mkdir()
    config = tmp_path / "tiny" / "config.json"
    config.write_text(json.dumps(QWEN))
    out = tmp_path / "mine.json"
    assert build("--model", str(config), "--gpu", "h100", "--gamma", "4", "-o", str(out)) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("mine: tiny on 1x H100 SXM 80GB, bfloat16; KV bfloat16\n")
    assert "32 requests, 160 tokens, no context: " in said.out
    assert said.out.endswith(f"written: {out}\n")
    model = load_cost_model(out)
    assert model.provenance.origin == "composed"
    assert model.draft is not None
    assert model.draft.gamma == 4


WRONG = [
    ({"--model": "qwen3-14"}, "--model 'qwen3-14' is not known; did you mean 'qwen3-14b'?"),
    ({"--model": "Qwen/Qwen3-80B"}, "is not known; did you mean 'Qwen/Qwen3-"),
    ({"--gpu": "h2000"}, "--gpu 'h2000' is not known; did you mean 'h200'?"),
    ({"--dtype": "bf16"}, "--dtype 'bf16' is not known; "),
    ({"--dtype": "fp8_blok"}, "did you mean 'fp8_block'?"),
    ({"--dtype": "nvfp4"}, "cannot be priced on H200 SXM 141GB"),
    ({"--kv-dtype": "fp9"}, "--kv-dtype 'fp9' is not known; did you mean 'fp8'?"),
    ({"--engine": "sglan"}, "--engine 'sglan' is not known; did you mean 'sglang'?"),
    ({"--drafter": "eagle"}, "--drafter 'eagle' is not known; use one of dspark, stages, mtp"),
    ({"--gamma": "0"}, "--gamma 0 must be at least 1"),
    ({"--tp": "0"}, "--tp 0 must be at least 1"),
    ({"--tp": "4", "--ep": "3"}, "--ep 3 must divide --tp 4"),
    ({"--tp": "3"}, "num_heads 40 should be divisible by tp_size 3"),
    ({"--model": "llama-3.1-70b"}, "do not fit 0.88 of 1 x 141 GB (H200 SXM 141GB); --tp 2 would"),
    ({"--model": "absent.json"}, "absent.json: cannot read: No such file"),
]


@pytest.mark.example
@pytest.mark.parametrize(("flags", "sentence"), WRONG)
def test_wrong_input_is_one_sentence_and_no_file(
    flags: dict[str, str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    asked = {"--model": "qwen3-14b", "--gpu": "h200", "-o": str(out)} | flags
    assert build(*(word for pair in asked.items() for word in pair)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("dspark prices build: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.example
@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("hidden_size", None, "hidden_size is missing; give the model's own config.json"),
        ("num_hidden_layers", "4", "num_hidden_layers '4' is no whole number above 0"),
        ("vocab_size", 0, "vocab_size 0 is no whole number above 0"),
        ("architectures", None, "architectures is missing"),
        ("architectures", ["FooForCausalLM"], "FooForCausalLM"),
    ],
)
def test_a_config_that_lacks_something_says_what(
    field: str, value: object, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**QWEN, field: value}
    if value is None:
        del config[field]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert build("--model", str(path), "--gpu", "h200", "-o", str(tmp_path / "out.json")) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


@pytest.mark.example
def test_a_drafters_config_that_lacks_something_says_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "drafter.json"
    path.write_text(json.dumps(QWEN))  # a target's: no block_size
    assert build("--model", "qwen3-4b", "--gpu", "h200", "--drafter", str(path)) == 2
    assert f"{path}: block_size is missing" in capsys.readouterr().err


@pytest.mark.law
def test_it_writes_onto_no_input_and_over_no_other_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(QWEN))
    asked = ("--model", str(config), "--gpu", "h200", "--drafter", "none")
    assert build(*asked, "-o", str(config), "--force") == 2
    assert json.loads(config.read_text()) == QWEN
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    assert build(*asked, "-o", str(mine)) == 2
    assert "give --force or another name" in capsys.readouterr().err
    assert mine.read_text() == "{}"
    assert build(*asked, "-o", str(mine), "--force") == 0
    assert build(*asked, "-o", str(mine)) == 0  # the same bytes again


@pytest.mark.example
def test_without_the_extra_it_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"aiconfigurator_core": "operators"}
    monkeypatch.setattr("sglang_dspark.extras.extras", lambda: known)
    for name in [name for name in sys.modules if name.partition(".")[0] == "aiconfigurator_core"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)
    assert build("--model", "qwen3-4b", "--gpu", "h200") == 2
    assert capsys.readouterr().err == (
        "dspark prices build: the package aiconfigurator_core is not installed; "
        "pip install 'sglang-dspark[operators]' (in a checkout: pip install -e '.[operators]')\n"
    )


@pytest.mark.law
def test_every_name_that_the_package_brings_is_one_it_does_not_ask_the_hub_for() -> None:
    from aiconfigurator_core.sdk.common import DefaultHFModels

    assert len(hub_configs()) > 50
    assert set(hub_configs()) <= set(DefaultHFModels)
