"""Study 1: vLLM's frontier of none, fixed 1-7 and adaptive verification on 8 B300.

Predicts 42 published points from two of them (no speculation at concurrency 1 and 256) and facts
published elsewhere. Owns the workload and what is counted; ``transfer`` owns step costs and
acceptance. Draws nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.validation.record import (
    CALIBRATION,
    PREDICTED,
    SHAPE_ONLY,
    Frontier,
    FrontierPoint,
    OrderRow,
    Variant,
    median_abs,
)
from benchmarks.validation.scenes import exponential_lengths, made_trace, replay
from benchmarks.validation.transfer import (
    CALIBRATED_TOKENS,
    Assumed,
    Costs,
    profile,
    survival_process,
    transferred,
)
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import parse_policy
from simulator.acceptance.published.quadrature import accepted_length, conditional_acceptance
from simulator.engine.config import EngineConfig
from simulator.fleet.scenario import Scenario
from simulator.slo import parse_slo
from simulator.study.metrics import measure, request_times

ARMS = {
    "no_spec": ("none", "none"),
    "fixed_k1": ("fixed 1", "fixed:1"),
    "fixed_k3": ("fixed 3", "fixed:3"),
    "fixed_k5": ("fixed 5", "fixed:5"),
    "fixed_k6": ("fixed 6", "fixed:6"),
    "fixed_k7": ("fixed 7", "fixed:7"),
    "adaptive": ("adaptive", "global"),
}
"""Key of the published record: (name on the page, policy)."""
SHAPE_ARMS = ("fixed 1", "fixed 3")
ORDERED = ("none", "fixed 7", "adaptive")
SEEDS = 5
REQUESTS, REQUESTS_ALONE = 880, 240
MOST_OUTPUT = 2048
BYTES_PER_TOKEN = 4
CALIBRATION_ROUNDS = 4


class Speed(NamedTuple):
    """What one replay shows."""

    tok_s: float
    user_tok_s: float
    accepted_length: float
    verified_tokens: float


class Study:
    """The published records, and how a scenario is made of them."""

    def __init__(
        self,
        records: dict[str, Any],
        assumed: Assumed | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.records, self.assumed, self.tick = records, assumed or Assumed(), tick
        self.figure = records["vllm-fig3-pareto"]
        self.truth = survival_process(records, self.assumed)
        self.profile = profile(self.truth)
        size = records["speed-bench"]
        prompt = round(size["bytes"] / size["examples"] / BYTES_PER_TOKEN)
        lengths = exponential_lengths(
            REQUESTS, mean=self.assumed.output_mean, most=MOST_OUTPUT, seed=0
        )
        self.traces = {
            n: made_trace(
                "speed-bench", prompt_tokens=prompt, output_tokens=lengths[:n], domains=["all"]
            )
            for n in (REQUESTS, REQUESTS_ALONE)
        }

    def published(self, arm: str, concurrency: int) -> tuple[float, float]:
        """(tok/s/user, tok/s over all GPUs)."""
        key = next(key for key, (name, _) in ARMS.items() if name == arm)
        user, total = self.figure["data"][key][self.figure["concurrency"].index(concurrency)]
        return float(user), float(total)

    def run(self, costs: CostModel, policy: str, concurrency: int, seed: int = 0) -> Speed:
        """One point of the figure."""
        scenario = Scenario(
            trace=self.traces[REQUESTS_ALONE if concurrency == 1 else REQUESTS],
            cost_model=costs,
            acceptance=self.profile,
            policy=parse_policy(policy),
            engine=EngineConfig(
                # Above every concurrency: where SGLang's batch is full it waits, as vLLM does not.
                max_running_requests=512,
                chunked_prefill_size=16384,
                enable_prefix_cache=False,
                confidence_lag_steps=self.assumed.lag_steps,
            ),
            concurrency=concurrency,
            seed=seed,
        )
        outcome = replay(scenario)
        # The published speeds are of whole runs, ramp-up and drain included.
        row = measure(outcome, parse_slo("standard"))["whole_run"]
        user_tok_s = row["tok_s_user_p50"]
        if self.assumed.mean_tpot:
            user_tok_s = 1.0 / float(np.nanmean(request_times(outcome.requests)["tpot"]))
        self.tick()
        return Speed(
            row["output_tok_s"],
            user_tok_s,
            row["accept_len_mean"],
            row["verify_tokens_per_request_step"],
        )

    def calibrated(self) -> Costs:
        """Base and expert seconds that make the replay show the two calibration speeds."""
        loads = CALIBRATED_TOKENS  # without speculation a request is a token
        goals = np.array([self.published("none", load)[0] for load in loads])
        step_s = 1.0 / goals
        for _ in range(CALIBRATION_ROUNDS):
            costs = transferred(self.records, self.assumed, step_s)
            shown = [self.run(costs.model, "none", load).user_tok_s for load in loads]
            step_s = step_s * shown / goals
        return costs


def _points(study: Study, costs: CostModel, seeds: int) -> list[list[FrontierPoint]]:
    """[seeds][arm and concurrency]."""
    found: list[list[FrontierPoint]] = []
    for seed in range(seeds):
        found.append([])
        for arm, policy in ARMS.values():
            for concurrency in study.figure["concurrency"]:
                user, total = study.published(arm, concurrency)
                speed = study.run(costs, policy, concurrency, seed)
                role = SHAPE_ONLY if arm in SHAPE_ARMS else PREDICTED
                if arm == "none" and concurrency in CALIBRATED_TOKENS:
                    role = CALIBRATION
                found[-1].append(
                    FrontierPoint(
                        arm=arm,
                        policy=policy,
                        concurrency=concurrency,
                        role=role,
                        published_tok_s=total,
                        published_user_tok_s=user,
                        predicted_tok_s=speed.tok_s,
                        predicted_user_tok_s=speed.user_tok_s,
                        accepted_length=speed.accepted_length,
                        verified_tokens=speed.verified_tokens,
                    )
                )
    return found


def _mean(points: tuple[FrontierPoint, ...]) -> FrontierPoint:
    """One point over its seeds."""
    names = ("predicted_tok_s", "predicted_user_tok_s", "accepted_length", "verified_tokens")
    means: dict[str, Any] = {
        name: float(np.mean([getattr(p, name) for p in points])) for name in names
    }
    return dataclasses.replace(points[0], **means)


def _orders(by_seed: list[list[FrontierPoint]]) -> list[OrderRow]:
    """Whether none < fixed 7 < adaptive, published and in each seed."""

    def ordered(points: list[FrontierPoint], load: int, name: str) -> bool:
        at = {p.arm: float(getattr(p, name)) for p in points if p.concurrency == load}
        low, middle, high = (at[arm] for arm in ORDERED)
        return low < middle < high

    rows = []
    for load in dict.fromkeys(point.concurrency for point in by_seed[0]):
        published = ordered(by_seed[0], load, "published_tok_s")
        simulated = [ordered(points, load, "predicted_tok_s") for points in by_seed]
        rows.append(
            OrderRow(
                concurrency=load,
                published=published,
                seeds_right=simulated.count(published),
                seeds=len(by_seed),
            )
        )
    return rows


VARIANTS = {
    "step seconds = a + b x V4-Flash's curve": Assumed(plain_transfer=True),
    "speed per user is 1 / mean TPOT": Assumed(mean_tpot=True),
    "drafting scaled like the whole model": Assumed(draft_by_layer=False),
    "acceptance as on coding": Assumed(at_published_length=False),
    "outputs half as long": Assumed(output_mean=500.0),
    "outputs twice as long": Assumed(output_mean=2000.0),
    "confidences two steps old": Assumed(lag_steps=2),
}


def _variant(records: dict[str, Any], change: str, tick: Callable[[], None]) -> Variant:
    study = Study(records, VARIANTS[change], tick)
    by_seed = _points(study, study.calibrated().model, seeds=1)
    points = [point for point in by_seed[0] if point.role != CALIBRATION]
    return Variant(
        change=change,
        median_error=median_abs(point.error for point in points),
        max_error=max(abs(point.error) for point in points),
        median_user_error=median_abs(point.user_error for point in points),
        max_user_error=max(abs(point.user_error) for point in points),
        orders_right=sum(row.seeds_right for row in _orders(by_seed)),
    )


def frontier(records: dict[str, Any], tick: Callable[[], None]) -> Frontier:
    """The whole study; ``tick`` hears of every replay."""
    study = Study(records, tick=tick)
    costs = study.calibrated()
    by_seed = _points(study, costs.model, SEEDS)
    survival = np.cumprod(conditional_acceptance(study.truth))
    text = records["vllm-blog-text"]
    if not (
        survival[0] > text["survival_first_least"] and survival[-1] < text["survival_last_most"]
    ):
        raise ValueError(f"survival {survival} contradicts the publication; mend the process")
    assert abs(accepted_length(study.truth) - text["accepted_length"]) < 1e-6
    return Frontier(
        calibrated_on=[
            f"none at concurrency {load}: {study.published('none', load)[0]} tok/s per user"
            for load in CALIBRATED_TOKENS
        ],
        transfer=costs.transfer,
        survival=survival.tolist(),
        seeds=SEEDS,
        points=[_mean(points) for points in zip(*by_seed, strict=True)],
        orders=_orders(by_seed),
        variants=[_variant(records, change, tick) for change in VARIANTS],
    )
