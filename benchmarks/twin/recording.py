"""The recorded half of the digital twin: real servers on this machine, profiled and driven.

Owns which policies, loads and settings are served, and the way from a request to the steps that
served it. Knows no fit and no simulation but the policy's own cost model.
"""

from __future__ import annotations

import itertools
import platform
import time
import urllib.request
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.twin.traffic import (
    Job,
    Server,
    bursty_s,
    conversations,
    is_built_in,
    send_arrivals,
    send_clients,
    start_server,
    wait_ready,
)
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.schema import Provenance
from sglang_dspark.core.policy import parse_policy
from sglang_dspark.logs.step_log import read
from simulator.engine.config import EngineConfig
from simulator.fit.cost import fit_cost
from simulator.fit.logged_steps import logged
from simulator.twin.timings import Segment

POLICIES = ("fixed", "sglang", "global") if is_built_in() else ("none", "fixed", "global")
"""The built-in DSPARK drafts for every request, so that its ``none`` would save nothing."""
PRICED = tuple(name for name in POLICIES if parse_policy(name).policy.needs_prices)
"""Served once costs are profiled."""
SPREADS = "threshold:0.5"
"""Served only while costs are profiled: its verified tokens do not grow in step with requests."""
LOADS = ("light", "medium", "heavy")
SHARES = {"light": 0.3, "medium": 0.42}
"""Of the capacity of the slowest policy; heavy is a share of the fastest one's. Between medium and
heavy a few bursts that fill the batch are the TTFT's p99, and the speed of the machine in those
seconds moves it (``results/digital_twin_65.json``, recorded with medium at 0.65)."""
HEAVY_SHARE = 0.85
THIRDS = 3
BLOCKS = 4
"""Of every third at every load, policies in turns: the speed of a machine drifts by a few per cent
within minutes, and long blocks would book that on a policy."""
BURSTINESS = 0.5
CLIENTS = (1, 2, 4, 8, 16)
PROFILE_S = 5.0
PROFILED = "profiled.json"
"""The cost model of the closed loops, in a recording's folder."""
FLUSH_S = 11.0
"""A step log shows a record ten seconds after it was made."""
MAX_TOKENS = 128
ENGINE = EngineConfig(
    max_running_requests=16,
    disable_overlap_schedule=True,
    chunked_prefill_size=256,
    max_prefill_tokens=16384,
    # SGLang's own DSPARK waits for free places; the plugin's worker on 0.5.15.post1 does not.
    min_free_slots_delay=None if is_built_in() else 1,
    page_size=1,
    enable_prefix_cache=True,
    kv_pool_tokens=16384,
    admission_new_tokens=MAX_TOKENS,
)


def server_arguments(target: Path, drafter: Path) -> list[str]:
    """What every server is started with; ``ENGINE`` says the same to the simulator."""
    return [
        *("--model-path", str(target), "--speculative-algorithm", "DSPARK"),
        *("--speculative-draft-model-path", str(drafter)),
        *("--max-total-tokens", str(ENGINE.kv_pool_tokens)),
        *("--max-running-requests", str(ENGINE.max_running_requests)),
        *("--chunked-prefill-size", str(ENGINE.chunked_prefill_size)),
        *("--max-prefill-tokens", str(ENGINE.max_prefill_tokens)),
        *("--page-size", str(ENGINE.page_size)),
        # On a CPU a launch returns when the forward is done: nothing overlaps.
        "--disable-overlap-schedule",
    ]


def fitted_on(source: str) -> Provenance:
    """Of the models fitted here."""
    return Provenance(
        origin="measured",
        source=source,
        hardware=f"{platform.machine()} CPU, one thread",
        model="small Qwen3 of the laptop run",
        dtype="float32",
        tp=1,
        engine=f"SGLang {metadata.version('sglang')} with sglang-dspark, torch_native",
        date=date.today().isoformat(),
        command="python -m benchmarks.twin",
    )


def jobs_of(samples: Path, arrivals_s: Any, *, seed: int) -> list[Job]:
    """Requests at these times."""
    drawn = conversations(samples, count=len(arrivals_s), seed=seed)
    return [
        Job(at_s=float(at), prompt=prompt, domain=domain, most_tokens=MAX_TOKENS, temperature=1.0)
        for at, (domain, prompt) in zip(arrivals_s, drawn, strict=True)
    ]


def flush(server: Server) -> None:
    """Forget the prefix cache, so that a segment starts as its replay does."""
    request = urllib.request.Request(f"{server.url}/flush_cache", method="POST")
    for _ in range(50):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                if answer.status == 200:
                    return
        except urllib.error.HTTPError:
            pass
        time.sleep(0.1)
    raise ValueError(f"{server.url} does not flush its cache; is something else sending to it?")


def closed_loop(server: Server, samples: Path, clients: int) -> float:
    """Requests per second that so many clients finish."""
    jobs = jobs_of(samples, np.zeros(2000), seed=1000 + clients)
    start_s = time.time()
    tag = f"profile-{server.policy}-{clients}"
    seen = send_clients(server, jobs, tag=tag, clients=clients, seconds=PROFILE_S)
    return len(seen) / (time.time() - start_s)


