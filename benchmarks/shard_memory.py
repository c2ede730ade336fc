"""What a process of a training run holds of the optimiser, as there are more of them.

    python -m benchmarks.shard_memory

Processes with gloo on this machine, each with the same drafter-sized vector, after two steps: the
bytes that its tensors hold (weights and the sum of gradients whole, state in parts), what is
computed for them, and what the process's resident memory grew by. The last has torch's own modules
and gloo's buffers for what it received in it, which NCCL has not.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.provenance import ROOT, provenance
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.draft.training.optim import FlatAdamW
from sglang_dspark.files import make_folder, write_json

RESULTS = ROOT / "benchmarks" / "results" / "shard_memory.json"
PARAMETERS = 32_000_000


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def tensor_bytes() -> int:
    """Bytes of all live tensors' storages, each once."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own deprecated objects, which are asked too
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def one(dtype: torch.dtype) -> dict[str, int]:
    """This process's growth, and its part of the state."""
    layer = nn.Linear(1000, PARAMETERS // 1000, bias=False, dtype=dtype)
    before = resident()
    optimiser = FlatAdamW(layer.parameters(), weight_decay=0.0, betas=(0.9, 0.95), clip=1.0)
    for _ in range(2):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimiser.accumulate()
        optimiser.step(rate=1e-3)
    part = -(-PARAMETERS // int(os.environ["WORLD_SIZE"]))
    # Weights, gradients in float32, and masters (the weights themselves where those are float32).
    own = PARAMETERS * (dtype.itemsize + 4) + 4 * part * (2 if dtype == torch.float32 else 3)
    return {
        "tensor_bytes": tensor_bytes(),
        "computed_bytes": own,
        "state_bytes": optimiser.state_bytes(),
        "grown_bytes": resident() - before,
    }


def worker(dtype: str) -> None:
    """What a started process prints."""
    torch.set_num_threads(1)
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
    print(json.dumps(one(getattr(torch, dtype))))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def measured(world: int, dtype: str) -> list[dict[str, int]]:
    """Every process's answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "benchmarks.shard_memory", "--worker", dtype]
    running = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    return [json.loads(process.communicate()[0]) for process in running]


def main() -> None:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--worker", choices=("float32", "bfloat16"), help="one process of a case")
    given = parser.parse_args()
    if given.worker:
        worker(given.worker)
        return
    cases: list[dict[str, Any]] = []
    for dtype in ("float32", "bfloat16"):
        for world in (1, 2, 4):
            found = measured(world, dtype)
            worst = {key: max(one[key] for one in found) for key in found[0]}
            cases.append({"dtype": dtype, "processes": world, **worst})
            shown = ", ".join(f"{key} {size / 2**20:.1f} MiB" for key, size in worst.items())
            print(f"{dtype:9} {world} processes: {shown}")
    value = provenance("python -m benchmarks.shard_memory") | {"parameters": PARAMETERS}
    write_json(make_folder(given.out.parent) / given.out.name, value | {"cases": cases})


if __name__ == "__main__":
    sys.exit(run_command("shard_memory", main))
