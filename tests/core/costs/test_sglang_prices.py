"""SGLang's own files as ``--cost-model``: told by content, said where they fall, bounded."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core import Planner, load_cost_model, parse_policy
from sglang_dspark.core.costs.model import CostModel, as_json, decode_cost_model
from sglang_dspark.core.costs.sglang_files import SpsAdditiveTable, SpsTable, load_sglang_table
from sglang_dspark.core.costs.sglang_prices import falling
from sglang_dspark.core.costs.sglang_tables import additive_table, sps_table, to_sps
from sglang_dspark.core.policy import SGLangPlanner
from tests.core.costs.table_kinds import FILES, SHAPES

OUTLIER = {
    "sample_batch_tokens": [8, 16, 24, 32, 48],
    "sample_steps_per_sec": [100.0, 50.0, 90.0, 80.0, 40.0],
    "max_batch_tokens": 48,
}
"""Case 11 in small: one probe twice too slow."""
ADDITIVE = {
    "bias_seconds": 0.01,
    "bs_probes": [1, 8, 32],
    "alpha_seconds": [0.0, 0.001, 0.002],
    "m_probes": [8, 64],
    "theta_seconds": [0.001, 0.02],
}
MODEL = {
    "schema_version": 1,
    "name": "mine",
    "kind": "table",
    "provenance": {
        "origin": "measured", "source": "mine", "hardware": "-", "model": "-", "dtype": "-",
        "tp": 1, "engine": "-", "date": "-", "command": "-",
    },
    "valid_range": {"tokens": [1, 64], "requests": [1, 8], "context_tokens": [0, 1]},
    "fit_error": None,
    "table": {
        "tokens": [1, 64], "seconds": [0.01, 0.04], "between": "linear", "origin": "measured",
        "note": "-",
    },
    "prefill": {
        "base_s": 0.0, "token_s": 1e-5, "pair_s": 0.0, "origin": "measured", "note": "-",
    },
    "host": {"step_s": 0.0, "origin": "measured", "note": "-"},
    "graphs": {"tiers_tokens": [], "beyond_last_s": 0.0, "origin": "measured", "note": "-"},
}  # fmt: skip


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def loaded(path: Path) -> tuple[CostModel, list[str]]:
    """The model of a file, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load_cost_model(path)
    return model, [str(warning.message) for warning in caught]


@pytest.mark.example
def test_an_outlier_is_said_once_with_its_sizes_and_times(tmp_path: Path) -> None:
    path = written(tmp_path / "sps.json", OUTLIER)
    model, said = loaded(path)
    assert len(said) == 1
    assert said[0].startswith(
        f"{path}: 16 tokens take 20 ms and the 2 probes after it, 24 to 32 tokens, 11.11 to "
        "12.5 ms: "
    )
    assert f"dspark prices export {path} --to sglang-sps" in said[0]
    assert model.name == "sps"
    assert model.table is not None
    assert model.table.seconds == (0.01, 0.02, 0.02, 0.02, 0.025)
    assert model.sglang_sps == load_sglang_table(path)


@pytest.mark.example
def test_the_largest_drop_of_several_is_named(tmp_path: Path) -> None:
    value = ADDITIVE | {"alpha_seconds": [0.003, 0.001, 0.002], "theta_seconds": [0.02, 0.001]}
    model, said = loaded(written(tmp_path / "additive.json", value))
    assert "theta_seconds: 8 tokens take 20 ms and the probe after it, 64 tokens, 1 ms" in said[0]
    assert "and 1 more such: " in said[0]
    assert "--to sglang-additive" in said[0]
    assert model.kind == "additive"


