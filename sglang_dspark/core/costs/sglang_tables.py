"""SGLang's own step-cost files, ``SpsCostTable`` and ``SpsAdditiveCostTable``: in, out and read.

Owns the two JSON formats and the way SGLang looks values up in them, floor lookup and flat ends
included, so that the ``sglang`` policy decides as SGLang does. A ``CostModel`` made from such a
file differs on purpose where SGLang is optimistic: a size between probes costs what the next probe
costs, and beyond the last probe times keep rising.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.model import SCHEMA_VERSION, CostModel
from sglang_dspark.core.costs.roofline import sglang_request_tiers
from sglang_dspark.core.costs.schema import (
    AdditiveCost,
    GraphTiers,
    HostCost,
    PrefillCost,
    Provenance,
    StepTable,
    ValidRange,
)
from sglang_dspark.core.costs.tables import RAGGED, decode_step_seconds
from sglang_dspark.files import atomic_write, decode_record, read_json

Floats = npt.NDArray[np.float64]

MOST_PROBES = 64
"""Probes that an exported table is thinned to: what SGLang's planner is timed with."""


def _check_sizes(name: str, sizes: tuple[int, ...], values: tuple[float, ...]) -> None:
    """SGLang's own rules, plus finite values."""
    if not sizes:
        raise ValueError(f"{name} is empty; give at least one probe")
    if list(sizes) != sorted(set(sizes)):
        raise ValueError(f"{name} {list(sizes)} must increase strictly; sort them, drop repeats")
    if len(sizes) != len(values):
        raise ValueError(f"{name} has {len(sizes)} probes for {len(values)} values; give one each")
    for size, value in zip(sizes, values, strict=True):
        if not isfinite(value):
            raise ValueError(f"{name}: {value} at {size} is not finite; measure again")


@dataclass(frozen=True, kw_only=True)
class SpsTable:
    """Steps per second by batch tokens: SGLang's ``SpsCostTable``."""

    sample_batch_tokens: tuple[int, ...]
    """Probed step sizes, strictly increasing."""
    sample_steps_per_sec: tuple[float, ...]
    """Whole decode steps per second at each."""
    max_batch_tokens: int
    """Largest step the server runs; at least the last probe."""

    def __post_init__(self) -> None:
        tokens, rates = self.sample_batch_tokens, self.sample_steps_per_sec
        _check_sizes("sample_batch_tokens", tokens, rates)
        if min(rates) <= 0:
            raise ValueError(f"sample_steps_per_sec {min(rates):g} must be above 0; measure again")
        if self.max_batch_tokens < tokens[-1]:
            raise ValueError(
                f"max_batch_tokens {self.max_batch_tokens} is below the last probe {tokens[-1]}; "
                "raise it"
            )

    def dense(self, max_tokens: int) -> Floats:
        """[M+1] steps per second by SGLang's floor lookup.

        The last probe at or below m; the first below it, the last beyond it however far.
        """
        sizes = np.array(self.sample_batch_tokens)
        index = np.searchsorted(sizes, np.arange(max_tokens + 1), side="right") - 1
        return np.array(self.sample_steps_per_sec, dtype=np.float64)[np.maximum(index, 0)]

    def save(self, path: str | Path) -> None:
        """Write SGLang's JSON (``--speculative-dspark-sps-table-path``)."""
        _save(path, self)


@dataclass(frozen=True, kw_only=True)
class SpsAdditiveTable:
    """T(R, M) = bias + alpha(R) + theta(M): SGLang's ``SpsAdditiveCostTable``."""

    bias_seconds: float
    bs_probes: tuple[int, ...]
    """Numbers of requests, strictly increasing."""
    alpha_seconds: tuple[float, ...]
    m_probes: tuple[int, ...]
    """Numbers of tokens, strictly increasing."""
    theta_seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_sizes("bs_probes", self.bs_probes, self.alpha_seconds)
        _check_sizes("m_probes", self.m_probes, self.theta_seconds)
        if not (isfinite(self.bias_seconds) and self.bias_seconds > 0):
            raise ValueError(f"bias_seconds {self.bias_seconds} must be above 0; SGLang refuses it")

    def dense_alpha(self, max_requests: int) -> Floats:
        """[R+1] alpha, linear and clamped at both ends as SGLang reads it."""
        sizes = np.arange(max_requests + 1)
        dense = _between(sizes, self.bs_probes, self.alpha_seconds)
        return np.where(sizes >= self.bs_probes[-1], self.alpha_seconds[-1], dense)

    def dense_theta(self, max_tokens: int) -> Floats:
        """[M+1] theta, linear and clamped at both ends as SGLang reads it."""
        return _between(np.arange(max_tokens + 1), self.m_probes, self.theta_seconds)

    def save(self, path: str | Path) -> None:
        """Write SGLang's JSON (``--speculative-dspark-sps-table-path``)."""
        _save(path, self)


