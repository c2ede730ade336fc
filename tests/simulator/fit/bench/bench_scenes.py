"""A server whose prices are known, and benchmarks of it."""

from __future__ import annotations

import dataclasses

import numpy as np

from sglang_dspark.core.costs.doubt import Floats, changed
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import CostModel
from simulator.acceptance.load import load_acceptance
from simulator.acceptance.profile import FittedProfile
from simulator.engine.config import EngineConfig
from simulator.fit.bench.asked import Bench
from simulator.fit.bench.points import Point
from simulator.fit.bench.prior import doubted
from simulator.fit.bench.replays import replay

MODEL = "h200-qwen3-14b-composed"


def bench() -> Bench:
    profile = load_acceptance("dspark-qwen3-4b")
    assert isinstance(profile, FittedProfile)
    return Bench(acceptance=profile, engine=EngineConfig(enable_prefix_cache=False))


def base() -> CostModel:
    """As a user has it before any benchmark."""
    return doubted(load_cost_model(MODEL))[0]


def point(policy: str, clients: int, **values: float | None) -> Point:
    given = {"output_tok_s": 1.0} | values
    accepted = 3.2 if policy != "none" else None
    return Point(
        where=f"{policy} {clients}", policy=policy, concurrency=clients, requests=2 * clients,
        prompt_tokens=400, output_tokens=120, spread=0.3,
        accepted_length=accepted, **given,  # type: ignore[arg-type]
    )  # fmt: skip


def measured(truth: CostModel, policy: str, clients: int, seed: int = 0) -> Point:
    """What a benchmark of a server with these prices shows, with 2 % of noise."""
    noise = np.exp(np.random.default_rng(seed).normal(0.0, 0.02, 3))
    shown = replay(dataclasses.replace(bench(), seed=seed), point(policy, clients), truth).figures
    tok_s, tpot_ms, ttft_ms = (float(v) for v in np.array(list(shown.values())) * noise)
    return point(policy, clients, output_tok_s=tok_s, tpot_ms=tpot_ms, ttft_ms=ttft_ms)


def server(x: Floats) -> CostModel:
    """A server whose prices are off by ``x`` from the base."""
    return changed(base(), x)
