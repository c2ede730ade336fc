"""How far a cost model's prices may be off, and the model for any way to be off.

    x ~ N(0, L L'),  one number for each of ``NAMES``
The model's own tables are the centre, x = 0. A forward over m tokens costs exp(f(m)) times as much,
f the line through the first seven numbers over log2 m, level outside them: a level and a shape that
are wrong together. Drafting, prefills and context have a factor exp(x) each. In shares of the
smallest forward, ``speculating`` and ``speculating/root`` are seconds of each step that drafts, the
latter times the root of its requests, and ``deciding`` of each step whose lengths are decided. Owns
the block of the file and the changed model. Knows no benchmark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.schema import AdaptiveCost, StepTable, check_choice

if TYPE_CHECKING:
    from sglang_dspark.core.costs.model import CostModel

Floats = npt.NDArray[np.float64]

KNOTS = (1, 4, 16, 64, 256, 1024, 4096)
"""Tokens at which a forward's factor is a number of its own."""
NAMES = (
    *(f"forward@{m}" for m in KNOTS),
    "drafting",
    "speculating",
    "speculating/root",
    "deciding",
    "prefill",
    "context",
)
_BASES = ("prior", "posterior")
NINETY = 1.645
"""Deviations of a normal on either side that hold 90 %."""


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """The block ``doubt`` of a cost model; since schema 3."""

    basis: str
    """``prior``: what models of this origin deserve; ``posterior``: what is left of it after
    benchmarks of a server."""
    names: tuple[str, ...]
    """``NAMES``, so that a file says what its numbers are of."""
    factor: tuple[tuple[float, ...], ...]
    """Lower triangle L, row by row, the first of one number."""
    note: str = ""
    """What it was taken from."""

    def __post_init__(self) -> None:
        check_choice("doubt basis", self.basis, _BASES)
        if self.names != NAMES:
            raise ValueError(
                f"doubt names {', '.join(self.names)} are not this release's ({', '.join(NAMES)}); "
                "calibrate the model again"
            )
        if [len(row) for row in self.factor] != list(range(1, len(NAMES) + 1)):
            raise ValueError(
                f"doubt factor must have {len(NAMES)} rows of 1, 2, ... numbers; mend it"
            )
        if not all(np.isfinite(row).all() for row in self.factor):
            raise ValueError("doubt factor holds what is no finite number; mend it")

    def root(self) -> Floats:
        """[names, names] the lower triangle L."""
        full = np.zeros((len(NAMES), len(NAMES)))
        for i, row in enumerate(self.factor):
            full[i, : i + 1] = row
        return full

    def draws(self, count: int) -> Floats:
        """[count, names] ways to be off; always the same, of which a larger count has more."""
        z = np.random.default_rng(0).standard_normal((count, len(NAMES)))
        return np.round(z @ self.root().T, 9)  # machines round products differently


def doubt_of(covariance: Floats, *, basis: str, note: str) -> Doubt:
    """The block of a covariance over ``NAMES``."""
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(NAMES)))
    factor = tuple(
        tuple(float(f"{value:.6g}") for value in row[: i + 1]) for i, row in enumerate(root)
    )
    return Doubt(basis=basis, names=NAMES, factor=factor, note=note)


def off(by: Mapping[str, float]) -> Floats:
    """[names] off by the numbers that are named, and by nothing else."""
    x = np.zeros(len(NAMES))
    for name, value in by.items():
        x[NAMES.index(name)] = value
    return x


def knot_weights(tokens: Floats) -> Floats:
    """[len(tokens), knots] how much each knot has to say about a forward over so many tokens."""
    place = np.interp(np.log2(np.maximum(tokens, 1)), np.log2(KNOTS), np.arange(len(KNOTS)))
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(len(KNOTS))))


