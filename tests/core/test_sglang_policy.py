"""The ``sglang`` policy: SGLang's planner, decision for decision.

Each test restates SGLang's rule from its description (floor lookup, linear and clamped, first
maximum, survival floor) without this project's code.
"""

from __future__ import annotations

import bisect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.costs.sglang_files import SpsAdditiveTable, SpsTable
from sglang_dspark.core.state import Floats
from sglang_dspark.core.tables import SGLANG, TABLE_ADDITIVE, TABLE_SPS, PolicyTables
from tests.core.plain_policies import best_first, costs_of, decided, policy_of, survivals

MOST_TOKENS, MOST_REQUESTS = 40, 8
FREE = costs_of(np.ones(50))


def sps_policy(table: SpsTable) -> PolicyTables:
    return policy_of(SGLANG, table=TABLE_SPS, steps_per_s=table.dense(MOST_TOKENS))


def additive_policy(table: SpsAdditiveTable) -> PolicyTables:
    return policy_of(
        SGLANG,
        table=TABLE_ADDITIVE,
        alpha_s=table.bias_seconds + table.dense_alpha(MOST_REQUESTS),
        theta_s=table.dense_theta(MOST_TOKENS),
    )


def first_maximum(rates: list[float]) -> int:
    return rates.index(max(rates))


def gains(stale: Floats) -> list[float]:
    """Expected tokens for every budget: requests, plus the best survivals not below 1e-6."""
    best = sorted((a for a in stale.ravel() if a >= 1e-6), reverse=True)
    return [stale.shape[0] + sum(best[:b]) for b in range(len(best) + 1)]


def near(found: int, rates: list[float]) -> bool:
    """The first maximum, or one that equals it but for the last digits."""
    return found == first_maximum(rates) or rates[found] >= max(rates) * (1 - 1e-12)


@st.composite
def tables(draw: st.DrawFn) -> SpsTable:
    probes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6, unique=True).map(sorted))
    rates = draw(st.lists(st.floats(1.0, 100.0), min_size=len(probes), max_size=len(probes)))
    return SpsTable(
        sample_batch_tokens=tuple(probes),
        sample_steps_per_sec=tuple(rates),
        max_batch_tokens=probes[-1],
    )


@st.composite
def additive_tables(draw: st.DrawFn) -> SpsAdditiveTable:
    def probed(most: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        probes = draw(st.lists(st.integers(1, most), min_size=2, max_size=5, unique=True))
        seconds = draw(st.lists(st.floats(0.0, 0.1), min_size=len(probes), max_size=len(probes)))
        return tuple(sorted(probes)), tuple(sorted(seconds))

    requests, alpha_s = probed(MOST_REQUESTS)
    tokens, theta_s = probed(30)
    return SpsAdditiveTable(
        bias_seconds=draw(st.floats(0.001, 0.1)),
        bs_probes=requests,
        alpha_seconds=alpha_s,
        m_probes=tokens,
        theta_seconds=theta_s,
    )


@pytest.mark.law
@given(survivals(levels=7), tables())
def test_the_sps_table_is_read_by_floor_lookup(survival: Floats, table: SpsTable) -> None:
    def steps_per_s(tokens: int) -> float:
        place = bisect.bisect_right(table.sample_batch_tokens, tokens) - 1
        return table.sample_steps_per_sec[max(place, 0)]

    requests = survival.shape[0]
    rates = [gain * steps_per_s(requests + b) for b, gain in enumerate(gains(survival))]
    lengths, step_s, _, _ = decided(sps_policy(table), FREE, survival)
    assert near(sum(lengths), rates)
    assert step_s == pytest.approx(1 / steps_per_s(requests + sum(lengths)), rel=1e-12)


@pytest.mark.law
@given(survivals(levels=7), additive_tables())
def test_the_additive_table_is_read_linearly_and_clamped(
    survival: Floats, table: SpsAdditiveTable
) -> None:
    def between(probes: tuple[int, ...], seconds: tuple[float, ...], size: int) -> float:
        size = min(max(size, probes[0]), probes[-1])
        high = min(max(bisect.bisect_right(probes, size), 1), len(probes) - 1)
        share = (size - probes[high - 1]) / (probes[high] - probes[high - 1])
        return seconds[high - 1] + share * (seconds[high] - seconds[high - 1])

    requests = survival.shape[0]
    fixed_s = table.bias_seconds + between(table.bs_probes, table.alpha_seconds, requests)

    def step_seconds(tokens: int) -> float:
        return fixed_s + between(table.m_probes, table.theta_seconds, tokens)

    rates = [gain / step_seconds(requests + b) for b, gain in enumerate(gains(survival))]
    lengths, step_s, _, _ = decided(additive_policy(table), FREE, survival)
    assert near(sum(lengths), rates)
    assert step_s == pytest.approx(step_seconds(requests + sum(lengths)), rel=1e-9)


@pytest.mark.law
@given(survivals(levels=4), survivals(levels=4), tables())
def test_the_budget_is_stale_and_the_ranking_current(
    survival: Floats, other: Floats, table: SpsTable
) -> None:
    stale = np.minimum.accumulate(np.resize(other, survival.shape), axis=1)
    budget = sum(decided(sps_policy(table), FREE, stale)[0])
    lengths = decided(sps_policy(table), FREE, survival, stale)[0]
    assert lengths == best_first(survival, budget)


@pytest.mark.law
@given(survivals(levels=4))
def test_without_a_table_everything_above_the_floor_is_verified(survival: Floats) -> None:
    lengths = decided(policy_of(SGLANG), FREE, survival)[0]
    assert lengths == (survival >= 1e-6).sum(axis=1).tolist()


@pytest.mark.example
def test_the_first_of_equal_rates_wins() -> None:
    """2 tokens at rate 8, 4 tokens at rate 4: both 16 a second."""
    policy = policy_of(SGLANG, table=TABLE_SPS, steps_per_s=np.array([8.0, 8.0, 8.0, 4.0, 4.0]))
    assert decided(policy, FREE, np.array([[1.0, 1.0, 1.0]]))[0] == [1]


@pytest.mark.example
def test_between_probes_and_past_the_last_extra_tokens_look_free() -> None:
    table = SpsTable(
        sample_batch_tokens=(1, 3), sample_steps_per_sec=(100.0, 90.0), max_batch_tokens=3
    )
    assert decided(sps_policy(table), FREE, np.full((1, 5), 0.01))[0] == [1]
    assert decided(sps_policy(table), FREE, np.full((1, 5), 0.1))[0] == [5]


@pytest.mark.example
def test_a_smaller_kv_room_cuts_sglangs_budget_too() -> None:
    lengths, _, _, reason = decided(policy_of(SGLANG), FREE, np.full((2, 3), 0.5), room=4)
    assert (lengths, reason) == ([1, 1], "kv-room")
