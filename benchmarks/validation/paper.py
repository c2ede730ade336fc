"""Study 2: the paper's production figures 7 and 8, MTP-1 against DSpark-5.

Fits a step of base + seconds per token to MTP-1's two anchor dots of Figure 7, then predicts
DSpark-5 at every load from the acceptance profiles ``mtp1`` and ``dspark5-v4``. Owns what is
assumed of the traffic and of drafting. Draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.validation.record import Gain, LoadPoint, PaperModel
from benchmarks.validation.scenes import (
    Steady,
    exponential_lengths,
    made_cost_model,
    made_trace,
    steady,
)
from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import FixedLength, GlobalBudget, PolicyFile
from simulator.acceptance.load import load_acceptance
from simulator.acceptance.profile import FittedProfile
from simulator.engine.config import EngineConfig
from simulator.fleet.scenario import Scenario

MODELS = {"paper-flash": "V4-Flash", "paper-pro": "V4-Pro"}
LOADS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 200, 256, 320)
"""Concurrent requests per GPU."""
DOMAINS = ("chat", "code", "math")
"""In equal parts: production traffic is not described."""
OUTPUT_MEAN, MOST_OUTPUT = 600.0, 4000
REQUESTS_PER_CLIENT, LEAST_REQUESTS = 5, 300
MOST_REQUESTS = 512
MOST_TOKENS = 4096
GAMMA = 5
AT_LOAD = 64
"""Where MTP-1's accepted length is read; it hardly depends on load."""


class Step(NamedTuple):
    """An MTP-1 step of R requests takes base_s + 2 R token_s on one GPU, its drafting included."""

    base_s: float
    token_s: float


class Method(NamedTuple):
    """One line of the figures."""

    name: str
    acceptance: FittedProfile
    policy: PolicyFile


def _profile(name: str) -> FittedProfile:
    profile = load_acceptance(name)
    assert isinstance(profile, FittedProfile)
    return profile


def methods() -> tuple[Method, Method]:
    """MTP-1 verifies its one draft always; DSpark-5 takes the paper's budget from confidences
    after sequential temperature scaling (one vector: the mean over the domains)."""
    dspark = _profile("dspark5-v4")
    temperatures = np.mean([dspark.achieved[d]["sts_temperature"] for d in DOMAINS], axis=0)
    scaled = Calibration(temperatures=tuple(float(round(t, 3)) for t in temperatures))
    return (
        Method("MTP-1", _profile("mtp1"), PolicyFile(policy=FixedLength(length=1))),
        Method("DSpark-5", dspark, PolicyFile(policy=GlobalBudget(), calibration=scaled)),
    )


def cost_model(step: Step, *, head_share: float) -> CostModel:
    """One GPU's share of the deployment. MTP-1's drafting is inside the steps; DSpark-5's backbone
    is taken to cost as much, its sequential head ``head_share`` of an MTP-1 step more."""
    draft = None
    if head_share:
        requests = [1, MOST_REQUESTS]
        seconds = [head_share * (step.base_s + 2 * r * step.token_s) for r in requests]
        draft = {"gamma": GAMMA, "requests": requests, "seconds": seconds, "between": "linear"}
    return made_cost_model(
        "paper-production",
        source="fitted to Figure 7",
        hardware="not stated",
        model="DeepSeek-V4",
        gpus=1,
        tokens=[1, MOST_TOKENS],
        seconds=[step.base_s + m * step.token_s for m in (1, MOST_TOKENS)],
        between="linear",
        draft=draft,
        # Prompts are computed elsewhere; a price of zero is not allowed.
        prefill_token_s=1e-12,
        kv_pool_tokens=8_000_000,
    )


def run(method: Method, costs: CostModel, load: int) -> Steady:
    """Rates of ``load`` requests on one GPU."""
    count = max(LEAST_REQUESTS, REQUESTS_PER_CLIENT * load)
    lengths = exponential_lengths(count, mean=OUTPUT_MEAN, most=MOST_OUTPUT, seed=0)
    return steady(
        Scenario(
            trace=made_trace("production", prompt_tokens=1, output_tokens=lengths, domains=DOMAINS),
            cost_model=costs,
            acceptance=method.acceptance,
            policy=method.policy,
            engine=EngineConfig(
                max_running_requests=2 * MOST_REQUESTS,  # never full, so that nobody waits
                chunked_prefill_size=16384,
                enable_prefix_cache=False,
                admission_new_tokens=MOST_OUTPUT,
            ),
            concurrency=load,
            step_capacity=1 << 14,
        )
    )


