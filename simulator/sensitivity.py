"""The same world seen wrongly: a stale cost table, drifted confidences.

Owns what "off by so much" means. What the target accepts and what a step really costs stay as they
are; only what a policy is told changes. Knows no policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sglang_dspark.core.cost import CostModel
from sglang_dspark.core.cost_schema import StepTable
from simulator.acceptance import AcceptanceProfile, AcceptanceTables


def verify_scaled(model: CostModel, factor: float) -> CostModel:
    """``model`` with the target's forward ``factor`` times as slow at every size; the rest stays.

    ``Scenario.belief`` takes it: a table measured on another build, at another clock.
    """
    if not factor > 0:
        raise ValueError(f"factor {factor} must be above 0")
    assert model.graphs is not None
    changes: dict[str, object] = {"name": f"{model.name} x{factor:g}"}
    beyond_s = model.graphs.beyond_last_s * factor
    if model.table is not None:
        seconds = tuple(s * factor for s in model.table.seconds)
        changes["table"] = dataclasses.replace(model.table, seconds=seconds)
    elif model.additive is not None:
        changes["additive"] = dataclasses.replace(
            model.additive,
            bias_s=model.additive.bias_s * factor,
            alpha_s=tuple(s * factor for s in model.additive.alpha_s),
            theta_s=tuple(s * factor for s in model.additive.theta_s),
        )
    else:
        # The formulas have no such factor; read at every size they are a table like any other.
        sizes = np.arange(1, model.valid_range.tokens[1] + 1)
        seconds = tuple((model.verify_curve.at(sizes.astype(np.float64)) * factor).tolist())
        changes |= {"kind": "table", "roofline": None}
        changes["table"] = StepTable(
            tokens=tuple(sizes.tolist()), seconds=seconds, between="linear", origin="analytic"
        )
        if model.graphs.tiers_tokens and sizes[-1] > model.graphs.tiers_tokens[-1]:
            beyond_s = 0.0  # it is in the table
    changes["graphs"] = dataclasses.replace(model.graphs, beyond_last_s=beyond_s)
    return dataclasses.replace(model, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class DriftedProfile:
    """An acceptance profile whose raw confidence logits z read ``factor`` z + ``shift``."""

    base: AcceptanceProfile
    """What is accepted, and what the drafter believed before the drift."""
    shift: float = 0.0
    """Logits added: above 0 the drafter has become over-confident."""
    factor: float = 1.0
    """Factor of the logits, > 0."""

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"factor {self.factor} must be above 0")

    @property
    def name(self) -> str:
        """The base's name and the drift."""
        return f"{self.base.name} x{self.factor:g}{self.shift:+g}"

    @property
    def gamma(self) -> int:
        """Draft positions per round."""
        return self.base.gamma

    def tables(self, domain_names: Sequence[str]) -> AcceptanceTables:
        """The base's tables, the confidences moved."""
        tables = self.base.tables(domain_names)
        return tables._replace(
            confidence_bias=tables.confidence_bias * self.factor + self.shift,
            confidence_scale=tables.confidence_scale * self.factor,
            log_logits=tables.log_logits * self.factor + self.shift,
        )
