"""Training: what is drawn, what a step adds up to, that drafters learn, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.stats import chisquare
from torch import nn

from sglang_dspark.cli import run_command
from sglang_dspark.draft.data.anchors import (
    Plan,
    draw_anchors,
    make_blocks,
    micro_batches,
    slot_counts,
)
from sglang_dspark.draft.data.cache import main as cache
from sglang_dspark.draft.data.states import Span
from sglang_dspark.draft.model.checkpoint import load_drafter
from sglang_dspark.draft.model.target import Target
from sglang_dspark.draft.training.config import TrainConfig
from sglang_dspark.draft.training.optim import FlatAdamW, Schedule
from sglang_dspark.draft.training.train import main, train
from sglang_dspark.files import decode_record
from tests.draft.tiny_target import make_samples, make_target, train_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = make_target(tmp_path_factory.mktemp("train") / "target")
    make_samples(target, target.parent / "samples.jsonl")
    return target


def run(folder: Path, out: Path, **changes: Any) -> tuple[Path, list[dict[str, Any]]]:
    """(final checkpoint, metrics) of a run of a second or two."""
    data = changes.pop("data", folder.parent / "samples.jsonl")
    value = train_settings(folder, data, out, **changes)
    checkpoint = train(decode_record(value, TrainConfig, where="test"), quiet=True)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return checkpoint, [json.loads(line) for line in lines]


def furthest(left: Path, right: Path) -> float:
    """Largest difference between two checkpoints' weights."""
    one, other = (load_file(path / "model.safetensors") for path in (left, right))
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# Draws.

spans = st.builds(
    lambda prompt, answer: Span(prompt_tokens=prompt, tokens=prompt + answer),
    st.integers(1, 30),
    st.integers(2, 60),
)


@pytest.mark.law
@given(st.lists(spans, min_size=1, max_size=5), st.integers(1, 20), st.integers(1, 9))
def test_blocks_are_inside_the_answer_and_counted_right(
    rows: list[Span], count: int, gamma: int
) -> None:
    anchors = [
        draw_anchors(span, count=count, seed=1, epoch=2, number=i) for i, span in enumerate(rows)
    ]
    for span, row in zip(rows, anchors, strict=True):
        assert len(row) == min(count, span.tokens - 1 - span.prompt_tokens)
        assert (np.diff(row) > 0).all()
        assert span.prompt_tokens <= row.min() <= row.max() <= span.tokens - 2
    blocks = make_blocks(anchors, rows, gamma=gamma)
    assert int(blocks.real_BA.sum()) == len(blocks.row_N) == sum(len(row) for row in anchors)
    assert bool((blocks.anchor_index_BA.diff(dim=1) >= 0).all())
    counts = slot_counts(anchors, rows, gamma=gamma)
    assert blocks.weights_NK.sum(0).tolist() == counts.tolist()
    flat = [(i, a) for i, row in enumerate(anchors) for a in row.tolist()]
    for block, (row_number, anchor) in enumerate(flat):
        assert int(blocks.row_N[block]) == row_number
        last = rows[row_number].tokens - 1
        for k in range(gamma):
            labelled = anchor + k + 1 <= last
            assert bool(blocks.weights_NK[block, k]) == labelled
            assert int(blocks.index_NK[block, k]) == min(anchor + k, last - 1)


@pytest.mark.law
def test_anchors_are_uniform_and_keyed() -> None:
    span = Span(prompt_tokens=5, tokens=26)
    draws = [draw_anchors(span, count=4, seed=0, epoch=e, number=3) for e in range(3000)]
    counts = np.bincount(np.concatenate(draws), minlength=25)[5:]
    assert len(counts) == 20
    assert chisquare(counts).pvalue > 1e-4
    again = draw_anchors(span, count=4, seed=0, epoch=7, number=3)
    assert again.tolist() == draws[7].tolist()


@pytest.mark.law
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_has_every_sample_once(samples: int, batch: int, epoch: int) -> None:
    plan = Plan(samples=samples, batch=min(batch, samples), seed=4)
    first = epoch * plan.steps_per_epoch
    drawn = [plan.numbers(first + i) for i in range(plan.steps_per_epoch)]
    assert {number for number, _ in drawn} == {epoch}
    flat = [number for _, numbers in drawn for number in numbers]
    assert len(flat) == len(set(flat)) == plan.steps_per_epoch * plan.batch
    assert samples - len(flat) < plan.batch


@pytest.mark.law
@given(st.lists(st.integers(1, 50), min_size=4, max_size=40), st.integers(1, 9), st.integers(1, 4))
def test_micro_batches_share_the_batch_out(sizes: list[int], micro: int, world: int) -> None:
    shares = [
        micro_batches(sizes, micro_batch=micro, rank=rank, world=world) for rank in range(world)
    ]
    flat = [place for share in shares for places in share for place in places]
    assert sorted(flat) == list(range(len(sizes)))
    assert max(len(places) for share in shares for places in share) <= micro


