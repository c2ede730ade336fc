"""``CostModel``: what one serving step costs on one replica, as a file states it.

Owns the file format as a whole (schemas 1 to 3), the choice of kind and the way to ``CostTables``.
The parts are in ``schema``, the formulas of kind ``roofline`` in ``roofline``, the pricing of a
step in ``tables``. Knows no policy and no clock.

A file names its ``kind`` and carries the block of that name (``table``, ``additive`` or
``roofline``) beside ``draft, prefill, host, graphs, context, memory, watts``. Kind ``roofline`` may
leave those out: they are derived from its config and data sheet. Schema 2 added ``drafter``;
schema 3 the shapes of a step, ``ragged``, ``adaptive`` and ``plain``, and ``overlapped``. What was
read from SGLang's own table carries it as ``sglang_sps`` or ``sglang_additive``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.core.costs.curve import Curve, additive_curve, roofline_curve, table_curve
from sglang_dspark.core.costs.doubt import Doubt
from sglang_dspark.core.costs.roofline import RooflineCost
from sglang_dspark.core.costs.schema import (
    AdaptiveCost,
    AdditiveCost,
    ComposedOf,
    ContextCost,
    DraftCost,
    FitError,
    GraphTiers,
    HostCost,
    Memory,
    OverlappedCost,
    PlainCost,
    PrefillCost,
    PricedDrafter,
    Provenance,
    RaggedCost,
    StepTable,
    ValidRange,
    Watts,
    check_choice,
)
from sglang_dspark.core.costs.sglang_files import (
    SpsAdditiveTable,
    SpsTable,
)
from sglang_dspark.core.costs.sglang_prices import priced
from sglang_dspark.core.costs.tables import CostTables
from sglang_dspark.files import atomic_write, decode_record

SCHEMA_VERSION = 3
READABLE = (1, 2, 3)
_SINCE = {"drafter": 2, "overlapped": 3, "ragged": 3, "adaptive": 3, "plain": 3, "doubt": 3,
          "operators": 3, "sglang_sps": 3, "sglang_additive": 3}  # fmt: skip
KINDS = ("table", "additive", "roofline")


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Seconds, bytes and watts of one replica; ``ValueError`` when it contradicts itself."""

    schema_version: int
    """3, or less for a file without the blocks that came later."""
    name: str
    """By which reports and results call it."""
    kind: str
    """``table``, ``additive`` or ``roofline``: which block holds the target's forward."""
    provenance: Provenance
    valid_range: ValidRange
    fit_error: FitError | None
    """None where nothing was fitted."""
    drafter: PricedDrafter | None = None
    """None: the file does not say whose drafting it prices, as none of schema 1 does."""
    operators: ComposedOf | None = None
    """None: the model was not composed of operators."""
    table: StepTable | None = None
    additive: AdditiveCost | None = None
    roofline: RooflineCost | None = None
    draft: DraftCost | None = None
    """None without a drafter, or when drafting is inside the forward's times."""
    prefill: PrefillCost | None = None
    host: HostCost | None = None
    overlapped: OverlappedCost | None = None
    """None: no host time is known beside the device's."""
    ragged: RaggedCost | None = None
    """None: a ragged step costs what a uniform one does."""
    adaptive: AdaptiveCost | None = None
    """None: deciding costs nothing."""
    plain: PlainCost | None = None
    """None: a step without speculation costs what a uniform one does."""
    graphs: GraphTiers | None = None
    context: ContextCost | None = None
    """None: the context's length changes nothing."""
    memory: Memory | None = None
    """None: the KV pool must be given elsewhere."""
    watts: Watts | None = None
    doubt: Doubt | None = None
    """None: nobody said how far the prices may be off."""
    sglang_sps: SpsTable | None = None
    """SGLang's own file that the prices were made of, by which policy ``sglang`` decides as SGLang
    does from it; None: the policy decides by what SGLang's profiler would write for this model."""
    sglang_additive: SpsAdditiveTable | None = None
    """The same for the other kind of file; at most one of the two."""

    def __post_init__(self) -> None:
        if self.schema_version not in READABLE:
            raise ValueError(
                f"schema_version {self.schema_version} is not known; this release reads "
                f"{', '.join(map(str, READABLE))}: rewrite the file or upgrade"
            )
        for block, since in _SINCE.items():
            if getattr(self, block) is not None and self.schema_version < since:
                raise ValueError(
                    f"the {block!r} block is one of schema {since}; set schema_version to {since}"
                )
        if not self.name.strip():
            raise ValueError("the cost model's name is empty; give it one")
        check_choice("kind", self.kind, KINDS)
        for kind in KINDS:
            if (getattr(self, kind) is not None) != (kind == self.kind):
                verb = "lacks its" if kind == self.kind else "must not carry a"
                raise ValueError(f"kind {self.kind!r} {verb} {kind!r} block; mend the file")
        if self.roofline is not None:
            self._derive(self.roofline)
        for part in ("prefill", "host", "graphs"):
            if getattr(self, part) is None:
                raise ValueError(f"the {part!r} block is missing; only kind 'roofline' derives it")
        self._check_range()
        if self.sglang_sps is not None and self.sglang_additive is not None:
            raise ValueError("sglang_sps and sglang_additive: prices are of one table; keep one")

    def _derive(self, roofline: RooflineCost) -> None:
        """Fill the parts that the file left to the formulas."""
        formulas = {
            "draft": roofline.draft_cost,
            "prefill": roofline.prefill_cost,
            "host": roofline.host_cost,
            "graphs": roofline.graph_tiers,
            "context": roofline.context_cost,
            "memory": roofline.memory,
            "watts": roofline.watts,
        }
        for part, formula in formulas.items():
            if getattr(self, part) is None:
                object.__setattr__(self, part, formula())

    def _check_range(self) -> None:
        probed = self.table or self.additive
        high = self.valid_range.tokens[1]
        if probed is not None and high > probed.tokens[-1]:
            raise ValueError(
                f"valid_range reaches {high} tokens but the last probe is at {probed.tokens[-1]}; "
                "measure further or lower it"
            )
        requests = self.additive or (None if self.roofline else self.draft)
        high = self.valid_range.requests[1]
        if requests is not None and high > requests.requests[-1]:
            raise ValueError(
                f"valid_range reaches {high} requests but the last probe is at "
                f"{requests.requests[-1]}; measure further or lower it"
            )
        assert self.graphs is not None
        tiers = self.graphs.tiers_tokens
        if probed and tiers and self.graphs.beyond_last_s > 0 and probed.tokens[-1] > tiers[-1]:
            raise ValueError(
                f"beyond_last_s {self.graphs.beyond_last_s:g} would price sizes beyond "
                f"{tiers[-1]} tokens twice, since probes reach {probed.tokens[-1]}; set it to 0"
            )

    @property
    def kv_pool_tokens(self) -> int:
        """KV tokens one replica holds. ``ValueError`` for a model without a memory block."""
        if self.memory is None:
            raise ValueError(
                f"cost model {self.name!r} has no memory block; add one or set kv_pool_tokens in "
                "the engine settings, which dspark prices from-server asks a server for"
            )
        return self.memory.pool_tokens

    @property
    def sglang_table(self) -> SpsTable | SpsAdditiveTable | None:
        """SGLang's own file that the prices were made of, None for any other model."""
        return self.sglang_sps or self.sglang_additive

    @property
    def acceptance(self) -> str | None:
        """The acceptance profile that belongs to the model: a name or file; None: none of its own.

        A file is named from the folder that the model's file is in.
        """
        return self.drafter.acceptance if self.drafter else None

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.memory.gpus if self.memory is not None else self.provenance.tp

    @property
    def graph_tiers(self) -> tuple[int, ...]:
        """Step sizes in tokens that a step is padded to, increasing; empty where none are known."""
        assert self.graphs is not None
        if self.graphs.tiers_tokens:
            return self.graphs.tiers_tokens
        if self.table is not None and self.table.between == "staircase":
            return self.table.tokens
        return ()

    @functools.cached_property
    def verify_curve(self) -> Curve:
        """Seconds of the target's forward by tokens, at the reference context, in one shape."""
        assert self.graphs is not None
        return self._forward_curve(self.graphs)

    def _forward_curve(self, graphs: GraphTiers) -> Curve:
        if self.table is not None:
            return table_curve(self.table, graphs)
        if self.additive is not None:
            return additive_curve(self.additive, graphs)
        assert self.roofline is not None
        return roofline_curve(self.roofline, graphs, self.valid_range.tokens[1])

    @functools.cached_property
    def ragged_curve(self) -> Curve:
        """As ``verify_curve``, of a ragged step and without its floor."""
        if self.ragged is None:
            return self.verify_curve
        assert self.graphs is not None
        tiers = self.ragged.tiers_tokens
        graphs = self.graphs
        if tiers is not None:
            beyond_s = graphs.beyond_last_s if tiers else 0.0
            graphs = dataclasses.replace(graphs, tiers_tokens=tiers, beyond_last_s=beyond_s)
        curve = self._forward_curve(graphs)
        return dataclasses.replace(curve, seconds=curve.seconds + self.ragged.step_s)

    @functools.cached_property
    def plain_curve(self) -> Curve:
        """As ``verify_curve``, of a server that does not speculate."""
        if self.plain is None:
            return self.verify_curve
        assert self.graphs is not None
        graphs = dataclasses.replace(self.graphs, tiers_tokens=self.plain.tiers_tokens)
        return self._forward_curve(graphs)

    @functools.cached_property
    def request_curve(self) -> Curve | None:
        """Seconds of the target's forward that the number of requests adds."""
        if self.additive is None:
            return None
        return Curve(
            probes=np.array(self.additive.requests, dtype=np.float64),
            seconds=np.array(self.additive.alpha_s),
            tiers=np.zeros(0),
        )

    @functools.cached_property
    def draft_curve(self) -> Curve | None:
        """Seconds of drafting by requests."""
        if self.draft is None:
            return None
        probes = np.array(self.draft.requests, dtype=np.float64)
        tiers = probes if self.draft.between == "staircase" else np.zeros(0)
        return Curve(probes=probes, seconds=np.array(self.draft.seconds), tiers=tiers)

    def tables(self, max_tokens: int, max_requests: int) -> CostTables:
        """The dense view for steps of up to ``max_tokens`` and ``max_requests``.

        Exact at the probes, never decreasing in tokens or requests, and beyond the last probe at
        least as steep as the whole curve on average: an unmeasured size never looks free.
        """
        for name, value in (("max_tokens", max_tokens), ("max_requests", max_requests)):
            if value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        assert self.prefill is not None
        assert self.host is not None
        verify_s, verify_slope_s = self.verify_curve.dense(max_tokens)
        ragged_s, ragged_slope_s = self.ragged_curve.dense(max_tokens)
        plain_s, plain_slope_s = self.plain_curve.dense(max_tokens)
        nothing = np.zeros(max_requests + 1), 0.0
        request_s, request_slope_s = (
            self.request_curve.dense(max_requests) if self.request_curve else nothing
        )
        draft_s, draft_slope_s = (
            self.draft_curve.dense(max_requests) if self.draft_curve else nothing
        )
        return CostTables(
            verify_s=verify_s,
            verify_slope_s=verify_slope_s,
            request_s=request_s,
            request_slope_s=request_slope_s,
            draft_s=draft_s,
            draft_slope_s=draft_slope_s,
            context_s=self.context.token_s if self.context else 0.0,
            context_reference_tokens=float(self.context.reference_tokens) if self.context else 0.0,
            prefill_base_s=float(self.prefill.base_s),
            prefill_token_s=float(self.prefill.token_s),
            prefill_pair_s=float(self.prefill.pair_s),
            host_s=float(self.host.step_s),
            ragged_s=ragged_s,
            ragged_slope_s=ragged_slope_s,
            plain_s=plain_s,
            plain_slope_s=plain_slope_s,
            measured_tokens=self.valid_range.tokens[1],
            measured_requests=self.valid_range.requests[1],
            prefill_floor_s=float(self.prefill.floor_s),
            ragged_floor_s=float(self.ragged.floor_s) if self.ragged else 0.0,
            adaptive_s=float(self.adaptive.step_s) if self.adaptive else 0.0,
            adaptive_request_s=float(self.adaptive.request_s) if self.adaptive else 0.0,
            overlapped_s=float(self.overlapped.step_s) if self.overlapped else 0.0,
            shaped=self.ragged is not None or self.adaptive is not None,
        )

    @functools.cached_property
    def _warned(self) -> list[str]:
        return []

    def warn_outside(self, tokens: int, requests: int) -> None:
        """Warn, once per model, when a step leaves the range the model vouches for."""
        for unit, value in (("tokens", tokens), ("requests", requests)):
            low, high = getattr(self.valid_range, unit)
            if not low <= value <= high and not self._warned:
                self._warned.append(unit)
                warnings.warn(
                    f"cost model {self.name!r} is asked for {value} {unit}, outside its range "
                    f"{low}..{high}; times there are extrapolated pessimistically",
                    stacklevel=2,
                )

    def text(self) -> str:
        """The model as JSON, absent blocks left out and lists of numbers on a line."""
        return layout(as_json(self))

    def save(self, path: str | Path) -> None:
        """Write ``text``."""
        with atomic_write(path) as file:
            file.write(self.text())


