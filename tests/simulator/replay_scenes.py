"""Small traces and cost models that the simulator's tests build by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_dspark.core.costs.model import CostModel, decode_cost_model
from sglang_dspark.core.policy import parse_policy
from simulator.acceptance.load import load_acceptance
from simulator.engine.config import EngineConfig
from simulator.fleet.scenario import Scenario
from traces import Trace

PROFILE = load_acceptance("dspark-qwen3-4b")
NO_OVERLAP = {"disable_overlap_schedule": True}
"""The engine of laws that are about something else than what overlap adds."""


def cost_model(**changes: Any) -> CostModel:
    """8.5 ms + 33 us a token to verify, 1.7 ms + 44 us a request to draft, 400,000 KV tokens."""
    value: dict[str, Any] = {
        "schema_version": 1,
        "name": "by hand",
        "kind": "table",
        "provenance": {
            "origin": "analytic", "source": "test", "hardware": "none", "model": "none",
            "dtype": "none", "tp": 1, "engine": "none", "date": "2026-01-01", "command": "none",
        },
        "valid_range": {"tokens": [1, 4096], "requests": [1, 512], "context_tokens": [0, 100000]},
        "fit_error": None,
        "table": {
            "tokens": [1, 4096], "seconds": [0.0085, 0.144], "between": "linear",
            "origin": "analytic",
        },
        "draft": {
            "gamma": 7, "requests": [1, 512], "seconds": [0.0017, 0.0242], "between": "linear",
            "origin": "analytic",
        },
        "prefill": {"base_s": 0.002, "token_s": 5e-5, "pair_s": 1e-10, "origin": "analytic"},
        "host": {"step_s": 0.0, "origin": "analytic"},
        "graphs": {"tiers_tokens": [], "beyond_last_s": 0.0, "origin": "analytic"},
        "context": {"token_s": 1e-9, "reference_tokens": 1000, "origin": "analytic"},
        "memory": {
            "gpus": 1, "gpu_memory_bytes": 10**11, "weights_bytes": 10**10,
            "kv_bytes_per_token": 10**5, "kv_pool_tokens": 400_000, "origin": "analytic",
        },
    }  # fmt: skip
    return decode_cost_model(value | changes, where="test")


def trace(
    n: int,
    *,
    rate: float = 6.45,
    seed: int = 0,
    prompt_mean: float = 400.0,
    output_mean: float = 60.0,
    block_tokens: int = 0,
    arrival_s: Any = None,
    prompt_tokens: Any = None,
    output_tokens: Any = None,
) -> Trace:
    """Poisson arrivals, log-normal prompts, exponential outputs; 40 shared prefixes if blocks."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, n)) if arrival_s is None else arrival_s
    prompts = rng.lognormal(np.log(prompt_mean) - 0.5, 1.0, n) if prompt_tokens is None else None
    outputs = rng.exponential(output_mean, n) if output_tokens is None else None
    prompt = np.maximum(1, prompts).astype(np.int64) if prompts is not None else prompt_tokens
    output = np.maximum(1, outputs).astype(np.int64) if outputs is not None else output_tokens
    offsets, blocks = [0], []
    for i in range(n):
        listed = int(prompt[i]) // block_tokens if block_tokens else 0
        shared = min(listed, 10)
        family = int(rng.integers(0, 40))
        blocks += [family * 10 + j for j in range(shared)]
        blocks += [1000 + len(blocks) + j for j in range(listed - shared)]
        offsets.append(len(blocks))
    numbers, dense = np.unique(np.array(blocks, dtype=np.int64), return_inverse=True)
    return Trace(
        name="by hand",
        path="by hand",
        sha256="0" * 64,
        request_id=[str(i) for i in range(n)],
        arrival_s=np.asarray(arrival, dtype=np.float64),
        prompt_tokens=np.asarray(prompt, dtype=np.int64),
        output_tokens=np.asarray(output, dtype=np.int64),
        domain=rng.integers(0, 3, n).astype(np.int32),
        domain_names=("chat", "code", "math"),
        session=np.full(n, -1, np.int64),
        delay_s=np.full(n, np.nan),
        temperature=np.full(n, np.nan),
        priority=np.zeros(n, np.int64),
        max_new_tokens=np.zeros(n, np.int64),
        slo=np.full(n, -1, np.int32),
        slo_names=(),
        prefix_offsets=np.array(offsets, dtype=np.int64),
        prefix_blocks=dense.astype(np.int64),
        n_blocks=int(numbers.size),
        block_tokens=block_tokens,
    )


def scenario(
    policy: str, requests: Trace, *, engine: dict[str, Any] | None = None, **changes: Any
) -> Scenario:
    """``requests`` under ``policy`` on the hand-made cost model."""
    parts: dict[str, Any] = {
        "trace": requests,
        "cost_model": cost_model(),
        "acceptance": PROFILE,
        "policy": parse_policy(policy),
        "engine": EngineConfig(**(engine or {})),
    }
    return Scenario(**(parts | changes))
