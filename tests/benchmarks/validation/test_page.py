"""The validation page: what the committed record claims, and what page and tables show of it."""

from __future__ import annotations

import copy
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.style import page_bytes
from benchmarks.validation import page as validation
from benchmarks.validation.page import PANELS, validation_page
from benchmarks.validation.page_tables import TABLES, filled
from benchmarks.validation.record import (
    CALIBRATION,
    SPEED_GAIN_PCT,
    TOLERANCE,
    Validation,
    median_abs,
)
from sglang_dspark.files import decode_record, read_json, read_record

ROOT = Path(__file__).parents[3]
RECORD = ROOT / "benchmarks" / "results" / "validation.json"
PUBLISHED = ROOT / "benchmarks" / "published_serving.json"
TWIN = ROOT / "benchmarks" / "results" / "digital_twin.json"
DOCS = ROOT / "docs" / "validation.md"
ARMS = {"none": "no_spec", "adaptive": "adaptive"} | {
    f"fixed {k}": f"fixed_k{k}" for k in (1, 3, 5, 6, 7)
}


@pytest.fixture(scope="module")
def record() -> Validation:
    return read_record(RECORD, Validation)


@pytest.fixture
def value() -> dict[str, Any]:
    loaded: dict[str, Any] = read_json(RECORD)
    return copy.deepcopy(loaded)


def published() -> dict[str, Any]:
    records: dict[str, Any] = read_json(PUBLISHED)["records"]
    return records


@pytest.mark.golden
def test_the_docs_hold_the_tables_of_the_committed_record(record: Validation) -> None:
    text = DOCS.read_text()
    assert filled(text, record, where="docs") == text
    for name in TABLES:
        assert f"<!-- table: {name} -->\n|" in text


@pytest.mark.golden
def test_every_published_point_of_the_frontier_is_predicted(record: Validation) -> None:
    figure = published()["vllm-fig3-pareto"]
    points = record.frontier.points
    assert len(points) == len(ARMS) * len(figure["concurrency"]) == 42
    for point in points:
        place = figure["concurrency"].index(point.concurrency)
        pair = [point.published_user_tok_s, point.published_tok_s]
        assert pair == figure["data"][ARMS[point.arm]][place]


@pytest.mark.golden
def test_none_fixed_7_and_adaptive_are_in_the_published_order_at_every_concurrency(
    record: Validation,
) -> None:
    at = {(point.arm, point.concurrency): point for point in record.frontier.points}
    for row in record.frontier.orders:
        low, middle, high = (at[arm, row.concurrency] for arm in ("none", "fixed 7", "adaptive"))
        assert low.published_tok_s < middle.published_tok_s < high.published_tok_s
        assert low.predicted_tok_s < middle.predicted_tok_s < high.predicted_tok_s
        assert row.seeds_right == row.seeds == record.frontier.seeds
    assert len(record.frontier.orders) == 6


@pytest.mark.golden
def test_half_of_the_throughputs_are_predicted_within_ten_percent(record: Validation) -> None:
    points = [p for p in record.frontier.points if p.role != CALIBRATION]
    errors = [abs(p.predicted_tok_s - p.published_tok_s) / p.published_tok_s for p in points]
    assert len(points) == 40
    assert statistics.median(errors) <= TOLERANCE
    assert median_abs(p.error for p in record.frontier.predicted) == pytest.approx(
        statistics.median(errors)
    )


@pytest.mark.golden
def test_dspark_gains_over_mtp_1_where_and_as_much_as_the_paper_says(record: Validation) -> None:
    low, high = SPEED_GAIN_PCT
    for model in record.paper:
        assert len(model.gains) == 4
        for gain in model.gains:
            assert gain.published_pct > 0
            assert gain.predicted_pct > 0
            if gain.kind.startswith("speed"):
                assert low <= gain.predicted_pct <= high


@pytest.mark.golden
def test_the_budget_falls_with_load_as_in_figure_8(record: Validation) -> None:
    for model in record.paper:
        budget = [p.predicted_budget for p in model.points if p.method == "DSpark-5"]
        assert (np.diff(budget) < 0).all()
        near_20, near_200 = (
            next(
                p.predicted_budget
                for p in model.points
                if (p.method, p.concurrency) == ("DSpark-5", load)
            )
            for load in (16, 200)
        )
        assert near_20 == pytest.approx(5.0, abs=0.5)
        assert near_200 == pytest.approx(3.5, abs=0.5)


