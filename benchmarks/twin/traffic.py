"""Real traffic for the digital twin: servers on this machine, and a client that times them.

Owns starting SGLang, the arrivals and what the client saw. Requests are token ids, answers are
streamed as SGLang's own ``bench_serving`` streams them (POST /generate, one connection each), and
times are ``time.time``, the clock of the server's step log. Knows no simulation.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from packaging.version import Version

from benchmarks.servers import (
    CPU_ARGUMENTS,
    CPU_ENVIRONMENT,
    free_port,
    last_line,
    unneeded_models,
    wait_healthy,
)
from simulator.twin.timings import Seen

_READY_S = 600.0
_MODELS = ("qwen3", "qwen2", "dspark", "dflash", "registry", "utils", "transformers")
"""Modules of SGLang's model folder that the pair needs; the others take 20 s to import."""
_STAND_IN = Path(__file__).parents[2] / "tests" / "runtime" / "steer" / "stand_in"
"""SGLang with a DSPARK of its own imports ``sgl_kernel`` on a CPU too, and calls little of it."""

_TURNS_BEFORE = (0, 0, 0, 1, 2)
"""Answered turns in front of a question; one is picked for each request."""

_SERVER = (*CPU_ARGUMENTS, "--skip-server-warmup")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request to send."""

    at_s: float
    """Since the start of its segment."""
    prompt: tuple[int, ...]
    domain: str
    most_tokens: int
    temperature: float


def conversations(samples: Path, *, count: int, seed: int) -> list[tuple[str, tuple[int, ...]]]:
    """(domain, prompt) of ``count`` requests: a question, of two in five after answered turns.

    Turns come from the file of samples the drafter was trained on. It was trained on single ones,
    so that those after others are accepted less: a domain of its own, as traffic that a drafter
    does not know well.
    """
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    by_domain: dict[str, list[Any]] = {}
    for row in rows:
        if row["finish"] == "stop":
            by_domain.setdefault(row["domain"], []).append(row)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        last = rows[rng.integers(len(rows))]
        same = by_domain[last["domain"]]
        prompt: list[int] = []
        for _ in range(_TURNS_BEFORE[rng.integers(len(_TURNS_BEFORE))]):
            turn = same[rng.integers(len(same))]
            prompt += [*turn["prompt"], *turn["response"]]
        name = f"{last['domain']}, later turn" if prompt else last["domain"]
        found.append((name, (*prompt, *last["prompt"])))
    return found


def bursty_s(*, rate: float, seconds: float, burstiness: float, rng: np.random.Generator) -> Any:
    """Arrivals of a renewal process: gamma gaps of shape ``burstiness``, 1 being Poisson and
    smaller ones bursty, as ``--burstiness`` of serving benchmarks has it."""
    count = int(rate * seconds * 1.5) + 50
    gaps = rng.gamma(burstiness, 1.0 / (burstiness * rate), count)
    times = np.cumsum(gaps)
    found = times[times < seconds]
    return found if len(found) else np.zeros(1)  # a short block has one request at least


@dataclass(kw_only=True)
class Server:
    """A running server of one policy, with a step log."""

    policy: str
    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def step_log(self) -> Path:
        """Folder of its step log."""
        return self.folder / "steps"

    @property
    def request_log(self) -> Path:
        """Folder of its request log."""
        return self.folder / "requests"

    def stop(self) -> None:
        """As an operator does, then by force."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def is_built_in() -> bool:
    """Whether the installed SGLang has a DSPARK of its own, which then is steered."""
    return Version(importlib.metadata.version("sglang")) >= Version("0.5.16")


