"""Throughput of SGLang's own DSPARK on one GPU: bare, with a table, steered; and without any.

    python -m benchmarks.gpu.steer --models 8b -o results.json

Needs SGLang 0.5.17 (or another release with a DSPARK of its own) and FA3, which its ragged CUDA
graphs need. For each model, in this order: the steered server is profiled into a cost model and an
SPS table (``sglang_dspark.runtime.profile --quick``) and times verify-all; then no speculation, the
built-in without a table, ours (policy ``global``) with the cost model, the built-in with the table.
Weights are random, so acceptance follows a law (``simulated_acceptance``): each position
survives with probability --survival, and a drafter with exactly that confidence is written, so that
every policy sees the truth. Beside each throughput stands what the core predicts from the cost
model. About 6 minutes a model: give one model a call. ``--tiny-on-cpu`` tries the path.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import servers as gpu_servers
from benchmarks.gpu.simulated_acceptance import BARE_CPU, SURVIVAL
from benchmarks.gpu.worker import DECODE_LOG, Bench, ms, table
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import parse_policy
from sglang_dspark.core.state import BatchState
from sglang_dspark.files import read_json
from sglang_dspark.runtime.profile import command as profile
from sglang_dspark.runtime.profile.lanes import BuiltInLane, collect, wait_for
from sglang_dspark.runtime.profile.nvml import gpu_facts
from sglang_dspark.server_client import ServerClient, Unreachable

BARE = "dspark_benchmark_gate,simulated_acceptance"
"""SGLANG_PLUGINS of a server without this project's plugin."""
PREDICTED_BY = {
    "no speculation": "none",
    "built-in verify-all": "fixed",
    "steered verify-all": "fixed",
    "steered global": "global",
    "built-in with table": "sglang",
}
"""The core's policy that decides as each server does."""


