"""What an operator does, on this machine: serve one policy, record it, judge it with the command.

    python -m benchmarks.twin --alone global --minutes 12 -o benchmarks/results/twin_alone.json

One steered server under one policy, ``python -m traces.record`` beside it, bursty arrivals well
below saturation whose prompts begin with what others of their domain began with, so that most of
them are found in the prefix cache. Then ``python -m simulator.twin`` on the recording and nothing
else. Owns the traffic and the order of these commands; knows no fit and no simulation.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.twin.recording import (
    BURSTINESS,
    CLIENTS,
    FLUSH_S,
    PROFILE_S,
    PROFILED,
    SPREADS,
    Recording,
    jobs_of,
)
from benchmarks.twin.traffic import Job, bursty_s, send_arrivals, send_clients, wait_ready
from sglang_dspark.files import read_json

SHARE = 0.35
"""Of the capacity: below saturation, with bursts that fill the batch."""
_PREFIX_TURNS = 4
"""Answered turns that most prompts of a domain begin with, as with a system prompt."""
_OWN_SHARE = 0.25
"""Of the requests, which begin with turns that nobody else's do."""


def prefixed(jobs: list[Job], samples: Path, *, seed: int) -> list[Job]:
    """The same requests behind a beginning that all of their domain share; one in four behind
    turns of its own instead, which are as long and in no cache."""
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    ended = {
        domain: [row for row in rows if row["domain"] == domain and row["finish"] == "stop"]
        for domain in sorted({row["domain"] for row in rows})
    }
    rng = np.random.default_rng(seed)

    def begun(domain: str, alone: bool) -> tuple[int, ...]:
        own = ended[domain]
        picked = rng.integers(len(own), size=rng.integers(_PREFIX_TURNS + 1)) if alone else (
            np.arange(_PREFIX_TURNS) * (len(own) // _PREFIX_TURNS)
        )  # fmt: skip
        turns = [own[int(number)] for number in picked]
        return tuple(token for row in turns for token in (*row["prompt"], *row["response"]))

    return [
        dataclasses.replace(
            job,
            prompt=(*begun(job.domain.partition(",")[0], rng.random() < _OWN_SHARE), *job.prompt),
        )
        for job in jobs
    ]


def profiled(recording: Recording, samples: Path) -> tuple[Path, float]:
    """(cost model that the policy plans with, requests a second that the machine finishes)."""
    recording.start(SPREADS)
    server = recording.servers[SPREADS]
    recording.profiled(CLIENTS)
    jobs = prefixed(jobs_of(samples, np.zeros(2000), seed=999), samples, seed=999)
    start_s = time.time()
    seen = send_clients(server, jobs, tag="full", clients=CLIENTS[-1], seconds=2 * PROFILE_S)
    capacity = len(seen) / (time.time() - start_s)
    recording.end(SPREADS)
    return recording.folder / PROFILED, capacity


def record_alone(policy: str, folder: Path, *, cache: Path, minutes: float) -> dict[str, Any]:
    """Fill ``folder/recorded`` and ``folder/mine.jsonl``; what was chosen on the way."""
    from sglang_dspark.draft.demo.command import trained_pair
    from sglang_dspark.draft.demo.recipe import laptop

    target, drafter = trained_pair(laptop(), cache, corpus="templated")
    samples = target.parent / "templated-samples.jsonl"
    recording = Recording(folder, target, drafter, samples)
    try:
        belief, capacity = profiled(recording, samples)
        recording.start(policy, belief)
        server = recording.servers[policy]
        wait_ready(server)
        rng = np.random.default_rng(0)
        rate, seconds = SHARE * capacity, 60.0 * minutes
        arrivals_s = bursty_s(rate=rate, seconds=seconds, burstiness=BURSTINESS, rng=rng)
        jobs = prefixed(jobs_of(samples, arrivals_s, seed=0), samples, seed=0)
        recorder = subprocess.Popen(
            [
                *(sys.executable, "-m", "traces.record", "--url", server.url),
                *("--seconds", str(seconds + 3 * FLUSH_S), "-o", str(folder / "recorded")),
            ]
        )
        seen = send_arrivals(server, jobs, tag="alone")
        recorder.wait(timeout=seconds + 600.0)
    finally:
        recording.stop()
    trace = folder / "mine.jsonl"
    run("traces.record", "--from", str(folder / "recorded"), "-o", str(trace), "--force")
    return {
        "policy": policy,
        "sglang": metadata.version("sglang"),
        "minutes": minutes,
        "capacity_req_s": capacity,
        "rate_req_s": rate,
        "requests": len(seen),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def judged(folder: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """What ``python -m simulator.twin`` finds in the folder, beside how it was recorded."""
    status = run(
        "simulator.twin", str(folder / "recorded"), "--requests", str(folder / "mine.jsonl"),
        "-o", str(folder / "twin"),
    )  # fmt: skip
    found = read_json(folder / "twin" / "twin.json")
    return {"recorded": chosen, "status": status, "twin": found}


def run(module: str, *arguments: str) -> int:
    """A command of ours as the operator types it; its exit status. 2 is an error here."""
    status = subprocess.run([sys.executable, "-m", module, *arguments]).returncode
    if status not in (0, 1):
        raise ValueError(f"python -m {module} {' '.join(arguments)}: status {status}")
    return status
