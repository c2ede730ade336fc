"""What DSPARK carries from one step of a batch to the next: the anchors, nothing else.

Under overlap scheduling even those go through the relay; confidences of earlier steps stay with
the worker (``planning``). Shapes: R requests.
"""

from __future__ import annotations

import torch
from sglang.srt.speculative.spec_info import SpecInput, SpecInputType
from torch import Tensor


class DraftInput(SpecInput):  # type: ignore[misc]
    """Anchors [R] (the last committed token of each request) and lengths [R] without them."""

    topk_p = topk_index = hidden_states = None
    """The relay asks for EAGLE's proposals; there are none."""

    def __init__(self, *, bonus_tokens: Tensor, new_seq_lens: Tensor) -> None:
        super().__init__(SpecInputType.DFLASH_DRAFT)
        self.bonus_tokens = bonus_tokens
        self.new_seq_lens = new_seq_lens
        self.future_indices: Tensor | None = None

    def get_spec_adjust_token_coefficient(self) -> tuple[int, int]:
        """Tokens per request for data-parallel attention, which is refused."""
        return 1, 1

    def filter_batch(self, new_indices: Tensor, has_been_filtered: bool = True) -> None:
        """Keep these rows."""
        if self.future_indices is not None:
            self.future_indices = self.future_indices[new_indices]
            return
        self.bonus_tokens = self.bonus_tokens[new_indices]
        self.new_seq_lens = self.new_seq_lens[new_indices]

    def merge_batch(self, other: DraftInput) -> None:
        """Append another batch's rows."""
        if self.future_indices is not None:
            assert other.future_indices is not None
            self.future_indices = torch.cat([self.future_indices, other.future_indices])
            return
        self.bonus_tokens = torch.cat([self.bonus_tokens, other.bonus_tokens])
        self.new_seq_lens = torch.cat([self.new_seq_lens, other.new_seq_lens])