class SteerBench(Bench):
    """The servers and points of the steer lane."""

    def plans(self) -> Iterator[dict[str, Any]]:
        """Five servers for each model; the later ones need what the first one's profile writes."""
        models = (
            [gpu_servers.tiny()] if self.cpu else [gpu_servers.qwen3(s) for s in self.given.models]
        )
        for model in models:
            folder = self.folder / model.name
            target, _ = gpu_servers.write_model(model, folder)
            drafter = gpu_servers.write_steady_drafter(
                model, folder / "steady", survival=self.given.survival
            )
            common = ["--model-path", str(target), *self.common()]
            common += ["--decode-log-interval", str(DECODE_LOG)]
            spec = [
                *("--speculative-algorithm", "DSPARK"),
                *("--speculative-draft-model-path", str(drafter)),
                *("--speculative-draft-load-format", "auto"),
            ]
            if self.cpu:
                spec += ["--speculative-draft-attention-backend", "torch_native"]
            costs, sps = folder / "cost_model.json", folder / "sps.json"
            policy, prices = "--speculative-dspark-policy", "--speculative-dspark-cost-model"
            bare = {"SGLANG_PLUGINS": BARE} | ({BARE_CPU: "1"} if self.cpu else {})
            servers: tuple[tuple[str, list[str], dict[str, str]], ...] = (
                ("steered verify-all", [*spec, policy, "fixed"], {}),
                ("no speculation", [], {}),
                ("built-in verify-all", spec, bare),
                ("steered global", [*spec, policy, "global", prices, str(costs)], {}),
                (
                    "built-in with table",
                    [*spec, "--speculative-dspark-sps-table-path", str(sps)],
                    bare,
                ),
            )
            for plan, arguments, environment in servers:
                yield {
                    "name": f"{model.name}-{plan.replace(' ', '-')}",
                    "plan": plan,
                    "quiet": plan == "steered verify-all",  # it is profiled
                    "model": model,
                    "backend": "torch_native" if self.cpu else self.given.backend,
                    "arguments": [*common, *arguments],
                    "environment": self.environment() | environment,
                    "run": self.plain if plan == "no speculation" else self.steered(plan),
                    "costs": costs,
                    "sps": sps,
                }

    def common(self) -> list[str]:
        """Arguments of every server."""
        words = gpu_servers.common_arguments(
            on_cpu=self.cpu,
            max_requests=max(self.levels) + (0 if self.cpu else 8),
            pool_tokens=8192 if self.cpu else 450_000,
        )
        if not self.cpu:
            words += ["--attention-backend", self.given.backend, "--context-length", "8192"]
            words += ["--cuda-graph-bs-decode", *map(str, self.levels)]
        return words

    def environment(self) -> dict[str, str]:
        """Of every server."""
        found = {
            "SGLANG_RAGGED_VERIFY_MODE": "compact",
            "SGLANG_SIMULATE_ACC_LEN": "1.0",
            "SGLANG_RECORD_STEP_TIME": "1",
            SURVIVAL: str(self.given.survival),
        }
        if self.cpu:
            stand_in = gpu_servers.ROOT / "tests" / "steer" / "stand_in"
            path = os.pathsep.join(filter(None, [str(stand_in), os.environ.get("PYTHONPATH", "")]))
            dump = {"SGLANG_DSPARK_DEBUG_DUMP": "core,step_cpu_time", "PYTHONPATH": path}
            return found | dump | {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"}
        parts = "core,step_cpu_time,draft_gpu_time,target_verify_gpu_time"
        return found | {"SGLANG_DSPARK_DEBUG_DUMP": parts}

    def measure(self, plan: dict[str, Any], server: Any, entry: dict[str, Any]) -> None:
        """Profile where it is due, then the points, then the predictions."""
        entry["plan"] = plan["plan"]
        if plan["plan"] == "steered verify-all":
            self.profile(plan, server.client, entry)
        super().measure(plan, server, entry)
        if plan["costs"].exists():
            self.predict(plan, entry)

    def profile(self, plan: dict[str, Any], client: ServerClient, entry: dict[str, Any]) -> None:
        """The cost model and SGLang's tables; a failure is recorded."""
        words = ["--url", client.url, "-o", str(plan["costs"]), "--quick", "--anyway"]
        words += ["--steps", "8" if self.cpu else "24", "--sps", str(plan["sps"])]
        words += ["--name", f"{plan['model'].name.lower()}-measured"]
        self.say(f"profiling {plan['name']}")
        try:
            profile.main(words)
        except ValueError as error:
            entry["profile_failed"] = str(error)
            self.say(f"profile: {error}")
            return
        entry["cost_model"] = read_json(plan["costs"])
        entry["sps_table"] = read_json(plan["sps"])

    def steered(self, plan: str) -> Any:
        """A point of a speculating server: what it commits for each request, and how fast."""

        def run(client: ServerClient, requests: int, points: list[dict[str, Any]]) -> None:
            record = client.state().get("dspark_info_record")
            if not record:
                raise Unreachable(f"{client.url} has no dspark_info_record")
            lane = BuiltInLane(client, record)
            with client.held(requests, prompt_tokens=self.prompt, new_tokens=self.room) as held:
                collect(lane, held, requests=requests, length=None, count=4)
                # Begins anew: what was committed before does not count.
                steps = collect(lane, held, requests=requests, length=None, count=self.count)
                # SGLang adds up what was accepted once every DECODE_LOG steps.
                wait_for(
                    lambda: "avg_spec_accept_length" in client.state(),
                    timeout_s=60,
                    what="no accepted length",
                    every_s=0.2,
                )
                committed = float(client.state()["avg_spec_accept_length"])
            wall = ms([s.wall_s for s in steps])
            points.append(
                {
                    "requests": requests,
                    "plan": plan,
                    "steps": len(steps),
                    "ms": {
                        "draft": ms([s.draft_s for s in steps]),
                        "verify": ms([s.verify_s for s in steps]),
                        "wall": wall,
                    },
                    "tokens_in_step": sum(s.computed_tokens for s in steps) / len(steps),
                    "committed_per_request": committed,
                    "tokens_per_s": 1000 * requests * committed / wall["median"],
                }
            )

        return run

    def predict(self, plan: dict[str, Any], entry: dict[str, Any]) -> None:
        """Tokens per second by the core: the server's policy, the measured prices, the true law."""
        model = load_cost_model(plan["costs"])
        gamma = plan["model"].drafter.block_size
        z = math.log(self.given.survival / (1 - self.given.survival))
        for point in entry["points"]:
            if "tokens_per_s" not in point:
                continue
            requests = point["requests"]
            planner = Planner(
                policy=parse_policy(PREDICTED_BY[plan["plan"]]).policy,
                cost_model=model,
                gamma=gamma,
                max_requests=max(self.levels),
            )
            drafted = plan["plan"] != "no speculation"
            state = BatchState(
                logits=np.full((requests, gamma), z if drafted else -np.inf),
                stale_logits=np.full((requests, gamma), z),
                stale_age=np.full(requests, 2),
                context_tokens=np.full(requests, self.prompt + 100),
            )
            decided = planner.plan(state)
            per_s = decided.expected_tokens / decided.predicted_step_s
            point["predicted_tokens_per_s"] = per_s
            point["predicted_ms"] = 1000 * decided.predicted_step_s
            point["predicted_error"] = per_s / point["tokens_per_s"] - 1


def main() -> int:
    """Run everything, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu_steer.json"))
    parser.add_argument("--models", nargs="+", choices=["4b", "8b", "14b"], default=["8b"])
    parser.add_argument("--backend", choices=["fa3", "triton"], default="fa3")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 16, 64, 256])
    parser.add_argument("--survival", type=float, default=0.7, help="of each position, below 1")
    parser.add_argument("--steps", type=int, default=60, help="timed for each point")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--no-overlap", action="store_true", help="start servers one by one")
    parser.add_argument("--tiny-on-cpu", action="store_true", help="try the path without a GPU")
    given = parser.parse_args()
    given.temperature = [0.0]
    if not given.tiny_on_cpu and not gpu_facts()["gpus"]:
        print(f"gpu_steer: {gpu_facts()['note']}; --tiny-on-cpu runs here", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="gpu-steer-") as folder:
        bench = SteerBench(given, Path(folder))
        bench.found["survival"] = given.survival
        bench.found["meaning"] = "random weights; acceptance follows the law of --survival"
        try:
            bench.run()
        finally:
            bench.save()
    print(table(bench.found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
