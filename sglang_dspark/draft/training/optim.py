"""AdamW on one flat vector of float32 masters, its schedule, and what a resume needs of it.

Owns the optimiser's arithmetic and the sum of gradients over micro-batches and processes. Knows no
model and no data. Masters are float32 whatever the model computes in: where the model is float32
itself, its parameters are views of the masters and nothing is copied. Gradients of micro-batches
add up in float32 and cross the network once per step, so the loss must be normalised over the
global batch beforehand; a step then does not depend on how the batch was cut up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


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
    """AdamW over ``parameters`` as one vector; state is three vectors of that length.

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
        self.masters = torch.cat([p.detach().flatten().float() for p in self._parameters])
        self._gradient = torch.zeros_like(self.masters)
        self._master_views = self._views(self.masters)
        self._gradient_views = self._views(self._gradient)
        self._shared = all(p.dtype == torch.float32 for p in self._parameters)
        if self._shared:
            for parameter, view in zip(self._parameters, self._master_views, strict=True):
                parameter.data = view
        leaf = nn.Parameter(self.masters)
        leaf.grad = self._gradient
        self._adam = torch.optim.AdamW(
            [leaf], lr=0.0, betas=betas, weight_decay=weight_decay, foreach=False
        )
        state = self._adam.state[leaf]
        state["step"] = torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(self.masters)
        state["exp_avg_sq"] = torch.zeros_like(self.masters)
        self._state = state

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The vector's pieces in the parameters' shapes."""
        pieces = torch.split(flat, [p.numel() for p in self._parameters])
        return [
            piece.view_as(parameter)
            for piece, parameter in zip(pieces, self._parameters, strict=True)
        ]

    def accumulate(self) -> None:
        """Add the parameters' gradients to the float32 sum and forget them."""
        for parameter, view in zip(self._parameters, self._gradient_views, strict=True):
            if parameter.grad is not None:
                view.add_(parameter.grad)
                parameter.grad = None

    def step(self, *, rate: float) -> float:
        """Sum gradients over processes, clip, update; returns the norm before clipping."""
        if dist.is_initialized():
            dist.all_reduce(self._gradient)
        norm = float(self._gradient.norm())
        if not math.isfinite(norm):
            raise ValueError(
                f"the gradient norm is {norm}: training diverged; lower the learning rate"
            )
        if norm > self._clip:
            self._gradient.mul_(self._clip / norm)
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()
        self._gradient.zero_()
        self._publish()
        return norm

    def _publish(self) -> None:
        if not self._shared:
            for parameter, view in zip(self._parameters, self._master_views, strict=True):
                parameter.data.copy_(view)

    def state(self) -> dict[str, Tensor]:
        """Everything a resume needs; tensors are the live ones, to be written at once."""
        return {
            "masters": self.masters,
            "exp_avg": self._state["exp_avg"],
            "exp_avg_sq": self._state["exp_avg_sq"],
            "updates": self._state["step"],
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to ``state()``, bit for bit."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self._publish()

    def broadcast(self) -> None:
        """Give every process the first one's masters."""
        if dist.is_initialized():
            dist.broadcast(self.masters, 0)
            self._publish()
