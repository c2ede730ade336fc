"""What policies make of the price of a step's shape.

A uniform step is replayed from a graph and needs no decision; trimming makes it ragged. Rates here
are added up from the definitions, over every budget.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.core.costs.tables import (
    DECIDED,
    RAGGED,
    UNIFORM,
    CostTables,
    decode_step_seconds,
)
from sglang_dspark.core.decide import decide
from sglang_dspark.core.state import Floats
from sglang_dspark.core.tables import (
    EARLY_STOP,
    FIXED,
    GLOBAL,
    GOODPUT,
    THRESHOLD,
    PolicyTables,
    make_workspace,
)
from tests.core.plain_policies import (
    PLENTY,
    around_of,
    best_first,
    costs_of,
    in_order,
    lengths_of,
    policy_of,
    rising,
    survivals,
    throughput,
)

PRICES = st.fixed_dictionaries(
    {
        "ragged_floor_s": st.sampled_from([0.0, 1.5, 4.0]),
        "adaptive_s": st.sampled_from([0.0, 0.2, 2.0]),
        "adaptive_request_s": st.sampled_from([0.0, 0.05]),
        "overlapped_s": st.sampled_from([0.0, 1.2]),
    }
)
CURVES = st.lists(st.sampled_from([0.0, 0.01, 0.1, 1.0]), min_size=140, max_size=140).map(rising)


def shaped(verify_s: Floats, ragged: float = 0.0, **prices: float) -> CostTables:
    """Ragged forwards are dearer by ``ragged``."""
    return costs_of(verify_s, ragged_s=verify_s + ragged, shaped=True, **prices)


def decided(policy: PolicyTables, costs: CostTables, survival: Floats) -> tuple[list[int], int]:
    """(lengths, shape); what is stale is what is current."""
    rows = survival.shape[0]
    work = make_workspace(*survival.shape)
    *_, shape = decide(policy, costs, survival, survival, around_of(rows), PLENTY, work)
    return work.lengths[:rows].tolist(), shape


def rate_of(costs: CostTables, survival: Floats, lengths: list[int], shape: int) -> float:
    """Expected tokens per second, everyone drafted for."""
    rows = survival.shape[0]
    kept = sum(float(survival[r, :n].sum()) for r, n in enumerate(lengths))
    step_s = decode_step_seconds(costs, rows + sum(lengths), rows, rows, 0.0, shape)
    return (rows + kept) / step_s


@pytest.mark.law
@given(survivals(), CURVES, PRICES, st.sampled_from([0.0, 0.5]))
def test_global_weighs_the_whole_uniform_step_against_every_ragged_one(
    survival: Floats, verify_s: Floats, prices: dict[str, float], ragged: float
) -> None:
    costs = shaped(verify_s, ragged, **prices)
    rates = [throughput(costs, survival, b) for b in range(len(in_order(survival)) + 1)]
    best = [b for b, rate in enumerate(rates) if rate >= max(rates) * (1 - 1e-12)]
    found = lengths_of(policy_of(GLOBAL), costs, survival)
    assert found in [best_first(survival, b) for b in best]


@pytest.mark.law
@given(survivals(), CURVES, PRICES, st.sampled_from([0.0, 0.5]), st.floats(0.0, 0.1))
def test_goodput_is_never_its_least_gain_behind_what_verifies_all_or_any_budget(
    survival: Floats, verify_s: Floats, prices: dict[str, float], ragged: float, min_gain: float
) -> None:
    survival = np.maximum(survival, 1e-300)  # everyone has a draft, however bad
    costs = shaped(verify_s, ragged, **prices)
    rows, columns = survival.shape
    policy = policy_of(GOODPUT, min_gain=min_gain)
    ours = rate_of(costs, survival, *decided(policy, costs, survival))
    others = [rate_of(costs, survival, [columns] * rows, UNIFORM)]
    for budget in range(len(in_order(survival)) + 1):
        lengths = best_first(survival, budget)
        shape = DECIDED if budget == rows * columns else RAGGED
        others.append(rate_of(costs, survival, lengths, shape))
    asked = 1 + min_gain + 0.1 / rows  # old confidences of few requests promise too much
    assert ours * asked >= max(others) * (1 - 1e-9)


@pytest.mark.law
@given(survivals(), CURVES, st.floats(10.0, 100.0))
def test_where_deciding_is_dear_goodput_verifies_all_and_decides_nothing(
    survival: Floats, verify_s: Floats, dear_s: float
) -> None:
    """Law: hopeless tokens included, since leaving them out makes the step ragged."""
    survival = np.maximum(survival, 1e-300)
    rows, columns = survival.shape
    costs = shaped(verify_s, adaptive_s=1000.0 * dear_s)
    assert decided(policy_of(GOODPUT), costs, survival) == ([columns] * rows, UNIFORM)


@pytest.mark.law
@given(survivals(), CURVES, PRICES)
def test_early_stop_climbs_one_curve_whatever_a_uniform_step_costs(
    survival: Floats, verify_s: Floats, prices: dict[str, float]
) -> None:
    costs = shaped(verify_s, **prices)
    cheap = costs._replace(verify_s=verify_s / 10.0)
    policy = policy_of(EARLY_STOP)
    assert lengths_of(policy, costs, survival) == lengths_of(policy, cheap, survival)


@pytest.mark.example
@pytest.mark.parametrize(
    ("code", "survival", "shape"),
    [
        (FIXED, [[0.9, 0.8], [0.3, 0.1]], UNIFORM),
        (THRESHOLD, [[0.9, 0.8], [0.3, 0.1]], RAGGED),
        (THRESHOLD, [[0.9, 0.8], [0.7, 0.6]], DECIDED),
        (THRESHOLD, [[0.9, 0.3], [0.7, 0.2]], RAGGED),
        (GLOBAL, [[0.99, 0.99], [0.99, 0.98]], DECIDED),
        (GOODPUT, [[0.99, 0.99], [0.99, 0.98]], UNIFORM),
        (GOODPUT, [[0.0, 0.0], [0.0, 0.0]], UNIFORM),
        (GOODPUT, [[0.99, 0.99], [0.05, 0.01]], RAGGED),
    ],
)
def test_the_shape_is_what_was_decided(code: int, survival: list[list[float]], shape: int) -> None:
    costs = costs_of(np.array([0.0, 1.0, 1.1, 1.2, 1.4, 1.6, 1.8]))
    policy = policy_of(code, threshold=0.5)
    assert decided(policy, costs, np.array(survival))[1] == shape
