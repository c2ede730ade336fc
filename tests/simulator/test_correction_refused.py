"""A policy that is corrected online cannot be replayed yet, and a replay says so before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_dspark.core.correction import Correction
from sglang_dspark.core.policy import GlobalBudget, PolicyFile, save_policy
from simulator import run


@pytest.mark.example
def test_a_corrected_policy_is_one_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.json"
    save_policy(path, PolicyFile(policy=GlobalBudget(), correction=Correction(cost=True)))
    out = tmp_path / "out"
    assert run.main(["traces/chat.jsonl", "--policy", str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert "corrected online, which the simulator does not do" in error
    assert "\n" not in error
