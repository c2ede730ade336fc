"""What SGLang's own step-cost file prices: the blocks of a cost model, and where they are above it.

A cost model differs on purpose where SGLang is optimistic: a size between probes costs what the
next probe costs, beyond the last probe times keep rising, and where a bigger step was timed faster
than a smaller one the running maximum is taken. Owns these rules and the sentence on the last one.
Knows no ``CostModel``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sglang_dspark.core.costs.schema import (
    AdditiveCost,
    GraphTiers,
    HostCost,
    PrefillCost,
    Provenance,
    StepTable,
    ValidRange,
)
from sglang_dspark.core.costs.sglang_files import SpsAdditiveTable, SpsTable


def priced(table: SpsTable | SpsAdditiveTable) -> dict[str, Any]:
    """The blocks of a ``CostModel`` for SGLang's table, by their field, with the table itself.

    Drafting is inside the times, which also means that ``none`` is charged for it. Prefill is
    priced as verification; there is no memory block. ``ValueError`` where steps take no time.
    """
    return _sps(table) if isinstance(table, SpsTable) else _additive(table)


def _sps(table: SpsTable) -> dict[str, Any]:
    """Kind ``table``: sizes are padded up to the next probe, where SGLang reads the one below."""
    seconds, raised = _running_maximum([1.0 / rate for rate in table.sample_steps_per_sec])
    tokens = table.sample_batch_tokens
    return {
        "kind": "table",
        "table": StepTable(
            tokens=tokens,
            seconds=seconds,
            between="staircase",
            origin="measured",
            note=f"drafting included; {raised} of {len(seconds)} raised to the running maximum",
        ),
        "sglang_sps": table,
        **_around("SpsCostTable", tokens[-1], tokens[-1], seconds[-1]),
    }


def _additive(table: SpsAdditiveTable) -> dict[str, Any]:
    """Kind ``additive``: SGLang's reading between the probes; beyond them it goes flat, this rises.

    A negative or decreasing part is brought to this project's form: its first value moves into the
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
    return {
        "kind": "additive",
        "additive": AdditiveCost(
            bias_s=bias_s,
            requests=table.bs_probes,
            alpha_s=tuple(a - shift_alpha for a in alpha),
            tokens=table.m_probes,
            theta_s=tuple(t - shift_theta for t in theta),
            origin="measured",
            note=f"drafting included; {alphas_raised + thetas_raised} values raised to the running "
            "maximum",
        ),
        "sglang_additive": table,
        **_around(
            "SpsAdditiveCostTable", tokens, table.bs_probes[-1], bias_s + alpha[-1] + theta[-1]
        ),
    }


def _around(kind: str, tokens: int, requests: int, last_s: float) -> dict[str, Any]:
    """The blocks that are the same for both, for a last probe of ``last_s`` seconds."""
    unstated = "not stated in the file"
    return {
        "provenance": Provenance(
            origin="measured",
            source=f"SGLang {kind} file",
            hardware=unstated,
            model="a model that the file does not name",
            dtype=unstated,
            tp=1,
            engine="SGLang",
            date=unstated,
            command="sglang_dspark.core.costs.sglang_tables",
        ),
        "valid_range": ValidRange(
            tokens=(1, tokens), requests=(1, requests), context_tokens=(0, 0)
        ),
        "fit_error": None,
        "prefill": PrefillCost(
            base_s=0.0,
            token_s=last_s / tokens,
            pair_s=0.0,
            origin="analytic",
            note="priced as verification, since SGLang's file says nothing of prefill",
        ),
        "host": HostCost(step_s=0.0, origin="measured", note="inside the step's time"),
        "graphs": GraphTiers(
            tiers_tokens=(), beyond_last_s=0.0, origin="measured", note="the probes"
        ),
    }


def _running_maximum(values: Sequence[float]) -> tuple[tuple[float, ...], int]:
    """The least non-decreasing sequence above ``values``, and how many it raised."""
    best = np.maximum.accumulate(np.array(values, dtype=np.float64))
    return tuple(best.tolist()), int((best > np.array(values)).sum())


def falling(table: SpsTable | SpsAdditiveTable) -> str:
    """The stretches in which a bigger step was timed faster, and what they are priced at, in words.

    ``48 tokens take 18.2 ms and the 3 probes after it, 64 to 128 tokens, 15 to 16.4 ms``; that of
    the largest drop, with the number of others. Empty for times that only rise.
    """
    if isinstance(table, SpsTable):
        times = [1.0 / rate for rate in table.sample_steps_per_sec]
        found = _stretches(table.sample_batch_tokens, times, "tokens")
    else:
        alpha = _stretches(table.bs_probes, table.alpha_seconds, "requests")
        theta = _stretches(table.m_probes, table.theta_seconds, "tokens")
        found = [(drop, f"alpha_seconds: {words}") for drop, words in alpha]
        found += [(drop, f"theta_seconds: {words}") for drop, words in theta]
    if not found:
        return ""
    others = f", and {len(found) - 1} more such" if len(found) > 1 else ""
    return max(found)[1] + others


def _stretches(
    sizes: Sequence[int], seconds: Sequence[float], unit: str
) -> list[tuple[float, str]]:
    """(largest drop in seconds, words) of every run of probes below an earlier one."""
    found = []
    best, first = 0, 0
    for i in range(1, len(sizes) + 1):
        if i < len(sizes) and seconds[i] < seconds[best]:
            first = first or i
            continue
        if first:
            found.append(_words(sizes, seconds, unit, best, range(first, i)))
        best, first = i, 0
    return found


def _words(
    sizes: Sequence[int], seconds: Sequence[float], unit: str, peak: int, below: range
) -> tuple[float, str]:
    times = [seconds[i] for i in below]
    low, high = min(times) * 1e3, max(times) * 1e3
    if len(below) == 1:
        after = f"the probe after it, {sizes[below[0]]} {unit}, {low:.4g} ms"
    else:
        spread = f"{low:.4g} to {high:.4g}" if low < high else f"{low:.4g}"
        after = (
            f"the {len(below)} probes after it, {sizes[below[0]]} to {sizes[below[-1]]} {unit}, "
            f"{spread} ms"
        )
    return (
        seconds[peak] - min(times),
        f"{sizes[peak]} {unit} take {seconds[peak] * 1e3:.4g} ms and {after}",
    )
