"""What tensor-parallel ranks decide is rank 0's, everywhere.

Two processors may differ in the last bit of a confidence, and one of them alone may fail. Ranks
that then verify different numbers of tokens replay different CUDA graphs and wait for each other
forever. Owns the broadcast, over the processors' own group: nothing waits for a device. Knows no
policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Ranks:
    """The ranks that hold shards of the same layers; ``group`` is SGLang's coordinator of them."""

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.alone: bool = group is None or group.world_size == 1

    def first_of(self, values: Sequence[int]) -> list[int]:
        """Rank 0's values. Every rank calls it for the same step, with as many values."""
        if self.alone:
            return list(values)
        decided = torch.tensor(values, dtype=torch.int64)
        torch.distributed.broadcast(decided, src=self._group.ranks[0], group=self._group.cpu_group)
        found: list[int] = decided.tolist()
        return found


def ranks_of(server_args: Any) -> Ranks:
    """The ranks that decide together: those of one replica under data-parallel attention."""
    from sglang.srt.distributed import parallel_state

    if getattr(server_args, "enable_dp_attention", False):
        return Ranks(parallel_state.get_attn_tp_group())
    return Ranks(parallel_state.get_tp_group())
