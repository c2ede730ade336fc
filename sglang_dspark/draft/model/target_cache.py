"""Keys and values of a target while decoding, with one length a request, and rejections taken back.

Owns the two kinds there are: plain keys and values, and DeepSeek-V4's with what its compressors
were given. Both take back a rejection by moving a length. Knows no model beyond the calls that
transformers makes.

Shapes: R requests, T tokens, N key/value heads, L cached tokens, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class TargetCache:
    """Keys and values of every layer, one row a request; a token's slot is its position.

    Rows have their own lengths. Slots beyond a row's length hold leftovers (rejected tokens,
    padding) that no query sees, since a query at position p sees slots <= p and writes its own
    first; so cropping after a rejection moves a length and no data.
    """

    def __init__(self, *, config: Any, requests: int, capacity: int) -> None:
        """``config``: the target's text config."""
        self.config = config
        self.requests = requests
        self.capacity = capacity
        self.lengths = torch.zeros(requests, dtype=torch.int64)
        self.limit: int = 0
        """Slots that the forward at hand may see."""
        self._stores: dict[tuple[str, int], Tensor] = {}
        self._rows_R: Tensor | None = None
        self._slots_RT = torch.empty(0, dtype=torch.int64)

    def crop(self, *, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Keep the first ``lengths[i]`` tokens of row ``rows[i]``; 0 frees it."""
        for row, length in zip(rows, lengths, strict=True):
            if not 0 <= length <= self.lengths[row]:
                raise ValueError(
                    f"cannot crop row {row} to {length} tokens; it holds {int(self.lengths[row])}"
                )
            self.lengths[row] = length

    def writing(self, *, rows: Sequence[int] | None, slots_RT: Tensor) -> None:
        """The next forward's keys go to these slots of these rows (all)."""
        self._rows_R = None if rows is None else torch.tensor(rows)
        self._slots_RT = slots_RT
        stored = slots_RT[slots_RT < self.capacity]
        self.limit = int(stored.max()) + 1 if stored.numel() else 1

    def update(
        self, keys_RNTE: Tensor, values_RNTE: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """What transformers' attention calls: store the new, return all up to the limit."""
        keys = self.stored(("keys", layer), keys_RNTE.transpose(1, 2)).transpose(1, 2)
        if values_RNTE is keys_RNTE:  # DeepSeek-V4's keys are its values
            return keys, keys
        values = self.stored(("values", layer), values_RNTE.transpose(1, 2)).transpose(1, 2)
        return keys, values

    def stored(self, name: tuple[str, int], new_RT: Tensor) -> Tensor:
        """Store new [R, T, ...] at the slots at hand; returns all [R, L, ...] up to the limit."""
        if name not in self._stores:
            shape = (self.requests, self.capacity + 1, *new_RT.shape[2:])
            self._stores[name] = new_RT.new_zeros(shape)
        store, device = self._stores[name], new_RT.device
        rows_R = torch.arange(self.requests) if self._rows_R is None else self._rows_R
        picked_R = rows_R.to(device)
        store[picked_R[:, None], self._slots_RT.to(device)] = new_RT
        seen = store[:, : self.limit]
        return seen if self._rows_R is None else seen[picked_R]

    def get_seq_length(self, *_: Any) -> int:
        """Asked for by transformers when positions are not given; they always are."""
        return int(self.lengths.max())


class CompressedCache(TargetCache):
    """DeepSeek-V4's: beside the keys, what every compressor was given for each token.

    A compressor is handed all windows of all its tokens again at each forward and makes its
    entries anew (elementwise work, no matrix product), so that taking back a rejection needs no
    undoing, and rows may have unlike lengths: a query's entries are those whose windows end before
    it, which are written by then; later ones hold leftovers that its mask hides.
    """

    @property
    def layers(self) -> CompressedCache:
        """transformers asks for ``layers[i]``."""
        return self

    def __getitem__(self, layer: int) -> Compressed:
        """What the compressor of a layer calls."""
        return Compressed(self, layer)


class Compressed:
    """A layer's compressor inputs, under the names that transformers' compressors call."""

    def __init__(self, cache: CompressedCache, layer: int) -> None:
        self._cache, self._layer = cache, layer
        config = cache.config
        self.rate: int = config.compress_rates[config.layer_types[layer]]

    def store_compression_weights(
        self, name: str, kv_RTE: Tensor, gate_RTE: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """Every whole window there is: (kv, gate), each [R, L', E], and the first's position."""
        windows = self._cache.limit // self.rate
        seen = [
            self._cache.stored((f"{name} {part}", self._layer), new)[:, : windows * self.rate]
            for part, new in (("kv", kv_RTE), ("gate", gate_RTE))
        ]
        return seen[0], seen[1], 0

    def update_overlap_state(self, *_: Any) -> tuple[None, None]:
        """No window begins before the ones given."""
        return None, None

    def update_compressor_states(self, _: str, compressed: Tensor) -> Tensor:
        """They are all there."""
        return compressed
