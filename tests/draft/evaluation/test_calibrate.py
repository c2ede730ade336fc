"""Calibration: the fits on rounds whose true confidences are known, the files, the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.cli import run_command
from sglang_dspark.core.calibration import load_calibration
from sglang_dspark.draft.evaluation.calibrate import best_calibration, fit_all, main, report
from sglang_dspark.draft.evaluation.calibration_fit import (
    fit,
    fit_temperature_and_bias,
    fit_temperatures,
    split_rounds,
)
from sglang_dspark.draft.evaluation.reliability import (
    acceptance,
    auc,
    ece,
    ece_floor,
    ratio,
    reliability,
    reliability_curve,
    survival_of,
    threshold_sweep,
)
from sglang_dspark.logs.acceptance_log import read_rounds, write_rounds
from sglang_dspark.logs.rounds import Rounds, join_rounds
from simulator.acceptance.load import load_acceptance

GAMMA = 3


def synthetic(
    *, rounds: int, temperature: float, bias: float, seed: int = 0, decode: float = 1.0
) -> Rounds:
    """Rounds whose token k is accepted with sigmoid(z_k / temperature + bias)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(1.0, 1.5, (rounds, GAMMA))
    chance = 1 / (1 + np.exp(-(logits / temperature + bias)))
    passed = rng.random((rounds, GAMMA)) < chance
    return Rounds(
        request=np.arange(rounds) // 10,
        step=np.arange(rounds) % 10,
        domain=np.where(np.arange(rounds) // 10 % 2, "code", "chat"),
        logits=logits.astype(np.float32).astype(np.float64),
        accepted=passed.cumprod(axis=1).sum(axis=1),
        temperature=np.full(rounds, decode),
    )


@pytest.mark.example
def test_temperature_and_bias_recover_the_law_that_made_the_rounds() -> None:
    temperatures, biases = fit_temperature_and_bias(
        synthetic(rounds=40_000, temperature=2.0, bias=-0.7)
    )
    np.testing.assert_allclose(temperatures, 2.0, rtol=0.08)
    np.testing.assert_allclose(biases, -0.7, atol=0.06)


@pytest.mark.example
def test_sts_recovers_the_temperature_that_made_the_rounds() -> None:
    temperatures = fit_temperatures(synthetic(rounds=40_000, temperature=2.0, bias=0.0))
    np.testing.assert_allclose(temperatures, 2.0, rtol=0.15)


@pytest.mark.example
def test_a_bias_repairs_what_a_temperature_cannot() -> None:
    by_method = {
        one.method: one for one in fit_all(synthetic(rounds=20_000, temperature=1, bias=-1.5))[1.0]
    }
    assert by_method["bias"].gain > 3
    assert by_method["bias"].gain > 1.5 * by_method["sts"].gain
    assert by_method["bias"].after.at_floor
    name, calibration = best_calibration(list(by_method.values()))
    assert name == "bias"
    assert calibration == by_method["bias"].calibration


@pytest.mark.example
def test_confidences_that_are_right_already_are_said_to_be() -> None:
    good = fit_all(synthetic(rounds=8_000, temperature=1, bias=0, seed=3))[1.0]
    assert "noise floor already" in report(1.0, good)
    bad = fit_all(synthetic(rounds=8_000, temperature=3, bias=0, seed=3))[1.0]
    assert "noise floor already" not in report(1.0, bad)


@pytest.mark.example
def test_a_fit_that_does_not_help_on_held_out_rounds_is_not_written() -> None:
    fits = fit_all(synthetic(rounds=1_500, temperature=1, bias=0, seed=4))[1.0]
    worse = [
        dataclasses.replace(one, after=dataclasses.replace(one.after, ece=one.before.ece * 1.1))
        for one in fits
    ]
    name, calibration = best_calibration(worse)
    assert name == "raw"
    assert calibration.temperatures == (1.0,) * GAMMA
    assert not calibration.biases
    assert calibration.ece_after == calibration.ece_before


@pytest.mark.example
def test_positions_that_nearly_no_round_reaches_stay_as_they_are() -> None:
    rounds = synthetic(rounds=400, temperature=1, bias=0)
    rounds = dataclasses.replace(rounds, accepted=np.minimum(rounds.accepted, 1))
    temperatures, biases = fit_temperature_and_bias(rounds)
    assert temperatures[2] == 1
    assert biases[2] == 0
    assert fit_temperatures(rounds)[2] == 1


@pytest.mark.law
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.1, 0.9))
def test_a_split_shares_no_request_and_loses_no_round(seed: int, share: float) -> None:
    rounds = synthetic(rounds=200, temperature=1, bias=0)
    train, held = split_rounds(rounds, share, seed)
    assert not set(train.request) & set(held.request)
    assert len(train) + len(held) == len(rounds)
    assert len(held) > 0 < len(train)


