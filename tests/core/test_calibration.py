"""Calibration: one law for three kinds, its files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.calibration import Calibration, load_calibration, save_sts
from sglang_dspark.core.survival import fill_survival
from sglang_dspark.files import write_json

TEMPERATURES = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=8).map(tuple)


def confidences(calibration: Calibration, logits: list[float]) -> list[float]:
    inverse, bias = calibration.arrays(len(logits))
    out = np.empty(len(logits))
    fill_survival(np.array(logits), inverse, bias, out)
    return [float(a) for a in out / np.concatenate([[1.0], out[:-1]])]


@pytest.mark.example
def test_identity_holds_for_every_draft_length() -> None:
    for gamma in (1, 7):
        inverse, bias = Calibration().arrays(gamma)
        assert (inverse.tolist(), bias.tolist()) == ([1.0] * gamma, [0.0] * gamma)


@pytest.mark.example
def test_a_temperature_divides_and_a_bias_is_added_after() -> None:
    calibration = Calibration(temperatures=(2.0, 4.0), biases=(0.0, 1.0))
    found = confidences(calibration, [2.0, -4.0])
    assert found == pytest.approx([1 / (1 + np.exp(-1.0)), 0.5], rel=1e-14)


@pytest.mark.law
@given(TEMPERATURES)
def test_temperatures_never_reorder_the_confidences_of_a_position(
    temperatures: tuple[float, ...],
) -> None:
    calibration = Calibration(temperatures=temperatures)
    low = confidences(calibration, [-0.5] * len(temperatures))
    high = confidences(calibration, [0.5] * len(temperatures))
    assert all(a < 0.5 < b for a, b in zip(low, high, strict=True))


@pytest.mark.law
@given(
    TEMPERATURES,
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.integers(0, 10**9),
)
def test_sglangs_file_comes_back_as_it_went(
    tmp_path_factory: pytest.TempPathFactory,
    temperatures: tuple[float, ...],
    dataset: str,
    samples: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "sts.json"
    ece = tuple(0.01 for _ in temperatures)
    calibration = Calibration(
        temperatures=temperatures,
        dataset=dataset,
        num_samples=samples,
        ece_before=ece,
        ece_after=ece,
    )
    save_sts(path, calibration)
    assert load_calibration(path) == calibration


@pytest.mark.example
def test_sglangs_file_has_exactly_its_five_keys(tmp_path: Path) -> None:
    save_sts(tmp_path / "sts.json", Calibration(temperatures=(1.5,), biases=(0.0,)))
    keys = list(json.loads((tmp_path / "sts.json").read_text()))
    assert keys == ["temperatures", "dataset", "num_samples", "ece_before", "ece_after"]


@pytest.mark.example
def test_our_own_file_keeps_biases_and_the_sampling_temperature(tmp_path: Path) -> None:
    calibration = Calibration(temperatures=(1.5, 2.0), biases=(0.1, -0.2), decode_temperature=0.7)
    write_json(tmp_path / "own.json", calibration)
    assert load_calibration(tmp_path / "own.json") == calibration


@pytest.mark.example
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"schema_version": 2}, "schema_version 2 is unknown; this release reads 1"),
        ({"temperatures": (1.0, 0.0)}, r"temperature 0\.0 at position 2 must be > 0"),
        ({"temperatures": (-1.0,)}, r"temperature -1\.0 at position 1 must be > 0"),
        ({"temperatures": (float("nan"),)}, "temperature nan at position 1 must be > 0"),
        ({"temperatures": (float("inf"),)}, "temperature inf at position 1 must be > 0"),
        ({"temperatures": (1.0,), "biases": (float("inf"),)}, "bias inf at position 1 must be fin"),
        ({"temperatures": (1.0,), "biases": (0.0, 0.0)}, "2 biases for 1 temperatures; give one"),
        ({"biases": (0.5,)}, "1 biases for 0 temperatures; give one of each"),
    ],
)
def test_a_wrong_calibration_is_refused_with_its_value(
    fields: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Calibration(**fields)  # type: ignore[arg-type]


@pytest.mark.example
def test_a_calibration_of_another_draft_length_is_refused() -> None:
    with pytest.raises(ValueError, match="holds for draft length 2, not 7; fit one for 7"):
        Calibration(temperatures=(1.0, 1.0)).arrays(7)


@pytest.mark.example
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "an STS file needs temperatures"),
        ('{"temperatures": []}', "an STS file needs temperatures"),
        ('{"temperatures": [1.0, 0]}', r"temperature 0\.0 at position 2"),
        ('{"temperatures": ["a"]}', r"Expected `float`, got `str` - at `\$\.temperatures\[0\]`"),
        ('{"temperatures": [1], "temprature": 2}', "unknown key 'temprature'; did you mean"),
        ("[1.0]", "Expected `object`, got `array`"),
    ],
)
def test_a_wrong_calibration_file_is_refused_with_its_name(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "sts.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_calibration(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.example
@pytest.mark.parametrize(
    ("calibration", "sentence"),
    [
        (Calibration(temperatures=(1.0,), biases=(0.5,)), "has no biases"),
        (Calibration(), "the identity needs no file"),
    ],
)
def test_what_sglang_cannot_read_is_not_written(
    tmp_path: Path, calibration: Calibration, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        save_sts(tmp_path / "sts.json", calibration)
    assert not list(tmp_path.iterdir())
