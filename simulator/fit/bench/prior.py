"""What a cost model deserves to be doubted before anything of its server was measured.

Owns the widths, by origin, and what a model does not say that every server pays. They are the same
for all models of an origin. They were set from composed and published prices beside measured ones
(``docs/prices.md``), and with the records of ``docs/validation.md`` in view: how far intervals hold
is said there, and is no blind test.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_dspark.core.costs.doubt import KNOTS, NAMES, Doubt, Floats, changed, doubt_of, off
from sglang_dspark.core.costs.model import CostModel

SPECULATING = (0.02, 0.03)
"""Mean and deviation of what a speculating step costs beside drafting, in smallest forwards: a
second launch, sampling and acceptance, the draft's own cache."""
SPECULATING_ROOT = (0.0, 0.05)
"""The same times the root of its requests: what a verify kernel, a state that is kept by token, or
the host costs more than a plain forward of as many tokens."""
STRANGE_ROOT = (0.10, 0.10)
"""The same of a model that stands in: nobody knows the other's verify kernels."""
DECIDING = (0.03, 0.03)
"""The same of deciding lengths in each step. Published pairs at one and four clients: vLLM's
frontier shows none of it, SGLang's pull request 36136 loses 4 and 8 % of its rate."""
_OCTAVES = 4.0
"""How far apart in log2 tokens errors of a forward's shape still agree."""
_EXPERTS_GROWTH = 1.15
"""A forward that grows by more from 1 to 16 tokens reads experts."""


class Width(NamedTuple):
    """Deviations of logarithms."""

    level: float
    shape: float
    drafting: float
    prefill: float
    context: float


WIDTHS = {
    "measured": Width(0.03, 0.03, 0.05, 0.15, 0.15),
    "published": Width(0.08, 0.08, 0.15, 0.25, 0.30),
    "composed": Width(0.10, 0.07, 0.30, 0.35, 0.30),
    "analytic": Width(0.25, 0.12, 0.40, 0.35, 0.50),
}
EXPERTS = Width(0.20, 0.08, 0.0, 0.20, 0.0)
"""Added, in squares, for a composed or analytic forward that reads experts: who is asked for is
drawn at random in the tables, and tokens of one request agree more than that."""
STANDS_IN = Width(0.40, 0.15, 0.30, 0.40, 0.30)
"""Added, in squares, for a model that stands in for another's, or for other hardware."""


def reads_experts(model: CostModel) -> bool:
    """Whether the forward grows between 1 and 16 tokens as that of a mixture of experts does."""
    small, large = model.plain_curve.at(np.array([1.0, 16.0]))
    return bool(large > _EXPERTS_GROWTH * small)


def _width(model: CostModel, stands_in: bool) -> Width:
    origin = model.provenance.origin
    parts = [WIDTHS[origin]]
    if origin in ("composed", "analytic") and reads_experts(model):
        parts.append(EXPERTS)
    if stands_in:
        parts.append(STANDS_IN)
    return Width(*np.sqrt(np.square(parts).sum(axis=0)).tolist())


def covariance(width: Width, *, root_sd: float, adaptive_known: bool) -> Floats:
    """[names, names] of the widths."""
    knots = len(KNOTS)
    found = np.zeros((len(NAMES), len(NAMES)))
    log_m = np.log2(KNOTS)
    apart = (log_m[:, None] - log_m[None, :]) / _OCTAVES
    found[:knots, :knots] = width.level**2 + width.shape**2 * np.exp(-0.5 * apart**2)
    rest = {
        "drafting": width.drafting,
        "speculating": SPECULATING[1],
        "speculating/root": root_sd,
        "deciding": 0.01 if adaptive_known else DECIDING[1],
        "context": width.context,
    }
    for name, deviation in rest.items():
        found[NAMES.index(name), NAMES.index(name)] = deviation**2
    # A slow server is slow at prompts too: the level is theirs as well.
    prefill = NAMES.index("prefill")
    found[prefill, :knots] = found[:knots, prefill] = width.level**2
    found[prefill, prefill] = width.level**2 + width.prefill**2
    return found


def doubted(model: CostModel, *, stands_in: bool = False) -> tuple[CostModel, Doubt]:
    """The model with what servers pay and its origin leaves out, and the doubt that is left.

    What a measured model says of a step holds all of it; a model with a doubt of its own keeps it.
    """
    if model.doubt is not None and not stands_in:
        return model, model.doubt
    root = STRANGE_ROOT if stands_in else SPECULATING_ROOT
    paid: dict[str, float] = {}
    if model.provenance.origin != "measured":
        if model.draft:
            paid = {"speculating": SPECULATING[0], "speculating/root": root[0]}
        if model.adaptive is None:
            paid["deciding"] = DECIDING[0]
    note = f"of origin {model.provenance.origin}"
    note += ", standing in" if stands_in else ""
    doubt = doubt_of(
        covariance(
            _width(model, stands_in), root_sd=root[1], adaptive_known=model.adaptive is not None
        ),
        basis="prior",
        note=note,
    )
    return changed(model, off(paid)), doubt
