"""Policy ``goodput`` in a server: who does not pay for a draft goes without, and is probed again.

Not one token and no probability differs for it; every plan replays from what it was told.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.logs.step_log import read
from tests.runtime.servers import Nursery, dspark_arguments
from tests.runtime.serving_checks import Drafting, contexts_follow, replayed
from tests.runtime.serving_client import Job, serve, server_info
from tests.runtime.serving_law import LEAST, Evidence
from tests.runtime.serving_scenes import (
    PROBE_ROUNDS,
    Greedy,
    Pair,
    greedy_sampling,
    worn,
    write_goodput,
)

CONCURRENCY = 16


def arguments_of(pair: Pair, folder: Path, **shares: float) -> list[str]:
    policy, costs = write_goodput(folder, requests=CONCURRENCY, **shares)
    arguments = dspark_arguments(
        pair.target_folder,
        pair.drafter_folder,
        policy=str(policy),
        cost_model=costs,
        requests=CONCURRENCY,
    )
    log = str(folder / "steps")
    return [*arguments, "--enable-priority-scheduling", "--speculative-dspark-step-log", log]


@pytest.mark.law
@pytest.mark.parametrize(("left_out", "draft_share"), [("some", 0.1), ("all", 1.0)])
def test_who_is_not_drafted_for_gets_plain_decodings_tokens(
    left_out: str, draft_share: float, pair: Pair, nursery: Nursery, greedy: Greedy, tmp_path: Path
) -> None:
    jobs = [
        Job(prompt=prompt, sampling=greedy_sampling(64), extra={"priority": number % 3})
        for number, prompt in enumerate(greedy.prompts[:80])
    ]
    arguments = arguments_of(pair, tmp_path, draft_share=draft_share)
    if left_out == "all":
        arguments = [*arguments, "--disable-overlap-schedule"]
    with nursery.start(arguments, patch="tests.runtime.serving_patches:quick_step_log") as server:
        outcomes = serve(server.url, jobs, concurrency=CONCURRENCY)
        assert [outcome.tokens for outcome in outcomes] == greedy.answers[:80]
        told = server_info(server.url)["internal_states"][0]["dspark"]
        counts = replayed(tmp_path / "steps")
    assert told["policy"] == "goodput"
    assert counts.different == 0, counts.first_different
    assert counts.same == counts.steps == told["steps"]
    records = list(read(tmp_path / "steps"))
    found = Drafting.of(records)
    print(found)
    assert (found.some if left_out == "some" else found.nobody) > 50
    assert found.everyone > 5
    assert found.probes > 20
    # Where nobody is drafted for, all are probed together, four times as late.
    assert 1 < found.longest_wait <= PROBE_ROUNDS * (4 if found.nobody else 1)
    assert contexts_follow(records) > 500
    urgent = {outcome.meta["id"]: outcome.job.extra["priority"] for outcome in outcomes}
    for record in records:  # SGLang's own health check gives none
        given = [urgent.get(rid, 0) for rid in record.request_ids]
        assert record.state.priority.tolist() == given
    slack_s = np.concatenate([record.state.slo_slack_s for record in records])
    assert (slack_s < 0).any(), "nobody was behind 5 ms for each token"
    assert np.isfinite(slack_s).mean() > 0.5
    assert any(record.state.prefills_per_step > 0 for record in records)


@pytest.mark.law
def test_skipped_drafts_leave_sampled_tokens_distributed_as_the_target_samples(
    pair: Pair, nursery: Nursery, tmp_path: Path
) -> None:
    bent = worn(pair, tmp_path / "worn")
    evidence, drafting = Evidence(Sampling()), []
    prompts, answers, new_tokens = pair.crossroads(8), 60, 24
    body = {"temperature": 1.0, "max_new_tokens": new_tokens, "ignore_eos": True}
    # Dear tokens leave the better drafter out now and then, the worse one a little in every step.
    for name, one, token_share in (("trained", pair, 0.1), ("bent", bent, 0.3)):
        folder = tmp_path / name
        folder.mkdir()
        jobs = [
            Job(prompt=prompt, sampling=body, extra={"priority": number % 3})
            for prompt in prompts
            for number in range(answers)
        ]
        with nursery.start(
            arguments_of(one, folder, token_share=token_share),
            patch="tests.runtime.serving_patches:quick_step_log",
        ) as server:
            outcomes = serve(server.url, jobs, concurrency=CONCURRENCY)
            assert replayed(folder / "steps").different == 0
        for number, prompt in enumerate(prompts):
            mine = outcomes[number * answers : (number + 1) * answers]
            evidence.add(one, prompt, [outcome.tokens for outcome in mine])
        drafting.append(Drafting.of(list(read(folder / "steps"))))
    found = evidence.p_values()
    print({view: float(f"{p:.3g}") for view, p in found.items()}, evidence.tokens, drafting)
    assert evidence.tokens >= 20_000
    assert evidence.open_places.sum() > 1_000
    assert min(one.some for one in drafting) > 20
    assert min(found.values()) > LEAST, found