@pytest.mark.example
def test_the_definitions_by_hand() -> None:
    rounds = Rounds(
        request=np.array([0, 0, 1, 1]),
        step=np.array([0, 1, 0, 1]),
        domain=np.array(["a"] * 4),
        logits=np.array([[2.0, -1.0], [2.0, 3.0], [-2.0, 0.0], [0.5, 0.5]]),
        accepted=np.array([0, 1, 2, 2]),
        temperature=np.full(4, np.nan),
    )
    found = acceptance(rounds)
    np.testing.assert_allclose(found.survival.value, [3 / 4, 2 / 4])
    np.testing.assert_allclose(found.conditional.value, [3 / 4, 2 / 3])
    assert found.length.value == pytest.approx(1 + 5 / 4)
    # Requests commit 3 of 2 rounds and 6 of 2: deviations -+1.5, so sqrt(2 * 4.5) / 4.
    assert found.length.error == pytest.approx(0.75)
    sweep = threshold_sweep(rounds, np.array([0.0, 0.6]))
    # Lengths at 0.6: 1, 2, 0, 2.
    np.testing.assert_allclose(sweep.verified, [3.0, 1 + 5 / 4])
    np.testing.assert_allclose(sweep.committed, [1 + 5 / 4, 1 + 3 / 4])
    np.testing.assert_allclose(sweep.rate, sweep.committed / sweep.verified)


@pytest.mark.example
def test_ece_auc_and_brier_by_hand() -> None:
    predicted = np.array([0.11, 0.12, 0.81, 0.99])
    happened = np.array([False, True, True, True])
    assert ece(predicted, happened.astype(float)) == pytest.approx((0.77 + 0.19 + 0.01) / 4)
    assert auc(predicted, happened) == 1.0
    assert auc(predicted, np.array([True, False, True, True])) == pytest.approx(2 / 3)
    assert auc(np.full(4, 0.5), happened) == 0.5
    assert np.isnan(auc(predicted, np.ones(4, dtype=bool)))
    found = reliability(predicted[:, None], happened[:, None])
    assert found.brier[0] == pytest.approx((0.11**2 + 0.88**2 + 0.19**2 + 0.01**2) / 4)
    assert found.brier_floor[0] == pytest.approx((predicted * (1 - predicted)).mean())
    mean, share, count = reliability_curve(predicted, happened.astype(float))
    assert count.tolist() == [0, 0, 2, *[0] * 13, 1, 0, 0, 1]
    assert (mean[2], share[2]) == (pytest.approx(0.115), 0.5)


@pytest.mark.example
def test_the_noise_floor_is_what_perfect_confidences_show() -> None:
    rounds = synthetic(rounds=5_000, temperature=1, bias=0, seed=5)
    predicted = survival_of(rounds.logits)[:, 0]
    mean, high = ece_floor(predicted, np.random.default_rng(0))
    assert 0 < mean < high
    assert ece(predicted, rounds.survived[:, 0].astype(float)) < 1.3 * high
    assert mean < 0.02


