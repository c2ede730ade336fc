"""Studies 3 to 5: queueing theory, the digital twin's rows, acceptance profiles in replay.

Owns the scenarios. The twin was measured by ``benchmarks.twin``; here it is only read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.validation.record import AcceptanceRow, QueueRow, TwinRow
from benchmarks.validation.scenes import made_cost_model, made_trace, replay
from sglang_dspark.core.policy import parse_policy
from sglang_dspark.files import read_json
from simulator.acceptance.load import load_acceptance
from simulator.acceptance.published.targets import Targets, read_targets
from simulator.engine.config import EngineConfig
from simulator.fleet.scenario import Scenario
from simulator.slo import parse_slo
from simulator.study.metrics import measure, request_times
from simulator.twin.report import TWIN_TOLERANCE
from traces import Request, build_trace

Tick = Callable[[], None]

SERVICE_S = 0.1
SERVICE_TOKENS = 10_000
QUEUE_REQUESTS = 200_000
LOADS = (0.3, 0.5, 0.7, 0.9)
SERVICES = {"M/D/1": 0.5, "M/M/1": 1.0}
"""Mean wait over rho / (1 - rho) x the mean service."""
BATCHES = 30


PROFILES = {"dspark-qwen3-4b": "DSpark", "dflash-qwen3-4b": "DFlash", "eagle3-qwen3-4b": "Eagle3"}
DOMAINS = ("chat", "code", "math")
ROUND_REQUESTS, ROUND_OUTPUT = 10_000, 400


def queue_row(service: str, load: float) -> QueueRow:
    """The replica as a single server: one request at a time, one token each, its prefill is the
    service. Interval of the mean wait by batch means, the first twentieth left out."""
    rng = np.random.default_rng([list(SERVICES).index(service), round(load * 10)])
    arrival_s = np.cumsum(rng.exponential(SERVICE_S / load, QUEUE_REQUESTS))
    tokens = np.full(QUEUE_REQUESTS, float(SERVICE_TOKENS))
    if service == "M/M/1":
        tokens = rng.exponential(SERVICE_TOKENS, QUEUE_REQUESTS)
    prompts = np.maximum(1, np.rint(tokens)).astype(np.int64).tolist()
    requests = [
        Request(request_id=str(i), arrival_s=at, prompt_tokens=prompt, output_tokens=1)
        for i, (at, prompt) in enumerate(zip(arrival_s.tolist(), prompts, strict=True))
    ]
    scenario = Scenario(
        trace=build_trace(
            requests, name=service, path=service, sha256="", block_tokens=None, where=str
        ),
        cost_model=_single_gpu(SERVICE_S / SERVICE_TOKENS),
        acceptance=load_acceptance("dspark-qwen3-4b"),
        policy=parse_policy("none"),
        engine=EngineConfig(
            max_running_requests=1,
            chunked_prefill_size=10**9,
            max_prefill_tokens=10**9,
            disable_overlap_schedule=True,  # a queue of the textbook does not
        ),
    )
    service_s = np.array(prompts) * (SERVICE_S / SERVICE_TOKENS)
    wait_s = request_times(replay(scenario).requests)["ttft"] - service_s
    exact_s = lindley_s(arrival_s, service_s)
    batches = np.array_split(wait_s[QUEUE_REQUESTS // 20 :], BATCHES)
    means = np.array([batch.mean() for batch in batches])
    half = stats.t.ppf(0.975, BATCHES - 1) * means.std(ddof=1) / math.sqrt(BATCHES)
    mean = float(means.mean())
    return QueueRow(
        service=service,
        load=load,
        theory_s=SERVICES[service] * load * SERVICE_S / (1 - load),
        simulated_s=mean,
        low_s=mean - float(half),
        high_s=mean + float(half),
        lindley_gap_s=float(np.abs(wait_s - exact_s).max()),
    )


def lindley_s(arrival_s: Any, service_s: Any) -> np.ndarray:
    """Waits of a single first-come server on one sample path: Lindley's recursion, unrolled."""
    done = np.cumsum(service_s[:-1])
    slack = np.concatenate(([0.0], done)) - (arrival_s - arrival_s[0])
    wait_s: np.ndarray = slack - np.minimum.accumulate(slack)
    return wait_s


def queues(tick: Tick) -> list[QueueRow]:
    """Every load of both servers."""
    rows = []
    for service in SERVICES:
        for load in LOADS:
            rows.append(queue_row(service, load))
            tick()
    return rows


def _single_gpu(prefill_token_s: float) -> Any:
    return made_cost_model(
        "one-server",
        source="a scene, not a machine",
        hardware="none",
        model="none",
        gpus=1,
        tokens=[1, 4096],
        seconds=[0.01, 0.02],
        between="linear",
        draft=None,
        prefill_token_s=prefill_token_s,
        kv_pool_tokens=10**9,
    )


def twin(path: Path) -> list[TwinRow]:
    """The digital twin's figures, measured beside predicted."""
    return [
        TwinRow(
            load=row["load"],
            policy=row["policy"],
            figure=figure,
            measured=row["measured"][figure],
            predicted=row["predicted"][figure],
        )
        for row in read_json(path)["rows"]
        for figure in TWIN_TOLERANCE
    ]


def _accepted(profile: str, domain: str) -> np.ndarray:
    """[gamma + 1] rounds by accepted drafts, everything verified."""
    scenario = Scenario(
        trace=made_trace(
            domain,
            prompt_tokens=1,
            output_tokens=[ROUND_OUTPUT] * ROUND_REQUESTS,
            domains=[domain],
        ),
        cost_model=_single_gpu(1e-9),
        acceptance=load_acceptance(profile),
        policy=parse_policy("fixed"),
        engine=EngineConfig(enable_prefix_cache=False, admission_new_tokens=ROUND_OUTPUT),
        concurrency=64,
        seed=1,
    )
    return np.array(measure(replay(scenario), parse_slo("standard"))["accepted_by_length"])


def _length(rounds: np.ndarray) -> float:
    return float(1.0 + rounds @ np.arange(rounds.size) / rounds.sum())


def _paper_rows(targets: Targets, profile: str, domain: str) -> list[AcceptanceRow]:
    rounds = _accepted(profile, domain)
    reached = rounds[::-1].cumsum()[::-1]
    drafter = PROFILES[profile]
    rows = [
        AcceptanceRow(
            profile=profile,
            domain=domain,
            position=None,
            published=float(np.mean(targets.accepted_length.values[drafter][domain])),
            simulated=_length(rounds),
        )
    ]
    published = targets.conditional_acceptance.values[drafter][domain]
    for k, value in enumerate(published, start=1):
        rows.append(
            AcceptanceRow(
                profile=profile,
                domain=domain,
                position=k,
                published=value,
                simulated=float(reached[k] / reached[k - 1]),
            )
        )
    return rows


def acceptance(tick: Tick) -> list[AcceptanceRow]:
    """Every profile against the figures it was fitted to."""
    targets = read_targets()
    rows = []
    for profile in PROFILES:
        for domain in DOMAINS:
            rows += _paper_rows(targets, profile, domain)
            tick()
    golden = targets.golden_lengths
    for profile, lengths in (("dspark5-v4", golden.dspark_v4_pro), ("mtp1", golden.mtp_v4_pro)):
        rows.append(
            AcceptanceRow(
                profile=profile,
                domain="code",
                position=None,
                published=lengths[-1],
                simulated=_length(_accepted(profile, "code")),
            )
        )
        tick()
    return rows
