"""Time the worker lane's decode steps on one GPU, against no speculation, without any weights.

    python -m benchmarks.gpu.worker -o results.json

Needs SGLang 0.5.15.post1. Starts servers on config-only folders of Qwen3-8B and Qwen3-4B with
drafters for them (--load-format dummy: step times do not depend on the weights, accepted lengths
do, and mean nothing here). On each, batches of 1 to 128 requests are held while the server's own
clock is read: without speculation; verifying everything; 3 drafts of each request; and what the
policy ``global`` decides with the shipped prices. ``break_even`` is the number of tokens that a
step must commit for each request to pay against no speculation.

A server that does not start is recorded and does not stop the rest, and is tried once more without
CUDA graphs. What does not fit into --minutes is left out and said so. ``--tiny-on-cpu`` runs the
same path with tiny models (its times mean nothing).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu import servers as gpu_servers
from benchmarks.gpu.servers import Model, Server, ServerFailed
from sglang_dspark.runtime.profile.lanes import Step, WorkerLane, collect, wait_for
from sglang_dspark.runtime.profile.nvml import gpu_facts
from sglang_dspark.server_client import ServerClient, Unreachable

HERE = Path(__file__).resolve().parent
PLANS: tuple[tuple[str, int | None], ...] = (
    ("verify-all", -1),
    ("fixed:3", 3),
    ("global", None),
)
"""Name and pinned length; -1 is gamma, None leaves it to the server's policy."""
SHOWN = (
    "tokens_in_step",
    "committed_per_request",
    "tokens_per_s",
    "predicted_tokens_per_s",
    "break_even",
    "head_share",
)
"""Of a point, in the printed table."""
START_S = 150.0
LEAST_S = 75.0
"""A server is not begun with less time left."""
DECODE_LOG = 10
"""Steps over which SGLang averages its own step time without speculation."""


