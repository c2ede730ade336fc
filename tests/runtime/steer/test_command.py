"""The command as a user types it, processes spawned by SGLang itself; started from cold."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.servers import dspark_arguments, launched
from tests.runtime.serving_client import Job, serve, server_info
from tests.runtime.serving_scenes import Greedy, Pair, greedy_sampling, write_costs


@pytest.mark.example
def test_launch_server_is_steered(pair: Pair, greedy: Greedy, tmp_path: Path) -> None:
    costs = write_costs(tmp_path / "costs.json", token_share=0.2, requests=8)
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="global", cost_model=costs
    )
    compact = {"SGLANG_RAGGED_VERIFY_MODE": "compact"}
    with launched(arguments, tmp_path / "server.log", compact) as (url, _):
        jobs = [Job(prompt=one, sampling=greedy_sampling(48)) for one in greedy.prompts[:8]]
        outcomes = serve(url, jobs, concurrency=8)
        assert [outcome.tokens for outcome in outcomes] == greedy.answers[:8]
        summary = server_info(url)["internal_states"][0]["dspark"]
        assert summary["policy"] == "global"
        assert summary["trimmed_tokens"] > 0
        assert summary["degraded_steps"] == {}
