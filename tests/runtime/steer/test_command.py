"""The command as a user types it, processes spawned by SGLang itself; started from cold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.runtime.servers import CPU_ENVIRONMENT, dspark_arguments, free_port
from tests.runtime.serving_client import Job, serve, server_info
from tests.runtime.serving_scenes import Greedy, Pair, greedy_sampling, write_costs
from tests.waiting import HUNG_S


@pytest.mark.example
def test_launch_server_is_steered(pair: Pair, greedy: Greedy, tmp_path: Path) -> None:
    costs = write_costs(tmp_path / "costs.json", token_share=0.2, requests=8)
    port = free_port()
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="global", cost_model=costs
    )
    command = [sys.executable, "-m", "sglang.launch_server", *arguments, "--port", str(port)]
    environment = {
        **os.environ,
        **CPU_ENVIRONMENT,
        "SGLANG_RAGGED_VERIFY_MODE": "compact",
    }
    url, log = f"http://127.0.0.1:{port}", tmp_path / "server.log"
    with open(log, "w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + HUNG_S
        while True:
            assert server.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=20).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        jobs = [Job(prompt=one, sampling=greedy_sampling(48)) for one in greedy.prompts[:8]]
        outcomes = serve(url, jobs, concurrency=8)
        assert [outcome.tokens for outcome in outcomes] == greedy.answers[:8]
        summary = server_info(url)["internal_states"][0]["dspark"]
        assert summary["policy"] == "global"
        assert summary["trimmed_tokens"] > 0
        assert summary["degraded_steps"] == {}
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
