"""AdamW on one flat vector of float32 masters, its schedule, and what a resume needs of it.

Owns the optimiser's arithmetic and the sum of gradients over micro-batches and processes. Knows no
model and no data. Masters are float32 whatever the model computes in: where the model is float32
itself, its parameters are views of the masters and nothing is copied. Gradients of micro-batches
add up in float32 and cross the network once per step, so the loss must be normalised over the
global batch beforehand; a step then does not depend on how the batch was cut up.

Several processes share the state (ZeRO stage 1): each keeps an equal part of masters and moments,
gets that part of the summed gradient, updates it, and hands the new weights to the others. AdamW is
elementwise, so that nothing but the order of a sum depends on how many there are; the clipping norm
is of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Renamed in torch 2.13.
_ALL_GATHER: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_REDUCE_SCATTER: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate: linear warm-up, then cosine to zero."""

    peak: float
    """Highest learning rate."""
    steps: int
    """Optimiser steps in all."""
    warmup: float
    """Share of the steps that warms up."""

    def rate(self, step: int) -> float:
        """Learning rate of the 0-based ``step``; the last step is the last above zero."""
        warm = math.ceil(self.warmup * self.steps)
        if step < warm:
            return self.peak * (step + 1) / warm
        return self.peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / (self.steps - warm)))


