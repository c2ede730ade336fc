"""Prices from benchmarks: slopes, recovery of a server that is known, and what is said of lies."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sglang_dspark.core.costs.doubt import KNOTS, NAMES, changed
from sglang_dspark.core.costs.library import load_cost_model
from simulator.fit.bench.posterior import Posterior, fit, observations
from simulator.fit.bench.prior import doubted
from simulator.fit.bench.replays import FIGURES, replay
from simulator.fit.bench.words import complaints, doubts, table
from tests.simulator.fit.bench.bench_scenes import MODEL, base, bench, measured, point, server


@pytest.mark.law
@pytest.mark.parametrize(
    ("policy", "clients", "name"),
    [
        ("none", 1, "forward@1"),
        ("none", 16, "forward@16"),
        ("none", 16, "prefill"),
        ("fixed:7", 8, "forward@64"),
        ("fixed:7", 8, "drafting"),
        ("fixed:7", 8, "speculating/root"),
        ("global", 4, "deciding"),
        ("none", 32, "context"),
    ],
)
def test_slopes_are_those_of_replays_at_other_prices(policy: str, clients: int, name: str) -> None:
    model, x = base(), np.zeros(len(NAMES))
    x[NAMES.index(name)] = 0.02
    at = point(policy, clients)
    # The policy plans with the same prices, so that steps stay what they are.
    before = replay(bench(), at, model, belief=model)
    after = replay(bench(), at, changed(model, x), belief=model)
    # TPOT also moves by when prompts come between, which the law leaves to the next replay.
    for figure, within in zip(FIGURES[:2], (0.05, 0.2), strict=True):
        found = np.log(after.figures[figure] / before.figures[figure]) / 0.02
        assert before.slopes[figure][NAMES.index(name)] == pytest.approx(found, abs=within)


def draw(seed: int) -> np.ndarray:
    """A server as the prior has them."""
    _, doubt = doubted(load_cost_model(MODEL))
    return doubt.root() @ np.random.default_rng(seed).standard_normal(len(NAMES))


def calibrated(x: np.ndarray, runs: list[tuple[str, int]], seed: int = 0) -> Posterior:
    model, doubt = doubted(load_cost_model(MODEL))
    points = [measured(server(x), policy, clients, seed + i) for i, (policy, clients) in
              enumerate(runs)]  # fmt: skip
    return fit(bench(), model, doubt, points)


PLAIN = [("none", 1), ("none", 32)]
HELD_BACK = [("none", 8), ("fixed:7", 1), ("fixed:7", 24), ("global", 8)]


def predicted(found: Posterior, x: np.ndarray) -> list[tuple[float, float]]:
    """(error of the log rate, its deviation) of the runs held back."""
    rows = []
    for policy, clients in HELD_BACK:
        truth = replay(bench(), point(policy, clients), server(x)).figures["output_tok_s"]
        shown = replay(bench(), point(policy, clients), found.model)
        slopes = shown.slopes["output_tok_s"]
        deviation = float(np.sqrt(slopes @ found.covariance @ slopes))
        rows.append((float(np.log(shown.figures["output_tok_s"] / truth)), deviation))
    return rows


@pytest.mark.law
def test_intervals_hold_what_servers_of_the_prior_do_and_runs_narrow_them() -> None:
    """Eight servers, two plain runs of each: of 32 rates at least 26 lie within 90 %."""
    rows = []
    for seed in range(8):
        rows += predicted(calibrated(draw(seed), PLAIN, seed), draw(seed))
    held = sum(abs(error) <= 1.645 * deviation for error, deviation in rows)
    assert held >= 26
    known = predicted(calibrated(draw(1), [*PLAIN, ("fixed:7", 24)]), draw(1))
    less = predicted(calibrated(draw(1), PLAIN), draw(1))
    for (_, narrow), (_, wide) in zip(known[1:], less[1:], strict=True):
        assert narrow < 0.8 * wide


@pytest.mark.law
def test_two_runs_find_a_forward_that_is_a_third_slower_than_composed() -> None:
    x = np.zeros(len(NAMES))
    x[: len(KNOTS)] = np.log(1.3)
    found = calibrated(x, PLAIN)
    assert found.converged
    assert found.spread == 1.0
    assert found.x[0] == pytest.approx(np.log(1.3), abs=0.04)
    assert found.model.doubt is not None
    deviation = np.sqrt(np.square(found.model.doubt.root()).sum(axis=1))
    assert deviation[0] < 0.05
    assert deviation[NAMES.index("drafting")] == pytest.approx(0.3, rel=0.01)  # nothing told it


@pytest.mark.law
def test_runs_that_no_prices_explain_widen_every_interval_and_are_named() -> None:
    honest = calibrated(np.zeros(len(NAMES)), PLAIN)
    points = [measured(base(), policy, clients) for policy, clients in PLAIN]
    lying = dataclasses.replace(points[0], output_tok_s=0.4 * (points[0].output_tok_s or 0.0))
    model, doubt = doubted(load_cost_model(MODEL))
    found = fit(bench(), model, doubt, [lying, points[1]])
    assert found.spread > 2.0
    assert np.diag(found.covariance)[0] > 2.0 * np.diag(honest.covariance)[0]
    said = complaints([lying, points[1]], found)
    assert any("scatter" in sentence and "none with 1 clients" in sentence for sentence in said)


def test_what_is_shown_names_every_run_and_every_price() -> None:
    found = calibrated(np.zeros(len(NAMES)), PLAIN)
    points = [measured(base(), policy, clients, i) for i, (policy, clients) in enumerate(PLAIN)]
    assert len(table(points, found).splitlines()) == 3
    assert found.model.doubt is not None
    text = doubts(found.model, found.model.doubt)
    for word in ("forward", "prefill", "drafting", "deciding"):
        assert word in text
    assert len(observations(points)) == 6
