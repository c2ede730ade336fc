"""A DeepSeek-V4 drafter trains by the same commands: online or cached, killed or not, the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sglang_dspark.draft.data.cache import main as cache
from sglang_dspark.draft.data.fingerprint import file_sha256
from sglang_dspark.draft.data.prompts import write_prompts
from sglang_dspark.draft.evaluation.evaluate import main as evaluate
from sglang_dspark.draft.model.checkpoint import load_drafter
from sglang_dspark.draft.model.deepseek_v4.drafter import BundledDrafter
from sglang_dspark.draft.training.pretrain import TargetRecipe, save_target, small_target
from sglang_dspark.draft.training.train import main as train
from tests.draft.tiny_target import make_samples, start, tiny_corpus, train_settings
from tests.draft.training.test_resume import kill_when, lines


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with target, prompts and samples."""
    folder = tmp_path_factory.mktemp("v4")
    corpus = tiny_corpus()
    recipe = TargetRecipe(hidden=64, family="deepseek_v4")
    model = small_target(recipe, vocabulary=320, eos=corpus.tokenizer.eos_token_id)
    save_target(model, corpus.tokenizer, folder / "target")
    write_prompts(folder / "prompts.jsonl", corpus.prompts[:8])
    make_samples(folder / "target", folder / "samples.jsonl", max_tokens=16)
    return folder


def settings(made: Path, out: Path, data: Path) -> list[str]:
    drafter = {"depth": 2, "markov_rank": 8, "gamma": 3, "num_anchors": 4}
    value = train_settings(
        made / "target", data, out, kind="dspark5", drafter=drafter, epochs=8, save_every=2
    )
    file = out.with_suffix(".json")
    file.write_text(json.dumps(value))
    return ["--config", str(file)]


@pytest.mark.law
def test_killed_or_cached_it_ends_in_the_same_weights(made: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole, broken, cached = (tmp_path / name for name in ("whole", "broken", "cached"))
    train(settings(made, whole, made / "samples.jsonl"))
    again = settings(made, broken, made / "samples.jsonl")
    running = start("sglang_dspark.draft.train", *again)
    kill_when(running, lambda: lines(broken / "metrics.jsonl") > 4)
    train(again)
    assert file_sha256(broken / "step_16" / "model.safetensors") == file_sha256(
        whole / "step_16" / "model.safetensors"
    )
    store = [str(made / "samples.jsonl"), "--target", str(made / "target"), "--batch", "4"]
    cache([*store, "--out", str(tmp_path / "states"), "--layers", "3", "4"])
    train(settings(made, cached, tmp_path / "states"))
    one, other = (load_drafter(folder / "step_16") for folder in (whole, cached))
    assert isinstance(one, BundledDrafter)
    assert one.config.target_layer_ids == (3, 4)
    assert other.config == one.config
    reports, theirs = (
        [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, cached)
    )
    for mine, cached_report in zip(reports, theirs, strict=True):
        assert mine["total"] == pytest.approx(cached_report["total"], rel=1e-3)
    assert reports[-1]["total"] < reports[0]["total"]


@pytest.mark.law
def test_what_is_trained_is_evaluated_and_lossless(made: Path, tmp_path: Path) -> None:
    train(settings(made, tmp_path / "run", made / "samples.jsonl"))
    drafter = tmp_path / "run" / "step_16"
    words = [str(made / "prompts.jsonl"), "--target", str(made / "target"), "-o"]
    words += [str(tmp_path / "eval"), "--drafter", str(drafter), "--new-tokens", "6"]
    evaluate(words)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["gamma"] == 3
    assert metrics["confidence_source"] == "head"
    config = json.loads((drafter / "config.json").read_text())
    theirs = json.loads((made / "target" / "config.json").read_text())
    assert {k: v for k, v in config.items() if "dspark_" not in k} == theirs
    value = train_settings(made / "target", made / "samples.jsonl", tmp_path / "e")
    (tmp_path / "e.json").write_text(json.dumps(value | {"kind": "eagle3", "drafter": {}}))
    with pytest.raises(ValueError, match="has no kind for DeepSeek-V4; use dspark"):
        train(["--config", str(tmp_path / "e.json")])
