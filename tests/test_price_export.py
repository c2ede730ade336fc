"""``dspark prices export``: a cost model as the table that SGLang plans with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sglang_dspark.core.costs.library import load_cost_model, shipped_cost_models
from sglang_dspark.core.costs.sglang_files import SpsTable, load_sglang_table
from sglang_dspark.core.costs.sglang_prices import falling
from sglang_dspark.core.costs.sglang_tables import to_additive, to_sps
from sglang_dspark.price_export import main
from tests.core.costs.table_kinds import FILES, SHAPES

ADDITIVE = "sglang-additive"


@pytest.mark.law
@pytest.mark.parametrize("name", shipped_cost_models())
def test_every_shipped_model_can_be_exported(name: str, tmp_path: Path) -> None:
    model = load_cost_model(name)
    out = tmp_path / "table.json"
    gamma = [] if model.draft else ["--gamma", "7"]
    assert main([name, "--to", "sglang-sps", "-o", str(out), *gamma]) == 0
    assert load_sglang_table(out) == to_sps(model, model.draft.gamma if model.draft else 7)
    assert main([name, "--to", ADDITIVE, "-o", str(out), "--force"]) == 0
    assert load_sglang_table(out) == to_additive(model)


@pytest.mark.law
@pytest.mark.parametrize("name", ["h200-qwen3-14b-composed", "b300x4-dsv4-flash-vllm"])
def test_tensorrt_llm_prices_every_probe_as_the_additive_table_does(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    assert main([name, "--to", "tensorrt-llm", "-o", str(out)]) == 0
    assert "confidence_sps_table_path" in capsys.readouterr().out
    found, same = json.loads(out.read_text()), to_additive(load_cost_model(name))
    assert found["token_counts"] == list(same.m_probes)
    assert (np.diff(found["token_counts"]) > 0).all()
    assert min(found["step_time_ms"]) > 0
    for i, r in enumerate(same.bs_probes):
        theirs_ms = found["fixed_overhead_ms"] + found["batch_overhead_ms"][i]
        ours_s = same.bias_seconds + same.alpha_seconds[i] + np.array(same.theta_seconds)
        whole_ms = theirs_ms + np.array(found["step_time_ms"])
        np.testing.assert_allclose(whole_ms, 1e3 * ours_s, rtol=1e-9, err_msg=str(r))


@pytest.mark.law
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", FILES)
def test_a_copy_of_sglangs_own_table_only_rises(
    kind: str, shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Case 11. Law: it prices what the file's cost model does, and says nothing when loaded."""
    rng = np.random.default_rng([len(kind), SHAPES.index(shape)])
    given, out = tmp_path / "table.json", tmp_path / "rising.json"
    for _ in range(5):
        given.write_text(json.dumps(FILES[kind](rng, shape)))
        assert main([str(given), "--to", f"sglang-{kind}", "-o", str(out), "--force"]) == 0
        assert "raised to the running maximum" in capsys.readouterr().out
        copy = load_sglang_table(out)
        assert falling(copy) == ""
        table = load_sglang_table(given)
        if isinstance(table, SpsTable) and isinstance(copy, SpsTable):
            assert copy.sample_batch_tokens == table.sample_batch_tokens
            raised = np.maximum.accumulate(1.0 / np.array(table.sample_steps_per_sec))
            np.testing.assert_allclose(1.0 / np.array(copy.sample_steps_per_sec), raised)


@pytest.mark.example
def test_what_cannot_be_exported_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = tmp_path / "additive.json", tmp_path / "out.json"
    given.write_text(json.dumps(FILES["additive"](np.random.default_rng(1), "rising")))
    for words, sentence in (
        ([str(given), "--to", "sglang-sps"], "does not say its draft length"),
        (["b300x4-dsv4-flash-vllm", "--to", "sglang-sps", "--gamma", "3"], "is for draft length"),
        ([str(given), "--to", "csv"], "invalid choice: 'csv'"),
        (["nothing", "--to", ADDITIVE], "no cost model 'nothing'"),
    ):
        assert main([*words, "-o", str(out)]) == 2
        err = capsys.readouterr().err
        assert sentence in err
        assert err.count("\n") == 1
        assert not out.exists()
    assert main([str(given), "--to", ADDITIVE, "-o", str(given)]) == 2
    assert "is the input, and would be lost" in capsys.readouterr().err
