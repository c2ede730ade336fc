"""SGLang's own step-cost files, ``SpsCostTable`` and ``SpsAdditiveCostTable``, as it reads them.

Owns the two JSON formats, the way SGLang looks values up in them, floor lookup and flat ends
included, so that the ``sglang`` policy decides as SGLang does, and the bounds of what a file may
say. Knows no ``CostModel``.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.bounds import LEAST_STEP_S, MOST_STEP_S, refuse_outside
from sglang_dspark.files import atomic_write, decode_record, read_json

Floats = npt.NDArray[np.float64]


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


_KEYS = frozenset(
    field.name for kind in (SpsTable, SpsAdditiveTable) for field in dataclasses.fields(kind)
)


def _save(path: str | Path, table: SpsTable | SpsAdditiveTable) -> None:
    with atomic_write(path) as file:
        json.dump(dataclasses.asdict(table), file, allow_nan=False)
        file.write("\n")


def is_sglang_table(value: Any) -> bool:
    """Whether parsed JSON is, or was meant to be, one of SGLang's two files: by its keys."""
    return isinstance(value, dict) and bool(_KEYS & value.keys()) and "kind" not in value


def decode_sglang_table(value: Any, *, where: str) -> SpsTable | SpsAdditiveTable:
    """Either of SGLang's files from parsed JSON; ``bias_seconds`` tells them apart, as in SGLang.

    ``ValueError`` beginning with ``where``, also for steps shorter than 1e-5 s or longer than 10 s.
    """
    if isinstance(value, dict) and "bias_seconds" in value:
        additive = decode_record(value, SpsAdditiveTable, where=where)
        parts = (additive.alpha_seconds, additive.theta_seconds)
        for pick in (min, max):
            alpha_s, theta_s = (pick(part) for part in parts)
            refuse_outside(
                additive.bias_seconds + alpha_s + theta_s,
                what=f"{where}: bias_seconds {additive.bias_seconds:g} with alpha {alpha_s:g} and "
                f"theta {theta_s:g}",
            )
        return additive
    table = decode_record(value, SpsTable, where=where)
    for tokens, rate in zip(table.sample_batch_tokens, table.sample_steps_per_sec, strict=True):
        if not 1 / MOST_STEP_S <= rate <= 1 / LEAST_STEP_S:
            raise ValueError(
                f"{where}: sample_steps_per_sec {rate:g} at {tokens} tokens is outside "
                f"{1 / MOST_STEP_S:g} to {1 / LEAST_STEP_S:g}, which no server leaves; give whole "
                "decode steps per second, neither their seconds nor steps per millisecond"
            )
    return table


def load_sglang_table(path: str | Path) -> SpsTable | SpsAdditiveTable:
    """Either of SGLang's files; ``ValueError`` in one sentence for what is wrong with it."""
    return decode_sglang_table(read_json(path), where=str(path))
