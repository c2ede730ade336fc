"""What models are doubted before a benchmark: by origin, and as the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sglang_dspark.core.costs.doubt import NAMES, NINETY
from sglang_dspark.core.costs.library import load_cost_model
from simulator.fit.bench.prior import doubted, reads_experts

PAGE = Path(__file__).parents[4] / "docs" / "prices.md"
DENSE, EXPERTS = "h200-qwen3-14b-composed", "b300x8-kimi-k3-composed"


def percent(model: str, name: str, *, stands_in: bool = False) -> int:
    """How far a factor may be off at 90 %."""
    _, doubt = doubted(load_cost_model(model), stands_in=stands_in)
    deviation = float(np.linalg.norm(doubt.root()[NAMES.index(name)]))
    return round(100 * (np.exp(NINETY * deviation) - 1))


@pytest.mark.law
@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_is_doubted_more_and_a_measured_model_less(name: str) -> None:
    own = percent(DENSE, name)
    assert percent(DENSE, name, stands_in=True) >= own
    assert percent("h200-qwen3-14b-sglang-pr35413", name) <= own


def test_the_page_states_the_widths() -> None:
    assert (reads_experts(load_cost_model(DENSE)), reads_experts(load_cost_model(EXPERTS))) == (
        False,
        True,
    )
    text = PAGE.read_text()
    for row, name in (("forward", "forward@1"), ("prefill", "prefill")):
        line = next(line for line in text.splitlines() if line.startswith(f"| {row} | a factor"))
        found = [int(value) for value in re.findall(r"(\d+) %", line)]
        assert found == [percent(DENSE, name), percent(EXPERTS, name)]
    for row in ("drafting", "context"):
        line = next(line for line in text.splitlines() if line.startswith(f"| {row} | a factor"))
        assert f"{percent(DENSE, row)} %" in line