def _between(
    sizes: npt.NDArray[np.int64], probes: tuple[int, ...], values: tuple[float, ...]
) -> Floats:
    """Linear between probes, clamped at both ends, in SGLang's order of operations.

    ``np.interp`` rounds differently, which would turn a tie between two budgets.
    """
    x, y = np.array(probes, dtype=np.float64), np.array(values, dtype=np.float64)
    if x.size == 1:
        return np.full(sizes.size, y[0])
    at = np.clip(sizes.astype(np.float64), x[0], x[-1])
    high = np.clip(np.searchsorted(x, at, side="right"), 1, x.size - 1)
    low = high - 1
    share = (at - x[low]) / (x[high] - x[low])
    return np.asarray(y[low] + share * (y[high] - y[low]), dtype=np.float64)


def _save(path: str | Path, table: SpsTable | SpsAdditiveTable) -> None:
    with atomic_write(path) as file:
        json.dump(dataclasses.asdict(table), file, allow_nan=False)
        file.write("\n")


def load_sglang_table(path: str | Path) -> SpsTable | SpsAdditiveTable:
    """Either of SGLang's files; ``bias_seconds`` tells them apart, as in SGLang."""
    value = read_json(path)
    if isinstance(value, dict) and "bias_seconds" in value:
        return decode_record(value, SpsAdditiveTable, where=str(path))
    return decode_record(value, SpsTable, where=str(path))


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
    """A cost model of kind ``table`` from SGLang's file.

    Drafting is inside the times, which also means that ``none`` is charged for it. Two differences
    from SGLang's reading, both pessimistic: sizes are padded up to the next probe instead of down,
    and beyond the last probe times rise. Where a bigger step was timed faster, the running maximum
    is taken. Prefill is priced as verification; there is no memory block.
    """
    measured = [1.0 / rate for rate in table.sample_steps_per_sec]
    seconds, raised = _running_maximum(measured)
    tokens = table.sample_batch_tokens
    return CostModel(
        schema_version=SCHEMA_VERSION,
        name=name,
        kind="table",
        provenance=_provenance("SpsCostTable"),
        valid_range=ValidRange(
            tokens=(1, tokens[-1]), requests=(1, tokens[-1]), context_tokens=(0, 0)
        ),
        fit_error=None,
        table=StepTable(
            tokens=tokens,
            seconds=seconds,
            between="staircase",
            origin="measured",
            note=f"drafting included; {raised} of {len(seconds)} raised to the running maximum",
        ),
        prefill=_prefill(seconds[-1] / tokens[-1]),
        host=_host(),
        graphs=_graphs(),
    )


def from_additive(table: SpsAdditiveTable, *, name: str = "sglang-additive-table") -> CostModel:
    """A cost model of kind ``additive`` from SGLang's file.

    Equal to SGLang's reading between the probes; beyond them SGLang goes flat and this rises. A
    negative or decreasing part is brought to this project's form: its first value moves into the
    bias, and the running maximum is taken.
    """
    alpha, alphas_raised = _running_maximum(table.alpha_seconds)
    theta, thetas_raised = _running_maximum(table.theta_seconds)
    shift_alpha, shift_theta = min(alpha[0], 0.0), min(theta[0], 0.0)
    bias_s = table.bias_seconds + shift_alpha + shift_theta
    if bias_s <= 0:
        raise ValueError(
            f"bias_seconds {table.bias_seconds:g} with alpha {alpha[0]:g} and theta {theta[0]:g} "
            "gives steps that take no time; measure again"
        )
    tokens = table.m_probes[-1]
    return CostModel(
        schema_version=SCHEMA_VERSION,
        name=name,
        kind="additive",
        provenance=_provenance("SpsAdditiveCostTable"),
        valid_range=ValidRange(
            tokens=(1, tokens), requests=(1, table.bs_probes[-1]), context_tokens=(0, 0)
        ),
        fit_error=None,
        additive=AdditiveCost(
            bias_s=bias_s,
            requests=table.bs_probes,
            alpha_s=tuple(a - shift_alpha for a in alpha),
            tokens=table.m_probes,
            theta_s=tuple(t - shift_theta for t in theta),
            origin="measured",
            note=f"drafting included; {alphas_raised + thetas_raised} values raised to the running "
            "maximum",
        ),
        prefill=_prefill((bias_s + alpha[-1] + theta[-1]) / tokens),
        host=_host(),
        graphs=_graphs(),
    )


def _running_maximum(values: list[float] | tuple[float, ...]) -> tuple[tuple[float, ...], int]:
    """The least non-decreasing sequence above ``values``, and how many it raised."""
    best = np.maximum.accumulate(np.array(values, dtype=np.float64))
    return tuple(best.tolist()), int((best > np.array(values)).sum())


def _provenance(table: str) -> Provenance:
    unstated = "not stated in the file"
    return Provenance(
        origin="measured",
        source=f"SGLang {table} file",
        hardware=unstated,
        model=unstated,
        dtype=unstated,
        tp=1,
        engine="SGLang",
        date=unstated,
        command="sglang_dspark.core.costs.sglang_tables",
    )


def _prefill(token_s: float) -> PrefillCost:
    return PrefillCost(
        base_s=0.0,
        token_s=token_s,
        pair_s=0.0,
        origin="analytic",
        note="priced as verification, since SGLang's file says nothing of prefill",
    )


def _host() -> HostCost:
    return HostCost(step_s=0.0, origin="measured", note="inside the step's time")


def _graphs() -> GraphTiers:
    return GraphTiers(tiers_tokens=(), beyond_last_s=0.0, origin="measured", note="the probes")
