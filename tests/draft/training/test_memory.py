"""The memory estimate beside what is measured, and layers recomputed to the same gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sglang_dspark.draft.model import recipes
from sglang_dspark.draft.model.checkpoint import build_drafter
from sglang_dspark.draft.training.config import TrainConfig
from sglang_dspark.draft.training.memory import GIB, Needed, layer_bytes, needed
from sglang_dspark.draft.training.train import main as train
from tests.draft.tiny_target import make_samples, make_target, train_settings

SEQUENCE, ANCHORS = 64, 24


def drafter_of(family: str, *, depth: int = 2, hidden: int = 128) -> Any:
    if family == "qwen3":
        text = recipes.laptop_target(hidden=hidden)
        config = recipes.dspark(text, mask_token_id=9, depth=depth, num_anchors=ANCHORS)
    else:
        text = recipes.laptop_v4_target(hidden=hidden)
        config = recipes.dspark5(text, mask_token_id=9, depth=depth, num_anchors=ANCHORS)
    torch.manual_seed(0)
    return build_drafter(config).train()


def passed(drafter: Any) -> torch.Tensor:
    """Slot states of one sequence with all its anchors."""
    layers = len(drafter.config.layers_captured)
    random = torch.Generator().manual_seed(1)
    captured = torch.randn(1, SEQUENCE, layers * drafter.config.hidden_size, generator=random)
    index = torch.arange(ANCHORS)[None] * 2 + 1
    states: torch.Tensor = drafter.hidden(
        context_BSD=drafter.context(captured_BSC=captured),
        anchor_tokens_BA=index * 3,
        anchor_index_BA=index,
    )
    return states


def saved_bytes(drafter: Any) -> int:
    """What autograd keeps of one forward, each storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in drafter.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            seen[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = passed(drafter)
    del states
    return sum(seen.values())


@pytest.mark.law
@pytest.mark.parametrize("family", ["qwen3", "deepseek_v4"])
def test_a_layer_saves_what_is_told(family: str) -> None:
    """From the difference of two depths, so that ends and context fall out."""
    shallow, deep = (saved_bytes(drafter_of(family, depth=depth)) for depth in (1, 3))
    drafter = drafter_of(family)
    tokens = ANCHORS * drafter.config.block_size
    measured = (deep - shallow) / 2 / tokens
    told = layer_bytes(drafter.config, itemsize=4)
    assert 0.8 * measured < told < 1.2 * measured


@pytest.mark.law
@pytest.mark.parametrize("family", ["qwen3", "deepseek_v4"])
def test_recomputed_layers_give_the_same_gradients_and_keep_less(family: str) -> None:
    drafter = drafter_of(family, depth=3)
    found = []
    for drafter.checkpointing in (False, True):
        drafter.zero_grad(set_to_none=True)
        passed(drafter).square().mean().backward()  # type: ignore[no-untyped-call]
        grads = {n: p.grad.clone() for n, p in drafter.named_parameters() if p.grad is not None}
        found.append((grads, saved_bytes(drafter)))
    (kept, bytes_kept), (again, bytes_again) = found
    assert bytes_again < 0.5 * bytes_kept
    for name, grad in kept.items():
        torch.testing.assert_close(again[name], grad, rtol=1e-5, atol=1e-8)


@pytest.mark.law
def test_state_falls_with_the_processes_and_the_micro_batch_follows() -> None:
    drafter = drafter_of("qwen3").to(torch.bfloat16)
    count = sum(p.numel() for p in drafter.parameters() if p.requires_grad)
    config = TrainConfig(target="t", data="d", out="o", max_tokens=256)
    one, four = (needed(config, drafter, target_bytes=0, world=world) for world in (1, 4))
    assert one.optimiser == 12 * count
    assert one.optimiser - four.optimiser == pytest.approx(9 * count, rel=1e-3)
    assert (one.weights, one.gradient) == (4 * count, 4 * count)
    assert one.allowed(one.fixed) == 0
    assert one.allowed(one.fixed + 3 * one.per_sequence) == 3
    less = needed(
        TrainConfig(target="t", data="d", out="o", max_tokens=256, checkpoint_layers=True),
        drafter,
        target_bytes=0,
    )
    assert less.activations < one.activations


@pytest.mark.law
def test_the_released_size_is_told_as_it_was_measured_on_a_gpu() -> None:
    """Qwen3-8B: 235.9 KB a block token and layer in bfloat16 on an H100."""
    assert layer_bytes(recipes.qwen3_8b(), itemsize=2) == pytest.approx(235_900, rel=0.05)


@pytest.mark.law
def test_a_run_begins_with_its_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = make_target(tmp_path / "target")
    samples = make_samples(target, tmp_path / "samples.jsonl")
    value = train_settings(target, samples, tmp_path / "run", epochs=1, checkpoint_layers=True)
    (tmp_path / "t.json").write_text(json.dumps(value))
    train(["--config", str(tmp_path / "t.json")])
    said = capsys.readouterr().err
    assert "memory: about" in said
    assert "a sequence of 128 tokens" in said


@pytest.mark.golden
def test_the_page_states_what_is_computed_of_released_sizes() -> None:
    """A target of 8.19 G parameters beside Qwen3-8B's drafter; V4-Flash's own drafter alone."""
    page = (Path(__file__).parents[3] / "docs" / "drafters.md").read_text()
    with torch.device("meta"):
        drafter, bundled = (
            build_drafter(config).to(torch.bfloat16)
            for config in (recipes.qwen3_8b(), recipes.deepseek_v4_flash())
        )

    def told(whose: Any, target: int, world: int, **choices: bool) -> Needed:
        config = TrainConfig(target="t", data="d", out="o", **choices)
        return needed(config, whose, target_bytes=target, world=world)

    weights = int(2 * 8.19e9)
    totals = (
        told(drafter, weights, 1),
        told(drafter, weights, 8),
        told(drafter, weights, 8, checkpoint_layers=True),
    )
    for found, said in zip(totals, ("70.1 GiB", "59.1 in each", "35.0 with"), strict=True):
        assert said.startswith(f"{found.total(8) / GIB:.1f}")
        assert said in page
    assert f"{told(bundled, 0, 8).fixed / GIB:.1f} GiB in each of eight" in page