@pytest.mark.law
def test_no_study_is_calibrated_on_more_than_two_points(
    record: Validation, value: dict[str, Any]
) -> None:
    marked = [p for p in record.frontier.points if p.role == CALIBRATION]
    assert len(marked) == len(record.frontier.calibrated_on) == 2
    for study in (value["frontier"], value["paper"][0]):
        study["calibrated_on"].append("one more")
        with pytest.raises(ValueError, match="3 calibration points; a study may use 2"):
            decode_record(value, Validation, where="record")
        study["calibrated_on"].pop()


@pytest.mark.golden
def test_the_twin_on_the_page_is_the_one_that_was_measured(record: Validation) -> None:
    rows = {(row["load"], row["policy"]): row for row in read_json(TWIN)["rows"]}
    assert len(record.twin) == 4 * len(rows)
    for shown in record.twin:
        row = rows[shown.load, shown.policy]
        assert shown.measured == row["measured"][shown.figure]
        assert shown.predicted == row["predicted"][shown.figure]


@pytest.mark.example
def test_the_page_shows_every_point_and_names_what_misses(record: Validation) -> None:
    figure = validation_page(record)
    assert len(figure.axes) == len(PANELS)
    for axes in figure.axes:
        assert axes.get_title(loc="left")
        assert axes.get_ylabel() or axes.get_yticklabels()
    _, speed, *_ = figure.axes
    drawn = {
        (float(np.asarray(line.get_xdata()).flat[0]), float(np.asarray(line.get_ydata()).flat[0]))
        for line in speed.lines
        if np.size(line.get_xdata()) == 1
    }
    points = record.frontier.points
    assert drawn == {(p.published_user_tok_s, p.predicted_user_tok_s) for p in points}
    named = "\n".join(text.get_text() for text in speed.texts)
    missed = [p for p in record.frontier.predicted if abs(p.user_error) > TOLERANCE]
    assert missed
    for point in missed:
        assert f"{point.arm} at {point.concurrency}:" in named


@pytest.mark.law
def test_the_same_record_gives_the_same_bytes(record: Validation) -> None:
    first, second = (page_bytes(validation_page(record), "svg") for _ in range(2))
    assert first == second


@pytest.mark.example
def test_the_command_fills_the_tables_and_leaves_the_text_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs, page = tmp_path / "page.md", tmp_path / "page.png"
    docs.write_text("Before.\n<!-- table: queues -->\nstale\n<!-- end -->\nAfter.\n")
    assert validation.main([str(RECORD), "-o", str(page), "--docs", str(docs)]) == 0
    assert page.read_bytes()[:4] == b"\x89PNG"
    text = docs.read_text()
    assert text.startswith("Before.\n<!-- table: queues -->\n| server |")
    assert text.endswith("<!-- end -->\nAfter.\n")
    assert "stale" not in text
    assert str(docs) in capsys.readouterr().out


@pytest.mark.example
@pytest.mark.parametrize(
    ("text", "sentence"),
    [("no place for one\n", "add one"), ("<!-- table: nosuch -->\n<!-- end -->\n", "'nosuch'")],
)
def test_a_page_without_a_known_table_is_refused_and_left_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    docs = tmp_path / "page.md"
    docs.write_text(text)
    arguments = [str(RECORD), "-o", str(tmp_path / "page.svg"), "--docs", str(docs)]
    assert validation.main(arguments) == 2
    complaint = capsys.readouterr().err
    assert sentence in complaint
    assert complaint.count("\n") == 1
    assert docs.read_text() == text


@pytest.mark.example
def test_another_json_file_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: dict[str, Any]
) -> None:
    other = tmp_path / "other.json"
    value["schema_version"] = 2
    for content in ({"rows": []}, value):
        other.write_text(json.dumps(content))
        assert validation.main([str(other), "-o", str(tmp_path / "page.png")]) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith(f"benchmarks.validation.page: {other}")
        assert complaint.count("\n") == 1
    assert not (tmp_path / "page.png").exists()