class Recording:
    """The servers, what they did, and the rates that were chosen."""

    def __init__(self, folder: Path, target: Path, drafter: Path, samples: Path) -> None:
        self.folder, self.samples = folder, samples
        self.arguments = server_arguments(target, drafter)
        self.servers: dict[str, Server] = {}
        self.capacity: dict[str, float] = {}
        self.windows: list[tuple[str, str, int, list[Any]]] = []

    def start(self, policy: str, cost_model: Path | None = None) -> None:
        """A server of its own for the policy."""
        server = start_server(
            policy, self.arguments, folder=self.folder / policy, cost_model=cost_model
        )
        self.servers[policy] = server

    def profile(self, clients: tuple[int, ...]) -> None:
        """Closed loops of some sizes on every server; the largest says what it can finish."""
        for count in clients:
            for policy, server in self.servers.items():
                flush(server)  # else what an earlier loop left there is not prefilled again
                self.capacity[policy] = closed_loop(server, self.samples, count)

    def profiled(self, clients: tuple[int, ...]) -> CostModel:
        """The cost model of such closed loops on the started servers, kept beside them."""
        for server in self.servers.values():
            wait_ready(server)
        self.profile(clients)
        time.sleep(FLUSH_S)
        logs = [server.step_log for server in self.servers.values()]
        times = logged((record for log in logs for record in read(log)), {}).times
        source = f"closed loops, {clients[0]} to {clients[-1]}"
        found = fit_cost(times, gamma=7, name="cpu-profiled", provenance=fitted_on(source))
        found.model.save(self.folder / PROFILED)
        return found.model

    def end(self, policy: str) -> None:
        """Stop one server; it takes part in nothing more."""
        self.servers.pop(policy).stop()
        del self.capacity[policy]

    def record(self, *, block_s: float) -> None:
        """Every third, block, load and policy, policies innermost and in turns."""
        slowest, fastest = min(self.capacity.values()), max(self.capacity.values())
        rates = {load: share * slowest for load, share in SHARES.items()}
        rates["heavy"] = HEAVY_SHARE * fastest
        self.rates = rates
        order = itertools.product(range(THIRDS), range(BLOCKS), LOADS)
        for seed, (third, block, load) in enumerate(order):
            rng = np.random.default_rng(seed)
            arrivals_s = bursty_s(rate=rates[load], seconds=block_s, burstiness=BURSTINESS, rng=rng)
            jobs = jobs_of(self.samples, arrivals_s, seed=seed)
            turn = seed // len(LOADS) % len(POLICIES)
            for policy in (*POLICIES[turn:], *POLICIES[:turn]):
                flush(self.servers[policy])
                tag = f"{policy}-{load}-{third}.{block}"
                seen = send_arrivals(self.servers[policy], jobs, tag=tag)
                self.windows.append((policy, load, third, seen))
                print(f"recorded {tag}: {len(seen)} requests", flush=True)
        time.sleep(FLUSH_S)

    def segments(self) -> list[Segment]:
        """The windows with the steps that served them."""
        owner = {one.rid: number for number, window in enumerate(self.windows) for one in window[3]}
        steps: list[list[Any]] = [[] for _ in self.windows]
        for server in self.servers.values():
            for record in read(server.step_log):
                number = owner.get(record.request_ids[0])
                if number is not None:
                    steps[number].append(record)
        return [
            Segment(
                policy=policy,
                load=load,
                third=third,
                seen=sorted(seen, key=lambda one: one.sent_s),
                steps=steps[number],
            )
            for number, (policy, load, third, seen) in enumerate(self.windows)
        ]

    def stop(self) -> None:
        """End the servers."""
        for server in self.servers.values():
            server.stop()


def record(folder: Path, *, cache: Path, minutes: float) -> tuple[list[Segment], CostModel, Any]:
    """Serve, profile, and record; (segments, the policy's cost model, what was chosen)."""
    from sglang_dspark.draft.demo.command import trained_pair
    from sglang_dspark.draft.demo.recipe import laptop

    target, drafter = trained_pair(laptop(), cache, corpus="templated")
    recording = Recording(folder, target, drafter, target.parent / "templated-samples.jsonl")
    try:
        first = (*(policy for policy in POLICIES if policy not in PRICED), SPREADS)
        for policy in first:
            recording.start(policy)
        belief = recording.profiled(CLIENTS)
        recording.end(SPREADS)
        for policy in (policy for policy in POLICIES if policy in PRICED):
            recording.start(policy, folder / PROFILED)
            wait_ready(recording.servers[policy])
        recording.profile(CLIENTS[-1:])
        print(f"capacity, requests per second: {recording.capacity}", flush=True)
        recording.record(block_s=60.0 * minutes / (THIRDS * BLOCKS * len(LOADS)))
        segments = recording.segments()
        chosen = {"capacity_req_s": recording.capacity, "rates_req_s": recording.rates}
        return segments, belief, chosen
    finally:
        recording.stop()
