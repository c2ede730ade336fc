"""Beliefs that are wrong on purpose: a stale table, confidences that drifted, deciding for free.

Owns what "wrong by 20 %" means. The policy plans with another world than the simulation's: for most
mistakes the plans change and the truth stays. What deciding costs changes no plan of most policies,
so there the truth is dearer than the prices say. Knows no policy's reaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.costs.doubt import as_table, changed, off
from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import PolicyFile
from simulator.fleet.scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One way to be wrong; the defaults are right."""

    label: str
    """As a reader sees it."""
    cost_factor: float = 1.0
    """Factor on what a step costs beyond its smallest size."""
    logit_scale: float = 1.0
    """Factor on the confidence logits."""
    logit_shift: float = 0.0
    """Added to the confidence logits, after the factor."""
    prices: tuple[float, ...] = ()
    """How the truth is off, by ``core.costs.doubt``; empty where it is not."""


MISTAKES = (
    Mistake(label="growth of step cost −20 %", cost_factor=0.8),
    Mistake(label="growth of step cost +20 %", cost_factor=1.2),
    Mistake(label="confidence logits −0.5", logit_shift=-0.5),
    Mistake(label="confidence logits +0.5", logit_shift=0.5),
    Mistake(label="confidence logits × 0.8", logit_scale=0.8),
    Mistake(label="confidence logits × 1.25", logit_scale=1.25),
    Mistake(
        label="deciding free, costs 10 % of a step", prices=tuple(off({"deciding": 0.1}).tolist())
    ),
)


def mispriced(model: CostModel, factor: float) -> CostModel:
    """The model with verify(m) = verify(1) + factor (verify(m) - verify(1)), padding as it was.

    A factor on the whole step would hardly change a decision: the best budget depends on what one
    more token costs beside what the step costs anyway.
    """

    def grown(seconds: Sequence[float], first: float) -> tuple[float, ...]:
        # Sizes below the first tier are of plain steps alone.
        return tuple(s if s < first else first + factor * (s - first) for s in seconds)

    smallest_s = float(model.verify_curve.at(np.ones(1))[0])

    if model.table is not None:
        table = replace(model.table, seconds=grown(model.table.seconds, smallest_s))
        return replace(model, table=table)
    if model.additive is not None:
        first = smallest_s - model.additive.bias_s
        additive = replace(model.additive, theta_s=grown(model.additive.theta_s, first))
        return replace(model, additive=additive)
    return mispriced(as_table(model), factor)  # the formulas have no such factor


def miscalibrated(file: PolicyFile, gamma: int, mistake: Mistake) -> PolicyFile:
    """The policy reading logits z as ``scale z + shift``: its own calibration follows after."""
    inverse_temperature, bias = file.calibration.arrays(gamma)
    return replace(
        file,
        calibration=Calibration(
            temperatures=tuple((1.0 / (inverse_temperature * mistake.logit_scale)).tolist()),
            biases=tuple((bias + mistake.logit_shift * inverse_temperature).tolist()),
        ),
    )


def mistaken(scenario: Scenario, mistake: Mistake) -> Scenario:
    """The scenario with a policy that believes in ``mistake``."""
    belief = scenario.belief or scenario.cost_model
    if mistake.cost_factor != 1.0:
        belief = mispriced(belief, mistake.cost_factor)
    policy = scenario.policy
    if (mistake.logit_scale, mistake.logit_shift) != (1.0, 0.0):
        policy = miscalibrated(policy, scenario.acceptance.gamma, mistake)
    truth = scenario.cost_model
    models = scenario.pool_models
    if mistake.prices:
        x = np.array(mistake.prices)
        truth = changed(truth, x)
        models = {name: changed(model, x) for name, model in models.items()}
    return replace(scenario, cost_model=truth, pool_models=models, belief=belief, policy=policy)


def believes(file: PolicyFile) -> bool:
    """Whether the policy looks at costs or confidences at all."""
    return file.policy.reads_confidences or file.policy.needs_prices
