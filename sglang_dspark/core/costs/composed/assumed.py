"""The seconds of what no table holds: a data sheet at an assumed share.

The roofline of ``core.costs.roofline``, one operator at a time: the longer of reading and
multiplying. Knows no table.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_dspark.core.costs.composed.gpus import Gpu
from sglang_dspark.core.costs.roofline import LOGIT_BYTES

MFU = 0.7
"""Share of the peak operations: assumed."""
MBU = 0.8
"""Share of the peak bandwidth: assumed, as in the analytic models."""
_LOGIT_PASSES = 4.0  # reads and writes of each row by sampling: assumed, as in the analytic models


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """Seconds on one GPU."""

    gpu: Gpu

    def of_limits(self, math_s: float, memory_s: float) -> float:
        """From the seconds of an operator at the peak of each."""
        return max(math_s / MFU, memory_s / MBU)

    def linear(self, params: float, weight_bytes: float, tokens: int) -> float:
        """``params`` weights applied to ``tokens`` rows in bf16."""
        sheet = self.gpu.sheet
        return self.of_limits(
            2.0 * params * tokens / sheet.flops, weight_bytes / sheet.memory_bytes_per_s
        )

    def reading(self, read_bytes: float) -> float:
        """Memory read or written once."""
        return self.of_limits(0.0, read_bytes / self.gpu.sheet.memory_bytes_per_s)

    def sampling(self, vocabulary: int, rows: int) -> float:
        """Softmax and sampling over ``rows`` of logits."""
        return self.reading(LOGIT_BYTES * _LOGIT_PASSES * vocabulary * rows)
