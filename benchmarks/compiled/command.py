"""Compile every Triton kernel for three generations of GPU, hold it against bounds, write a table.

    python -m benchmarks.compiled [--capability 80 90 100] [--write FILE]

Needs Triton and no GPU: the assembler comes with Triton. Registers, stack and shared memory are the
machine code's own (``cuobjdump``); the bytes are ``traffic``'s. Status 1 where a bound is broken.
Owns the bounds. A number here is a property of the code and no time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from triton import knobs

from benchmarks.compiled import traffic
from benchmarks.compiled.launches import Launch, Shape, caught, decode_round, version
from benchmarks.provenance import provenance
from sglang_dspark.files import write_json

SHAPES = (
    Shape(requests=1),
    Shape(requests=17),
    Shape(requests=33),
    Shape(requests=1, head=torch.float32),
    Shape(requests=1, rank=0),
    Shape(requests=64, vocabulary=151_935),
)
"""Every kernel that a served model may need: the head is compiled by rows, dtype and presence, all
once more where rows of the vocabulary do not begin at 16 bytes."""

REQUESTS = (1, 8, 32, 128)
"""Batches whose bytes are told."""

REGISTERS_PER_SM = 65_536
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""That one program may have (CUDA programming guide, technical specifications)."""

LEAST_WARPS = 8
"""Resident on a multiprocessor: two for each of its four schedulers, or latency is not hidden."""

USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


def used(launch: Launch, capability: int) -> dict[str, Any]:
    """What one program of a compiled launch takes of a multiprocessor."""
    code, metadata = launch.compiled.asm, launch.compiled.metadata
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code["cubin"])
        file.flush()
        told = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = USAGE.search(told)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of {launch.kernel}'s registers: {told!r}")
    registers, stack, local = map(int, found.groups())
    return {
        "kernel": launch.kernel,
        "capability": capability,
        "constants": launch.constants,
        "warps": launch.warps,
        "registers": registers,
        "spilled_bytes": stack + local,
        "shared_bytes": int(metadata.shared),
        "resident_warps": resident(launch.warps, registers, int(metadata.shared), capability),
        "tf32": "tf32" in code["ptx"],
        "tensor_cores": bool(re.search(r"\b(mma|wgmma|tcgen05)\S*\.", code["ptx"])),
    }


def resident(warps: int, registers: int, shared: int, capability: int) -> int:
    """Warps of such programs on one multiprocessor; registers are handed out by eights."""
    by_registers = REGISTERS_PER_SM // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = SHARED_BYTES[capability] // shared if shared else by_registers
    return min(64, warps * min(by_registers, by_shared))


def broken(row: dict[str, Any]) -> list[str]:
    """Which bounds a compiled kernel breaks, in words."""
    limit = SHARED_BYTES[row["capability"]]
    return [
        text
        for wrong, text in (
            (row["spilled_bytes"] > 0, f"spills {row['spilled_bytes']} bytes"),
            (row["tf32"], "multiplies in TF32"),
            (row["shared_bytes"] > limit // 2, f"takes {row['shared_bytes']} bytes of shared"),
            (row["resident_warps"] < LEAST_WARPS, f"has {row['resident_warps']} resident warps"),
        )
        if wrong
    ]


def compiled(capability: int, shapes: Sequence[Shape] = SHAPES) -> Iterator[dict[str, Any]]:
    """One row for each kernel that Triton compiles for these shapes."""
    seen: set[tuple[str, str]] = set()
    for shape in shapes:
        with caught(capability) as found:
            decode_round(shape, slots=1)
        for launch in found:
            if (launch.kernel, launch.variant) not in seen:
                seen.add((launch.kernel, launch.variant))
                yield used(launch, capability)


def moved(requests: int) -> list[dict[str, Any]]:
    """Bytes of each launch of a round, once for a slot of the head."""
    shape = Shape(requests=requests)
    with caught(90, build=False) as found:
        decode_round(shape, slots=1)
    rows = []
    for launch in found:
        counted = traffic.of(launch)
        rows.append({"kernel": launch.kernel, "requests": requests, **vars(counted)})
    slot = [row for row in rows if row["kernel"] in ("_bias", "_probabilities", "_draw")]
    whole = {key: sum(row[key] for row in slot) for key in ("asked", "distinct")}
    fused = {"fused": traffic.fused_slot(shape)}
    return [*rows, {"kernel": "slot of the head", "requests": requests, **whole, **fused}]


def measure(capabilities: Sequence[int]) -> dict[str, Any]:
    """The whole table."""
    rows = [row for capability in capabilities for row in compiled(capability)]
    return {
        "what": "machine code and bytes of the Triton kernels; nothing ran",
        "triton": version(),
        "bounds": {
            "spilled_bytes": 0,
            "resident_warps": LEAST_WARPS,
            "shared_bytes": {str(c): SHARED_BYTES[c] // 2 for c in capabilities},
            "tf32": False,
        },
        "compiled": [row | {"broken": broken(row)} for row in rows],
        "bytes": [row for requests in REQUESTS for row in moved(requests)],
    }


def main() -> int:
    """Print the table, write it where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--capability", type=int, nargs="+", choices=[*SHARED_BYTES], default=[*SHARED_BYTES]
    )
    parser.add_argument("--write", type=Path, help="write the table to this .json file")
    given = parser.parse_args()
    found = measure(given.capability)
    for row in found["compiled"]:
        sizes = " ".join(f"{name}={x}" for name, x in row["constants"].items())
        print(
            f"sm_{row['capability']:<4}{row['kernel']:<16}{row['registers']:>4} registers"
            f"{row['spilled_bytes']:>4} spilled{row['shared_bytes']:>7} shared"
            f"{row['resident_warps']:>4} warps  {sizes}  {'; '.join(row['broken'])}"
        )
    for row in found["bytes"]:
        fused = f"  fused {row['fused'] / 1e6:9.1f}" if "fused" in row else ""
        print(
            f"R={row['requests']:<5}{row['kernel']:<18} asked {row['asked'] / 1e6:9.3f} MB"
            f"  distinct {row['distinct'] / 1e6:9.3f} MB{fused}"
        )
    if given.write is not None:
        write_json(given.write, provenance("python -m benchmarks.compiled --write FILE") | found)
    return int(any(row["broken"] for row in found["compiled"]))
