"""Deciding has a price: adaptive verification behind a fixed length at low load, ahead at high."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.fleet.fleet import simulate
from simulator.slo import Slo
from simulator.study.metrics import measure
from tests.simulator.replay_scenes import cost_model, scenario, trace

DECIDING = {"step_s": 0.001, "origin": "measured"}


def output_tok_s(policy: str, clients: int, **blocks: Any) -> float:
    """In steady state; dear tokens, so that a full batch has to trim."""
    table = {"tokens": [1, 4096], "seconds": [0.0085, 0.4], "between": "linear"}
    case = scenario(
        policy,
        trace(12 * clients + 60, output_mean=80.0, prompt_mean=60.0),
        cost_model=cost_model(
            schema_version=3, table=table | {"origin": "analytic"}, adaptive=DECIDING, **blocks
        ),
        concurrency=clients,
    )
    found: float = measure(simulate(case), Slo(name="any", ttft_ms=1e5, tpot_ms=1e5))[
        "output_tok_s"
    ]
    return found


@pytest.mark.law
@pytest.mark.parametrize("clients", [1, 2])
def test_a_millisecond_a_step_puts_global_behind_fixed_at_low_load(clients: int) -> None:
    """By 1 in 10 to 12 ms; goodput verifies all of it and decides nothing."""
    fixed, ours = output_tok_s("fixed", clients), output_tok_s("global", clients)
    assert 0.85 < ours / fixed < 0.95
    assert output_tok_s("goodput", clients) >= 0.99 * fixed


@pytest.mark.law
def test_it_is_ahead_where_trimming_is_worth_more_than_it_costs() -> None:
    fixed, ours = output_tok_s("fixed", 40), output_tok_s("global", 40)
    assert ours > 1.05 * fixed
    assert output_tok_s("goodput", 40) >= 0.99 * ours


@pytest.mark.law
@pytest.mark.parametrize("clients", [4, 12])
def test_an_eager_floor_keeps_goodput_at_the_uniform_step_until_trimming_pays(
    clients: int,
) -> None:
    ragged = {"tiers_tokens": [], "floor_s": 0.02, "origin": "measured"}
    rates = {p: output_tok_s(p, clients, ragged=ragged) for p in ("fixed", "global", "goodput")}
    assert rates["goodput"] >= 0.99 * max(rates.values())
    # It weighs the same shapes, but pays for deciding in each step.
    assert rates["global"] > 0.85 * rates["fixed"]
