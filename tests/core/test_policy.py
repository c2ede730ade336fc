"""Policies as data: names, files and the sentence for each wrong one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.calibration import Calibration, save_sts
from sglang_dspark.core.correction import Correction
from sglang_dspark.core.policy import (
    POLICIES,
    ConfidenceThreshold,
    EarlyStop,
    FixedLength,
    GlobalBudget,
    NoSpeculation,
    Policy,
    PolicyFile,
    SGLangPlanner,
    load_policy,
    parse_policy,
    policy_label,
    save_policy,
)

ANY_POLICY: st.SearchStrategy[Policy] = st.one_of(
    st.builds(NoSpeculation),
    st.builds(EarlyStop),
    st.builds(GlobalBudget),
    st.builds(FixedLength, length=st.none() | st.integers(0, 64)),
    st.builds(ConfidenceThreshold, threshold=st.floats(0.0, 1.0)),
    st.builds(SGLangPlanner, table=st.sampled_from(["sps", "additive", "flat"])),
)


@pytest.mark.example
def test_the_names_and_codes_are_unique_and_stand_for_their_own_class() -> None:
    names = ["none", "fixed", "threshold", "early_stop", "global", "sglang", "goodput"]
    assert list(POLICIES) == names
    assert sorted(kind.code for kind in POLICIES.values()) == list(range(len(POLICIES)))


@pytest.mark.law
@given(ANY_POLICY)
def test_a_policys_label_parses_back_to_it(policy: Policy) -> None:
    assert parse_policy(policy_label(policy)) == PolicyFile(policy=policy)


@pytest.mark.example
def test_labels_are_as_short_as_they_can_be() -> None:
    labels = [policy_label(parse_policy(name).policy) for name in POLICIES]
    assert labels == ["none", "fixed", "threshold:0.6", "early_stop", "global", "sglang", "goodput"]
    assert policy_label(FixedLength(length=3)) == "fixed:3"


@pytest.mark.law
@given(
    ANY_POLICY,
    st.booleans(),
    st.builds(
        Correction,
        cost=st.booleans(),
        calibration=st.booleans(),
        bound=st.floats(1.01, 10.0),
        half_life_steps=st.floats(1.0, 1e6),
        explore_every=st.integers(0, 10**6),
    )
    | st.just(Correction()),
)
def test_a_policy_file_comes_back_as_it_went(
    tmp_path_factory: pytest.TempPathFactory,
    policy: Policy,
    calibrated: bool,
    correction: Correction,
) -> None:
    path = tmp_path_factory.getbasetemp() / "policy.json"
    calibration = Calibration(temperatures=(1.5, 0.7), biases=(0.1, 0.0)) if calibrated else None
    file = PolicyFile(
        policy=policy,
        calibration=calibration or Calibration(),
        correction=correction,
        note="by hand",
    )
    save_policy(path, file)
    assert load_policy(path) == parse_policy(str(path)) == file
    assert ("correction" in path.read_text()) == (correction != Correction())


@pytest.mark.example
def test_a_policy_file_may_name_its_calibration_sglangs_sts_file_too(tmp_path: Path) -> None:
    """Case 27: from the policy file's folder."""
    sts = Calibration(temperatures=(1.5, 0.7), dataset="own", ece_before=(0.1, 0.2))
    save_sts(tmp_path / "sts.json", sts)
    path = tmp_path / "policy.json"
    path.write_text('{"schema_version": 1, "policy": "global", "calibration": "sts.json"}')
    assert load_policy(path) == PolicyFile(policy=GlobalBudget(), calibration=sts)
    with pytest.raises(ValueError, match=r"sts\.json: holds a calibration and no policy; write a"):
        parse_policy(str(tmp_path / "sts.json"))
    path.write_text('{"schema_version": 1, "policy": "global", "calibration": "absent.json"}')
    with pytest.raises(ValueError, match=r"absent\.json: cannot read"):
        load_policy(path)


