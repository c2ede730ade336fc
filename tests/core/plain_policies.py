"""Small cost tables, survival matrices and plain-Python policies that the tests compare with.

The policies here are written from their definitions, with lists and full sorts, and share no code
with ``sglang_dspark.core.decide``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from sglang_dspark.core.costs.tables import DECIDED, RAGGED, CostTables, decode_step_seconds
from sglang_dspark.core.decide import decide
from sglang_dspark.core.goodput import Circumstances
from sglang_dspark.core.ranking import SURVIVAL_FLOOR
from sglang_dspark.core.state import STOP_REASONS, Floats
from sglang_dspark.core.tables import FIXED, GOODPUT, NONE, SGLANG, PolicyTables, make_workspace

PLENTY = 2**40


def costs_of(verify_s: Any, **fields: Any) -> CostTables:
    """Tables of the given seconds by tokens, [0] included; the rest zero unless given."""
    verify_s = np.asarray(verify_s, dtype=np.float64)
    values: dict[str, Any] = {
        "verify_s": verify_s,
        "verify_slope_s": float(verify_s[-1] / max(verify_s.size - 1, 1)),
        "request_s": np.zeros(65),
        "request_slope_s": 0.0,
        "draft_s": np.zeros(65),
        "draft_slope_s": 0.0,
        "context_s": 0.0,
        "context_reference_tokens": 0.0,
        "prefill_base_s": 0.0,
        "prefill_token_s": 0.0,
        "prefill_pair_s": 0.0,
        "host_s": 0.0,
        "measured_tokens": verify_s.size - 1,
        "measured_requests": 64,
    }
    given = values | fields
    ragged = {"ragged_s": verify_s, "ragged_slope_s": given["verify_slope_s"]}
    plain = {"plain_s": verify_s, "plain_slope_s": given["verify_slope_s"]}
    return CostTables(**(ragged | plain | given))


def policy_of(code: int, **fields: Any) -> PolicyTables:
    """A policy's tables; by default it verifies everything that the code allows."""
    nothing = np.zeros(1)
    values: dict[str, Any] = {
        "drafts": code != NONE,
        "chooses_drafts": code == GOODPUT,
        "as_sglang": code == SGLANG,
        "reads_confidences": code not in (NONE, FIXED),
        "length": 64,
        "threshold": 0.0,
        "table": 0,
        "steps_per_s": nothing,
        "alpha_s": nothing,
        "theta_s": nothing,
    }
    return PolicyTables(code=code, **{**values, **fields})


def around_of(requests: int, **fields: Any) -> Circumstances:
    """Everyone known and equally dear, the reference context, no prefill."""
    values: dict[str, Any] = {
        "stale_age": np.full(requests, 2),
        "note": np.full(requests, np.nan),
        "weight": np.ones(requests),
        "context_tokens": np.nan,
        "prefills_per_step": 0.0,
    }
    return Circumstances(**{**values, **fields})


def lengths_of(
    policy: PolicyTables,
    costs: CostTables,
    survival: Floats,
    stale: Floats | None = None,
    room: int = PLENTY,
    **around: Any,
) -> list[int]:
    """The plan's lengths; without ``stale`` there is no lag."""
    return decided(policy, costs, survival, stale, room, **around)[0]


def decided(
    policy: PolicyTables,
    costs: CostTables,
    survival: Floats,
    stale: Floats | None = None,
    room: int = PLENTY,
    **fields: Any,
) -> tuple[list[int], float, float, str]:
    """(lengths, predicted step seconds, expected tokens, stop reason)."""
    work = make_workspace(survival.shape[0], survival.shape[1])
    survival = np.ascontiguousarray(survival)
    stale = survival if stale is None else np.ascontiguousarray(stale)
    around = around_of(survival.shape[0], **fields)
    step_s, expected, reason, _ = decide(policy, costs, survival, stale, around, room, work)
    return work.lengths[: survival.shape[0]].tolist(), step_s, expected, STOP_REASONS[reason]


def in_order(survival: Floats) -> list[tuple[int, int]]:
    """(request, position) of every token worth verifying, best first, by the tie rule."""
    rows, columns = survival.shape
    tokens = [(r, k) for r in range(rows) for k in range(columns)]
    worthwhile = [t for t in tokens if survival[t] >= SURVIVAL_FLOOR]
    return sorted(worthwhile, key=lambda t: (-survival[t], t[1], t[0]))


def best_first(survival: Floats, slots: int) -> list[int]:
    """Lengths when the first ``slots`` tokens of ``in_order`` are verified."""
    lengths = [0] * survival.shape[0]
    for r, k in in_order(survival)[:slots]:
        assert k == lengths[r]
        lengths[r] += 1
    return lengths


def throughput(costs: CostTables, survival: Floats, budget: int) -> float:
    """Expected tokens per second with the best ``budget`` tokens verified."""
    requests = survival.shape[0]
    best = [survival[t] for t in in_order(survival)[:budget]]
    context = requests * costs.context_reference_tokens
    shape = RAGGED if budget < survival.size else DECIDED
    step_s = decode_step_seconds(costs, requests + budget, requests, requests, context, shape)
    # Added in the order the policies add, so that exact ties stay exact.
    return float(sum(best, start=float(requests)) / step_s)


def rising(steps: list[float]) -> Floats:
    """Seconds by tokens, from 0 tokens on: a staircase where steps are 0, a cliff where large."""
    return np.concatenate([[0.0, 1.0], 1.0 + np.cumsum(steps)])


@st.composite
def survivals(
    draw: st.DrawFn, most_requests: int = 6, most_positions: int = 5, levels: int = 0
) -> Floats:
    """A survival matrix; with ``levels`` the confidences come from so many values, for ties."""
    rows = draw(st.integers(1, most_requests))
    columns = draw(st.integers(1, most_positions))
    if levels:
        confidence: st.SearchStrategy[float] = st.integers(0, levels).map(lambda i: i / levels)
    else:
        confidence = st.floats(0.0, 1.0)
    values = draw(st.lists(confidence, min_size=rows * columns, max_size=rows * columns))
    return np.cumprod(np.array(values).reshape(rows, columns), axis=1)


def curves(tokens: int = 40) -> st.SearchStrategy[Floats]:
    """Cost curves with flat stretches and cliffs, as long as the largest step needs."""
    step = st.one_of(st.just(0.0), st.floats(0.001, 0.3), st.just(2.0))
    return st.lists(step, min_size=tokens, max_size=tokens).map(rising)
