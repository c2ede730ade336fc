"""Settings: from flags and variables to a planner, and every way in which they do not fit."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.corrected_planner import CorrectedPlanner
from sglang_dspark.core.correction import Correction
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import as_json, decode_cost_model
from sglang_dspark.core.costs.sglang_files import load_sglang_table
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.state import BatchState
from sglang_dspark.runtime import settings
from sglang_dspark.runtime.settings import Settings, check
from tests.core.costs.table_kinds import FILES

SHIPPED = "h200-qwen3-8b-analytic"
GAMMA = 7


def checked(gamma: int = GAMMA, head: bool = True, **fields: Any) -> settings.Deployment:
    return check(Settings(**fields), gamma=gamma, has_confidence_head=head, max_requests=8)


def state(requests: int, gamma: int) -> BatchState:
    rng = np.random.default_rng(requests)
    return BatchState(
        logits=rng.normal(size=(requests, gamma)),
        stale_logits=rng.normal(size=(requests, gamma)),
        stale_age=np.full(requests, 2),
        context_tokens=np.full(requests, 100),
    )


@pytest.mark.example
def test_an_empty_environment_means_the_defaults() -> None:
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment({"SPECULATIVE_DSPARK_POLICY": " "}) == Settings()
    assert Settings() == Settings(policy="global", cost_model=None, step_log=None, step_log_mb=256)


@pytest.mark.law
@given(
    policy=st.none() | st.sampled_from(["fixed:3", "/a b/policy.json"]),
    cost_model=st.none() | st.just("h100"),
    step_log=st.none() | st.just("steps"),
    step_log_mb=st.none() | st.integers(1, 10**6),
    before=st.sampled_from([{}, {"SPECULATIVE_DSPARK_POLICY": "none"}]),
)
def test_what_flags_say_is_what_the_environment_says(before: dict[str, str], **given: Any) -> None:
    parser = argparse.ArgumentParser()
    settings.add_flags(parser)
    words = [f"{settings.flag(name)}={value}" for name, value in given.items() if value is not None]
    environment = dict(before)
    settings.carry(parser.parse_args(words), environment)
    found = Settings.from_environment(environment)
    for name, value in given.items():
        if value is not None:
            assert getattr(found, name) == value
    if given["policy"] is None:
        assert found.policy == before.get("SPECULATIVE_DSPARK_POLICY", "global")


@pytest.mark.example
@pytest.mark.parametrize("text", ["1.5", "-1", "0", "many"])
def test_the_log_size_must_be_a_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match=r"STEP_LOG_MB|step-log-mb"):
        Settings.from_environment({"SPECULATIVE_DSPARK_STEP_LOG_MB": text})


@pytest.mark.example
def test_a_policy_with_its_cost_model_makes_a_planner() -> None:
    chosen = checked(cost_model=SHIPPED)
    assert chosen.policy_file.policy.name == "global"
    assert chosen.priced
    assert chosen.planner.gamma == GAMMA
    assert chosen.planner.max_requests == 8
    plan = chosen.planner.plan(state(8, GAMMA))
    assert plan.predicted_step_s > 0


@pytest.mark.example
@pytest.mark.parametrize("policy", ["none", "fixed", "fixed:3", "threshold:0.5"])
def test_policies_that_ask_no_price_need_no_cost_model(policy: str) -> None:
    chosen = checked(policy=policy)
    assert not chosen.priced
    priced = checked(policy=policy, cost_model=SHIPPED)
    for requests in (1, 8):
        plan, same = (c.planner.plan(state(requests, GAMMA)) for c in (chosen, priced))
        assert plan.lengths.tolist() == same.lengths.tolist()
        assert plan.predicted_step_s == 1.0


@pytest.mark.example
def test_the_stand_in_cost_model_survives_a_file() -> None:
    stand_in = settings.unpriced()
    text = json.dumps(as_json(stand_in), allow_nan=False)
    assert decode_cost_model(json.loads(text), where="test") == stand_in


@pytest.mark.example
@pytest.mark.parametrize("policy", ["none", "fixed", "fixed:2"])
def test_a_drafter_without_confidence_head_serves_policies_that_read_none(policy: str) -> None:
    assert checked(policy=policy, head=False).policy_file.policy.name == policy.partition(":")[0]


@pytest.mark.example
def test_a_cost_model_without_draft_times_fits_every_draft_length(tmp_path: Path) -> None:
    value = as_json(load_cost_model("h200-qwen3-14b-sglang-pr35413"))
    del value["draft"]
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(value))
    assert checked(gamma=3, cost_model=str(path)).cost_model.draft is None


@pytest.mark.example
@pytest.mark.parametrize("kind", FILES)
def test_sglangs_own_table_is_a_cost_model_here_too(kind: str, tmp_path: Path) -> None:
    """Case 27, with the file that SGLang itself would be given."""
    path = tmp_path / "table.json"
    path.write_text(json.dumps(FILES[kind](np.random.default_rng(3), "rising")))
    found = checked(policy="sglang", cost_model=str(path)).cost_model
    assert found.sglang_table == load_sglang_table(path)


@pytest.mark.example
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"policy": "globl"}, "--speculative-dspark-policy: no policy 'globl'; did you mean 'glo"),
        ({"policy": "fixed:x"}, "--speculative-dspark-policy: fixed:x: length: invalid"),
        ({"policy": "fixed:8"}, "--speculative-dspark-policy fixed:8: .* draft length 7; lower"),
        ({"policy": "no/such.json"}, "--speculative-dspark-policy: no/such.json: cannot read"),
        ({"cost_model": None}, "policy global compares step times .* none, fixed or threshold:0.6"),
        (
            {"cost_model": "h200"},
            "cost-model: no cost model 'h200'; those that begin so: .*h200-qwen3",
        ),
        ({"cost_model": "no.json"}, "--speculative-dspark-cost-model: no.json: cannot read"),
        ({"gamma": 4}, "is for draft length 7, the drafter makes 4 tokens; give"),
        ({"head": False}, "policy global reads confidences .* to none or fixed, or train"),
        ({"policy": "threshold", "head": False}, "policy threshold reads confidences"),
        ({"policy": "sglang", "cost_model": None}, "policy sglang compares step times"),
    ],
)
def test_what_does_not_fit_is_refused_by_one_sentence(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        checked(**{"cost_model": SHIPPED, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.example
def test_a_calibration_of_another_draft_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    calibration = {"temperatures": [1.0, 1.1, 1.2]}
    value = {"schema_version": 1, "policy": "threshold", "calibration": calibration}
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match="calibration holds for draft length 3, not 7; fit one"):
        checked(policy=str(path))
    assert checked(policy=str(path), gamma=3).policy_file.calibration.temperatures == (1, 1.1, 1.2)


@pytest.mark.example
def test_the_step_log_has_a_folder_before_the_server_starts(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "steps"
    checked(policy="fixed", step_log=str(folder))
    assert folder.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the folder"):
        checked(policy="fixed", step_log=str(tmp_path / "file"))


def corrected_file(folder: Path, correction: dict[str, Any], policy: str = "global") -> str:
    path = folder / "policy.json"
    value = {"schema_version": 1, "policy": policy, "correction": correction}
    path.write_text(json.dumps(value))
    return str(path)


@pytest.mark.example
def test_a_policy_file_switches_online_correction_on(tmp_path: Path) -> None:
    plain = checked(cost_model=SHIPPED).planner
    assert type(plain) is Planner
    path = corrected_file(tmp_path, {"cost": True, "bound": 1.5})
    found = checked(policy=path, cost_model=SHIPPED).planner
    assert isinstance(found, CorrectedPlanner)
    assert found.correction == Correction(cost=True, bound=1.5)
    assert (
        found.plan(state(8, GAMMA)).lengths.tolist() == plain.plan(state(8, GAMMA)).lengths.tolist()
    )
    path = corrected_file(tmp_path, {"bound": 1.5})
    assert type(checked(policy=path, cost_model=SHIPPED).planner) is Planner


@pytest.mark.example
def test_corrections_that_cannot_be_carried_out_are_refused(tmp_path: Path) -> None:
    path = corrected_file(tmp_path, {"calibration": True})
    with pytest.raises(ValueError, match="leave it out, or the policy file's correction"):
        checked(policy=path, cost_model=SHIPPED, step_log=str(tmp_path / "log"))
    path = corrected_file(tmp_path, {"cost": True}, policy="threshold")
    with pytest.raises(ValueError, match="corrects prices and there are none; give --spec"):
        checked(policy=path)
    path = corrected_file(tmp_path, {"cost": True}, policy="sglang")
    with pytest.raises(ValueError, match="policy sglang decides as SGLang does"):
        checked(policy=path, cost_model=SHIPPED)
