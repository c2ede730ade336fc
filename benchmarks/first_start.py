"""What the first command on a machine costs: imports, and the engine compiled once.

    git worktree add ../before 29a84bf
    python -m benchmarks.first_start --checkout ../before -o benchmarks/results/first_start.json

The command is README's first, by one worker. Each round runs it twice in an empty HOME: what the
second saves is compilation. This checkout and those named with ``--checkout`` take turns, so that
what else the machine does falls on all alike, and of each figure the least over the rounds counts.
CPU seconds are those of the command and of every process that it waited for.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.provenance import ROOT, commit, provenance
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.files import write_json

COMMAND = ["-m", "simulator.run", "traces/chat.jsonl", "--jobs", "1", "--out"]


class Cost(NamedTuple):
    """Seconds of one process and those it waited for."""

    cpu_s: float
    wall_s: float


def cost(arguments: list[str], checkout: Path, home: Path) -> Cost:
    """Run python with ``arguments`` in the checkout; ``ValueError`` when it fails."""
    kept = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=checkout, env=kept | {"HOME": str(home), "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(
            f"{checkout}: python {' '.join(arguments)} ended with {process.returncode}"
        )
    return Cost(usage.ru_utime + usage.ru_stime, wall_s)


def measure(checkout: Path) -> dict[str, float]:
    """One round."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        bare = cost(["-c", "pass"], checkout, home)
        imported = cost(["-c", "import simulator.run"], checkout, home)
        first = cost([*COMMAND, str(home / "out")], checkout, home)
        second = cost([*COMMAND, str(home / "out")], checkout, home)
    return {
        "import_cpu_s": imported.cpu_s - bare.cpu_s,
        "compile_cpu_s": first.cpu_s - second.cpu_s,
        "first_command_cpu_s": first.cpu_s,
        "first_command_wall_s": first.wall_s,
        "second_command_wall_s": second.wall_s,
    }


def _command() -> int:
    parser = Parser(prog="python -m benchmarks.first_start", description=__doc__.split("\n")[0])
    parser.add_argument("--checkout", action="append", default=[], metavar="DIR", type=Path,
                        help="measure this one too; may be repeated")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default: 3)")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="result file")
    arguments = parser.parse_args()
    return _measure_all(arguments)


def _measure_all(arguments: argparse.Namespace) -> int:
    checkouts = [*(checkout.resolve() for checkout in arguments.checkout), ROOT]
    rounds: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
    busy = []
    for _ in range(arguments.rounds):
        for checkout in checkouts:
            busy.append(os.getloadavg()[0])
            rounds[checkout].append(measure(checkout))
            print(commit(checkout), rounds[checkout][-1], flush=True)
    rows = [
        {"commit": commit(checkout)}
        | {name: round(min(one[name] for one in found), 2) for name in found[0]}
        for checkout, found in rounds.items()
    ]
    head = provenance("python -m benchmarks.first_start --checkout ../before")
    result = head | {
        "rounds": arguments.rounds,
        "processes_that_wanted_a_core": round(sum(busy) / len(busy), 1),
        "checkouts": rows,
    }
    write_json(arguments.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command("benchmarks.first_start", _command))
