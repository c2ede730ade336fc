"""A cost model as the table that TensorRT-LLM's DSPARK plans with.

    T(R, M) = fixed_overhead_ms + batch_overhead_ms(R) + step_time_ms(M)
linear between probes and level outside them; M counts a request's own token. Source: TensorRT-LLM
main of November 2026, tensorrt_llm/_torch/speculative/dspark_planner.py (``SpsCostTable``, read by
``confidence_sps_table_path``). Its table of exact graph shapes, which is signed by the engine that
was measured, is not written here. Its calibration file may be this project's: it reads
``temperatures`` too, and no biases.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.sglang_tables import to_additive

_LEAST_MS = 1e-4
"""It refuses a time of nothing: the first probe takes this from the overhead of every step."""


@dataclass(frozen=True, kw_only=True)
class TensorRtLlmTable:
    """The keys of its file, milliseconds."""

    token_counts: tuple[int, ...]
    step_time_ms: tuple[float, ...]
    """What the tokens add."""
    fixed_overhead_ms: float
    batch_sizes: tuple[int, ...]
    batch_overhead_ms: tuple[float, ...]
    """What the requests add: drafting above all."""


def to_tensorrt_llm(model: CostModel) -> TensorRtLlmTable:
    """The model in that form, in which it prices every probe as SGLang's additive table does."""
    table = to_additive(model)
    return TensorRtLlmTable(
        token_counts=table.m_probes,
        step_time_ms=tuple(_LEAST_MS + 1e3 * s for s in table.theta_seconds),
        fixed_overhead_ms=max(1e3 * table.bias_seconds - _LEAST_MS, 0.0),
        batch_sizes=table.bs_probes,
        batch_overhead_ms=tuple(1e3 * s for s in table.alpha_seconds),
    )