def as_json(model: CostModel) -> dict[str, Any]:
    """The model as plain JSON values, in the order of the fields, absent blocks left out."""
    plain = dataclasses.asdict(model)
    return {key: value for key, value in plain.items() if value is not None or key == "fit_error"}


def layout(value: dict[str, Any]) -> str:
    """Indented JSON whose lists of numbers are filled lines instead of one number a line."""

    def filled(match: re.Match[str]) -> str:
        numbers = " ".join(match[2].split())
        if len(numbers) < 80:
            return f"{match[1]}[{numbers}]"
        margin = " " * (len(match[1]) - len(match[1].lstrip()) + 1)
        lines = textwrap.fill(numbers, 98, initial_indent=margin, subsequent_indent=margin)
        return f"{match[1]}[\n{lines}\n{margin[1:]}]"

    text = json.dumps(value, indent=1, allow_nan=False)
    return re.sub(r"^( *.*)\[([\d\s.,e+-]+)\]", filled, text, flags=re.MULTILINE) + "\n"


def decode_cost_model(value: Any, *, where: str) -> CostModel:
    """A cost model from parsed JSON; errors begin with ``where``."""
    return decode_record(value, CostModel, where=where)


def from_sglang(table: SpsTable | SpsAdditiveTable, *, name: str) -> CostModel:
    """A cost model of the prices in SGLang's own file, which it carries for policy ``sglang``."""
    return CostModel(schema_version=SCHEMA_VERSION, name=name, **priced(table))