def as_table(model: CostModel) -> CostModel:
    """A model whose forward is a formula as one of kind ``table``, at every size it vouches for."""
    if model.roofline is None:
        return model
    assert model.graphs is not None
    sizes = range(1, model.valid_range.tokens[1] + 1)
    seconds = model.verify_curve.at(np.array(sizes, np.float64))
    table = StepTable(
        tokens=tuple(sizes), seconds=tuple(seconds.tolist()), between="linear", origin="analytic"
    )
    graphs = model.graphs
    if graphs.tiers_tokens and sizes[-1] > graphs.tiers_tokens[-1]:
        graphs = dataclasses.replace(graphs, beyond_last_s=0.0)  # it is in the table
    return dataclasses.replace(model, kind="table", table=table, roofline=None, graphs=graphs)


def _rising(seconds: Floats) -> tuple[float, ...]:
    return tuple(float(f"{s:.6g}") for s in np.maximum.accumulate(seconds))


def with_forward(model: CostModel, factor: Callable[[Floats], Floats]) -> CostModel:
    """The model whose forward over m tokens costs ``factor(m)`` times as much, never less than a
    smaller one."""
    model = as_table(model)
    if model.table is not None:
        tokens = np.array(model.table.tokens, np.float64)
        seconds = _rising(factor(tokens) * np.array(model.table.seconds))
        return dataclasses.replace(model, table=dataclasses.replace(model.table, seconds=seconds))
    additive = model.additive
    assert additive is not None
    tokens = np.array(additive.tokens, np.float64)
    requests = np.array(additive.requests, np.float64)
    body = factor(tokens) * (additive.bias_s + np.array(additive.theta_s))
    alpha = factor(requests) * np.array(additive.alpha_s)
    changed = dataclasses.replace(
        additive,
        bias_s=float(f"{body[0]:.6g}"),
        theta_s=_rising(np.maximum(body - body[0], 0.0)),
        alpha_s=_rising(alpha),
    )
    return dataclasses.replace(model, additive=changed)


def changed(model: CostModel, x: Floats) -> CostModel:
    """The model that is off by ``x``, [names]. What would cost less than nothing costs nothing."""
    of = dict(zip(NAMES, map(float, x), strict=True))
    knots = np.asarray(x[: len(KNOTS)])
    smallest_s = float(model.verify_curve.at(np.ones(1))[0])
    if knots.any():
        model = with_forward(model, lambda tokens: np.exp(knot_weights(tokens) @ knots))
    assert model.prefill is not None
    prefill, times = model.prefill, float(np.exp(of["prefill"]))
    parts: dict[str, object] = {
        "prefill": dataclasses.replace(
            prefill,
            base_s=prefill.base_s * times,
            token_s=prefill.token_s * times,
            pair_s=prefill.pair_s * times,
            floor_s=prefill.floor_s * times,
        )
    }
    drafting = ("drafting", "speculating", "speculating/root")
    if model.draft is not None and any(of[name] for name in drafting):
        seconds = np.exp(of["drafting"]) * np.array(model.draft.seconds)
        least = 0.1 * seconds  # a drafter that costs something never becomes free
        shares = of["speculating"] + of["speculating/root"] * np.sqrt(model.draft.requests)
        seconds = np.maximum(seconds + shares * smallest_s, least)
        parts["draft"] = dataclasses.replace(model.draft, seconds=_rising(seconds))
    if model.context is not None:
        token_s = model.context.token_s * float(np.exp(of["context"]))
        parts["context"] = dataclasses.replace(model.context, token_s=token_s)
    known = model.adaptive or AdaptiveCost(step_s=0.0, origin=model.provenance.origin)
    step_s = max(known.step_s + of["deciding"] * smallest_s, 0.0)
    if model.adaptive or step_s:
        parts["adaptive"] = dataclasses.replace(known, step_s=float(f"{step_s:.6g}"))
        parts["schema_version"] = 3
    return dataclasses.replace(model, **parts)  # type: ignore[arg-type]
