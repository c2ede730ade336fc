"""Requests per CPU-second of the whole command, beside another simulator's on the same trace.

    nox -s peers
    python -m benchmarks.peers [--rounds N]     # where requirements/peers*.txt are installed

The peer is Dynamo's replay 1.4.2, which simulates every iteration of an engine as this project
does. One trace in Mooncake's format, Poisson arrivals at 6.45 requests/s with the lengths that
``replay_speed`` draws and no shared prefixes, is cut after 2,000 and after 42,000 requests. Each
command reads it, simulates one replica and writes what it writes by default; CPU seconds are those
of the process and of every process that it waited for. What counts is the slope between the two
lengths, so that start-up is in neither; the commands take turns, and the medians of the rounds
count. Beside them stand the least, since other work on the machine can only add, and every round's
seconds. The trace in this project's own format is converted beforehand (``dspark traces convert``).
Writes ``benchmarks/results/peers.json``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.provenance import ROOT, provenance
from benchmarks.replay_speed import RATE, lengths, poisson_trace
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.files import make_folder, write_json
from traces.convert import main as convert

PEER = "ai-dynamo-runtime"
VERSION = "1.4.2"
LENGTHS = (2_000, 42_000)
BLOCK_TOKENS = 512
OURS = ("none", "global")
DYNAMO = f"Dynamo replay {VERSION}"


def check_installed() -> None:
    """``ValueError`` with the remedy where the peer is missing, or is another version."""
    try:
        found = importlib.metadata.version(PEER)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"{PEER} is not installed here; run nox -s peers") from None
    if found != VERSION:
        raise ValueError(f"{PEER} is {found}; compared is {VERSION}: run nox -s peers")


def write_mooncake(path: Path, requests: int) -> None:
    """The trace, whose blocks nobody shares."""
    trace = poisson_trace(requests)
    block = 0
    with path.open("w", encoding="utf-8") as file:
        for arrival_s, prompt, output in zip(
            trace.arrival_s.tolist(),
            trace.prompt_tokens.tolist(),
            trace.output_tokens.tolist(),
            strict=True,
        ):
            blocks = -(-prompt // BLOCK_TOKENS)
            row = {
                "timestamp": round(1e3 * arrival_s),
                "input_length": prompt,
                "output_length": output,
                "hash_ids": list(range(block, block + blocks)),
            }
            block += blocks
            file.write(json.dumps(row) + "\n")


def cpu_s(arguments: list[str], folder: Path) -> float:
    """CPU seconds of python with ``arguments`` and its children; ``ValueError`` when it fails."""
    quiet = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder, env=os.environ | quiet | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"python {' '.join(arguments)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def commands(folder: Path, requests: int) -> dict[str, list[str]]:
    """What is timed, by name, on the first ``requests``."""
    ours = str(folder / f"ours-{requests}.jsonl")
    theirs = str(folder / f"mooncake-{requests}.jsonl")
    return {
        **{
            name: ["-m", "simulator.run", ours, "--policy", name, "--force", "--out", f"out-{name}"]
            for name in OURS
        },
        DYNAMO: ["-m", "dynamo.replay", theirs, "--report-json", "report.json"],
    }


def measure(rounds: int) -> list[dict[str, Any]]:
    """A row on each command: requests per CPU-second, start-up excluded."""
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = Path(name)
        for requests in LENGTHS:
            write_mooncake(folder / f"mooncake-{requests}.jsonl", requests)
            made = [str(folder / f"mooncake-{requests}.jsonl"), "-o"]
            if convert([*made, str(folder / f"ours-{requests}.jsonl"), "--format", "mooncake"]):
                raise ValueError("the trace was not converted; see above")
        for command in commands(folder, LENGTHS[0]).values():
            cpu_s(command, folder)  # compiles, or fills the disk's cache
        short, long = (commands(folder, requests) for requests in LENGTHS)
        seconds: dict[str, list[Cost]] = {name: [] for name in short}
        for _ in range(rounds):
            for name, found in seconds.items():
                found.append(Cost(cpu_s(short[name], folder), cpu_s(long[name], folder)))
                print(f"{name}: {found[-1].few_s:.2f} and {found[-1].many_s:.2f} s", flush=True)
    return [row(name, found, seconds[DYNAMO]) for name, found in seconds.items()]


class Cost(NamedTuple):
    """CPU seconds of one command on both lengths of the trace."""

    few_s: float
    many_s: float

    @property
    def rate(self) -> float:
        """Requests per CPU-second, start-up excluded."""
        return (LENGTHS[1] - LENGTHS[0]) / (self.many_s - self.few_s)


def pick(found: list[Cost], choose: Callable[[Sequence[float]], float]) -> Cost:
    """One of each length by itself: start-up varies by more than a short trace takes."""
    return Cost(*(choose(values) for values in zip(*found, strict=True)))


def row(name: str, found: list[Cost], peers: list[Cost]) -> dict[str, Any]:
    """The slope between the medians of the rounds, that between the least, and what was timed."""
    middle, least = (pick(found, choose) for choose in (statistics.median, min))
    peer, peer_least = (pick(peers, choose) for choose in (statistics.median, min))
    return {
        "command": name if name == DYNAMO else f"python -m simulator.run --policy {name}",
        "requests_per_cpu_s": round(middle.rate),
        "times_the_peer": round(middle.rate / peer.rate, 2),
        "least": {
            "requests_per_cpu_s": round(least.rate),
            "times_the_peer": round(least.rate / peer_least.rate, 2),
        },
        "cpu_s": {
            str(requests): [round(seconds, 2) for seconds in values]
            for requests, values in zip(LENGTHS, zip(*found, strict=True), strict=True)
        },
    }


def _command() -> int:
    parser = Parser(prog="python -m benchmarks.peers", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="of each command (default: 7)")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="result file (default: benchmarks/results/peers.json)"
    )
    arguments = parser.parse_args()
    check_installed()
    result = provenance("python -m benchmarks.peers") | {
        "lengths": lengths()[0],
        "rate_req_s": RATE,
        "requests": list(LENGTHS),
        "rounds": arguments.rounds,
        "commands": measure(arguments.rounds),
    }
    default = make_folder(Path(__file__).parent / "results") / "peers.json"
    write_json(arguments.out or default, result)
    for found in result["commands"]:
        print("  ".join(f"{key}={value}" for key, value in found.items() if key != "cpu_s"))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command("benchmarks.peers", _command))
