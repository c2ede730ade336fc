"""The zoo: what a protocol knows, what intervals are of, and that numbers are the published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo.protocols import COLD, TWO_POINTS, USER, known_points, predict
from benchmarks.zoo.records import ADAPTIVE, all_records, kind_of
from benchmarks.zoo.score import half_width, score, unexplained_by, widen

RECORDS = all_records()
SHARED = Path(__file__).parents[4] / "shared" / "data" / "published"


@pytest.mark.law
@pytest.mark.parametrize("name", RECORDS)
def test_a_protocol_knows_what_it_says_and_nothing_else(name: str) -> None:
    points = RECORDS[name].points()
    assert known_points(COLD, points) == []
    low, high = (points[i] for i in known_points(TWO_POINTS, points))
    assert low.policy == high.policy
    assert kind_of(low.policy) != ADAPTIVE
    loads = [p.concurrency or 0 for p in points if p.policy == low.policy
             and p.prompt_tokens == low.prompt_tokens]  # fmt: skip
    assert (low.concurrency, high.concurrency) == (min(loads), max(loads))
    known = known_points(USER, points)
    assert {kind_of(points[i].policy) for i in set(range(len(points))) - set(known)} <= {ADAPTIVE}


def test_no_point_is_predicted_that_was_given() -> None:
    record = RECORDS["sglang-36136-dflash2"]
    predicted, pairs, moved = predict(record, TWO_POINTS)
    assert len(predicted) == len(record.points()) - 2
    assert {(p.policy, p.concurrency) for p in predicted}.isdisjoint({("fixed:7", 1),
                                                                     ("fixed:7", 32)})  # fmt: skip
    assert pairs
    assert moved["spread"] >= 1.0


def rows_of(errors: list[float]) -> dict[str, Any]:
    points = [
        {"predicted": 1.0 + e, "published": 1.0, "error": e, "prices_sd": 0.0, "spread": 1.0}
        for e in errors
    ]
    return {"points": points, "pairs": []}


@pytest.mark.law
def test_what_no_price_explains_is_the_other_records() -> None:
    rows = {"calm": rows_of([0.01] * 10), "wild": rows_of([0.5] * 10), "next": rows_of([0.5] * 10)}
    widen(rows)
    assert rows["calm"]["unexplained"] > 0.2  # of the wild ones
    assert all(point["covered"] for point in rows["calm"]["points"])
    two = {name: rows[name] for name in ("calm", "wild")}
    widen(two)
    assert two["wild"]["unexplained"] == 0.02  # of the calm one
    assert score(two["wild"]["points"], [])["covered"] == 0.0
    value = unexplained_by({"calm": rows["calm"]})
    assert half_width(rows["calm"]["points"][0], value) == pytest.approx(1.645 * value)


@pytest.mark.skipif(not SHARED.exists(), reason="the published files are not beside the checkout")
def test_numbers_are_the_published_ones() -> None:
    published = {
        record["id"]: record
        for name in ("serving_results.json", "serving_results_2.json")
        for record in json.loads((SHARED / name).read_text())["records"]
    }
    figure = published["vllm-fig3-pareto"]
    arms = {arm.policy: arm.rows for arm in RECORDS["vllm-fig3-pareto"].arms}
    for key, policy in (("no_spec", "none"), ("fixed_k7", "fixed:7"), ("adaptive", "global")):
        assert [row[1] for row in arms[policy]] == [total for _, total in figure["data"][key]]
    infera = published["infera-k3-mi355x"]["tok_s"]
    rows = {arm.policy: arm.rows for arm in RECORDS["infera-k3-mi355x"].arms}
    assert [row[1] for row in rows["none"]] == infera["none_8gpu"]
    series = published["inferencex-token-position"]["series"][0]
    assert RECORDS["inferencex-glm5-fp8-vllm-tp8"].arms[0].rows == series["rows"]