# The optimiser.


@pytest.mark.law
def test_the_flat_optimiser_is_adamw_with_clipping() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings = {"weight_decay": 0.1, "betas": (0.9, 0.95)}
    flat = FlatAdamW(ours.parameters(), clip=0.5, **settings)  # type: ignore[arg-type]
    adam = torch.optim.AdamW(theirs.parameters(), **settings)  # type: ignore[arg-type]
    schedule = Schedule(peak=0.05, steps=20, warmup=0.2)
    for step in range(20):
        halves = torch.randn(2, 8, 6)
        for half in halves:
            ours(half).square().mean().div(2).backward()
            flat.accumulate()
        norm = flat.step(rate=schedule.rate(step))
        adam.zero_grad()
        theirs(halves).square().mean().backward()
        assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)))
        adam.param_groups[0]["lr"] = schedule.rate(step)
        adam.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


@pytest.mark.law
def test_masters_keep_what_half_precision_would_lose() -> None:
    layer = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    nn.init.ones_(layer.weight)
    flat = FlatAdamW(layer.parameters(), weight_decay=0.0, betas=(0.9, 0.999), clip=1e9)
    for _ in range(100):
        layer.weight.grad = torch.ones_like(layer.weight)
        flat.accumulate()
        flat.step(rate=1e-4)  # a bfloat16 of 1 does not move by 1e-4
    assert layer.weight.dtype == torch.bfloat16
    assert torch.allclose(flat.masters, torch.full((16,), 0.99), atol=1e-5)
    assert torch.equal(layer.weight.flatten(), flat.masters.to(torch.bfloat16))


@pytest.mark.law
@given(st.integers(1, 500), st.floats(0, 0.9))
def test_the_rate_rises_then_falls(steps: int, warmup: float) -> None:
    schedule = Schedule(peak=1.0, steps=steps, warmup=warmup)
    rates = [schedule.rate(step) for step in range(steps)]
    top = int(np.argmax(rates))
    assert 0 < min(rates) <= max(rates) <= 1
    assert (np.diff(rates[: top + 1]) >= 0).all()
    assert (np.diff(rates[top:]) <= 0).all()
    assert top <= np.ceil(warmup * steps)


# Runs.


