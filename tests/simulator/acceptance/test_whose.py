"""A cost model takes the acceptance that belongs to it; another's is said wherever numbers are."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.compare import compare_page
from analysis.replays import load_replay
from sglang_dspark.core.costs.library import load_cost_model, shipped_cost_models
from sglang_dspark.core.costs.model import as_json
from simulator.acceptance.load import load_acceptance
from simulator.acceptance.whose import default_profile, mismatch, own_profile
from simulator.run import main
from simulator.study.config import RunConfig, load_study

ROOT = Path(__file__).resolve().parents[3]
B300 = "b300x4-dsv4-flash-vllm"
QWEN_14B = "h200-qwen3-14b-analytic"
FOREIGN = (
    "cost model 'b300x4-dsv4-flash-vllm' prices DSpark of DeepSeek-V4-Flash and names acceptance "
    "profile 'dspark5-v4' as its own; accepted is what 'dspark-qwen3-4b' says, DSpark for Qwen3-4B"
)
NONE_OF_ITS_OWN = (
    "cost model 'h200-qwen3-14b-analytic' prices DSpark for Qwen3-14B and names no acceptance "
    "profile of its own; accepted is what 'dspark-qwen3-4b' says, DSpark for Qwen3-4B"
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The first 40 requests of the shipped chat trace, without prefixes."""
    rows = [
        json.loads(line) for line in (ROOT / "traces" / "chat.jsonl").read_text().splitlines()[:40]
    ]
    for row in rows:
        row.pop("prefix_hashes", None)
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def replayed(trace: Path, out: Path, *flags: str) -> dict[str, Any]:
    given = [str(trace), "--policy", "fixed", "--jobs", "1", "--out", str(out), *flags]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(given) == 0
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


@pytest.mark.law
@pytest.mark.parametrize("name", shipped_cost_models())
def test_the_default_is_the_cost_model_s_own_wherever_it_names_one(name: str) -> None:
    """Law: every named profile ships and belongs without a word; where none is, that is said."""
    model = load_cost_model(name)
    used = default_profile(model, name)
    load_acceptance(used)
    assert used == (model.acceptance or "dspark-qwen3-4b")
    assert (mismatch(model, name, used) is None) == (model.acceptance is not None)


@pytest.mark.example
def test_case_15_the_published_b300_prices_meet_deepseek_s_acceptance(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = "prices drafting 7 tokens, acceptance profile 'dspark5-v4' drafts 5; drafting is"
    found = replayed(trace, tmp_path / "o", "--cost-model", B300)
    assert found["acceptance"] == "dspark5-v4"
    assert found["acceptance_mismatch"] == []
    assert [lengths in note for note in found["warnings"]] == [True]
    assert json.loads((tmp_path / "o" / "config.json").read_text())["acceptance"] == "dspark5-v4"
    out, err = capsys.readouterr()
    assert "NOTE" not in out
    assert lengths in err


@pytest.mark.example
def test_another_s_acceptance_is_honoured_and_said_above_the_table_and_below_the_figure(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    foreign = ["--cost-model", B300, "--acceptance", "dspark-qwen3-4b"]
    found = replayed(trace, out, *foreign)
    assert found["acceptance"] == "dspark-qwen3-4b"
    assert found["warnings"] == found["acceptance_mismatch"] == [FOREIGN]
    shown, err = capsys.readouterr()
    assert FOREIGN not in err, "said in one place, not in two"
    lines = shown.splitlines()
    assert lines[1] == f"NOTE: {FOREIGN}"
    assert any(line.startswith("policy") for line in lines[2:])
    texts = [text.get_text() for text in compare_page([load_replay(out)]).texts]
    assert f"Note: {FOREIGN}." in " ".join(texts)
    replayed(trace, tmp_path / "json", *foreign, "--json")
    assert FOREIGN in capsys.readouterr().err


@pytest.mark.example
def test_a_cost_model_without_a_profile_says_so_of_the_default(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = replayed(trace, tmp_path / "o", "--cost-model", QWEN_14B)
    assert found["warnings"] == found["acceptance_mismatch"] == [NONE_OF_ITS_OWN]
    assert f"NOTE: {NONE_OF_ITS_OWN}" in capsys.readouterr().out
    # A log of one's own says of nobody that it is another's.
    assert mismatch(load_cost_model(QWEN_14B), QWEN_14B, "mine.parquet") is None
    assert "'mine.parquet' says" in str(mismatch(load_cost_model(B300), B300, "mine.parquet"))


@pytest.mark.example
def test_a_profile_beside_the_cost_model_is_its_own_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = load_cost_model("h200-qwen3-4b-analytic")
    assert shipped.drafter is not None
    mine = replace(shipped, drafter=replace(shipped.drafter, acceptance="mine.json"))
    (tmp_path / "fit").mkdir()
    file = tmp_path / "fit" / "model.json"
    mine.save(file)
    assert as_json(load_cost_model(file))["drafter"]["acceptance"] == "mine.json"
    with pytest.raises(ValueError, match=r"'mine.json' is neither shipped .* nor a file beside it"):
        own_profile(mine, str(file))
    profile = ROOT / "simulator" / "acceptance" / "profiles" / "eagle3-qwen3-4b.json"
    shutil.copy(profile, tmp_path / "fit" / "mine.json")
    assert own_profile(mine, str(file)) == str(tmp_path / "fit" / "mine.json")
    monkeypatch.chdir(tmp_path / "fit")
    for used in ("mine.json", str(tmp_path / "fit" / "mine.json")):
        assert mismatch(mine, str(file), used) is None
    study = load_study(RunConfig(trace="chat", cost_model=str(file), policies=("fixed",)))
    assert study.acceptance == str(tmp_path / "fit" / "mine.json")
