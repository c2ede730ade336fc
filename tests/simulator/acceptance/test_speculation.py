"""Model-Optimizer's profiles: replayed at their rates, refused where their figures disagree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.acceptance.load import load_acceptance
from simulator.fleet.fleet import simulate
from tests.simulator.replay_scenes import scenario, trace

RATES = [0.816082, 0.776577, 0.749591]
PROFILE = {
    "schema_version": "1.0", "measured": True, "conditional_accept_rates": RATES,
    "marginal_accept_rates": np.cumprod(RATES).tolist(), "num_speculative_tokens": 3,
    "mean_accept_length": 2.924887,
}  # fmt: skip


def written(tmp_path: Path, **changes: Any) -> Path:
    value = {name: v for name, v in (PROFILE | changes).items() if v is not None}
    path = tmp_path / "speculation_profile.json"
    path.write_text(json.dumps(value))
    return path


@pytest.mark.law
def test_a_replay_accepts_at_the_rates_of_the_profile(tmp_path: Path) -> None:
    profile = load_acceptance(written(tmp_path))
    assert (profile.name, profile.gamma) == ("speculation_profile", 3)
    requests = trace(60, output_tokens=np.full(60, 400))
    nowhere = replace(requests, domain=np.full(60, -1, np.int32), domain_names=())
    outcome = simulate(scenario("fixed:3", nowhere, acceptance=profile))
    accepted = sum(memory.length_counts[1] for memory in outcome.memories)
    reached = accepted[::-1].cumsum()[::-1]
    found = reached[1:4] / reached[:3]
    np.testing.assert_allclose(found, RATES, atol=0.02)


@pytest.mark.example
def test_marginal_rates_alone_are_enough(tmp_path: Path) -> None:
    both = load_acceptance(written(tmp_path))
    alone = load_acceptance(written(tmp_path, conditional_accept_rates=None))
    tables = [profile.tables(()).mean_logit for profile in (both, alone)]
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-9)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"conditional_accept_rates": [0.8, 1.2, 0.5]}, "at position 2 is 1.2; it must be between 0"),
    ({"conditional_accept_rates": [81.6, 77.7, 75.0]}, "no more is accepted than drafted"),
    ({"marginal_accept_rates": [0.8, 0.5, 0.5]}, "at position 1 is 0.8, and conditional_accept"),
    ({"marginal_accept_rates": [0.8]}, "1 marginal_accept_rates and 3 conditional_accept_rates"),
    (
        {"conditional_accept_rates": None, "marginal_accept_rates": [0.5, 0.6]},
        "at position 2 is 0.6, above the 0.5 before it",
    ),
    ({"num_speculative_tokens": 5}, "num_speculative_tokens is 5, and there are 3 rates"),
    ({"block_size": 7}, "block_size is 7, and there are 3 rates"),
    ({"mean_accept_length": 3.9}, "mean_accept_length is 3.9, and the rates make 2.925"),
    ({"measured": False, "conditional_accept_rates": []}, "was not measured"),
    ({"measured": False}, "was not measured"),
    ({"conditional_accept_rates": []}, r"conditional_accept_rates is \[\]"),
    ({"block_size": 2}, "block_size is 2, and there are 3 rates"),
    ({"mean_accept_length": 2.97}, "mean_accept_length is 2.97, and the rates make 2.925"),
    ({"mean_accept_length": "three"}, "give tokens a round"),
]


@pytest.mark.example
@pytest.mark.parametrize(("changes", "sentence"), WRONG)
def test_figures_that_disagree_are_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_acceptance(written(tmp_path, **changes))