@pytest.mark.law
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"drafter": {"depth": 1, "gamma": 4, "markov_rank": 8, "markov_head_type": "rnn"}},
        {"drafter": {"depth": 1, "gamma": 4, "markov_rank": 0}},
        {"kind": "dflash", "drafter": {"depth": 1, "gamma": 4}},
        {"kind": "eagle3", "drafter": {"gamma": 4}},
    ],
    ids=["dspark", "rnn", "no head", "dflash", "eagle3"],
)
def test_every_kind_learns_and_its_checkpoint_loads(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    # The tiny target is nearly uniform; one domain's fixed answers are something to learn.
    data = tmp_path / "samples.jsonl"
    with data.open("w") as file:
        for i in range(12):
            answer = [50 + (i + 3 * j) % 12 for j in range(30)]
            record = {"id": str(i), "prompt": [20 + i], "response": answer, "finish": "length"}
            file.write(json.dumps(record) + "\n")
    changes = {"epochs": 20, "learning_rate": 1e-2, "ce": 1.0} | change
    checkpoint, metrics = run(folder, tmp_path / "run", data=data, **changes)
    assert [line["step"] for line in metrics] == list(range(1, 61))
    first, last = (np.mean([line["ce"] for line in part]) for part in (metrics[:3], metrics[-3:]))
    assert last < first - 1.0
    target = Target.from_pretrained(folder, dtype=torch.float32)
    drafter = load_drafter(checkpoint, target=target)
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert torch.equal(drafter.lm_head.weight, target.lm_head_weight)


@pytest.mark.law
def test_gradient_accumulation_changes_nothing(folder: Path, tmp_path: Path) -> None:
    whole, metrics = run(folder, tmp_path / "a", micro_batch=4, epochs=1)
    pieces, again = run(folder, tmp_path / "b", micro_batch=1, epochs=1)
    assert furthest(whole, pieces) < 1e-5
    for one, other in zip(metrics, again, strict=True):
        for name in ("total", "ce", "tv", "confidence", "accepted_length", "gradient_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
        assert one["acceptance"] == pytest.approx(other["acceptance"], rel=1e-4)


@pytest.mark.law
def test_a_cache_trains_like_online_extraction(folder: Path, tmp_path: Path) -> None:
    samples = str(folder.parent / "samples.jsonl")
    layers = ["--layers", "0", "1", "2"]
    cache([samples, "--target", str(folder), "--out", str(tmp_path / "c"), *layers])
    online, _ = run(folder, tmp_path / "a", epochs=1)
    cached, _ = run(folder, tmp_path / "b", epochs=1, data=tmp_path / "c")
    assert furthest(online, cached) < 1e-5


@pytest.mark.law
def test_the_embeddings_are_never_trained(folder: Path, tmp_path: Path) -> None:
    checkpoint, _ = run(folder, tmp_path / "a", epochs=1)
    target = Target.from_pretrained(folder, dtype=torch.float32)
    weights = load_file(checkpoint / "model.safetensors")
    assert torch.equal(weights["embed_tokens.weight"], target.embed_weight)
    assert torch.equal(weights["lm_head.weight"], target.lm_head_weight)


@pytest.mark.example
def test_checkpoints_are_exported_along_the_way(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "a", epochs=1, export_every=2)
    folders = sorted(path.name for path in (tmp_path / "a").glob("step_*"))
    assert folders == ["step_2", "step_4", "step_6"]


# Refusals.


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command ends, with status 2."""
    capsys.readouterr()  # what preparing the case said
    assert run_command("train", lambda: main(list(arguments))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def config_file(tmp_path: Path, value: dict[str, Any]) -> str:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(value))
    return str(path)


@pytest.mark.example
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "missing.jsonl"}, "missing.jsonl: cannot read: No such file"),
        ({"target": "nowhere"}, "nowhere: no config.json"),
        ({"kind": "medusa"}, "kind 'medusa': choose one of dspark, dspark5, dflash, eagle3"),
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"batch": 0}, "batch 0: give 1 or more"),
        ({"batch": 4000}, "24 samples are fewer than batch 4000"),
        ({"learning_rate": -1.0}, "learning_rate -1.0: give a finite number above 0"),
        ({"drafter": {"rank": 3}}, "unexpected keyword argument 'rank'"),
        ({"max_tokens": 3}, "no sample has two answer tokens within max_tokens 3"),
        ({"warmup": 1.0}, "warmup 1.0: give a share"),
    ],
)
def test_wrong_settings_are_one_sentence(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    message: str,
) -> None:
    value = train_settings(folder, folder.parent / "samples.jsonl", tmp_path / "out") | change
    assert message in refusal(capsys, "--config", config_file(tmp_path, value))


@pytest.mark.example
def test_a_malformed_sample_is_named_with_its_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder.parent / "samples.jsonl").read_text().splitlines(keepends=True)
    data = tmp_path / "bad.jsonl"
    data.write_text("".join([*lines[:2], lines[2][:30] + "\n", *lines[3:]]))
    value = train_settings(folder, data, tmp_path / "out")
    said = refusal(capsys, "--config", config_file(tmp_path, value))
    assert f"{data}:3: not valid JSON" in said


@pytest.mark.example
def test_a_cache_of_another_target_or_other_layers_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = str(folder.parent / "samples.jsonl")
    out = tmp_path / "c"
    cache([samples, "--target", str(folder), "--out", str(out), "--layers", "-1", "0"])
    value = train_settings(folder, out, tmp_path / "run")
    said = refusal(capsys, "--config", config_file(tmp_path, value))
    assert "has layers [-1, 0], the drafter reads [0, 1, 2]" in said
    value["target"] = str(make_target(tmp_path / "other", seed=9))
    assert "another target" in refusal(capsys, "--config", config_file(tmp_path, value))


@pytest.mark.example
def test_a_run_is_resumed_with_its_own_settings_only(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run(folder, out, epochs=1)
    value = train_settings(folder, folder.parent / "samples.jsonl", out, epochs=1)
    path = config_file(tmp_path, value)
    said = refusal(capsys, "--config", path, "--seed", "3")
    assert "begun with seed 0, now it is 3; give the same, or another out folder" in said
    other = make_samples(folder, tmp_path / "others.jsonl", max_tokens=20)
    assert "begun with samples" in refusal(capsys, "--config", path, "--data", str(other))
    (out / "resume.safetensors").write_bytes(b"nothing")
    assert "not a resume file" in refusal(capsys, "--config", path)


@pytest.mark.example
def test_a_diverging_run_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="diverged; lower the learning rate"):
        run(folder, tmp_path / "a", epochs=30, learning_rate=1e30)


@pytest.mark.example
def test_tensorboard_is_asked_for_by_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="not installed; pip install tensorboard"):
        run(folder, tmp_path / "a", tensorboard=True)


@settings(max_examples=10)
@pytest.mark.law
@given(st.sampled_from([f.name for f in dataclasses.fields(TrainConfig)]))
def test_every_setting_is_compared_or_meant_to_change(name: str) -> None:
    config = TrainConfig(target="t", data="d", out="o")
    free = {"target", "data", "out", "save_every", "export_every", "tensorboard"}
    free |= {"checkpoint_layers", "start"}
    assert (name in config.lasting()) == (name not in free)
