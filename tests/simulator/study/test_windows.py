"""Windows of a trace: which requests they judge, what they measure, how sure a gain is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.fleet.fleet import simulate
from simulator.slo import PRESETS
from simulator.study.metrics import measure
from simulator.study.windows import (
    LEAD_PARTS,
    MOST_WINDOWS,
    cut_windows,
    gain,
    judge_window,
    overall,
    split,
)
from tests.simulator.replay_scenes import scenario, trace


@pytest.mark.law
@given(n=st.integers(330, 3000), clients=st.integers(1, 60))
def test_every_request_after_the_first_lead_in_is_judged_once(n: int, clients: int) -> None:
    windows = cut_windows(trace(n), [clients])
    judged = [i for w in windows for i in w.trace.request_id[w.first : w.end]]
    assert judged == [str(i) for i in range(n - len(judged), n)]
    assert len(windows) % 2 == 0
    assert len(windows) <= MOST_WINDOWS
    sizes = [w.end - w.first for w in windows]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= max(40, clients / 2)
    assert all(w.first >= LEAD_PARTS * (min(sizes) - 1) for w in windows)


@pytest.mark.law
@given(st.integers(2, 40))
def test_search_and_held_out_windows_alternate(half: int) -> None:
    search, held_out = split(2 * half)
    assert sorted(search + held_out) == list(range(2 * half))
    assert all(after - before == 1 for before, after in zip(search, held_out, strict=True))


@pytest.mark.example
def test_a_trace_too_short_for_four_windows_says_so() -> None:
    with pytest.raises(ValueError, match="319 requests are too few for 4 windows of 40"):
        cut_windows(trace(319))
    with pytest.raises(ValueError, match=r"windows of 100 .* or fewer clients"):
        cut_windows(trace(700), [200])


@pytest.mark.law
@pytest.mark.parametrize("clients", [None, 8])
def test_a_window_measures_what_a_replay_measures(clients: int | None) -> None:
    slo = PRESETS["interactive"]
    judged = scenario("global", trace(120, rate=10), concurrency=clients, judged=(20, 100))
    outcome = simulate(judged)
    row, found = measure(outcome, slo), judge_window(outcome, slo)
    assert row["judged"] == 80
    assert found.attainment == pytest.approx(row["slo_attainment"], abs=1e-6)
    assert found.speed == pytest.approx(row["tok_s_user_p50"], abs=1e-3)
    assert found.in_slo == pytest.approx(row["slo_goodput_req_s"], rel=1e-5)
    assert found.throughput == pytest.approx(row["output_tok_s"], rel=1e-5)


@pytest.mark.law
@pytest.mark.parametrize("clients", [None, 8])
def test_windows_of_one_replay_share_out_its_tokens(clients: int | None) -> None:
    requests = trace(120, rate=10)
    slo = PRESETS["standard"]

    def tokens(first: int, end: int) -> tuple[float, float]:
        judged = scenario("global", requests, concurrency=clients, judged=(first, end))
        found = judge_window(simulate(judged), slo)
        return found.throughput * found.length_s, found.length_s

    parts = np.sum([tokens(*edges) for edges in ((10, 50), (50, 51), (51, 90))], axis=0)
    assert parts == pytest.approx(tokens(10, 90))
    assert tokens(0, 120)[0] <= requests.output_tokens.sum()


def figures(rates: Any, lengths_s: Any) -> dict[str, Any]:
    return {"in_slo": np.atleast_2d(rates), "length_s": np.atleast_2d(lengths_s)}


@pytest.mark.example
def test_a_gain_by_hand() -> None:
    theirs = figures([10.0, 10.0, 10.0], [1.0, 1.0, 1.0])
    found = gain(figures([11.0, 12.0, 13.0], [1.0, 1.0, 1.0]), theirs, "in_slo")
    # u = (-1, 0, 1) / 12; t(0.975, 2) = 4.30265; standard error (1 / 12) / sqrt(3).
    half = 4.30265 / 12 / 3**0.5
    assert found.mean == pytest.approx(0.2)
    assert found.low == pytest.approx(1.2 * np.exp(-half) - 1, rel=1e-4)
    assert found.high == pytest.approx(1.2 * np.exp(half) - 1, rel=1e-4)
    assert not found.proven


@pytest.mark.example
def test_a_rate_is_all_that_was_done_by_all_the_time_it_took() -> None:
    ours = figures([30.0, 1.0], [1.0, 9.0])
    assert overall(ours, "in_slo") == pytest.approx([39 / 10])
    assert gain(ours, figures([13.0, 0.0], [1.0, 9.0]), "in_slo").mean == pytest.approx(2.0)
    same = {"speed": np.array([[30.0, 1.0]]), "length_s": ours["length_s"]}
    assert overall(same, "speed") == pytest.approx([15.5])


@pytest.mark.law
@given(st.lists(st.floats(1, 100), min_size=2, max_size=8), st.floats(0.5, 2))
def test_the_same_factor_everywhere_is_that_gain_for_sure(
    rates: list[float], factor: float
) -> None:
    base = np.array([rates, [1000 * r for r in rates]])
    lengths_s = 1 / base
    found = gain(figures(base * factor, lengths_s), figures(base, lengths_s), "in_slo")
    for value in (found.mean, found.low, found.high):
        assert value == pytest.approx(factor - 1, abs=1e-9)


@pytest.mark.law
def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Busy windows, a true gain of 10 % and noise of each policy's own, 400 times."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        traffic = rng.gamma(2.0, 5.0, (1, 16))
        lengths_s = 100 / traffic
        ours, theirs = (
            figures(traffic * f * (1 + 0.05 * rng.standard_normal((1, 16))), lengths_s)
            for f in (1.1, 1.0)
        )
        found = gain(ours, theirs, "in_slo")
        held += found.low <= 0.1 <= found.high
    assert 0.92 * 400 <= held <= 0.98 * 400


@pytest.mark.example
def test_nothing_against_nothing_is_no_gain() -> None:
    nothing = figures([0.0, 0.0], [1.0, 1.0])
    found = gain(nothing, nothing, "in_slo")
    assert (found.low, found.mean, found.high) == (0, 0, 0)
    assert not found.proven
