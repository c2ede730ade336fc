"""Two tensor-parallel ranks serve what one serves: every rank takes rank 0's plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.servers import Nursery, dspark_arguments
from tests.runtime.serving_client import Job, serve, server_info
from tests.runtime.serving_scenes import Greedy, Pair, greedy_sampling, write_costs, write_goodput

PROMPTS, NEW_TOKENS = 16, 24


@pytest.mark.example
@pytest.mark.parametrize("policy", ["global", "goodput"])
def test_two_ranks_answer_as_one(
    policy: str, pair: Pair, nursery: Nursery, greedy: Greedy, tmp_path: Path
) -> None:
    if policy == "goodput":  # whose slack is by a clock of each rank's own
        file, costs = write_goodput(tmp_path, requests=8)
        policy = str(file)
    else:
        costs = write_costs(tmp_path / "costs.json", token_share=0.05, requests=8)
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy=policy, cost_model=costs
    )
    jobs = [
        Job(prompt=prompt, sampling=greedy_sampling(NEW_TOKENS))
        for prompt in greedy.prompts[:PROMPTS]
    ]
    with nursery.start(
        [*arguments, "--tp-size", "2"], environment={"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    ) as server:
        outcomes = serve(server.url, jobs, concurrency=8)
        told = server_info(server.url)["internal_states"][0]["dspark"]
    for outcome, answer in zip(outcomes, greedy.answers[:PROMPTS], strict=True):
        assert outcome.tokens == answer[:NEW_TOKENS]
    assert told["steps_by_shape"].get("ragged", 0) > 0, "nothing was trimmed"
    assert told["computed_tokens"] == told["planned_tokens"]
