"""A fitted profile as a cost-model file: where it came from, on what, and how far it is valid.

Owns the words of the provenance and the blocks that are read rather than fitted: memory, watts,
range. Knows no HTTP beyond the two answers of /server_info it is handed.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sglang_dspark.core.costs.model import SCHEMA_VERSION, CostModel
from sglang_dspark.core.costs.schema import GraphTiers, Memory, Provenance, ValidRange, Watts
from sglang_dspark.runtime.profile.fit import DecodePoint, Fit

GIB = 2**30


def cost_model(
    fitted: Fit,
    points: Sequence[DecodePoint],
    *,
    name: str,
    info: dict[str, Any],
    state: dict[str, Any],
    lane_name: str,
    facts: dict[str, Any],
    watts: tuple[float | None, Sequence[float]],
    command: str,
) -> CostModel:
    """The file's content: fit, provenance, range."""
    gpus = facts["gpus"]
    tp = int(info.get("tp_size") or 1)
    additive = fitted.additive
    note = f"{additive.note}; flaws: {'; '.join(fitted.flaws)}" if fitted.flaws else additive.note
    additive = dataclasses.replace(additive, note=note)
    per_request = max(p.context_tokens / p.requests for p in points)
    return CostModel(
        schema_version=SCHEMA_VERSION,
        name=name,
        kind="additive",
        provenance=Provenance(
            origin="measured",
            source=f"profile of a running server; {facts_in_words(facts)}",
            hardware=f"{tp}x {gpus[0]['name']}" if gpus else cpu_name(),
            model=str(info.get("served_model_name") or info["model_path"])
            .rstrip("/")
            .split("/")[-1],
            dtype=str(info.get("dtype", "auto")),
            tp=tp,
            engine=f"SGLang {info.get('version', '?')}, {lane_name}",
            date=datetime.now(UTC).date().isoformat(),
            command=command,
        ),
        valid_range=ValidRange(
            tokens=(round(min(p.tokens for p in points)), additive.tokens[-1]),
            requests=(additive.requests[0], additive.requests[-1]),
            context_tokens=(0, math.ceil(per_request)),
        ),
        fit_error=fitted.error,
        additive=additive,
        draft=fitted.draft,
        prefill=fitted.prefill,
        host=fitted.host,
        ragged=fitted.ragged,
        graphs=GraphTiers(
            tiers_tokens=(),
            beyond_last_s=0.0,
            origin="measured",
            note="padding is inside the measured times; between probes they are linear",
        ),
        context=fitted.context,
        memory=memory_of(info, state, facts),
        watts=watts_of(tp, *watts),
    )


def facts_in_words(facts: dict[str, Any]) -> str:
    """NVML's facts in one clause."""
    if not facts["gpus"]:
        return str(facts["note"])
    gpu = facts["gpus"][0]
    return (
        f"driver {facts.get('driver')}, SM clock {gpu['sm_clock_mhz']} of "
        f"{gpu['sm_clock_most_mhz']} MHz, memory clock {gpu['memory_clock_mhz']} MHz, limit "
        f"{gpu['limit_watts']} W, {(gpu['memory_bytes'] or 0) / GIB:.0f} GiB"
    )


def cpu_name() -> str:
    """Of this machine, with its number of cores."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0].partition(":")[2].strip() if models else name
    return f"CPU only: {name}, {os.cpu_count()} cores"


def memory_of(info: dict[str, Any], state: dict[str, Any], facts: dict[str, Any]) -> Memory | None:
    """The pool as the server states it; None where it does not."""
    usage = state.get("memory_usage") or {}
    tokens = usage.get("token_capacity")
    if not tokens:
        return None
    gpus, tp = facts["gpus"], int(info.get("tp_size") or 1)
    whole = gpus[0]["memory_bytes"] if gpus else None
    if not whole:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Memory(
        gpus=tp,
        gpu_memory_bytes=int(whole),
        weights_bytes=max(int(tp * usage.get("weight", 0) * GIB), 1),
        kv_bytes_per_token=max(int(tp * usage.get("kvcache", 0) * GIB / tokens), 1),
        kv_pool_tokens=int(tokens),
        origin="measured",
        note="as the server states it, the target's share; "
        + ("NVML's GPU memory" if gpus else "no GPU: the machine's memory"),
    )


def watts_of(tp: int, idle: float | None, busy: Sequence[float]) -> Watts | None:
    """Power of one replica; None without NVML."""
    if idle is None or not busy:
        return None
    return Watts(
        idle=tp * idle,
        busy=tp * max(*busy, idle),
        origin="measured",
        note="NVML's reading of the first GPU, times the number of GPUs; busy is the most seen "
        "right after a decode point, idle the reading before the profile",
    )
