"""Between a cost model and SGLang's own step-cost files: the table to decide by, in and out.

Owns what a model looks like to SGLang's planner. The files are in ``sglang_files``, what they price
in ``sglang_prices``.
"""

from __future__ import annotations

import numpy as np

from sglang_dspark.core.costs.model import CostModel, from_sglang
from sglang_dspark.core.costs.roofline import sglang_request_tiers
from sglang_dspark.core.costs.sglang_files import SpsAdditiveTable, SpsTable
from sglang_dspark.core.costs.tables import RAGGED, decode_step_seconds

MOST_PROBES = 64
"""Probes that an exported table is thinned to: what SGLang's planner is timed with."""


def sps_table(model: CostModel, gamma: int) -> SpsTable | SpsAdditiveTable:
    """What SGLang would be given as ``--speculative-dspark-sps-table-path``.

    The very file that the model was read from, be it of either kind, falling stretches and all;
    for any other model what SGLang's profiler would write for it (``to_sps``).
    """
    return model.sglang_table or to_sps(model, gamma)


def additive_table(model: CostModel) -> SpsAdditiveTable:
    """The same as an additive table: the file itself only where it is one."""
    return model.sglang_additive or to_additive(model)


def to_sps(model: CostModel, gamma: int) -> SpsTable:
    """What SGLang's profiler would write for this model.

    Probes stand at the captured graph tiers, at most 64 of them, evenly thinned. Each is a whole
    decode step at the reference context, of the ragged shape that its planner chooses among, with
    as few requests as have so many tokens:
    verify(m) + draft(ceil(m / (gamma + 1))) + adaptive + host.
    """
    if gamma < 1:
        raise ValueError(f"draft length {gamma} must be at least 1")
    sizes = _thinned(_probe_sizes(model, gamma + 1))
    full = [-(-m // (gamma + 1)) for m in sizes]
    tables = model.tables(sizes[-1], full[-1])
    reference = tables.context_reference_tokens
    pairs = zip(sizes, full, strict=True)
    seconds = [decode_step_seconds(tables, m, r, r, r * reference, RAGGED) for m, r in pairs]
    return SpsTable(
        sample_batch_tokens=tuple(sizes),
        sample_steps_per_sec=tuple(1.0 / s for s in seconds),
        max_batch_tokens=sizes[-1],
    )


def to_additive(model: CostModel) -> SpsAdditiveTable:
    """The model as SGLang's additive table: alpha carries drafting, theta the target's forward.

    The bias takes the smallest forward and the host time, so that it is positive.
    """
    requests = _thinned(_request_probes(model))
    if model.additive is not None and not model.graph_tiers:
        sizes = list(model.additive.tokens)  # linear in SGLang as here: they lose nothing
    else:
        sizes = _probe_sizes(model, model.draft.gamma + 1 if model.draft else 1)
    sizes = _thinned(sizes)
    tables = model.tables(sizes[-1], requests[-1])
    forward_s = np.maximum(tables.ragged_s, tables.ragged_floor_s)
    smallest = float(forward_s[sizes[0]])
    each_s = (
        tables.draft_s
        + tables.request_s
        + tables.adaptive_request_s * np.arange(tables.draft_s.size)
    )
    return SpsAdditiveTable(
        bias_seconds=smallest + tables.host_s + tables.adaptive_s,
        bs_probes=tuple(requests),
        alpha_seconds=tuple(float(each_s[r]) for r in requests),
        m_probes=tuple(sizes),
        theta_seconds=tuple(float(forward_s[m] - smallest) for m in sizes),
    )


def _probe_sizes(model: CostModel, block: int) -> list[int]:
    """Token counts SGLang would time: the graph tiers, else its own ladder within the range."""
    if model.graph_tiers:
        return list(model.graph_tiers)
    low, high = model.valid_range.tokens
    ladder = [block * r for r in sglang_request_tiers(max(high // block, 1))]
    return [m for m in ladder if low <= m <= high] or [high]


def _request_probes(model: CostModel) -> list[int]:
    """Batch sizes of the additive table: where the model itself has probes."""
    if model.additive is not None:
        return list(model.additive.requests)
    if model.draft is not None:
        return list(model.draft.requests)
    return [1, model.valid_range.requests[1]] if model.valid_range.requests[1] > 1 else [1]


def _thinned(sizes: list[int]) -> list[int]:
    """At most 64 of the sizes, first and last kept, evenly spaced in rank."""
    if len(sizes) <= MOST_PROBES:
        return sizes
    ranks = np.linspace(0, len(sizes) - 1, MOST_PROBES).round().astype(int)
    return [sizes[i] for i in ranks]


def from_sps(table: SpsTable, *, name: str = "sglang-sps-table") -> CostModel:
    """A cost model of kind ``table`` from SGLang's file; see ``sglang_prices`` for what differs."""
    return from_sglang(table, name=name)


def from_additive(table: SpsAdditiveTable, *, name: str = "sglang-additive-table") -> CostModel:
    """A cost model of kind ``additive`` from SGLang's file; see ``sglang_prices``."""
    return from_sglang(table, name=name)
