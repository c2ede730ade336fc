"""The autoregressive baseline: the same states decoded as trained, and it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from sglang_dspark.draft.model import recipes
from sglang_dspark.draft.model.checkpoint import drafter_for, load_drafter, save_drafter
from sglang_dspark.draft.model.eagle import Eagle
from sglang_dspark.draft.model.model import Drafter
from sglang_dspark.draft.model.target import Target
from sglang_dspark.draft.training.losses import DFLASH, position_weights, training_loss

VOCABULARY = 43
GAMMA = 4


def pair() -> tuple[Target, Eagle]:
    torch.manual_seed(0)
    text = recipes.laptop_target(vocab_size=VOCABULARY, hidden=64, layers=5)
    config = recipes.eagle3(text, mask_token_id=42, gamma=GAMMA)
    model = Qwen3ForCausalLM(Qwen3Config(**text))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    target = Target.from_model(model, capture=config.layers_captured)
    eagle = drafter_for(config, target)
    assert isinstance(eagle, Eagle)
    for parameter in eagle.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return target, eagle


def states(eagle: Eagle, target: Target, tokens: Tensor, index: Tensor) -> Tensor:
    captured = target.prefill(tokens_BS=tokens)[1]
    return eagle.hidden(
        context_BSD=eagle.context(captured_BSC=captured),
        anchor_tokens_BA=tokens.gather(1, index),
        anchor_index_BA=index,
        tokens_BS=tokens,
    )


@pytest.mark.law
def test_decoding_gives_the_teacher_forced_logits() -> None:
    target, eagle = pair()
    tokens = torch.randint(0, VOCABULARY, (3, 20))
    index = torch.tensor([[6], [0], [13]])
    with torch.no_grad():
        wanted = eagle.base_logits(states(eagle, target, tokens, index))[:, 0]
        context = eagle.context(captured_BSC=target.prefill(tokens_BS=tokens)[1])
        cache = eagle.new_cache(requests=3, capacity=20)
        for first, last in ((0, 4), (4, 14)):  # in two goes, the second up to each anchor
            parts = [(first, min(last, int(i))) for i in index[:, 0]]
            parts = [(a, max(a, b)) for a, b in parts]
            eagle.append(
                cache,
                rows=[0, 1, 2],
                context_TD=torch.cat([context[r, a:b] for r, (a, b) in enumerate(parts)]),
                lengths=[b - a for a, b in parts],
                tokens_T=torch.cat([tokens[r, a + 1 : b + 1] for r, (a, b) in enumerate(parts)]),
            )
        for rows in (None, [2, 0]):
            picked = [0, 1, 2] if rows is None else rows
            at = index[picked, 0]
            hidden, state = eagle.begin(
                cache, anchor_tokens_R=tokens[picked, at], anchor_index_R=at, rows=rows
            )
            for k in range(GAMMA):
                logits, confidence, state = eagle.step(
                    hidden_RD=hidden[:, k], previous_R=tokens[picked, at + k], state=state
                )
                assert confidence is None
                torch.testing.assert_close(logits, wanted[picked, k], rtol=1e-4, atol=1e-4)


@pytest.mark.law
def test_slot_k_reads_tokens_up_to_itself_and_target_states_before_the_anchor() -> None:
    target, eagle = pair()
    tokens, index = torch.randint(0, VOCABULARY - 1, (1, 16)), torch.tensor([[8]])
    captured = target.prefill(tokens_BS=tokens)[1]

    def run(captured: Tensor, tokens: Tensor) -> Tensor:
        return eagle.hidden(
            context_BSD=eagle.context(captured_BSC=captured),
            anchor_tokens_BA=tokens.gather(1, index),
            anchor_index_BA=index,
            tokens_BS=tokens,
        )[0, 0]

    before = run(captured, tokens)
    for place in range(16):
        changed = captured.clone()
        changed[0, place] += 1
        moved = (run(changed, tokens) - before).abs().amax(-1) > 0
        assert moved.tolist() == [place < 8] * GAMMA
        if place:  # token 0 is in the state at 0 only
            other = tokens.clone()
            other[0, place] += 1
            moved = (run(captured, other) - before).abs().amax(-1) > 0
            assert moved.tolist() == [place <= 8 + k for k in range(GAMMA)]


@pytest.mark.example
def test_a_few_steps_of_cross_entropy_teach_it() -> None:
    target, eagle = pair()
    torch.manual_seed(2)
    tokens = torch.randint(0, VOCABULARY, (4, 24))
    index = torch.tensor([[2, 8, 14]]).expand(4, -1)
    steps = index[..., None] + torch.arange(GAMMA)
    rows = torch.arange(4)[:, None, None]
    optimizer = torch.optim.AdamW([p for p in eagle.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(25):
        hidden = states(eagle, target, tokens, index)
        total, _ = training_loss(
            drafter=eagle,
            hidden_NKD=hidden.flatten(0, 1),
            previous_NK=tokens[rows, steps].flatten(0, 1),
            labels_NK=tokens[rows, steps + 1].flatten(0, 1),
            teacher_hidden_NKD=None,
            weights_NK=position_weights(gamma=GAMMA).expand(12, -1),
            mix=DFLASH,
        )
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.example
def test_its_checkpoint_round_trips_and_refusals_are_clear(tmp_path: Path) -> None:
    target, eagle = pair()
    save_drafter(eagle, tmp_path / "a")
    loaded = load_drafter(tmp_path / "a", target=target)
    assert isinstance(loaded, Eagle)
    save_drafter(loaded, tmp_path / "b")
    name = "model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    tokens, index = torch.zeros(1, 9, dtype=torch.int64), torch.tensor([[4]])
    with pytest.raises(ValueError, match="needs tokens_BS"):
        eagle.hidden(
            context_BSD=torch.zeros(1, 9, 64), anchor_tokens_BA=index, anchor_index_BA=index
        )
    cache = eagle.new_cache(requests=1, capacity=9)
    with pytest.raises(ValueError, match="needs tokens_T"):
        eagle.append(cache, rows=[0], context_TD=torch.zeros(9, 64), lengths=[9])
    with pytest.raises(ValueError, match=r"anchors at \[4\] but the rows end at \[0\]"):
        eagle.begin(cache, anchor_tokens_R=tokens[0, :1], anchor_index_R=index[0])
    with pytest.raises(ValueError, match="not autoregressive"):
        Eagle(recipes.dspark(recipes.laptop_target(), mask_token_id=1))
    assert not isinstance(loaded, Drafter)