@pytest.mark.law
def test_standard_errors_count_requests_not_rounds() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(size=(300, 40))  # 300 experiments of 40 requests with 25 equal rounds each
    means = own.mean(axis=1)
    errors = [
        float(
            ratio(
                above=np.repeat(row, 25), below=np.ones(1000), cluster=np.arange(1000) // 25
            ).error
        )
        for row in own
    ]
    assert np.mean(errors) == pytest.approx(means.std(), rel=0.1)


@pytest.mark.example
def test_logs_round_trip_and_the_simulator_reads_them(tmp_path: Path) -> None:
    rounds = synthetic(rounds=100, temperature=1, bias=0)
    path = tmp_path / "rounds.parquet"
    write_rounds(path, rounds)
    again = read_rounds(path)
    for name in ("request", "step", "domain", "logits", "accepted", "temperature"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rounds, name))
    profile = load_acceptance(path)
    assert profile.gamma == GAMMA
    assert profile.domains == ("chat", "code")
    assert int(profile.accepted.sum()) == int(rounds.accepted.sum())


@pytest.mark.example
def test_joined_logs_keep_their_requests_apart() -> None:
    one = synthetic(rounds=20, temperature=1, bias=0)
    joined = join_rounds([one, one])
    assert len(np.unique(joined.request)) == 4
    with pytest.raises(ValueError, match="one draft length"):
        join_rounds(
            [one, dataclasses.replace(one, logits=one.logits[:, :1], accepted=0 * one.step)]
        )


@pytest.mark.example
def test_the_command_writes_both_files_for_every_temperature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = []
    for decode, bias in ((1.0, 0.0), (1.4, -1.0)):
        logs.append(str(tmp_path / f"rounds-{decode}.parquet"))
        rounds = synthetic(rounds=3_000, temperature=1, bias=bias, decode=decode)
        write_rounds(logs[-1], rounds)
    main([*logs, "-o", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "decode T=1:" in printed
    assert "decode T=1.4:" in printed
    calibration = load_calibration(tmp_path / "out" / "calibration-T1.4.json")
    assert calibration.decode_temperature == 1.4
    assert calibration.biases[0] < -0.5
    assert len(calibration.ece_before) == GAMMA
    assert calibration.ece_after[0] < calibration.ece_before[0]
    sts = json.loads((tmp_path / "out" / "sts-T1.json").read_text())
    assert list(sts) == ["temperatures", "dataset", "num_samples", "ece_before", "ece_after"]
    main([logs[0], "-o", str(tmp_path / "one"), "--method", "sts"])
    assert not load_calibration(tmp_path / "one" / "calibration.json").biases


@pytest.mark.example
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"logits": None}, "column 'logits' is missing"),
        ({"accepted": [9] * 40}, "column 'accepted', row 0: 9 is wrong; it must be 0..3"),
        (
            {"logits": [[1.0, 2.0, 3.0]] * 39 + [[1.0]]},
            "column 'logits', row 39: 1 is wrong; row 0 has 3 values",
        ),
        (
            {"logits": [[1.0, 2.0, float("inf")]] * 40},
            "row 0: [ 1.  2. inf] is wrong; every logit must be a finite number",
        ),
        ({"step": [0, None] * 20}, "column 'step', row 1: no value; every row needs one"),
        ({"request": [1] * 40}, "all rounds are of one request"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, list[object] | None],
    reason: str,
) -> None:
    path = tmp_path / "rounds.parquet"
    write_rounds(path, synthetic(rounds=40, temperature=1, bias=0))
    columns = pq.read_table(path).to_pydict() | change
    pq.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path)
    assert run_command("calibrate", lambda: main([str(path), "-o", str(tmp_path / "out")])) == 2
    complaint = capsys.readouterr().err
    assert reason in complaint
    assert complaint.count("\n") == 1


@pytest.mark.example
def test_a_method_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="sts, bias"):
        fit(synthetic(rounds=100, temperature=1, bias=0), "platt")
