"""The training objective: equal to the plain formula, in pieces, in a tenth of its memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.draft.model.model import Drafter
from sglang_dspark.draft.training.losses import DFLASH, LossMix, position_weights, training_loss
from tests.draft.independent import reference_config
from tests.draft.training.peak_memory import PeakMemory

QWEN3_VOCABULARY = 151_936
POSITIONS = 512, 7


def drafter_of(family: str, **changes: Any) -> Drafter:
    torch.manual_seed(0)
    raw = reference_config(family, **changes)
    drafter = Drafter(DrafterConfig.from_dict(raw, where="test")).double()
    for parameter in drafter.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    return drafter


def inputs_of(drafter: Drafter, *, blocks: int, seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shape = blocks, drafter.config.gamma
    width, vocabulary = drafter.config.hidden_size, drafter.config.vocab_size

    def normal() -> Tensor:
        return torch.randn((*shape, width), dtype=torch.float64, generator=random)

    decay = position_weights(gamma=shape[1]).double()
    return {
        "hidden_NKD": normal().requires_grad_(),
        "previous_NK": torch.randint(vocabulary, shape, generator=random),
        "labels_NK": torch.randint(vocabulary, shape, generator=random),
        "teacher_hidden_NKD": normal(),
        "weights_NK": decay * (torch.rand(shape, generator=random) > 0.2),
    }


def plain_loss(drafter: Any, mix: LossMix, given: dict[str, Tensor]) -> Tensor:
    """The objective as it is written, every tensor at its full size."""
    logits, confidence = drafter.logits(
        hidden_NKD=given["hidden_NKD"], previous_NK=given["previous_NK"]
    )
    weights = given["weights_NK"]
    ce = cross_entropy(logits.flatten(0, 1), given["labels_NK"].flatten(), reduction="none")
    total = mix.ce * ce.view_as(weights)
    if mix.tv or mix.confidence:
        with torch.no_grad():
            teacher = drafter.base_logits(given["teacher_hidden_NKD"]).softmax(-1)
        l1 = (logits.softmax(-1) - teacher).abs().sum(-1)
        total = total + mix.tv * l1
        if confidence is not None:
            bce = binary_cross_entropy_with_logits(
                confidence, (1 - 0.5 * l1).detach(), reduction="none"
            )
            total = total + mix.confidence * bce
    return (total * weights).sum() / weights.sum()


def gradients(loss: Tensor, drafter: Drafter, hidden: Tensor) -> list[Tensor | None]:
    wanted = [hidden, *(p for p in drafter.parameters() if p.requires_grad)]
    return list(torch.autograd.grad(loss, wanted, allow_unused=True))


@pytest.mark.law
@pytest.mark.parametrize("head", ["none", "vanilla", "gated", "rnn"])
@pytest.mark.parametrize("family", ["qwen3", "gemma4"])
@settings(max_examples=12, deadline=None)
@given(
    blocks=st.integers(1, 5),
    positions=st.sampled_from([None, 1, 4, 100]),
    vocabulary=st.sampled_from([None, 1, 10, 66, 67, 500]),
    seed=st.integers(0, 99),
)
def test_losses_and_gradients_equal_the_plain_formula_however_it_is_cut(
    family: str,
    head: str,
    blocks: int,
    positions: int | None,
    vocabulary: int | None,
    seed: int,
) -> None:
    changes = {"markov_rank": 0, "confidence_head_with_markov": False} if head == "none" else {}
    drafter = drafter_of(family, **(changes or {"markov_head_type": head}))
    given = inputs_of(drafter, blocks=blocks, seed=seed)
    given["weights_NK"][0, 0] = 1.0  # at least one label
    wanted = plain_loss(drafter, LossMix(), given)
    total, _ = training_loss(
        drafter=drafter,
        **given,
        positions_per_piece=positions,
        vocabulary_per_piece=vocabulary,
    )
    torch.testing.assert_close(total, wanted, rtol=1e-12, atol=1e-12)
    mine = gradients(total, drafter, given["hidden_NKD"])
    theirs = gradients(wanted, drafter, given["hidden_NKD"])
    for ours, other in zip(mine, theirs, strict=True):
        assert (ours is None) == (other is None)
        if ours is not None and other is not None:
            assert (ours - other).norm() <= 1e-10 * other.norm() + 1e-14


@pytest.mark.law
def test_gradients_are_the_slopes_of_the_loss() -> None:
    drafter = drafter_of("gemma4", markov_head_type="gated", vocab_size=13, mask_token_id=12)
    given = inputs_of(drafter, blocks=2, seed=5)
    del given["hidden_NKD"]
    # The confidence's target moves with the states although it is not differentiated.
    mix = LossMix(confidence=0.0)

    def loss(hidden: Tensor) -> Tensor:
        return training_loss(drafter=drafter, hidden_NKD=hidden, **given, mix=mix)[0]

    start = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (start,), eps=1e-6, atol=1e-7)


@pytest.mark.law
def test_cross_entropy_alone_needs_no_teacher() -> None:
    drafter = drafter_of("qwen3", markov_rank=0, enable_confidence_head=False)
    given = inputs_of(drafter, blocks=3, seed=1)
    wanted = plain_loss(drafter, DFLASH, given)
    total, parts = training_loss(
        drafter=drafter, **{**given, "teacher_hidden_NKD": None}, mix=DFLASH
    )
    torch.testing.assert_close(total, wanted)
    assert "tv" not in parts
    ours, theirs = (gradients(x, drafter, given["hidden_NKD"])[0] for x in (total, wanted))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.example
def test_parts_are_the_weighted_means_they_are_called() -> None:
    drafter = drafter_of("qwen3")
    given = inputs_of(drafter, blocks=4, seed=2)
    total, parts = training_loss(drafter=drafter, **given)
    mixed = 0.1 * parts["ce"] + 0.9 * parts["tv"] + parts["confidence"]
    torch.testing.assert_close(total.detach(), mixed)
    torch.testing.assert_close(parts["weight"], given["weights_NK"].sum())
    teacher = drafter.base_logits(given["teacher_hidden_NKD"]).softmax(-1)
    logits, _ = drafter.logits(hidden_NKD=given["hidden_NKD"], previous_NK=given["previous_NK"])
    overlap = torch.minimum(teacher, logits.softmax(-1)).sum(-1) * (given["weights_NK"] > 0)
    count = (given["weights_NK"] > 0).sum(0)
    torch.testing.assert_close(parts["acceptance_K"], (overlap.sum(0) / count).detach())
    expected = 1 + overlap.cumprod(1).sum(1).mean()
    torch.testing.assert_close(parts["accepted_length"], expected.detach())


@pytest.mark.law
def test_a_slot_of_weight_zero_changes_nothing_whatever_its_label() -> None:
    drafter = drafter_of("qwen3")
    given = inputs_of(drafter, blocks=3, seed=3)
    given["weights_NK"][1, 2] = 0.0
    before, _ = training_loss(drafter=drafter, **given)
    given["labels_NK"][1, 2] = -100
    given["teacher_hidden_NKD"][1, 2] = 9.0
    after, _ = training_loss(drafter=drafter, **given)
    assert before.item() == after.item()
    assert gradients(after, drafter, given["hidden_NKD"])[0][1, 2].abs().max() == 0


@pytest.mark.law
def test_halves_with_the_global_denominator_add_up_to_the_whole() -> None:
    drafter = drafter_of("qwen3")
    given = inputs_of(drafter, blocks=6, seed=4)
    whole, _ = training_loss(drafter=drafter, **given)
    weight = given["weights_NK"].sum()
    halves = [
        training_loss(
            drafter=drafter, **{k: v[part] for k, v in given.items()}, denominator=weight
        )[0]
        for part in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(halves[0] + halves[1], whole)


@pytest.mark.example
def test_half_precision_inputs_give_float32_losses_and_half_precision_gradients() -> None:
    drafter = drafter_of("qwen3").bfloat16()
    given = inputs_of(drafter, blocks=3, seed=6)
    given = {k: v.bfloat16() if v.dtype == torch.float64 else v for k, v in given.items()}
    given["hidden_NKD"] = given["hidden_NKD"].detach().requires_grad_()
    total, parts = training_loss(drafter=drafter, **given)
    assert total.dtype == parts["ce"].dtype == torch.float32
    total.backward()
    assert given["hidden_NKD"].grad is not None
    assert given["hidden_NKD"].grad.dtype == torch.bfloat16
    wanted = plain_loss(
        drafter.double(),
        LossMix(),
        {k: v.double() if v.is_floating_point() else v for k, v in given.items()},
    )
    assert abs(total.item() - wanted.item()) < 0.02


@pytest.mark.example
def test_autocast_over_float32_masters_trains_every_parameter() -> None:
    drafter = drafter_of("gemma4", markov_head_type="rnn").float()
    index, rows = torch.tensor([[3, 8]]), 2
    with torch.autocast("cpu", torch.bfloat16):
        hidden = drafter.hidden(
            context_BSD=drafter.context(captured_BSC=torch.randn(1, 12, 72)),
            anchor_tokens_BA=index,
            anchor_index_BA=index,
        )
        total, _ = training_loss(
            drafter=drafter,
            hidden_NKD=hidden.flatten(0, 1),
            previous_NK=torch.ones(rows, 5).long(),
            labels_NK=torch.ones(rows, 5).long(),
            teacher_hidden_NKD=torch.randn(rows, 5, 24).bfloat16(),
            weights_NK=torch.ones(rows, 5),
        )
    total.backward()
    for name, parameter in drafter.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.example
def test_position_weights_decay_as_the_paper_or_as_deepspec() -> None:
    torch.testing.assert_close(position_weights(gamma=7)[3], torch.tensor(3 / -7).exp())
    torch.testing.assert_close(position_weights(gamma=7, decay=4)[2], torch.tensor(-0.5).exp())
    with pytest.raises(ValueError, match="decay is 0"):
        position_weights(gamma=7, decay=0)


@pytest.mark.example
def test_refusals_say_what_is_missing() -> None:
    drafter = drafter_of("qwen3")
    given = inputs_of(drafter, blocks=1, seed=0) | {"teacher_hidden_NKD": None}
    with pytest.raises(ValueError, match="need teacher_hidden_NKD"):
        training_loss(drafter=drafter, **given)
    with pytest.raises(ValueError, match="loss weight tv is -1"):
        LossMix(tv=-1)


# Memory. Peaks depend on shapes alone, so the meta device measures full size at no cost; one real
# run in its own process keeps the meta device honest.


def meta_peak(plain: bool, *, vocabulary: int, blocks: int, softcap: bool, width: int = 64) -> int:
    family = "gemma4" if softcap else "qwen3"
    raw = reference_config(
        family, vocab_size=vocabulary, hidden_size=width, markov_rank=256, block_size=POSITIONS[1]
    )
    with torch.device("meta"):
        drafter = Drafter(DrafterConfig.from_dict(raw, where="test"))
        shape = blocks, POSITIONS[1]
        tokens = torch.zeros(shape, dtype=torch.int64)
        given = {
            "hidden_NKD": torch.zeros(*shape, width, requires_grad=True),
            "previous_NK": tokens,
            "labels_NK": tokens,
            "teacher_hidden_NKD": torch.zeros(*shape, width),
            "weights_NK": torch.zeros(shape),
        }
        with PeakMemory() as memory:
            if plain:
                plain_loss(drafter, LossMix(), given).backward()
            else:
                training_loss(drafter=drafter, **given)[0].backward()
    return memory.peak


@pytest.mark.law
@pytest.mark.parametrize("softcap", [False, True])
def test_peak_memory_at_full_size_is_a_tenth_of_the_plain_one(softcap: bool) -> None:
    size = {"vocabulary": QWEN3_VOCABULARY, "blocks": POSITIONS[0], "softcap": softcap}
    plain, pieces = meta_peak(True, **size), meta_peak(False, **size)
    assert pieces <= plain / 10, f"{pieces / 2**20:.0f} MiB of {plain / 2**20:.0f} MiB"
    positions, rank, width = POSITIONS[0] * POSITIONS[1], 256, 64
    assert plain >= 4 * (7 if softcap else 6) * positions * QWEN3_VOCABULARY
    formula = 5 * (1 << 24) + 2 * QWEN3_VOCABULARY * rank + positions * (2 * width + 2 * rank + 8)
    assert pieces <= 4 * formula


REAL_RUN = """
import sys, threading
import torch
torch.set_num_threads(1)
from tests.draft.training.test_losses import *
raw = reference_config("qwen3", vocab_size=QWEN3_VOCABULARY, hidden_size=16, block_size=7)
drafter = Drafter(DrafterConfig.from_dict(raw, where="test"))
shape = int(sys.argv[1]), 7
given = dict(
    hidden_NKD=torch.randn(*shape, 16, requires_grad=True),
    previous_NK=torch.zeros(shape, dtype=torch.int64),
    labels_NK=torch.zeros(shape, dtype=torch.int64),
    teacher_hidden_NKD=torch.randn(*shape, 16),
    weights_NK=torch.ones(shape),
)
def resident():  # getrusage's peak would be inherited from the parent process
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
before, peak, done = resident(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, resident())
watcher = threading.Thread(target=watch)
watcher.start()
if sys.argv[2] == "plain":
    plain_loss(drafter, LossMix(), given).backward()
else:
    training_loss(drafter=drafter, **given)[0].backward()
done.set()
watcher.join()
print(peak - before)
"""


def real_peak(kind: str, *, blocks: int) -> int:
    run = subprocess.run(
        [sys.executable, "-c", REAL_RUN, str(blocks), kind],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


@pytest.mark.law
def test_a_real_process_grows_no_more_than_the_formula_says() -> None:
    blocks = 64
    positions = blocks * POSITIONS[1]
    formula = 4 * (5 * (1 << 24) + 2 * QWEN3_VOCABULARY * 6 + positions * (2 * 16 + 2 * 6 + 8))
    slack = 64 << 20  # code pages and the allocator's own
    pieces = real_peak("pieces", blocks=blocks)
    assert pieces <= formula + slack
    # A tenth of the plain peak at full size, which is linear in the positions.
    plain = real_peak("plain", blocks=8) / 8 * POSITIONS[0]
    assert pieces <= plain / 10
