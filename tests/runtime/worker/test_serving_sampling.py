"""Sampled tokens over HTTP are distributed as the target samples them, ragged lengths active.

The same checks reject three broken rules, put into servers by ``serving_patches``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sglang_dspark.draft.evaluation.sampling import Sampling
from tests.runtime.servers import Nursery, dspark_arguments
from tests.runtime.serving_client import Job, serve, server_info
from tests.runtime.serving_law import LEAST, Evidence
from tests.runtime.serving_scenes import Pair, worn, write_costs

SAMPLINGS = {"T1": Sampling(), "T0.7 top-p 0.9": Sampling(temperature=0.7, top_p=0.9)}
PROMPTS = 8
NEW_TOKENS = 24
CONCURRENCY = 16


ANSWERS = 140
"""To each prompt, from each drafter."""


@pytest.fixture(scope="module")
def worn_pair(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The pair with a drafter that is often wrong, for which the rule has more to mend."""
    return worn(pair, tmp_path_factory.mktemp("worn") / "drafter")


def sample(
    pair: Pair,
    nursery: Nursery,
    folder: Path,
    evidence: Evidence,
    *,
    answers: int,
    patch: str = "",
) -> dict[str, Any]:
    """Add ``answers`` to each prompt to the evidence; what the server says of its own steps."""
    costs = write_costs(folder / "costs.json", token_share=0.5, requests=CONCURRENCY)
    arguments = dspark_arguments(
        pair.target_folder,
        pair.drafter_folder,
        policy="global",
        cost_model=costs,
        requests=CONCURRENCY,
    )
    prompts = pair.crossroads(PROMPTS)
    body = {
        "temperature": evidence.sampling.temperature,
        "top_p": evidence.sampling.top_p,
        "max_new_tokens": NEW_TOKENS,
        "ignore_eos": True,
    }
    jobs = [Job(prompt=prompt, sampling=body) for prompt in prompts for _ in range(answers)]
    with nursery.start(arguments, patch=patch) as server:
        outcomes = serve(server.url, jobs, concurrency=CONCURRENCY)
        told: dict[str, Any] = server_info(server.url)["internal_states"][0]["dspark"]
    for number, prompt in enumerate(prompts):
        mine = outcomes[number * answers : (number + 1) * answers]
        assert all(len(outcome.tokens) == NEW_TOKENS for outcome in mine)
        evidence.add(pair, prompt, [outcome.tokens for outcome in mine])
    return told


@pytest.mark.law
@pytest.mark.parametrize("name", SAMPLINGS)
def test_sampled_tokens_are_distributed_as_the_target_samples(
    name: str, pair: Pair, worn_pair: Pair, nursery: Nursery, tmp_path: Path
) -> None:
    evidence, steps = Evidence(SAMPLINGS[name]), Counter[str]()
    for one in (pair, worn_pair):
        told = sample(one, nursery, tmp_path, evidence, answers=ANSWERS)
        shapes = told["steps_by_shape"]
        print(name, shapes, f"accepted length {told['accepted_length']:.2f}")
        assert shapes["ragged"] > shapes.get("uniform", 0)
        steps.update(shapes)
    assert steps["ragged"] > 2 * steps["uniform"]  # how full batches are hangs on the machine
    found = evidence.p_values()
    print(
        {view: float(f"{p:.3g}") for view, p in found.items()},
        f"{evidence.tokens} tokens, {evidence.open_places.sum():.0f} with a choice, "
        f"{evidence.contexts} contexts",
    )
    assert evidence.tokens >= 50_000
    assert evidence.open_places.sum() > 2_000
    assert min(found.values()) > LEAST, found


@pytest.mark.law
@pytest.mark.parametrize("broken", ["accept_everything", "resample_the_target"])
def test_a_broken_rule_is_caught(
    broken: str, worn_pair: Pair, nursery: Nursery, tmp_path: Path
) -> None:
    evidence = Evidence(SAMPLINGS["T1"])
    sample(
        worn_pair,
        nursery,
        tmp_path,
        evidence,
        answers=ANSWERS // 2,
        patch=f"tests.runtime.serving_patches:{broken}",
    )
    found = evidence.p_values()
    print(broken, {view: float(f"{p:.3g}") for view, p in found.items()}, evidence.tokens)
    assert min(found.values()) < LEAST, found


@pytest.mark.law
def test_truncation_that_looks_at_what_it_cuts_is_caught(
    pair: Pair, nursery: Nursery, tmp_path: Path
) -> None:
    evidence = Evidence(SAMPLINGS["T1"])
    sample(
        pair,
        nursery,
        tmp_path,
        evidence,
        answers=ANSWERS // 2,
        patch="tests.runtime.serving_patches:look_at_what_is_cut",
    )
    found = evidence.p_values()
    print({view: float(f"{p:.3g}") for view, p in found.items()}, evidence.tokens)
    assert min(found.values()) < LEAST, found
