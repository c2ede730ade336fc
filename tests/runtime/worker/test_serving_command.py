"""The command as a user types it: one start from cold, one answer, nothing left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.runtime.servers import dspark_arguments, launched
from tests.runtime.serving_client import Job, serve, server_info
from tests.runtime.serving_scenes import Greedy, Pair, greedy_sampling, write_costs
from tests.waiting import HUNG_S


@pytest.mark.example
def test_launch_server_with_dspark(pair: Pair, greedy: Greedy, tmp_path: Path) -> None:
    costs = write_costs(tmp_path / "costs.json", token_share=0.2, requests=8)
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="global", cost_model=costs
    )
    with launched(arguments, tmp_path / "server.log") as (url, server):
        jobs = [Job(prompt=one, sampling=greedy_sampling(64)) for one in greedy.prompts[:4]]
        outcomes = serve(url, jobs, concurrency=4)
        assert [outcome.tokens for outcome in outcomes] == greedy.answers[:4]
        block = server_info(url)["internal_states"][0]["dspark"]
        assert block["policy"] == "global"
        family = [server.pid, *(one.pid for one in psutil.Process(server.pid).children(True))]
        os.kill(server.pid, signal.SIGTERM)
        server.wait(timeout=HUNG_S)
        _, alive = psutil.wait_procs(
            [psutil.Process(pid) for pid in family if psutil.pid_exists(pid)], timeout=HUNG_S
        )
        left = [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
        assert not left, "processes outlive the server"
