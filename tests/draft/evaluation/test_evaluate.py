"""Evaluation: its files, its resume after a kill, the simulator reading its log, its refusals."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from sglang_dspark.cli import run_command
from sglang_dspark.draft.evaluation.evaluate import choose_prompts, main
from sglang_dspark.draft.model.checkpoint import drafter_for, save_drafter
from sglang_dspark.draft.model.recipes import dspark
from sglang_dspark.draft.model.target import Target
from sglang_dspark.logs.rounds import read_rounds
from simulator.acceptance.load import load_acceptance
from tests.draft.tiny_target import make_target, start
from tests.waiting import wait_until

GAMMA = 3
PROMPTS = [
    {"id": "a", "domain": "chat", "turns": ["How are you?", "And now?"]},
    {"id": "b", "domain": "chat", "turns": ["Tell me more."]},
    {"id": "c", "domain": "code", "prompt": "def f(x):"},
    {"id": "d", "domain": "code", "prompt": "import os"},
    {"id": "e", "domain": "chat", "turns": ["One more."]},
    {"id": "f", "prompt": "[1, 2"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random target and drafter, and prompts of both kinds."""
    folder = tmp_path_factory.mktemp("pair")
    make_target(folder / "target")
    target = Target.from_pretrained(folder / "target")
    config = dspark(
        target.config.to_dict(),
        mask_token_id=1,
        gamma=GAMMA,
        depth=1,
        markov_rank=8,
        num_anchors=4,
    )
    torch.manual_seed(0)
    save_drafter(drafter_for(config, target), folder / "drafter")
    lines = "".join(json.dumps(prompt) + "\n" for prompt in PROMPTS)
    (folder / "mixed.jsonl").write_text(lines)
    return folder


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        str(folder / "mixed.jsonl"),
        *("--target", str(folder / "target"), "--drafter", str(folder / "drafter")),
        *("-o", str(out), "--new-tokens", "12", "--batch", "2"),
        *more,
    ]


@pytest.mark.example
def test_an_evaluation_writes_what_it_says(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(arguments(folder, out, "--temperature", "0.8"))
    printed = capsys.readouterr().out
    for words in ("T=0.8, gamma 3", "chat:", "code:", "mixed:", "all:", "noise floor", "seconds:"):
        assert words in printed
    found = json.loads((out / "metrics.json").read_text())
    assert set(found["acceptance"]) == {"chat", "code", "mixed", "all"}
    everything = found["acceptance"]["all"]
    # Seven answers: one prompt has two turns.
    assert everything["requests"] == 7
    assert len(everything["survival"]["value"]) == GAMMA
    assert 1 <= everything["length"]["value"] <= GAMMA + 1
    assert found["confidence_source"] == "head"
    assert found["seconds"]["total"] > 0
    rounds = read_rounds(out / "rounds.parquet")
    assert everything["length"]["value"] == pytest.approx(1 + rounds.accepted.mean(), abs=1e-5)
    assert set(rounds.temperature) == {0.8}
    profile = load_acceptance(out / "rounds.parquet")
    assert profile.gamma == GAMMA
    assert profile.tables(["chat", "code"]).log_first_request.tolist() == [0, 4, 6, 13]
    for name in ("conditional_acceptance", "threshold_sweep", "reliability"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.law
def test_an_evaluation_killed_half_way_ends_with_the_same_log(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    main(arguments(folder, whole))
    killed = tmp_path / "killed"
    process = start("sglang_dspark.draft.evaluate", *arguments(folder, killed))
    wait_until((killed / "parts" / "000000.parquet").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # However far it came, the last batch is certainly to be done again.
    (killed / "parts" / "000002.parquet").unlink(missing_ok=True)
    shutil.rmtree(killed / "rounds.parquet", ignore_errors=True)
    kept = (killed / "parts" / "000000.parquet").stat().st_mtime_ns
    main(arguments(folder, killed))
    assert (killed / "parts" / "000000.parquet").stat().st_mtime_ns == kept
    one, other = (read_rounds(out / "rounds.parquet") for out in (whole, killed))
    for name in ("request", "step", "domain", "logits", "accepted", "temperature"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    before, after = (json.loads((out / "metrics.json").read_text()) for out in (whole, killed))
    assert before["acceptance"] == after["acceptance"]
    assert before["tokens"] == after["tokens"]


@pytest.mark.example
def test_counts_are_chosen_by_flag(folder: Path) -> None:
    file = str(folder / "mixed.jsonl")
    assert [prompt.id for prompt in choose_prompts([file])] == list("abcdef")
    assert [prompt.id for prompt in choose_prompts([file], 1)] == list("acf")
    assert [prompt.id for prompt in choose_prompts([file], 1, skip=1)] == list("bcf")
    assert choose_prompts([file])[-1].domain == "mixed"


@pytest.mark.example
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--new-tokens", "0"), "--new-tokens 0"),
        (("--skip", "6"), "no prompts are left"),
        (("--temperature", "-1"), "temperature -1.0"),
        (("--drafter", "nowhere"), "nowhere"),
        (("--new-tokens", "1"), "ask for 2 or more"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    reason: str,
) -> None:
    given = arguments(folder, tmp_path / "out", *more)
    assert run_command("evaluate", lambda: main(given)) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("evaluate: ")
    assert reason in complaint


@pytest.mark.example
def test_a_folder_of_other_settings_is_not_continued(folder: Path, tmp_path: Path) -> None:
    main(arguments(folder, tmp_path / "out"))
    with pytest.raises(ValueError, match="was begun with seed 0, now it is 1"):
        main(arguments(folder, tmp_path / "out", "--seed", "1"))