@pytest.mark.example
def test_nothing_is_corrected_unless_the_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"schema_version": 1, "policy": "global"}')
    assert not load_policy(path).correction.on
    path.write_text(
        '{"schema_version": 1, "policy": "global", "correction": {"cost": true, "bound": 1.5}}'
    )
    assert load_policy(path).correction == Correction(cost=True, bound=1.5)
    assert load_policy(path).correction.on


@pytest.mark.example
def test_a_policy_file_needs_a_version_and_a_name_only(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"schema_version": 1, "policy": "global"}')
    assert load_policy(path) == PolicyFile(policy=GlobalBudget())


@pytest.mark.example
def test_policies_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FixedLength().length = 3  # type: ignore[misc]


@pytest.mark.example
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gobal", "--policy: no policy 'gobal'; did you mean 'global'? known: none, fixed,"),
        ("zzz", "--policy: no policy 'zzz'; known: none, fixed, threshold,"),
        ("", "--policy: no policy ''; known: none"),
        ("global:3", "--policy global:3: global takes no parameter; write just global"),
        ("fixed:", "--policy fixed:: length: "),
        ("fixed:two", "--policy fixed:two: length: invalid literal for int()"),
        ("fixed:-1", "length -1 must be 0 to 64; leave it out to verify all"),
        ("fixed:65", "length 65 must be 0 to 64"),
        ("threshold:1.5", "threshold 1.5 must be between 0 and 1"),
        ("threshold:nan", "threshold nan must be between 0 and 1"),
        ("sglang:spline", "table 'spline' must be sps, additive or flat"),
        ("missing.json", "missing.json: cannot read: No such file"),
    ],
)
def test_a_wrong_policy_argument_gets_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        parse_policy(text)
    assert "\n" not in str(caught.value)


@pytest.mark.example
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "a policy file is an object with the key 'policy'"),
        ('{"schema_version": 1}', "a policy file is an object with the key 'policy'"),
        ('{"policy": 3, "schema_version": 1}', "a policy file is an object with the key 'policy'"),
        ('{"policy": "global"}', "schema_version None is unknown; this release reads 1"),
        ('{"policy": "global", "schema_version": 2}', "schema_version 2 is unknown"),
        ('{"policy": "global", "schema_version": true}', "schema_version True is unknown"),
        ('{"policy": "globe", "schema_version": 1}', "no policy 'globe'; did you mean 'global'?"),
        (
            '{"policy": "fixed", "schema_version": 1, "parameters": {"lenght": 3}}',
            "parameters: unknown key 'lenght'; did you mean 'length'?",
        ),
        (
            '{"policy": "fixed", "schema_version": 1, "parameters": {"length": 3.5}}',
            "parameters: Expected `int | null`, got `float`",
        ),
        (
            '{"policy": "fixed", "schema_version": 1, "parameters": {"length": 99}}',
            "length 99 must be 0 to 64",
        ),
        (
            '{"policy": "global", "schema_version": 1, "parameter": {}}',
            "unknown key 'parameter'; did you mean 'parameters'?",
        ),
        (
            '{"policy": "global", "schema_version": 1, "zzz": {}}',
            "unknown key 'zzz'; known keys: schema_version, policy,",
        ),
        (
            '{"policy": "global", "schema_version": 1, "calibration": {"temperatures": [0]}}',
            "calibration: temperature 0.0 at position 1 must be > 0",
        ),
        (
            '{"policy": "global", "schema_version": 1, "calibration": []}',
            "calibration: Expected `object`, got `array`",
        ),
        ('{"policy": "global", "schema_version": 1, "note": 3}', "note 3 must be text"),
        (
            '{"policy": "global", "schema_version": 1, "correction": {"costs": true}}',
            "correction: unknown key 'costs'; did you mean 'cost'?",
        ),
        (
            '{"policy": "global", "schema_version": 1, "correction": {"bound": 0.5}}',
            "correction: bound 0.5 must be above 1",
        ),
        ('{"policy": "global", "schema_version": 1', ":1: not valid JSON"),
        (
            '{"policy": "threshold", "schema_version": 1, "parameters": {"threshold": NaN}}',
            "NaN is not a JSON number; give a finite value",
        ),
    ],
)
def test_a_wrong_policy_file_gets_one_sentence_with_its_name(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        load_policy(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