def ms(values: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds; empty without a value."""
    known = sorted(1000 * v for v in values if not math.isnan(v))
    if not known:
        return {}
    quarter = len(known) // 4
    return {"median": median(known), "low": known[quarter], "high": known[-1 - quarter]}


def summary(steps: list[Step], wanted: int | None) -> dict[str, Any]:
    """What a run of steps took and did."""
    parts = {name: ms([getattr(s, f"{name}_s") for s in steps])
             for name in ("draft", "plan", "verify", "commit", "wall")}  # fmt: skip
    busy = ms([s.draft_s + s.plan_s + s.verify_s + s.commit_s for s in steps])
    requests = steps[0].requests
    committed = sum(requests + s.accepted for s in steps) / len(steps)
    return {
        "steps": len(steps),
        "ms": parts | {"parts": busy},
        "tokens_in_step": sum(s.computed_tokens for s in steps) / len(steps),
        "as_planned": all(s.computed_tokens == s.planned_tokens for s in steps)
        and (wanted is None or all(s.planned_tokens == wanted for s in steps)),
        "shapes": sorted({s.shape for s in steps}),
        "context_per_request": sum(s.context_tokens for s in steps) / len(steps) / requests,
        "committed_per_request": committed / requests,
        "tokens_per_s": committed / (parts["wall"].get("median") or math.nan) * 1000,
    }


class Bench:
    """One run: the plans, the clock and what was found so far."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given = given
        self.folder = folder
        self.deadline_s = time.monotonic() + 60 * given.minutes
        self.cpu: bool = given.tiny_on_cpu
        self.levels: list[int] = [1, 2] if self.cpu else given.concurrency
        self.count = 8 if self.cpu else given.steps
        self.prompt, self.room = (16, 400) if self.cpu else (512, 7000)
        self.found: dict[str, Any] = {
            "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
            "meaning": "step times only: weights are random, so accepted lengths mean nothing",
            "gpu": gpu_facts(),
            "head_ms": {},
            "servers": [],
        }

    def say(self, text: str) -> None:
        """Progress, on stderr."""
        left = self.deadline_s - time.monotonic()
        print(f"[{left:5.0f} s left] {text}", file=sys.stderr, flush=True)

    def save(self) -> None:
        """All that is known."""
        gpu_servers.dump(self.given.output, self.found)

    # Servers.

    def plans(self) -> Iterator[dict[str, Any]]:
        """Every server, the most wanted first."""
        models = (
            [gpu_servers.tiny()] if self.cpu else [gpu_servers.qwen3(s) for s in self.given.models]
        )
        backends = ["torch_native"] if self.cpu else self.given.backends
        for backend in backends:
            for model in models:
                target, drafter = gpu_servers.write_model(model, self.folder / model.name)
                common = [
                    *("--model-path", str(target)),
                    *gpu_servers.common_arguments(
                        on_cpu=self.cpu,
                        max_requests=max(self.levels),
                        pool_tokens=4096 if self.cpu else 450_000,
                    ),
                ]
                if not self.cpu:
                    graphs = [str(n) for n in self.levels]
                    common += ["--attention-backend", backend, "--cuda-graph-bs-decode", *graphs]
                    common += ["--context-length", "8192"]
                spec = [
                    *("--speculative-algorithm", "DSPARK"),
                    *("--speculative-draft-model-path", str(drafter)),
                    *("--speculative-dspark-policy", "global"),
                    *("--speculative-dspark-cost-model", model.cost_model),
                ]
                environment = (
                    {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"} if self.cpu else {}
                )
                base = {"model": model, "backend": backend, "environment": environment}
                label = f"{model.name}-{backend}"
                yield {
                    **base,
                    "name": f"{label}-dspark",
                    "arguments": common + spec,
                    "run": self.speculative,
                }
                yield {
                    **base,
                    "name": f"{label}-plain",
                    "arguments": [*common, "--decode-log-interval", str(DECODE_LOG)],
                    "environment": environment | {"SGLANG_RECORD_STEP_TIME": "1"},
                    "run": self.plain,
                }

    def run(self) -> None:
        """Every server in turn."""
        shared = {"folder": self.folder, "shim": gpu_servers.write_shim(self.folder / "shim")}
        plans = list(self.plans())
        with gpu_servers.servers_of(plans, ahead=not self.given.no_overlap, **shared) as servers:
            for plan, server in servers:
                if self.deadline_s - time.monotonic() < LEAST_S and not self.cpu:
                    self.found["servers"].append({"name": plan["name"], "left_out": "out of time"})
                    continue
                self.one(plan, server, shared)
        self.break_even()
        self.save()

    def one(self, plan: dict[str, Any], server: Server, shared: dict[str, Any]) -> None:
        """Start, measure, record; once more without graphs when it does not start."""
        model: Model = plan["model"]
        entry: dict[str, Any] = {
            "name": plan["name"],
            "model": model.name,
            "backend": plan["backend"],
            "arguments": plan["arguments"],
        }
        self.found["servers"].append(entry)
        self.say(f"starting {plan['name']}")
        try:
            entry["start_s"] = server.open(timeout_s=START_S)
            self.measure(plan, server, entry)
        except Exception as error:  # nor the other servers
            entry["failed"] = str(error)
            entry["log"] = server.complaint()
            self.say(f"{plan['name']} failed: {str(error)[:300]}")
            server.close()
            if (
                not self.cpu
                and "start_s" not in entry
                and time.monotonic() + LEAST_S < self.deadline_s
            ):
                self.again(plan, shared)
        self.save()

    def again(self, plan: dict[str, Any], shared: dict[str, Any]) -> None:
        """The same server without CUDA graphs."""
        name = plan["name"] + "-no-graphs"
        words = plan["arguments"]
        at = words.index("--cuda-graph-bs-decode")
        arguments = [*words[:at], *words[at + 1 + len(self.levels) :], "--disable-cuda-graph"]
        entry = {"name": name, "model": plan["model"].name, "backend": plan["backend"]}
        self.found["servers"].append(entry)
        self.say(f"starting {name}")
        server = Server(name, arguments, environment=plan["environment"], **shared)
        try:
            entry["start_s"] = server.open(timeout_s=START_S)
            self.measure(plan, server, entry)
        except Exception as error:
            entry |= {"failed": str(error), "log": server.complaint()}
            self.say(f"{name} failed: {str(error)[:300]}")
        finally:
            server.close()

    def measure(self, plan: dict[str, Any], server: Server, entry: dict[str, Any]) -> None:
        """The points of one server, what went wrong with each beside it."""
        entry["graphs"] = server.log_lines("apture")
        begin = time.monotonic()
        # What is compiled at the first use must not be waited for by a point.
        prompts = [server.client.prompt(32)]
        server.client.generate(prompts, new_tokens=32, temperature=0.0, timeout_s=180)
        entry["warm_up_s"] = time.monotonic() - begin
        entry["points"] = []
        info = server.client.state()
        entry["memory_usage"] = info.get("memory_usage")
        run: Callable[[ServerClient, int, list[dict[str, Any]]], None] = plan["run"]
        for requests in self.levels:
            if time.monotonic() > self.deadline_s - 20:
                entry["points"].append({"requests": requests, "left_out": "out of time"})
                continue
            try:
                run(server.client, requests, entry["points"])
            except Exception as error:  # whatever it is, it must not cost the other points
                if server.process.poll() is not None:
                    raise ServerFailed(
                        f"died at {requests} requests: {server.complaint()}"
                    ) from None
                failed = f"{type(error).__name__}: {error}"
                entry["points"].append({"requests": requests, "failed": failed})
            self.save()
        self.say(f"{entry['name']}: {len(entry['points'])} points")

    # Points.

    def speculative(
        self, client: ServerClient, requests: int, points: list[dict[str, Any]]
    ) -> None:
        """One batch, one plan after the other."""
        lane = WorkerLane(client, client.state())
        for temperature in self.given.temperature:
            plans = PLANS if temperature == self.given.temperature[0] else PLANS[:1]
            shape = {"prompt_tokens": self.prompt, "new_tokens": self.room}
            with client.held(requests, temperature=temperature, **shape) as held:
                for name, pinned in plans:
                    length = lane.gamma if pinned == -1 else pinned
                    point = {"requests": requests, "plan": name, "temperature": temperature}
                    points.append(point)
                    steps = collect(lane, held, requests=requests, length=length, count=self.count)
                    wanted = None if length is None else requests * (1 + length)
                    point |= summary(steps, wanted)
                    point |= self.head_share(client, requests, point)

    def head_share(
        self, client: ServerClient, requests: int, point: dict[str, Any]
    ) -> dict[str, float]:
        """The sequential head's part of a round, from its time alone on this device."""
        head = self.found["head_ms"].get("by_requests", {}).get(str(requests))
        wall = point["ms"]["wall"].get("median")
        return {"head_share": head / wall} if head and wall else {}

    def plain(self, client: ServerClient, requests: int, points: list[dict[str, Any]]) -> None:
        """SGLang's own averages over ``DECODE_LOG`` steps."""
        temperature = self.given.temperature[0]
        needed = max(4, self.count // DECODE_LOG)
        rates: list[float] = []

        def enough() -> bool:
            if held.error or held.over.is_set():
                raise Unreachable(f"a batch of {requests} ended early {held.error}")
            state = client.state()
            times = state.get("step_time_dict") or {}
            mine = times.get(str(requests)) or times.get(requests) or []
            rates[:] = mine
            return len(mine) >= needed + 2

        with client.held(
            requests, prompt_tokens=self.prompt, new_tokens=self.room, temperature=temperature
        ) as held:
            wait_for(enough, timeout_s=120, what=f"no {needed} plain step times", every_s=0.3)
        steps = rates[2:]  # the first averages hold the prefill
        found = ms(steps)
        points.append(
            {
                "requests": requests,
                "plan": "no speculation",
                "temperature": temperature,
                "steps": DECODE_LOG * len(steps),
                "ms": {"wall": found},
                "tokens_per_s": 1000 * requests / found["median"],
            }
        )

    # What needs more than one server.

    def time_head(self) -> None:
        """The sequential head alone, in a process of its own, before any server has the GPU."""
        if self.cpu:
            shape, device = {"hidden": 64, "vocab": 512, "rank": 16}, "cpu"
        else:
            shape, device = {"hidden": 4096, "vocab": 151936, "rank": 256}, "cuda"
        words = [sys.executable, "-m", "benchmarks.gpu.worker", "--time-head",
                 json.dumps({**shape, "device": device, "requests": self.levels})]  # fmt: skip
        self.found["head_ms"] = self.child(words, limit_s=90)

    def kernels(self) -> None:
        """What ``benchmarks.gpu.kernels`` prints."""
        words = [
            sys.executable,
            "-m",
            "benchmarks.gpu.kernels",
            *(["--tiny-on-cpu"] if self.cpu else []),
        ]
        self.found["kernels"] = self.child(words, limit_s=120, json_out=False)
        written = HERE.parent / "results" / "gpu_kernels.json"
        if "output" in self.found["kernels"] and not self.cpu and written.exists():
            self.found["kernels"] = json.loads(written.read_text())

    def child(self, words: list[str], *, limit_s: float, json_out: bool = True) -> dict[str, Any]:
        """Run a script and take its last line; what went wrong instead."""
        self.say(" ".join(Path(w).name for w in words[1:3])[:60])
        path = os.pathsep.join(filter(None, [str(gpu_servers.ROOT), os.environ.get("PYTHONPATH")]))
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=limit_s, check=False,
                env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {limit_s:g} s"}
        if done.returncode:
            return {"failed": f"status {done.returncode}: {done.stderr[-2000:]}"}
        if not json_out:
            return {"output": done.stdout[-8000:].splitlines()}
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def break_even(self) -> None:
        """Tokens a step must commit per request to pay against no speculation."""
        walls: dict[tuple[str, str, int], float] = {}
        for entry in self.found["servers"]:
            for point in entry.get("points", []):
                if point.get("plan") == "no speculation":
                    key = (entry["model"], entry["backend"], point["requests"])
                    walls[key] = point["ms"]["wall"]["median"]
        for entry in self.found["servers"]:
            for point in entry.get("points", []):
                wall = point.get("ms", {}).get("wall", {}).get("median")
                plain = walls.get((entry["model"], entry.get("backend"), point["requests"]))
                if wall and plain and point["plan"] != "no speculation":
                    point["break_even"] = wall / plain


def time_head(spec: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of the sequential head for each batch size, as the worker calls it."""
    import torch

    from sglang_dspark.draft.model.heads import ConfidenceHead, MarkovHead
    from sglang_dspark.runtime.kernels.head import RowChoice, draft_block

    device, vocab, gamma = spec["device"], spec["vocab"], 7
    cuda = device == "cuda"
    model = gpu_servers.qwen3("8b").drafter if cuda else gpu_servers.tiny().drafter
    dtype = torch.bfloat16 if cuda else torch.float32
    with torch.device(device):
        markov = MarkovHead(model).to(dtype).requires_grad_(False)
        confidence = ConfidenceHead(model).to(dtype).requires_grad_(False)
    found = {}
    for requests in spec["requests"]:
        hidden = torch.randn(requests, gamma, model.hidden_size, device=device, dtype=dtype)
        logits = torch.randn(requests, gamma, vocab, device=device)
        choice = RowChoice(
            temperature_R=torch.zeros(requests, device=device),
            uniform_RK=torch.rand(requests, gamma, dtype=torch.float64, device=device),
        )
        anchors = torch.randint(0, 200, (requests,), device=device)
        times = []
        for _ in range(25 if cuda else 4):
            fresh = logits.clone()
            if cuda:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            draft_block(
                markov_head=markov,
                confidence_head=confidence,
                hidden_RKD=hidden,
                logits_RKV=fresh,
                anchors_R=anchors,
                chooser=choice,
            )
            if cuda:
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - begin))
        found[str(requests)] = median(times[len(times) // 4 :])
    return {
        "by_requests": found,
        "note": "wall time of the head alone, greedy rows, launches included, no CUDA graph",
        **{name: spec[name] for name in ("hidden", "vocab", "rank", "device")},
    }


def table(found: dict[str, Any]) -> str:
    """The points as text."""
    lines = []
    for entry in found["servers"]:
        lines.append(f"{entry['name']}: {entry.get('failed', entry.get('left_out', ''))[:200]}")
        for point in entry.get("points", []):
            times = point.get("ms", {})
            shown = "  ".join(
                f"{name} {times[name]['median']:.3f}" for name in times if times[name]
            )
            extra = [f"{name} {point[name]:.4g}" for name in SHOWN if name in point]
            lines.append(
                f"  R={point['requests']:<4}{point.get('plan', ''):<20}"
                f"T={point.get('temperature', '')} ms: {shown}  {'  '.join(extra)}"
                f"{point.get('failed', point.get('left_out', ''))[:160]}"
            )
    return "\n".join(lines)


def main() -> int:
    """Run everything, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu_worker.json"))
    parser.add_argument("--models", nargs="+", choices=["4b", "8b", "14b"], default=["8b", "4b"])
    parser.add_argument("--backends", nargs="+", choices=["triton", "fa3"], default=["triton"])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32, 64, 128])
    parser.add_argument("--temperature", nargs="+", type=float, default=[0.0, 1.0])
    parser.add_argument("--steps", type=int, default=60, help="timed for each point")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--no-overlap", action="store_true", help="start servers one by one")
    parser.add_argument("--tiny-on-cpu", action="store_true", help="try the path without a GPU")
    parser.add_argument("--time-head", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.time_head:
        print(json.dumps(time_head(given.time_head)))
        return 0
    if not given.tiny_on_cpu and not gpu_facts()["gpus"]:
        print(
            f"gpu_worker: {gpu_facts()['note']}; run it where there is one, or --tiny-on-cpu",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="gpu-worker-") as folder:
        bench = Bench(given, Path(folder))
        try:
            bench.time_head()
            bench.run()
            if bench.deadline_s - time.monotonic() > 30 or bench.cpu:
                bench.kernels()
        finally:
            bench.save()
    print(table(bench.found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
