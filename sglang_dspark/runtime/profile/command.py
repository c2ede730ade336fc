"""Measure a running server's step costs into a cost model:

    python -m sglang_dspark.runtime.profile --url http://127.0.0.1:30000 -o cost_model.json

Run it on the server's machine, with nothing else on the server. Drives it through batches, verified
lengths, contexts and prompts, reads the server's own clock, fits, and writes a ``measured`` cost
model with where it came from, its error and its range; also as SGLang's files (--sps, --additive).
An interrupted run goes on where it stopped (a journal lies beside the output). Owns the order of
things; pinning and reading is ``lanes``, points are ``grid``, numbers ``fit``, the file ``model``.
Imports no SGLang.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from sglang_dspark.cli import Parser
from sglang_dspark.core.costs.sglang_tables import to_additive, to_sps
from sglang_dspark.runtime.profile.fit import DecodePoint, PrefillPoint, falling, fit
from sglang_dspark.runtime.profile.grid import (
    Batch,
    Grid,
    Journal,
    Limits,
    chunks_of,
    flattened,
    grid_of,
)
from sglang_dspark.runtime.profile.lanes import (
    BuiltInLane,
    Lane,
    Step,
    WorkerLane,
    collect,
    lane_of,
    wait_for,
)
from sglang_dspark.runtime.profile.model import cost_model, facts_in_words
from sglang_dspark.runtime.profile.nvml import gpu_facts, one_gpus_watts
from sglang_dspark.server_client import Held, ServerClient, Unreachable

PREFILL_REPEATS = 3
_AS_ASKED = 0.9
"""Share of a point's steps that must be exactly what was asked for."""


def limits_of(info: dict[str, Any], state: dict[str, Any], gamma: int) -> Limits:
    """The server's limits, from /server_info."""
    requests = state.get("effective_max_running_requests_per_dp") or info["max_running_requests"]
    pool = (state.get("memory_usage") or {}).get("token_capacity") or info["max_total_num_tokens"]
    context = info.get("context_length") or info.get("max_req_input_len") or pool
    return Limits(
        gamma=gamma,
        requests=int(requests),
        context_tokens=min(int(context), int(pool)) - 8,
        pool_tokens=int(pool),
        chunk_tokens=max(int(info.get("chunked_prefill_size") or 0), 0),
    )


def point_of(steps: Sequence[Step], length: int, prompt_tokens: int) -> DecodePoint:
    """Medians of one run of steps."""

    def middle(values: list[float]) -> float:
        known = [v for v in values if not math.isnan(v)]
        return median(known) if known else math.nan

    walls = sorted(s.wall_s for s in steps if not math.isnan(s.wall_s))
    if not walls:
        raise Unreachable("no two steps of one batch came in a row; stop other traffic")
    wall_s, quarter = median(walls), len(walls) // 4
    forward_s = middle([s.verify_s for s in steps])
    commit_s, draft_s = middle([s.commit_s for s in steps]), middle([s.draft_s for s in steps])
    draft_s = 0.0 if math.isnan(draft_s) else draft_s
    if math.isnan(forward_s):  # nothing but the whole step is timed
        forward_s = wall_s - draft_s
    elif not math.isnan(commit_s):
        forward_s += commit_s
    requests = steps[0].requests
    contexts = [s.context_tokens for s in steps if s.context_tokens >= 0]
    context = sum(contexts) / len(contexts) if contexts else float(requests * prompt_tokens)
    return DecodePoint(
        requests=requests,
        length=length,
        tokens=sum(s.computed_tokens for s in steps) / len(steps),
        context_tokens=context,
        steps=len(steps),
        forward_s=forward_s,
        draft_s=draft_s,
        host_s=max(wall_s - draft_s - forward_s, 0.0),
        spread=(walls[-1 - quarter] - walls[quarter]) / 2 / wall_s,
        ragged=2 * sum(s.shape == "ragged" for s in steps) > len(steps),
    )


def check_as_asked(steps: Sequence[Step], length: int, gamma: int, name: str) -> None:
    """``ValueError`` when the server does not verify what was pinned."""
    requests = steps[0].requests
    asked = requests * (1 + length)
    followed = sum(s.computed_tokens == asked for s in steps)
    if followed >= _AS_ASKED * len(steps):
        return
    did = median(s.computed_tokens for s in steps)
    if did == requests * (1 + gamma):
        raise ValueError(
            f"{name} verified everything ({did:.0f} tokens) when asked for {asked}: a forced "
            "budget has no effect there, and every table would come out flat; start the server "
            "with SGLANG_RAGGED_VERIFY_MODE=compact and this plugin, or with any SPS table loaded "
            "(--speculative-dspark-sps-table-path), and without CUDA-graph tier alignment"
        )
    raise ValueError(
        f"{name} computed {did:.0f} tokens when asked for {asked}; stop other traffic to the "
        "server, and leave out --speculative-dspark-align-verify-tokens-to-graph-tier"
    )


