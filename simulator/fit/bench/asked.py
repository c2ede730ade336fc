"""A benchmark point as a simulation: its requests, its acceptance, its server.

Owns what a benchmark leaves unsaid: how requests of given lengths come, and that clients fit in the
memory. Simulates nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import parse_policy
from simulator.acceptance.profile import FittedProfile
from simulator.engine.config import EngineConfig
from simulator.fit.bench.accepted import at_length, own_length
from simulator.fit.bench.points import Point
from simulator.fleet.scenario import Scenario
from traces import Request, Trace, build_trace

_MOST_REQUESTS = 2000
_ALONE_REQUESTS = 16
"""A client alone sends one request after the other: more of them measure the same."""
_ROOM = 1.2
_STEP_BUFFER = 1 << 14


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What the points of one server have in common."""

    acceptance: FittedProfile
    """Whose shape is taken; its level is each point's own accepted length."""
    engine: EngineConfig
    gamma: int | None = None
    """Tokens drafted; None: the cost model's, else the profile's."""
    full_length: float | None = None
    """Accepted of ``gamma`` verified tokens, for points that do not say their own."""
    seed: int = 0


VLLM = EngineConfig(max_running_requests=256, enable_mixed_chunk=True, enable_prefix_cache=False)
"""A server of vLLM's as the simulator has it: its ``max_num_seqs`` with speculation or without, and
requests that decode while prompts run."""
SGLANG = EngineConfig(enable_prefix_cache=False)


def engine_of_points(points: Sequence[Point]) -> EngineConfig:
    """The settings that nobody gave, by whose server it was. ``ValueError`` for two engines'."""
    engines = {point.engine for point in points if point.engine}
    if len(engines) > 1:
        raise ValueError(
            f"benchmarks of {' and '.join(sorted(engines))}: prices are of one engine; calibrate a "
            "model for each"
        )
    return VLLM if engines == {"vllm"} else SGLANG


def made_requests(point: Point, *, seed: int) -> Trace:
    """Requests of the point's lengths, all there at once or coming at its rate."""
    most = max(_MOST_REQUESTS, 8 * (point.concurrency or 0))
    count = min(point.requests, most)
    if point.concurrency == 1:
        count = max(count, _ALONE_REQUESTS)
    draws = np.random.default_rng(seed)

    def lengths(mean: int) -> list[int]:
        low, high = round(mean * (1 - point.spread)), round(mean * (1 + point.spread))
        return np.maximum(draws.integers(low, high + 1, count), 1).tolist()

    gaps = draws.exponential(1.0 / point.rate, count) if point.rate else np.zeros(count)
    requests = [
        Request(request_id=str(i), arrival_s=float(at), prompt_tokens=prompt, output_tokens=output)
        for i, (at, prompt, output) in enumerate(
            zip(
                np.cumsum(gaps) - gaps[0],
                lengths(point.prompt_tokens),
                lengths(point.output_tokens),
                strict=True,
            )
        )
    ]
    name = f"{point.policy} at {point.load}"
    return build_trace(
        requests, name=name, path=name, sha256="", block_tokens=None, where=lambda i: f"{name}:{i}"
    )


def verified_tokens(point: Point, gamma: int) -> int:
    """Draft tokens of a request that the point's policy verifies when nothing is trimmed."""
    length = getattr(parse_policy(point.policy).policy, "length", None)
    return gamma if length is None else min(int(length), gamma)


def profile_of(bench: Bench, point: Point, model: CostModel, level: float) -> FittedProfile:
    """The point's acceptance: at its stated length, else the profile's, ``level`` added to the
    logarithm of its accepted draft tokens."""
    base = bench.acceptance
    gamma = bench.gamma or (model.draft.gamma if model.draft else base.gamma)
    verified = verified_tokens(point, gamma)
    length = point.accepted_length
    if length is None and bench.full_length is not None:
        verified, length = gamma, bench.full_length
    if length is None and level:
        length = 1.0 + (own_length(base, min(verified, base.gamma)) - 1.0) * float(np.exp(level))
    if length is not None:
        length = float(np.clip(length, 1.01, verified + 0.99))
    return at_length(base, gamma=gamma, verified=verified, length=length)


def scenario_of(
    bench: Bench,
    point: Point,
    truth: CostModel,
    *,
    level: float = 0.0,
    belief: CostModel | None = None,
) -> Scenario:
    """The point as a simulation at the prices ``truth``, planned with ``belief``."""
    engine = bench.engine
    if engine.kv_pool_tokens is None and point.concurrency:
        # Nobody benchmarks clients that do not fit; a server's own pool is its settings' to say.
        longest = (point.prompt_tokens + point.output_tokens) * (1.0 + point.spread)
        needed = int(_ROOM * point.concurrency * longest) + 4096
        pool = max(needed, truth.kv_pool_tokens if truth.memory else 0)
        engine = dataclasses.replace(engine, kv_pool_tokens=pool)
    return Scenario(
        trace=made_requests(point, seed=bench.seed),
        cost_model=truth,
        belief=belief,
        acceptance=profile_of(bench, point, truth, level),
        policy=parse_policy(point.policy),
        engine=engine,
        concurrency=point.concurrency,
        seed=bench.seed,
        step_capacity=_STEP_BUFFER,
    )