def _environment() -> dict[str, str]:
    more = {}
    if is_built_in():
        more["SGLANG_RAGGED_VERIFY_MODE"] = "compact"
        more["PYTHONPATH"] = os.pathsep.join((str(_STAND_IN), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, **CPU_ENVIRONMENT, **more}


def start_server(
    policy: str, arguments: Sequence[str], *, folder: Path, cost_model: Path | None
) -> Server:
    """``python -m sglang.launch_server`` with DSPARK; returns at once, see ``wait_ready``."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "sglang.launch_server", *arguments, *_SERVER),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--speculative-dspark-policy", policy),
        *("--speculative-dspark-step-log", str(folder / "steps")),
        *("--speculative-dspark-step-log-mb", "1024"),
        *("--speculative-dspark-request-log", str(folder / "requests")),
        *(() if cost_model is None else ("--speculative-dspark-cost-model", str(cost_model))),
    ]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**_environment(), "SGLANG_DISABLED_MODEL_ARCHS": unneeded_models(_MODELS)},
        )
    return Server(policy=policy, url=f"http://127.0.0.1:{port}", folder=folder, process=process)


def wait_ready(server: Server) -> None:
    """Until it answers /health; ``ValueError`` with its last line when it ends instead."""
    running = server.process
    if not wait_healthy(server.url, lambda: running.poll() is None, timeout_s=_READY_S):
        why = last_line(server.folder / "server.log")
        raise ValueError(f"the server of {server.policy} did not start: {why}")


def token_names(prompt: Sequence[int]) -> tuple[int, ...]:
    """A name for each token that stands for it and all before it, as pages of one token are
    shared."""
    digest = hashlib.blake2b(digest_size=6)
    names = []
    for token in prompt:
        digest.update(token.to_bytes(4, "little"))
        names.append(int.from_bytes(digest.digest(), "little"))
    return tuple(names)


async def _send(session: aiohttp.ClientSession, url: str, job: Job, rid: str) -> Seen:
    body = {
        "input_ids": list(job.prompt),
        "sampling_params": {"max_new_tokens": job.most_tokens, "temperature": job.temperature},
        "stream": True,
        "rid": rid,
    }
    sent_s = time.time()
    first_s = end_s = 0.0
    tokens = cached = 0
    async with session.post(f"{url}/generate", json=body) as answer:
        if answer.status != 200:
            raise ValueError(f"{url}: {answer.status} {(await answer.text())[:300]}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            now_s = time.time()
            about = json.loads(line[6:])["meta_info"]
            if about["completion_tokens"] > tokens:
                tokens = about["completion_tokens"]
                first_s = first_s or now_s
                end_s = now_s
            cached = about.get("cached_tokens", 0)
    return Seen(
        rid=rid,
        domain=job.domain,
        prompt_tokens=len(job.prompt),
        prefix=token_names(job.prompt),
        sent_s=sent_s,
        first_s=first_s,
        end_s=end_s,
        output_tokens=tokens,
        cached_tokens=cached,
        max_new_tokens=job.most_tokens,
    )


async def _open_loop(url: str, jobs: Sequence[Job], tag: str) -> list[Seen]:
    timeout = aiohttp.ClientTimeout(total=900)
    # A connection kept open may be closed by the server just when the next request is sent.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        start_s = time.time()
        tasks = []
        for number, job in enumerate(jobs):
            await asyncio.sleep(max(0.0, start_s + job.at_s - time.time()))
            tasks.append(asyncio.create_task(_send(session, url, job, f"{tag}-{number}")))
        return list(await asyncio.gather(*tasks))


def send_arrivals(server: Server, jobs: Sequence[Job], *, tag: str) -> list[Seen]:
    """Send every job at its time, whatever becomes of the others; returns when all are done."""
    return asyncio.run(_open_loop(server.url, jobs, tag))


async def _closed_loop(
    url: str, jobs: Sequence[Job], tag: str, clients: int, seconds: float
) -> list[Seen]:
    waiting = iter(enumerate(jobs))
    over_s = time.time() + seconds
    seen: list[Seen] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for number, job in waiting:
            if time.time() > over_s:
                return
            seen.append(await _send(session, url, job, f"{tag}-{number}"))

    timeout = aiohttp.ClientTimeout(total=900)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return seen


def send_clients(
    server: Server, jobs: Sequence[Job], *, tag: str, clients: int, seconds: float
) -> list[Seen]:
    """``clients`` at a time, each sending its next job when the last one ended, for a while."""
    return asyncio.run(_closed_loop(server.url, jobs, tag, clients, seconds))