@pytest.mark.law
@given(
    kind=st.sampled_from(sorted(FILES)), shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32)
)
def test_steps_are_priced_rising_and_the_policy_has_the_file_itself(
    kind: str, shape: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Law: prices never fall and never lie below SGLang's; the table to decide by is the file."""
    path = tmp_path_factory.getbasetemp() / "table.json"
    model, said = loaded(written(path, FILES[kind](np.random.default_rng(seed), shape)))
    table = load_sglang_table(path)
    assert len(said) == bool(falling(table))
    assert sps_table(model, 7) == table
    assert (additive_table(model) == table) == (kind == "additive")
    dense = model.tables(400, 64)
    assert (np.diff(dense.verify_s) >= 0).all()
    if isinstance(table, SpsTable):
        assert (dense.verify_s[1:] >= (1 - 1e-12) / table.dense(400)[1:]).all()
    else:
        theirs = table.bias_seconds + table.dense_alpha(64)[:, None] + table.dense_theta(400)
        ours = dense.verify_s + dense.request_s[:, None]
        assert (ours[1:, 1:] >= theirs[1:, 1:] * (1 - 1e-12)).all()


@pytest.mark.law
def test_a_file_that_only_rises_says_nothing_and_no_model_of_ours_is_taken_for_one(
    tmp_path: Path,
) -> None:
    value = OUTLIER | {"sample_steps_per_sec": [100.0, 95.0, 90.0, 80.0, 40.0]}
    assert loaded(written(tmp_path / "sps.json", value))[1] == []
    model, said = loaded(written(tmp_path / "ours.json", MODEL))
    assert (said, model.sglang_table) == ([], None)


@pytest.mark.law
@pytest.mark.parametrize("value", [OUTLIER, ADDITIVE])
def test_a_saved_model_keeps_the_table(value: Any, tmp_path: Path) -> None:
    """A step log's header holds the model as JSON: its plans can be made again."""
    model, _ = loaded(written(tmp_path / "table.json", value))
    assert decode_cost_model(json.loads(json.dumps(as_json(model))), where="header") == model


@pytest.mark.example
def test_a_model_is_of_one_table(tmp_path: Path) -> None:
    model, _ = loaded(written(tmp_path / "sps.json", OUTLIER))
    other = load_sglang_table(written(tmp_path / "additive.json", ADDITIVE))
    assert isinstance(other, SpsAdditiveTable)
    with pytest.raises(ValueError, match="prices are of one table; keep one"):
        dataclasses.replace(model, sglang_additive=other)


@pytest.mark.example
def test_policy_sglang_is_given_the_file_of_either_kind_and_flat_nothing(tmp_path: Path) -> None:
    sps, _ = loaded(written(tmp_path / "sps.json", OUTLIER))
    additive, _ = loaded(written(tmp_path / "additive.json", ADDITIVE))
    assert SGLangPlanner().given(sps, 7) == sps.sglang_sps
    assert SGLangPlanner().given(additive, 7) == additive.sglang_additive
    assert SGLangPlanner(table="additive").given(additive, 7) == additive.sglang_additive
    derived = SGLangPlanner(table="additive").given(sps, 7)
    assert isinstance(derived, SpsAdditiveTable)
    assert SGLangPlanner(table="flat").given(sps, 7) is None
    without = dataclasses.replace(sps, sglang_sps=None)
    assert SGLangPlanner().given(without, 7) == to_sps(without, 7)


@pytest.mark.example
def test_a_planner_of_a_falling_table_is_not_one_of_its_running_maximum(tmp_path: Path) -> None:
    """Eight requests at a chance of 1/2 a position: 31 tokens, read as 24, make 14.875 tokens at 90
    steps per second; without the drop nothing from 16 tokens on beats 15 tokens' 11.5 at 100."""
    model, _ = loaded(written(tmp_path / "sps.json", OUTLIER))
    logits = np.full((8, 3), 0.0)

    def budget(priced: CostModel) -> int:
        policy = parse_policy("sglang").policy
        planner = Planner(policy=policy, cost_model=priced, gamma=3, max_requests=8)
        return planner.budget(logits)[0]

    assert budget(model) == 31 - 8
    assert budget(dataclasses.replace(model, sglang_sps=None)) == 15 - 8


@pytest.mark.example
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            OUTLIER | {"sample_steps_per_sec": [0.09, 0.08, 0.07, 0.06, 0.05]},
            "sample_steps_per_sec 0.09 at 8 tokens is outside 0.1 to 100000",
        ),
        (
            OUTLIER | {"sample_steps_per_sec": [2e5, 50.0, 49.0, 48.0, 47.0]},
            "sample_steps_per_sec 200000 at 8 tokens is outside 0.1 to 100000",
        ),
        (
            ADDITIVE | {"bias_seconds": 10.0, "theta_seconds": [1.0, 20.0]},
            "bias_seconds 10 with alpha 0 and theta 1 is a step of 11 s, outside 1e-05 to 10 s",
        ),
        (ADDITIVE | {"theta_seconds": [0.001, -0.02]}, "is a step of -0.01 s"),
        (
            MODEL | {"table": {**MODEL["table"], "seconds": [10.0, 40.0]}},  # type: ignore[dict-item]
            "table: 40 at 64 tokens is a step of 40 s, outside 1e-05 to 10 s",
        ),
        (
            MODEL | {"host": {**MODEL["host"], "step_s": 12.0}},  # type: ignore[dict-item]
            "host: step_s 12 is a step of 12 s",
        ),
        ({"bias_seconds": 0.1}, "missing required field"),
        ({"sample_steps_per_sec": [1.0]}, "missing required field"),
        (
            {"temperatures": [1.0], "dataset": "", "num_samples": 1},
            "holds a calibration and no prices; name it as 'calibration' in a policy file",
        ),
    ],
)
def test_what_no_server_does_and_what_is_no_table_is_refused(
    value: Any, sentence: str, tmp_path: Path
) -> None:
    """Cases 16 and 27."""
    path = written(tmp_path / "prices.json", value)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: ") as raised:
        load_cost_model(path)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
