"""Uniform against ragged at low load: measured on this machine, predicted from what was recorded.

    python -m benchmarks.twin.low_load -o benchmarks/results/low_load.json

Two servers of the installed SGLang, ``fixed`` (every step uniform) and ``global`` (ragged wherever
it trims), are sent the same greedy requests by 1, 2, 4 and 8 clients, in turns. The first turn is
what prices and acceptance are fitted to; of the others the rates of both are compared and replayed.
Greedy, so that both answer with the same tokens and only their steps differ. Ten minutes; wants a
quiet machine with two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import provenance
from benchmarks.twin.command import fitted
from benchmarks.twin.recording import CLIENTS, FLUSH_S, PROFILED, SPREADS, Recording, flush, jobs_of
from benchmarks.twin.traffic import send_clients, wait_ready
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import parse_policy
from sglang_dspark.files import make_folder, write_json
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Scenario
from simulator.study.metrics import batch_interval
from simulator.twin.replay import Twin, trace_of
from simulator.twin.timings import Segment

PAIR = ("fixed", "global")
LOADS = (1, 2, 4, 8)
JOBS = 12
"""Requests of each client in a turn."""
SEEDS = 5


def recorded(folder: Path, cache: Path, turns: int) -> tuple[list[Segment], CostModel]:
    """Both servers, profiled, and driven by every number of clients in every turn."""
    from sglang_dspark.draft.demo.command import trained_pair
    from sglang_dspark.draft.demo.recipe import laptop

    target, drafter = trained_pair(laptop(), cache, corpus="templated")
    recording = Recording(folder, target, drafter, target.parent / "templated-samples.jsonl")
    try:
        for policy in (PAIR[0], SPREADS):
            recording.start(policy)
        belief = recording.profiled(CLIENTS)
        recording.end(SPREADS)
        recording.start(PAIR[1], folder / PROFILED)
        wait_ready(recording.servers[PAIR[1]])
        for turn, clients in itertools.product(range(turns), LOADS):
            drawn = jobs_of(recording.samples, np.zeros(JOBS * clients), seed=100 * turn + clients)
            jobs = [dataclasses.replace(job, temperature=0.0) for job in drawn]
            for policy in PAIR if turn % 2 else PAIR[::-1]:
                server = recording.servers[policy]
                flush(server)
                tag = f"{policy}-{clients}-{turn}"
                seen = send_clients(server, jobs, tag=tag, clients=clients, seconds=3600.0)
                recording.windows.append((policy, str(clients), turn, seen))
                print(f"recorded {tag}: {len(seen)} requests", flush=True)
        time.sleep(FLUSH_S)
        return recording.segments(), belief
    finally:
        recording.stop()


def measured_tok_s(segment: Segment) -> float:
    """Output tokens a second, from the first request to the last token."""
    seconds = max(one.end_s for one in segment.seen) - min(one.sent_s for one in segment.seen)
    return sum(one.output_tokens for one in segment.seen) / seconds


def predicted_tok_s(twin: Twin, segment: Segment, seed: int) -> float:
    """The same of the segment's requests, sent by as many clients in the simulator."""
    scenario = Scenario(
        trace=trace_of(segment),
        cost_model=twin.cost_model,
        belief=twin.belief,
        acceptance=twin.acceptance,
        policy=parse_policy(segment.policy),
        engine=twin.engine,
        concurrency=int(segment.load),
        seed=seed,
    )
    requests = simulate(scenario).requests
    return float(requests["generated"].sum() / requests["finish_s"].max())


def compared(segments: Sequence[Segment], twin: Twin) -> list[dict[str, Any]]:
    """By clients: how much faster ``global`` is than ``fixed``, measured and predicted."""
    rows = []
    for clients in LOADS:
        at = [s for s in segments if s.load == str(clients) and s.third]
        fixed, ours = ([s for s in at if s.policy == policy] for policy in PAIR)
        gains = np.array(
            [measured_tok_s(b) / measured_tok_s(a) - 1.0 for a, b in zip(fixed, ours, strict=True)]
        )
        predicted = np.array(
            [
                predicted_tok_s(twin, b, seed) / predicted_tok_s(twin, a, seed) - 1.0
                for a, b in zip(fixed, ours, strict=True)
                for seed in range(SEEDS)
            ]
        )
        interval = batch_interval(gains)
        assert interval is not None
        rows.append(
            {
                "clients": clients,
                "fixed_tok_s": float(np.mean([measured_tok_s(s) for s in fixed])),
                "measured": interval[0],
                "low": interval[1],
                "high": interval[2],
                "predicted": float(predicted.mean()),
                "same_sign": bool(np.sign(interval[0]) == np.sign(predicted.mean())),
            }
        )
    return rows


def _command(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    folder = make_folder(arguments.folder or tempfile.mkdtemp(prefix="low-load-"))
    segments, belief = recorded(folder, Path(arguments.cache), arguments.turns)
    found, twin = fitted(segments, belief, folder / "fit")
    ragged = found.cost.model.ragged
    rows = compared(segments, twin)
    for row in rows:
        print(
            f"{row['clients']} clients: fixed {row['fixed_tok_s']:.0f} tok/s; global "
            f"{row['measured']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}], predicted "
            f"{row['predicted']:+.1%}"
        )
    if arguments.out:
        head = provenance(f"python -m benchmarks.twin.low_load --turns {arguments.turns}")
        head |= {"sglang": metadata.version("sglang")}
        more_ms = 1e3 * ragged.step_s if ragged else 0.0
        write_json(arguments.out, {**head, "ragged_step_ms": more_ms, "rows": rows})


def _parser() -> argparse.ArgumentParser:
    from sglang_dspark.draft.demo.command import default_cache

    parser = Parser(
        prog="python -m benchmarks.twin.low_load", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--turns", type=int, default=7, help="of all loads; the first is fitted to")
    parser.add_argument("-o", "--out", metavar="FILE", help="JSON of what was compared")
    parser.add_argument("--folder", metavar="DIR", help="logs and fits (default: temporary)")
    parser.add_argument("--cache", default=str(default_cache()), help="of the small models")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("benchmarks.twin.low_load", lambda: _command(argv))


if __name__ == "__main__":
    raise SystemExit(main())