@dataclass(kw_only=True)
class Profiler:
    """One run over one server."""

    lane: Lane
    limits: Limits
    grid: Grid
    journal: Journal
    steps: int
    temperature: float
    answer_tokens: int
    timeout_s: float
    watts: Callable[[], float | None]

    def run(self) -> None:
        """Measure what the journal lacks; whatever happens, give the policy back."""
        progress = tqdm(total=self.grid.points, unit="point", file=sys.stderr, smoothing=0.1)
        try:
            with progress:
                for batch in self.grid.batches:
                    progress.update(len(batch.lengths) - len(self.journal.missing(batch)))
                    self.measure(batch, progress)
                self.look_again()
                self.lane.pin(None, 1)
                for tokens in self.grid.prefill_tokens:
                    if tokens not in self.journal.prefill:
                        self.journal.add_prefill(self.prefill(tokens))
                    progress.update(1)
        finally:
            self.lane.pin(None, 1)
            if isinstance(self.lane, BuiltInLane) and self.lane.stuck:
                print(
                    "this SGLang cannot be told to decide by itself again: it verifies everything "
                    "until you restart it",
                    file=sys.stderr,
                )

    def measure(self, batch: Batch, progress: Any) -> None:
        """All missing lengths of one batch, in as few batches as their answers last for."""
        while missing := self.journal.missing(batch):
            with self.held(batch) as held:
                for done, length in enumerate(missing):
                    progress.set_description(
                        f"{batch.requests} requests, {length} of {self.lane.gamma} drafts, "
                        f"{batch.prompt_tokens} context"
                    )
                    try:
                        point = self.point(held, batch, length)
                    except Unreachable:
                        if held.over.is_set() and not held.error and done:
                            break  # the answers ran out: a fresh batch for the rest
                        raise
                    self.journal.add_decode(point, batch.prompt_tokens, self.watts())
                    progress.update(1)

    def look_again(self) -> None:
        """Measure once more what was slower than a larger step, and keep the faster: other work
        on the machine only ever slows a step down."""
        measured = self.journal.decode
        doubtful = {before for before, _ in falling(list(measured.values()))}
        for key, point in list(measured.items()):
            if point in doubtful and key not in self.journal.repeated:
                requests, prompt_tokens, length = key
                batch = Batch(requests=requests, prompt_tokens=prompt_tokens, lengths=())
                with self.held(batch) as held:
                    fresh = self.point(held, batch, int(length))
                faster = min(point, fresh, key=lambda p: p.forward_s)
                self.journal.add_decode(faster, prompt_tokens, self.watts())

    def held(self, batch: Batch) -> AbstractContextManager[Held]:
        """The batch, on the server."""
        return self.lane.client.held(
            batch.requests,
            prompt_tokens=batch.prompt_tokens,
            new_tokens=self.answer_tokens,
            temperature=self.temperature,
        )

    def point(self, held: Held, batch: Batch, length: int) -> DecodePoint:
        """One length, once warm."""
        steps = collect(
            self.lane,
            held,
            requests=batch.requests,
            length=length,
            count=self.steps,
            timeout_s=self.timeout_s,
        )
        check_as_asked(steps, length, self.lane.gamma, self.lane.name)
        return point_of(steps, length, batch.prompt_tokens)

    def prefill(self, tokens: int) -> list[PrefillPoint]:
        """Prompts of one size, one at a time; the first is a warm-up."""
        time_one = self.gap if isinstance(self.lane, WorkerLane) else self.latency
        times = [time_one(tokens) for _ in range(PREFILL_REPEATS + 1)][1:]
        chunks = chunks_of(tokens, self.limits)
        return [PrefillPoint(tokens=tokens, chunks=chunks, seconds=max(t, 1e-6)) for t in times]

    def gap(self, tokens: int) -> float:
        """By how much one prompt delays a request that is being decoded: the server's own clock."""
        client = self.lane.client
        with client.held(1, prompt_tokens=8, new_tokens=self.answer_tokens) as held:

            def steps_after(number: int) -> list[Step]:
                if held.error or held.over.is_set():
                    raise Unreachable(f"the request in the background ended early {held.error}")
                return [step for step in self.lane.steps() if step.number > number]

            before = max((s.number for s in self.lane.steps()), default=-1)
            what, limit = "no steady decoding", self.timeout_s
            wait_for(
                lambda: len(steps_after(before)) >= 6, timeout_s=limit, what=what, every_s=0.05
            )
            start = max(s.number for s in self.lane.steps())
            client.generate([client.prompt(tokens)], new_tokens=1, temperature=0.0, timeout_s=limit)
            wait_for(lambda: len(steps_after(start)) >= 4, timeout_s=limit, what=what, every_s=0.05)
            ends = [s.end_s for s in steps_after(before)]
        gaps = sorted(after - before for before, after in pairwise(ends))
        return gaps[-1] - median(gaps)

    def latency(self, tokens: int) -> float:
        """What the server says a lone prompt of one new token took, hand-over included."""
        client = self.lane.client
        answer = client.generate(
            [client.prompt(tokens)], new_tokens=1, temperature=0.0, timeout_s=self.timeout_s
        )
        latency = answer[0]["meta_info"].get("e2e_latency")
        if latency is None:
            raise Unreachable("the server's answers say no e2e_latency; update SGLang")
        return float(latency)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        description="Measure a running server's step costs into a cost model. Run it on the "
        "server's machine, with nothing else on the server; interrupted, the same command goes on.",
        examples=[
            "--url http://127.0.0.1:30000 -o mine.json",
            "--url http://127.0.0.1:30000 -o mine.json --quick --sps sps.json",
        ],
        page="docs/rollout.md; the server: docs/serving.md",
    )
    parser.add_argument("--url", required=True, help="of the server, as http://host:port")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.json", help="cost model to write"
    )
    parser.add_argument("--name", help="of the cost model (default: the output's)")
    parser.add_argument("--quick", action="store_true", help="measure a third of the points")
    parser.add_argument("--steps", type=int, default=40, help="timed for each point")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the requests")
    parser.add_argument("--sps", type=Path, metavar="FILE", help="also write SGLang's SPS table")
    parser.add_argument(
        "--additive", type=Path, metavar="FILE", help="also write SGLang's additive table"
    )
    parser.add_argument("--anyway", action="store_true", help="write flat or falling times too")
    given = parser.parse_args(arguments)
    if given.steps < 4:
        raise ValueError(f"--steps {given.steps}: medians need at least 4")
    for path in (given.output, given.sps, given.additive):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile, fit, check, write."""
    given = parse(arguments)
    client = ServerClient(given.url)
    lane = lane_of(client)
    info, state = client.info(), client.state()
    limits = limits_of(info, state, lane.gamma)
    answer_tokens = min(2 * (given.steps + 16) * (lane.gamma + 1), limits.context_tokens // 2)
    identity = {
        "model": str(info["model_path"]),
        "engine": f"{info.get('version')}, {lane.name}",
        "limits": vars(limits),
        "steps": given.steps,
        "temperature": given.temperature,
    }
    grid = grid_of(limits, quick=given.quick, answer_tokens=answer_tokens)
    journal = Journal(Path(f"{given.output}.journal"), identity)
    facts, idle = gpu_facts(), one_gpus_watts()
    print(
        f"{lane.name}, gamma {lane.gamma}, up to {grid.batches[-1].requests} requests: "
        f"{grid.points} points; {facts_in_words(facts)}",
        file=sys.stderr,
    )
    profiler = Profiler(
        lane=lane,
        limits=limits,
        grid=grid,
        journal=journal,
        steps=given.steps,
        temperature=given.temperature,
        answer_tokens=answer_tokens,
        timeout_s=300.0,
        watts=one_gpus_watts,
    )
    try:
        profiler.run()
    except KeyboardInterrupt:
        print(f"kept in {journal.path}: the same command goes on from there", file=sys.stderr)
        raise
    points = list(journal.decode.values())
    fitted = fit(points, flattened(journal.prefill.values()), gamma=lane.gamma)
    if fitted.flaws and not given.anyway:
        raise ValueError(
            f"{'; '.join(fitted.flaws)}. Measure again on a quiet machine (delete {journal.path}) "
            "or write it with --anyway, the flaws in its notes"
        )
    model = cost_model(
        fitted,
        points,
        name=given.name or given.output.stem,
        info=info,
        state=state,
        lane_name=lane.name,
        # Clocks under load are the ones that count; NVML is read before the GPU cools down.
        facts=gpu_facts(),
        watts=(idle, journal.power),
        command=shlex.join(
            [
                "python",
                "-m",
                "sglang_dspark.runtime.profile",
                *(sys.argv[1:] if arguments is None else arguments),
            ]
        ),
    )
    model.save(given.output)
    print(f"{given.output}: {model.name}; {fitted.error.note}")
    print(f"fit error: median {fitted.error.median_rel:.1%}, largest {fitted.error.max_rel:.1%}")
    for flaw in fitted.flaws:
        print(f"flaw: {flaw}")
    if given.sps is not None:
        to_sps(model, lane.gamma).save(given.sps)
        print(f"{given.sps}: SGLang's SPS table")
    if given.additive is not None:
        to_additive(model).save(given.additive)
        print(f"{given.additive}: SGLang's additive table")
    return 0
