"""The GPUs by name: NVIDIA's data sheets, and what the operators' tables call each.

Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_dspark.core.costs.roofline import GpuSheet
from sglang_dspark.files import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU."""

    sheet: GpuSheet
    """Dense bf16 operations, bandwidth, memory and limit of one GPU."""
    system: str
    """Its name in the tables."""


def _gpu(
    name: str, system: str, *, tflops: int, tb_per_s: float, gigabytes: int, watts: int
) -> Gpu:
    sheet = GpuSheet(
        name=name,
        flops=tflops * 1e12,
        memory_bytes_per_s=tb_per_s * 1e12,
        memory_bytes=gigabytes * 10**9,
        limit_watts=watts,
    )
    return Gpu(sheet=sheet, system=system)


GPUS = {
    "h100": _gpu("H100 SXM 80GB", "h100_sxm", tflops=989, tb_per_s=3.35, gigabytes=80, watts=700),
    "h200": _gpu("H200 SXM 141GB", "h200_sxm", tflops=989, tb_per_s=4.8, gigabytes=141, watts=700),
    "b200": _gpu("B200 180GB", "b200_sxm", tflops=2250, tb_per_s=8.0, gigabytes=180, watts=1000),
    "b300": _gpu("B300 288GB", "b300_sxm", tflops=2250, tb_per_s=8.0, gigabytes=288, watts=1400),
    "gb200": _gpu("GB200 186GB", "gb200", tflops=2500, tb_per_s=8.0, gigabytes=186, watts=1200),
    "gb300": _gpu("GB300 288GB", "gb300", tflops=2500, tb_per_s=8.0, gigabytes=288, watts=1400),
}
"""Per GPU; operations are half of the figure with sparsity."""


def gpu_of(name: str) -> Gpu:
    """The GPU of this name. ``ValueError`` with the nearest name when there is none."""
    if name not in GPUS:
        raise ValueError(
            f"--gpu {name!r} is not known; {did_you_mean(name, GPUS)}use one of {', '.join(GPUS)}"
        )
    return GPUS[name]