def fitted_step(anchors: list[list[float]], accepted_length: float) -> Step:
    """The line through MTP-1's two anchor dots: load = throughput / speed, step = length / speed.

    ``anchors`` rows begin with tok/s/user and tok/s per GPU.
    """
    (slow, much), (fast, little) = (row[:2] for row in anchors)
    loads = np.array([much / slow, little / fast])
    steps_s = accepted_length / np.array([slow, fast])
    token_s = float((steps_s[0] - steps_s[1]) / (2 * (loads[0] - loads[1])))
    return Step(float(steps_s[1] - 2 * token_s * loads[1]), token_s)


def _line(rows: list[list[float]] | None, load: float) -> float | None:
    """A published line at ``load``; None beyond its ends."""
    if rows is None or not rows[0][0] <= load <= rows[-1][0]:
        return None
    xs, ys = np.array(rows).T
    return float(np.interp(load, xs, ys))


def _points(
    record: dict[str, Any], method: Method, costs: CostModel, tick: Callable[[], None]
) -> list[LoadPoint]:
    found = []
    for load in LOADS:
        rates = run(method, costs, load)
        tick()
        found.append(
            LoadPoint(
                method=method.name,
                concurrency=load,
                predicted_tok_s=rates.tok_s,
                predicted_user_tok_s=rates.tok_s / load,
                predicted_budget=rates.verified_tokens,
                published_tok_s=_line(record["throughput"][method.name], load),
                published_budget=_line(record["verify_budget"].get(method.name), load),
            )
        )
    return found


def _gains(record: dict[str, Any], points: list[LoadPoint]) -> list[Gain]:
    """At the paper's anchors: throughput at equal speed, speed at equal throughput."""
    curves = {
        name: np.array(
            [[p.predicted_user_tok_s, p.predicted_tok_s] for p in points if p.method == name]
        )
        for name in ("MTP-1", "DSpark-5")
    }

    def throughput(name: str, speed: float) -> float:
        speeds, totals = curves[name][::-1].T
        return float(np.interp(speed, speeds, totals))

    def speed(name: str, total: float) -> float:
        speeds, totals = curves[name].T
        return float(np.interp(total, totals, speeds))

    gains = []
    for user, mtp1, dspark, dspark_user in record["anchors"]["rows"]:
        gains += [
            Gain(
                kind="throughput at the same speed",
                at=f"{user:g} tok/s per user",
                published_pct=100 * (dspark / mtp1 - 1),
                predicted_pct=100 * (throughput("DSpark-5", user) / throughput("MTP-1", user) - 1),
            ),
            Gain(
                kind="speed at the same throughput",
                at=f"{mtp1:,.0f} tok/s per GPU",
                published_pct=100 * (dspark_user / user - 1),
                predicted_pct=100 * (speed("DSpark-5", mtp1) / speed("MTP-1", mtp1) - 1),
            ),
        ]
    return gains


def paper_model(records: dict[str, Any], key: str, tick: Callable[[], None]) -> PaperModel:
    """Both figures for one model."""
    record = records[key]
    mtp1, dspark = methods()
    length = run(mtp1, cost_model(Step(0.01, 1e-5), head_share=0.0), AT_LOAD).accepted_length
    tick()
    anchors = record["anchors"]["rows"]
    step = fitted_step(anchors, length)
    head_share = records["sequential-head"]["round_share"][1]
    points = [
        *_points(record, mtp1, cost_model(step, head_share=0.0), tick),
        *_points(record, dspark, cost_model(step, head_share=head_share), tick),
    ]
    figure_8 = [
        (_line(record["throughput"]["MTP-1"], total / user) or np.nan) / (total / user)
        for user, total, *_ in anchors
    ]
    return PaperModel(
        model=MODELS[key],
        calibrated_on=[
            f"MTP-1 at {user:g} tok/s per user: {total:,.0f} tok/s per GPU"
            for user, total, *_ in anchors
        ],
        base_s=step.base_s,
        token_s=step.token_s,
        mtp1_accepted_length=length,
        figure_8_over_7=[float(ours / row[0]) for ours, row in zip(figure_8, anchors, strict=True)],
        frontier={name: record["frontier"][name] for name in ("MTP-1", "DSpark-5")},
        points=points,
        gains=_gains(record, points),
    )
