"""Over HTTP, requests sample with speculation as they do without: penalties, grammars, seeds, all.

The plain server runs without overlap scheduling: with it, its own penalties are a step late.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.servers import Nursery, dspark_arguments, plain_arguments
from tests.runtime.serving_client import Job, Outcome, metrics, serve, total
from tests.runtime.serving_scenes import Pair, greedy_prompts, greedy_sampling, write_costs

GREEDY = greedy_sampling(48)
KINDS: list[dict[str, Any]] = [
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.8},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.5, "frequency_penalty": 0.3, "min_new_tokens": 20, "ignore_eos": False},
    {"logit_bias": {"300": 3.0, "65": -5.0}},
    {"min_new_tokens": 40, "ignore_eos": False},
    {"regex": "[a-z ]{5,30}", "ignore_eos": False},
    {},
]
SEEDED = {"temperature": 0.8, "max_new_tokens": 48, "ignore_eos": True}


def speculating(pair: Pair, folder: Path) -> list[str]:
    """Arguments under which lengths are ragged: tokens have a price."""
    costs = write_costs(folder / "costs.json", token_share=0.05, requests=8)
    return dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="global", cost_model=costs
    )


def answers(
    nursery: Nursery,
    arguments: Sequence[str],
    jobs: Sequence[Job],
    *,
    patch: str,
) -> tuple[list[Outcome], float]:
    """(outcomes, how many requests were retracted)."""
    with nursery.start(arguments, patch=patch) as server:
        outcomes = serve(server.url, jobs, concurrency=8)
        return outcomes, total(metrics(server.url), "sglang:num_retracted_requests_total")


@pytest.mark.law
def test_greedy_requests_of_every_kind_get_plain_tokens_and_logprobs(
    pair: Pair, nursery: Nursery, tmp_path: Path
) -> None:
    """Though many of them are retracted on the way."""
    jobs = [
        Job(
            prompt=prompt,
            sampling=GREEDY | KINDS[number % len(KINDS)],
            extra={"return_logprob": True, "top_logprobs_num": 2},
        )
        for number, prompt in enumerate(greedy_prompts(pair, count=32))
    ]
    grammars = ("--grammar-backend", "xgrammar")
    plain = [*plain_arguments(pair.target_folder), *grammars, "--disable-overlap-schedule"]
    expected, _ = answers(
        nursery, plain, jobs, patch="tests.runtime.worker.row_patches:masks_on_cpu"
    )
    found, retracted = answers(
        nursery,
        [*speculating(pair, tmp_path), *grammars],
        jobs,
        patch="tests.runtime.worker.row_patches:masks_on_cpu_and_retractions",
    )
    assert retracted >= 5
    for mine, its in zip(found, expected, strict=True):
        assert mine.whole, mine.message
        assert mine.tokens == its.tokens, mine.job.sampling
        assert mine.finish == its.finish
        missing = len(its.tokens) - len(mine.meta["output_token_logprobs"])
        if missing:
            # With overlap on, SGLang loses one log-probability of some retracted requests, without
            # speculation too.
            assert missing == 1
            assert mine.meta["num_retractions"]
            continue
        for name in ("output_token_logprobs", "output_top_logprobs"):
            both = zip(flat(mine.meta[name]), flat(its.meta[name]), strict=True)
            for value, meant in both:
                assert value == pytest.approx(meant, abs=5e-5)
    drafted = [one.meta["spec_accept_length"] for one in found]
    # Some follow the drafter and some hardly; by how much hangs on who was batched with whom.
    assert max(drafted) > 3 > 2 > min(drafted)


def flat(logprobs: Any) -> list[float]:
    """The values only."""
    if isinstance(logprobs, list) and len(logprobs) and isinstance(logprobs[0], float):
        return [logprobs[0]]
    return [value for one in logprobs or [] for value in flat(one)]


@pytest.mark.law
@pytest.mark.parametrize(
    "kinds",
    [
        [{"sampling_seed": 11}, {}, {"sampling_seed": 2**35, "temperature": 1.0}],
        [{"sampling_seed": 11, "top_p": 0.9}, {"top_k": 20}, {"sampling_seed": 3, "top_p": 0.7}],
    ],
    ids=["unfiltered", "filtered"],
)
def test_seeded_requests_get_plain_tokens(
    pair: Pair, nursery: Nursery, tmp_path: Path, kinds: list[dict[str, Any]]
) -> None:
    jobs = [
        Job(prompt=prompt, sampling=SEEDED | kinds[number % len(kinds)])
        for number, prompt in enumerate(greedy_prompts(pair, count=24))
    ]
    seeded, patch = (
        "--enable-deterministic-inference",
        "tests.runtime.worker.row_patches:seeds_on_cpu",
    )
    plain = [*plain_arguments(pair.target_folder), seeded]
    expected, _ = answers(nursery, plain, jobs, patch=patch)
    found, _ = answers(nursery, [*speculating(pair, tmp_path), seeded], jobs, patch=patch)
    for mine, its in zip(found, expected, strict=True):
        assert mine.whole, mine.message
        assert mine.tokens == its.tokens, mine.job.sampling
    assert max(one.meta["spec_accept_length"] for one in found) > 1.5
