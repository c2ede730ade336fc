"""Beliefs that are wrong on purpose: a stale cost table, confidences that drifted.

Owns what "wrong by 20 %" means. The truth of a simulation stays what it was; only what the policy
plans with changes. Knows no policy's reaction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.cost import CostModel
from sglang_dspark.core.cost_schema import StepTable
from sglang_dspark.core.policy import FixedLength, NoSpeculation, PolicyFile
from simulator.scenario import Scenario


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


MISTAKES = (
    Mistake(label="growth of step cost −20 %", cost_factor=0.8),
    Mistake(label="growth of step cost +20 %", cost_factor=1.2),
    Mistake(label="confidence logits −0.5", logit_shift=-0.5),
    Mistake(label="confidence logits +0.5", logit_shift=0.5),
    Mistake(label="confidence logits × 0.8", logit_scale=0.8),
    Mistake(label="confidence logits × 1.25", logit_scale=1.25),
)


def mispriced(model: CostModel, factor: float) -> CostModel:
    """The model with verify(m) = verify(1) + factor (verify(m) - verify(1)), padding as it was.

    A factor on the whole step would hardly change a decision: the best budget depends on what one
    more token costs beside what the step costs anyway.
    """
    sizes = np.arange(1, model.valid_range.tokens[1] + 1)
    curve = model.verify_curve
    probed = model.table or model.additive
    tokens = tuple(probed.tokens) if probed else tuple(sizes.tolist())
    # The curve's own probes, not its padded values: tiers stay where they are.
    seconds = np.interp(tokens, curve.probes, curve.seconds)
    seconds = seconds[0] + factor * (seconds - seconds[0])
    if model.additive is not None:
        theta = tuple((seconds - model.additive.bias_s).tolist())
        return replace(model, additive=replace(model.additive, theta_s=theta))
    table = StepTable(
        tokens=tokens,
        seconds=tuple(seconds.tolist()),
        between=model.table.between if model.table else "linear",
        origin=model.provenance.origin,
    )
    return replace(model, kind="table", table=table, roofline=None)


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
    return replace(scenario, belief=belief, policy=policy)


def believes(file: PolicyFile) -> bool:
    """Whether the policy looks at costs or confidences at all."""
    return not isinstance(file.policy, NoSpeculation | FixedLength)
