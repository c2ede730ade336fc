"""A server accepts as many draft tokens as the offline evaluation of the same pair."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from sglang_dspark.core.state import Ints
from sglang_dspark.draft.evaluation.decode import VerifyAll, speculate
from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.logs.step_log import read
from tests.runtime.servers import Nursery, dspark_arguments
from tests.runtime.serving_checks import settle
from tests.runtime.serving_client import Job, serve, server_info
from tests.runtime.serving_scenes import GAMMA, Pair

PROMPTS, NEW_TOKENS = 200, 48


def accepted_length(accepted: Ints, request: Ints) -> tuple[float, float]:
    """Tokens committed a round, and its standard error over requests."""
    rounds = np.bincount(request)
    tokens = np.bincount(request, weights=1.0 + accepted)
    tokens, rounds = tokens[rounds > 0], rounds[rounds > 0]
    mean = tokens.sum() / rounds.sum()
    spread = np.sqrt(len(rounds)) * (tokens - mean * rounds).std(ddof=1)
    return float(mean), float(spread / rounds.sum())


def offline(pair: Pair, prompts: list[list[int]]) -> tuple[float, float]:
    """As the evaluation has it."""
    log = speculate(
        target=pair.target,
        drafter=pair.drafter,
        prompts=prompts,
        sampling=Sampling(),
        planner=VerifyAll(GAMMA),
        new_tokens=NEW_TOKENS,
        generator=torch.Generator().manual_seed(0),
    ).log
    return accepted_length(log.accepted, log.request)


def served(log: Path, wanted: set[str]) -> tuple[float, float]:
    """From the step log, each request up to its last token.

    Under overlap a finished request may be in one more step, whose tokens nobody gets.
    """
    left: dict[str, int] = defaultdict(lambda: NEW_TOKENS - 1)
    numbers: dict[str, int] = {}
    accepted, request = [], []
    for record in sorted(read(log), key=lambda one: one.step):
        for name, count in zip(record.request_ids, record.accepted.tolist(), strict=True):
            if name not in wanted:
                continue  # a health check
            if left[name] > 0:
                left[name] -= count + 1
                accepted.append(count)
                request.append(numbers.setdefault(name, len(numbers)))
    assert len(numbers) == PROMPTS
    assert max(left.values()) <= 0, "the step log lacks rounds"
    return accepted_length(np.array(accepted), np.array(request))


def committed_per_round(log: Path) -> float:
    """Over all rounds: those beyond a request's end and those of health checks included."""
    accepted = [count for record in read(log) for count in record.accepted.tolist()]
    return 1.0 + sum(accepted) / len(accepted)


@pytest.mark.law
def test_accepted_length_is_that_of_the_offline_evaluation(
    pair: Pair, nursery: Nursery, tmp_path: Path
) -> None:
    prompts = [pair.conversation(number)[:14] for number in range(PROMPTS)]
    body = {"temperature": 1.0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    arguments = dspark_arguments(pair.target_folder, pair.drafter_folder, policy="fixed")
    log = tmp_path / "steps"
    with nursery.start(
        [*arguments, "--speculative-dspark-step-log", str(log)],
        patch="tests.runtime.serving_patches:quick_step_log",
    ) as server:
        jobs = [Job(prompt=prompt, sampling=body) for prompt in prompts]
        outcomes = serve(server.url, jobs, concurrency=8)
        assert all(len(outcome.tokens) == NEW_TOKENS for outcome in outcomes)
        wanted = {outcome.meta["id"] for outcome in outcomes}
        settle(log)
        told = server_info(server.url)["internal_states"][0]["dspark"]["accepted_length"]
    (here, here_error), (there, there_error) = served(log, wanted), offline(pair, prompts)
    print(
        f"served {here:.3f} +- {here_error:.3f} (/server_info {told:.3f}), "
        f"offline {there:.3f} +- {there_error:.3f}"
    )
    assert here > 1.5, "the drafter is of no use"
    assert abs(here - there) <= 3 * np.hypot(here_error, there_error)
    assert told == pytest.approx(committed_per_round(log))
