"""Beginning from another checkpoint: a DFlash backbone gets fresh heads, the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sglang_dspark.draft.training.train import main as train
from tests.draft.tiny_target import make_samples, make_target, train_settings

SHAPE = {"depth": 1, "gamma": 4, "num_anchors": 6}


@pytest.mark.law
def test_a_dflash_backbone_is_taken_over_and_a_stranger_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = make_target(tmp_path / "target")
    samples = make_samples(target, tmp_path / "samples.jsonl")

    def run(name: str, expected: str = "", **changes: object) -> Path:
        value = train_settings(target, samples, tmp_path / name, epochs=1) | changes
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
        words = ["--config", str(tmp_path / f"{name}.json")]
        if expected:
            with pytest.raises(ValueError, match=expected):
                train(words)
        else:
            train(words)
        return tmp_path / name / "step_6"

    first = run("dflash", kind="dflash", drafter=SHAPE)
    # As z-lab writes it: nested keys, slots that predict their own token.
    value = json.loads((first / "config.json").read_text())
    nested = {key: value.pop(key) for key in ("target_layer_ids", "mask_token_id")}
    value |= {"architectures": ["DFlashDraftModel"], "dflash_config": nested}
    (first / "config.json").write_text(json.dumps(value))
    small = {**SHAPE, "markov_rank": 8}
    warm = run("warm", drafter=small, start=str(first), learning_rate=1e-12)
    begun, ended = (load_file(folder / "model.safetensors") for folder in (first, warm))
    for name, tensor in begun.items():
        assert (ended[name] - tensor).abs().max() < 1e-6, name
    assert {name for name in ended if name not in begun} == {
        "confidence_head.proj.bias",
        "confidence_head.proj.weight",
        "markov_head.markov_w1.weight",
        "markov_head.markov_w2.weight",
    }
    deep = {**small, "depth": 2}
    run("deep", "give drafter the depth and width", drafter=deep, start=str(first))
    other = {**small, "target_layer_ids": [0, 1]}
    run("other", r"captures layers \[0, 1, 2\], this run \[0, 1\]", drafter=other, start=str(first))
    # The run is tied to what it began from.
    run("warm", "begun with start", drafter=small, start=str(warm), learning_rate=1e-12)
