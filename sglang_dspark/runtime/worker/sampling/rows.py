"""Where a request's rows lie in the ragged step, and how per-request values reach them.

Owns indexing only, without asking the device for a number. Knows nothing of logits.

Row layout: request i owns rows start_i .. start_i + length_i; row 0 is its anchor, row j its draft
token j. Shapes: R requests, K draft positions, P some of the requests, M rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def on_device(values: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host numbers as a tensor there; from pinned memory, or the copy would wait for the device."""
    pinned = device.type == "cuda"
    return torch.tensor(values, dtype=dtype, pin_memory=pinned).to(device, non_blocking=True)


def owners(start_R: Tensor, rows: int) -> Tensor:
    """[M] the request that each row belongs to; rows beyond the last request's are the last's."""
    places_M = torch.arange(rows, device=start_R.device)
    return torch.searchsorted(start_R.long(), places_M, right=True) - 1


def starts(lengths_R: Tensor) -> Tensor:
    """[R] first row of each request."""
    counts_R = lengths_R.long() + 1
    return counts_R.cumsum(0) - counts_R


def walk(
    requests_P: Tensor, *, start_R: Tensor, lengths_R: Tensor, positions: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Position by position, 0 to ``positions``: (rows [P], whether they are in use [P, 1]).

    Past a request's last row that row comes again, not in use: what is written there has to be
    what was there. No row comes twice in the same position.
    """
    first_P, last_P = start_R[requests_P].long(), lengths_R[requests_P].long()
    for position in range(positions + 1):
        yield first_P + last_P.clamp(max=position), (position <= last_P)[:, None]
