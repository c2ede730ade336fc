"""The command as a user types it: one start from cold, one answer, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.runtime.servers import CPU_ENVIRONMENT, dspark_arguments, free_port
from tests.runtime.serving_client import Job, serve, server_info
from tests.runtime.serving_scenes import Greedy, Pair, greedy_sampling, write_costs
from tests.waiting import HUNG_S


@pytest.mark.example
def test_launch_server_with_dspark(pair: Pair, greedy: Greedy, tmp_path: Path) -> None:
    costs = write_costs(tmp_path / "costs.json", token_share=0.2, requests=8)
    port = free_port()
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="global", cost_model=costs
    )
    command = [sys.executable, "-m", "sglang.launch_server", *arguments, "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path / "server.log"
    with open(log, "w") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, **CPU_ENVIRONMENT},
            start_new_session=True,
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
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
