"""Two gloo ranks whose confidences differ in the last bit, or of which one fails, decide alike."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sglang_dspark.core import Planner, load_cost_model, parse_policy
from sglang_dspark.runtime.steer.agreement import Ranks
from sglang_dspark.runtime.steer.decision import Decider, PolicyFailure, StepDecision
from tests.runtime.serving_scenes import write_costs
from tests.waiting import HUNG_S

GAMMA, ROWS, STEPS = 7, 4, 6
EDGE = np.nextafter(np.float32(0.7), np.float32(1))
"""Just beyond the threshold of the late policy; a bit less and a draft is not verified."""


class Step:
    """One step of a rank through the hooks, as SGLang's scheduler runs it."""

    def __init__(self, policy: str, costs: Path, ranks: Ranks | None) -> None:
        from sglang_dspark.runtime.steer.hooks import Steering

        self.planner = Planner(
            policy=parse_policy(policy).policy,
            cost_model=load_cost_model(str(costs)),
            gamma=GAMMA,
            max_requests=ROWS,
        )
        self.steering = Steering()
        self.steering.decide_with(Decider(self.planner, lag_steps=2), ranks)

    def run(self, confidence_RK: torch.Tensor) -> tuple[int | None, list[int] | None, str]:
        """(budget that picks the graph, lengths, why not by the policy)."""
        host = SimpleNamespace(
            forced_budget_frac=None,
            _shift_to_lag=lambda **given: (given["confidence"], given["generation"]),
        )
        planner = SimpleNamespace(_budget_planner=host)
        generation = torch.ones(ROWS, dtype=torch.int64)

        def relayed(_: Any, *, resolved: Any, req_pool_indices_cpu: Any) -> int | None:
            return self.steering.budget(
                self._never,
                host,
                confidence=resolved,
                generation=generation,
                current_generation=generation,
                req_pool_indices_cpu=req_pool_indices_cpu,
            )

        budget = self.steering.budget_of_step(
            relayed, planner, resolved=confidence_RK, req_pool_indices_cpu=torch.arange(ROWS)
        )
        seen: dict[str, Any] = {}

        def layout(_: Any, *, confidence: torch.Tensor, budget: int | None) -> str:
            seen["budget"] = budget
            seen["lengths"] = None
            if budget is not None:
                taken = self.steering.lengths(
                    self._never, object, confidence=confidence, budget=budget
                )
                seen["lengths"] = taken.tolist()
            return "layout"

        self.steering.layout(layout, planner, confidence=confidence_RK, budget=budget)
        step = self.steering._step
        assert step is not None
        return seen["budget"], seen["lengths"], step.degraded

    @staticmethod
    def _never(*args: Any, **given: Any) -> Any:
        raise AssertionError("SGLang's own policy decided")


def confidences(rank: int, seed: int) -> torch.Tensor:
    """Alike but for a last bit: rank 0's lie on the threshold, rank 1's below it."""
    rng = np.random.default_rng(seed)
    found = rng.choice(np.float32([0.9, 0.95, EDGE]), (ROWS, GAMMA))
    if rank:
        found[found == EDGE] = np.nextafter(EDGE, np.float32(0))
    return torch.from_numpy(found)


def failing_at(rank: int, mine: int, planner: Planner) -> None:
    """On that rank alone, every second decision raises."""
    if rank != mine:
        return
    count = iter(range(10_000))

    def broken(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            if next(count) % 2:
                raise RuntimeError("no luck")
            return original(*args, **given)

        return call

    planner.budget, planner.plan = broken(planner.budget), broken(planner.plan)  # type: ignore[method-assign]


def steps(rank: int, policy: str, costs: Path, fails: int | None, ranks: Ranks | None) -> list[Any]:
    step = Step(policy, costs, ranks)
    if fails is not None:
        failing_at(fails, rank, step.planner)
    return [step.run(confidences(rank, seed)) for seed in range(STEPS)]


def _rank(rank: int, store: Path, out: Any, given: tuple[Any, ...]) -> None:
    try:
        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=2
        )
        group = SimpleNamespace(world_size=2, ranks=[0, 1], cpu_group=torch.distributed.group.WORLD)
        out.put((rank, steps(rank, *given, Ranks(group))))
    except BaseException:
        out.put((rank, traceback.format_exc()))


def together(folder: Path, *given: Any) -> list[Any]:
    """What each of two processes decides, step by step."""
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    both = [
        context.Process(target=_rank, args=(rank, folder / "store", out, given)) for rank in (0, 1)
    ]
    for one in both:
        one.start()
    found = dict(out.get(timeout=HUNG_S) for _ in both)
    for one in both:
        one.join(timeout=HUNG_S)
    for rank in (0, 1):
        assert isinstance(found[rank], list), found[rank]
    return [found[0], found[1]]


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("costs")
    return write_costs(folder / "costs.json", token_share=0.2, requests=ROWS)


@pytest.mark.law
@pytest.mark.usefixtures("sglang")
@pytest.mark.parametrize("policy", ["threshold:0.7", "early_stop", "global", "goodput"])
def test_a_last_bit_changes_nothing_between_ranks(policy: str, costs: Path, tmp_path: Path) -> None:
    """Law: budget (which picks the graph) and degradation are equal; late lengths too."""
    alone = [steps(rank, policy, costs, None, None) for rank in (0, 1)]
    first, second = together(tmp_path, policy, costs, None)
    assert first == alone[0], "rank 0's own decision is not what everybody takes"
    assert [one[0] for one in first] == [one[0] for one in second]
    if policy == "threshold:0.7":
        assert alone[0] != alone[1], "the last bit decides nothing, so this shows nothing"
        assert first == second
    assert {one[2] for one in second} == {""}


@pytest.mark.law
@pytest.mark.usefixtures("sglang")
@pytest.mark.parametrize("policy", ["threshold:0.7", "global"])
@pytest.mark.parametrize("fails", [0, 1])
def test_a_policy_that_fails_on_one_rank_is_agreed_on(
    policy: str, fails: int, costs: Path, tmp_path: Path
) -> None:
    """Law: rank 0's failures are everybody's, those of another rank nobody's."""
    first, second = together(tmp_path, policy, costs, fails)
    assert [(one[0], one[2]) for one in first] == [(one[0], one[2]) for one in second]
    failures = [one[2] for one in first].count("the policy failed")
    assert failures == (STEPS // 2 if fails == 0 else 0)
    assert all((one[0] is None) == bool(one[2]) for one in first)


@pytest.mark.example
@pytest.mark.usefixtures("sglang")
def test_slots_that_one_rank_cannot_hand_out_end_its_server(costs: Path) -> None:
    """The others wait in a collective for it: an end is seen, a hang is not."""

    def unable(decision: StepDecision, confidence: Any, budget: int) -> torch.Tensor:
        raise PolicyFailure("no luck")

    step = Step("global", costs, None)
    decider: Any = step.steering._decider
    decider.lengths = unable
    assert step.run(confidences(0, 0)) == (None, None, "the policy failed")
    step.steering._ranks.alone = False
    step.steering._ranks.first_of = list  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="on this tensor-parallel rank: no luck"):
        step.run(confidences(0, 0))