class FlatAdamW:
    """AdamW over ``parameters`` as one vector; state is three vectors of that length, or a part.

    Elementwise, hence the same arithmetic as AdamW over separate tensors; only the clipping norm
    is taken over all of them, as it should be.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        weight_decay: float,
        betas: tuple[float, float],
        clip: float,
    ) -> None:
        self._parameters = list(parameters)
        self._clip = clip
        self._world = dist.get_world_size() if dist.is_initialized() else 1
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        sizes = [p.numel() for p in self._parameters]
        self.length = sum(sizes)
        part = -(-self.length // self._world)
        # The last piece fills the vector up to equal parts; nothing ever reads it.
        self._sizes = [*sizes, part * self._world - self.length]
        self._mine = slice(self._rank * part, (self._rank + 1) * part)
        kinds = {p.dtype for p in self._parameters}
        self.device = self._parameters[0].device
        self._shared = kinds == {torch.float32}
        # What the parameters are views of: all that crosses the network after a step.
        self._flat = self._whole(kinds.pop() if len(kinds) == 1 else torch.float32)
        self._flat_views = self._views(self._flat)
        for parameter, view in zip(self._parameters, self._flat_views, strict=True):
            if parameter.dtype == self._flat.dtype:
                parameter.data = view
        self._gradient = torch.zeros(part * self._world, device=self.device)
        self._gradient_views = self._views(self._gradient)
        self.masters = self._flat[self._mine] if self._shared else self._own_masters()
        leaf = nn.Parameter(self.masters)
        leaf.grad = self._gradient[self._mine]
        self._adam = torch.optim.AdamW(
            [leaf], lr=0.0, betas=betas, weight_decay=weight_decay, foreach=False
        )
        state = self._adam.state[leaf]
        state["step"] = torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(self.masters)
        state["exp_avg_sq"] = torch.zeros_like(self.masters)
        self._state = state

    def _whole(self, dtype: torch.dtype) -> Tensor:
        """All parameters end to end, filled up to equal parts."""
        pieces = [p.detach().flatten().to(dtype) for p in self._parameters]
        return torch.cat([*pieces, torch.zeros(self._sizes[-1], dtype=dtype, device=self.device)])

    def _own_masters(self) -> Tensor:
        """This process's part of the parameters in float32; never all of them at once."""
        pieces, start = [], 0
        for parameter, size in zip(self._parameters, self._sizes, strict=False):
            first, last = max(self._mine.start, start), min(self._mine.stop, start + size)
            if first < last:
                piece = parameter.detach().flatten()[first - start : last - start]
                pieces.append(piece.float())
            start += size
        short = self._mine.stop - self._mine.start - sum(map(len, pieces))
        return torch.cat([*pieces, torch.zeros(short, device=self.device)])

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The vector's pieces in the parameters' shapes."""
        pieces = torch.split(flat, self._sizes)
        return [
            piece.view_as(parameter)
            for piece, parameter in zip(pieces, self._parameters, strict=False)
        ]

    def accumulate(self) -> None:
        """Add the parameters' gradients to the float32 sum and forget them."""
        for parameter, view in zip(self._parameters, self._gradient_views, strict=True):
            if parameter.grad is not None:
                view.add_(parameter.grad)
                parameter.grad = None

    def step(self, *, rate: float) -> float:
        """Sum gradients over processes, clip, update; returns the norm before clipping."""
        mine = self._summed()
        length = mine.norm()
        if self._world > 1:
            squared = length.square()
            dist.all_reduce(squared)
            length = squared.sqrt()
        norm = float(length)
        if not math.isfinite(norm):
            raise ValueError(
                f"the gradient norm is {norm}: training diverged; lower the learning rate"
            )
        if norm > self._clip:
            mine.mul_(self._clip / norm)
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()
        self._gradient.zero_()
        self._publish()
        return norm

    def _summed(self) -> Tensor:
        """This process's part of the gradient, summed over all."""
        mine = self._gradient[self._mine]
        if self._world > 1:
            if dist.get_backend() == "nccl":
                _REDUCE_SCATTER(mine, self._gradient)
            else:  # gloo has none, and its sum over all would hold the vector twice
                for other, part in enumerate(torch.split(self._gradient, len(mine))):
                    dist.reduce(part, other)
        return mine

    def _publish(self) -> None:
        """Everybody's new masters into the parameters."""
        if not self._shared:
            self._flat[self._mine].copy_(self.masters)
        if self._world > 1:
            _ALL_GATHER(self._flat, self._flat[self._mine].clone())
        for parameter, view in zip(self._parameters, self._flat_views, strict=True):
            if parameter.dtype != self._flat.dtype:
                parameter.data.copy_(view)

    def state_bytes(self) -> int:
        """Bytes of masters and moments in this process; masters that are the parameters' count."""
        return 3 * self.masters.numel() * 4

    def state(self) -> dict[str, Tensor]:
        """Everything a resume needs, whole, on the first process; every process must call it.

        Parts come one by one and leave the device at once. The others get an empty record.
        """
        parts = {
            "masters": self.masters,
            "exp_avg": self._state["exp_avg"],
            "exp_avg_sq": self._state["exp_avg_sq"],
        }
        whole = {name: self._gathered(part) for name, part in parts.items()}
        if self._rank:
            return {}
        return {**whole, "updates": self._state["step"]}

    def _gathered(self, part: Tensor) -> Tensor:
        if self._world == 1:
            return part
        if self._rank:
            dist.send(part.contiguous(), 0)
            return part
        pieces = [part.cpu()]
        for other in range(1, self._world):
            piece = torch.empty_like(part)
            dist.recv(piece, other)
            pieces.append(piece.cpu())
        return torch.cat(pieces)[: self.length]

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to ``state()``, bit for bit, of as many processes as there were or of others."""
        parts = {
            "masters": self.masters,
            "exp_avg": self._state["exp_avg"],
            "exp_avg_sq": self._state["exp_avg_sq"],
        }
        for name, part in parts.items():
            whole = state[name]
            if len(whole) != self.length:
                raise RuntimeError(f"{name} has {len(whole)} numbers, the drafter {self.length}")
            mine = whole[self._mine]
            part.zero_()
            part[: len(mine)].copy_(mine)
        self._state["step"].copy_(state["updates"])
        self._publish()

    def broadcast(self) -> None:
        """Give every process the first one's masters."""
        if self._world > 1:
            dist.broadcast(self._flat, 0)
            if not self._shared:
                for parameter in self._parameters:
                    dist.broadcast(parameter.data, 0)
                self.masters.copy_(self._own_masters())
            self._publish()
