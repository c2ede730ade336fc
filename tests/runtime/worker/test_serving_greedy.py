"""Greedy answers over HTTP are those of the same server without speculation, token for token.

Six servers cover every pair of settings: overlap, radix cache, chunked prefill, page size and a KV
pool so small that requests are retracted.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from sglang_dspark.logs.step_log import read
from tests.runtime.servers import Nursery, dspark_arguments
from tests.runtime.serving_checks import replayed
from tests.runtime.serving_client import Job, Outcome, account, metrics, serve, server_info, total
from tests.runtime.serving_scenes import Greedy, Pair, greedy_sampling, write_costs

LARGE_POOL, SMALL_POOL = 4096, 560
RETRACT_OFTEN = {"SGLANG_RETRACT_DECODE_STEPS": "1", "SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS": "2"}
"""A full pool makes SGLang careful for hundreds of steps; here it forgets within ten."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A server's settings; each of the five differs from the plain one in half the scenes."""

    policy: str
    overlap: bool = True
    radix: bool = True
    chunked: bool = False
    page: int = 1
    small_pool: bool = False

    def arguments(self) -> list[str]:
        """As flags."""
        return [
            *([] if self.overlap else ["--disable-overlap-schedule"]),
            *([] if self.radix else ["--disable-radix-cache"]),
            *("--chunked-prefill-size", "16" if self.chunked else "-1"),
            *("--page-size", str(self.page)),
            *(["--schedule-conservativeness", "0.3"] if self.small_pool else []),
        ]


# Every two settings meet in all four combinations: a column is three of the last five rows, and no
# two columns are the same three.
SCENES = {
    "plain": Scene(policy="fixed"),
    "page-16, no overlap, small pool": Scene(
        policy="global", overlap=False, page=16, small_pool=True
    ),
    "no overlap, no radix, small pool": Scene(
        policy="early_stop", overlap=False, radix=False, small_pool=True
    ),
    "no overlap, no radix, chunked": Scene(
        policy="global", overlap=False, radix=False, chunked=True
    ),
    "no radix, chunked, page-16": Scene(policy="threshold:0.6", radix=False, chunked=True, page=16),
    "chunked, page-16, small pool": Scene(policy="global", chunked=True, page=16, small_pool=True),
}


def impatient(greedy: Greedy) -> list[Job]:
    """Every prompt; every second request streams, every tenth is given up midway."""
    rng = random.Random(3)
    jobs = []
    for number, prompt in enumerate(greedy.prompts):
        stream = number % 2 == 0
        aborts = number % 20 in (3, 8)
        jobs.append(
            Job(
                prompt=prompt,
                sampling=greedy_sampling(64),
                stream=stream,
                abort_after=rng.randint(5, 50) if aborts else None,
                hang_up=number % 40 < 20,
            )
        )
    return jobs


def differences(greedy: Greedy, outcomes: list[Outcome]) -> list[str]:
    """What is not as plain decoding has it: wrong tokens, or an end that nobody asked for."""
    found = []
    for number, (outcome, wanted) in enumerate(zip(outcomes, greedy.answers, strict=True)):
        given_up = outcome.job.abort_after is not None
        complete = outcome.tokens == wanted
        if outcome.tokens != wanted[: len(outcome.tokens)] or not (complete or given_up):
            first = next(
                (
                    place
                    for place, (got, want) in enumerate(zip(outcome.tokens, wanted, strict=False))
                    if got != want
                ),
                len(outcome.tokens),
            )
            found.append(
                f"request {number}: token {first} of {len(outcome.tokens)} differs from plain "
                f"decoding ({outcome.status} {outcome.finish} {outcome.message})"
            )
    return found


@pytest.mark.law
@pytest.mark.parametrize("name", SCENES)
def test_greedy_answers_are_those_of_plain_decoding(
    name: str, pair: Pair, nursery: Nursery, greedy: Greedy, tmp_path: Path
) -> None:
    scene = SCENES[name]
    costs = write_costs(tmp_path / "costs.json", token_share=0.2, requests=8)
    log = tmp_path / "steps"
    arguments = dspark_arguments(
        pair.target_folder,
        pair.drafter_folder,
        policy=scene.policy,
        cost_model=costs,
        kv_tokens=SMALL_POOL if scene.small_pool else LARGE_POOL,
    )
    with nursery.start(
        [*arguments, *scene.arguments(), "--speculative-dspark-step-log", str(log)],
        environment=RETRACT_OFTEN if scene.small_pool else {},
        patch="tests.runtime.serving_patches:quick_step_log",
    ) as server:
        before = account(server.url)
        outcomes = serve(server.url, impatient(greedy), concurrency=12)
        after = account(server.url)
        found = metrics(server.url)
        assert server.exit_code() is None
        wrong = differences(greedy, outcomes)
        assert not wrong, "\n".join([*wrong[:10], server.log[-2000:]])
        assert (before.requests, after.requests) == (0, 0)
        assert after.free_kv_tokens == before.free_kv_tokens
        ends = Counter(outcome.finish for outcome in outcomes)
        retracted = total(found, "sglang:num_retracted_requests_total")
        cached = total(found, "sglang:cached_tokens_total")
        print(name, dict(ends), f"{retracted:.0f} retracted, {cached:.0f} cached tokens")
        assert ends["length"] >= 180
        assert ends["abort"] + ends[""] >= 10, "too few requests were still there to be given up"
        assert (retracted >= 5) == scene.small_pool
        assert (cached > 500) == scene.radix
        counts = replayed(log)
    assert counts.different == 0, counts.first_different
    assert counts.same > 100
    assert counts.degraded == 0


@pytest.mark.example
def test_nan_confidences_are_verified_in_full_and_cost_no_token(
    pair: Pair, nursery: Nursery, greedy: Greedy, tmp_path: Path
) -> None:
    costs = write_costs(tmp_path / "costs.json", token_share=1.0, requests=8)
    log = tmp_path / "steps"
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="global", cost_model=costs
    )
    jobs = [Job(prompt=one, sampling=greedy_sampling(64)) for one in greedy.prompts[:40]]
    with nursery.start(
        [*arguments, "--speculative-dspark-step-log", str(log)],
        patch="tests.runtime.serving_patches:nan_confidences",
    ) as server:
        outcomes = serve(server.url, jobs, concurrency=8)
        told = server_info(server.url)["internal_states"][0]["dspark"]
        counts = replayed(log)
    assert [outcome.tokens for outcome in outcomes] == greedy.answers[:40]
    assert sum(told["degraded_steps"].values()) == counts.degraded >= 10
    assert counts.different == 0, counts.first_different
    for record in read(log):
        assert not record.degraded or record.shape == "uniform"
