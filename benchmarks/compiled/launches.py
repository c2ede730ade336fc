"""What a decode round launches on a GPU, caught on the way: kernels with their very arguments.

Owns the stand-in for a CUDA driver, for which Triton compiles and launches nothing, and the shapes
of a served model. No launch parameter is written down here: the runtime's own functions are called,
on tensors without storage where only shapes matter. Knows neither bounds nor bytes.

Shapes: R requests, K draft positions, V vocabulary, r Markov rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from sglang_dspark.runtime.kernels import triton_head, triton_lengths, triton_rejection
from sglang_dspark.runtime.kernels.head import RowChoice

KERNELS: tuple[Any, ...] = (
    triton_head._bias,
    triton_head._probabilities,
    triton_head._draw,
    triton_rejection._accept,
    triton_rejection._next,
    triton_lengths._survival,
    triton_lengths._assign,
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of the tensors of a round. The defaults are Qwen3's with a drafter of gamma 7."""

    requests: int
    gamma: int = 7
    vocabulary: int = 151_936
    rank: int = 256
    """Of the Markov head; 0 for a drafter without one."""
    head: torch.dtype = torch.bfloat16
    """What its weights are kept in."""
    device: str = "meta"


@dataclass(frozen=True, kw_only=True, eq=False)
class Launch:
    """One launch, before anything ran."""

    kernel: str
    arguments: dict[str, Any]
    """By the kernel's parameter names: tensors, numbers and compile-time constants."""
    grid: tuple[int, ...]
    warps: int
    variant: str = ""
    """What Triton compiles a kernel of its own for: types, alignments, constants and options."""
    compiled: Any = None
    """Triton's result, where it compiled."""

    @property
    def constants(self) -> dict[str, Any]:
        """The block sizes and switches, which are written in capitals."""
        return {name: x for name, x in self.arguments.items() if name.split("_")[0].isupper()}


class NoDriver:
    """A driver for one compute capability, of a GPU that need not be there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        """The capability, so that each has compiled kernels of its own."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """None is ever used."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What Triton compiles for."""
        return GPUTarget("cuda", self.capability, 32)


@contextlib.contextmanager
def caught(capability: int | None = None, *, build: bool = True) -> Iterator[list[Launch]]:
    """The launches of the block.

    With a capability they are compiled for it, or only looked at without ``build``; nothing runs.
    Without one they run as they would, which is for Triton's interpreter.
    """
    found: list[Launch] = []
    with contextlib.ExitStack() as patches:
        if capability is not None:
            patches.enter_context(mock.patch.object(driver, "_active", NoDriver(capability)))
        for kernel in KERNELS:
            run = _catching(kernel, found, capability, build)
            patches.enter_context(mock.patch.object(kernel, "run", run))
        yield found


def _catching(kernel: Any, found: list[Launch], capability: int | None, build: bool) -> Any:
    original = kernel.run

    def run(*args: Any, grid: Any, warmup: bool, **given: Any) -> None:
        compiled, variant = None, ""
        if capability is None:
            original(*args, grid=grid, warmup=warmup, **given)
        else:
            _, special, options = kernel.device_caches[capability][-1](*args, **given)
            variant = repr((special, sorted(options.items())))
            if build:
                compiled = original(*args, grid=grid, warmup=True, **given)
        names = dict(zip(kernel.arg_names, args, strict=False))
        names |= {name: value for name, value in given.items() if name in kernel.arg_names}
        found.append(
            Launch(
                kernel=kernel.fn.__name__,
                arguments=names,
                grid=tuple(grid),
                warps=given["num_warps"],
                variant=variant,
                compiled=compiled,
            )
        )

    return run


def decode_round(shape: Shape, *, slots: int | None = None) -> None:
    """Call whatever launches kernels in a round of ``shape``: head, survival, lengths, acceptance.

    ``slots`` of the head's K slots, which launch the same three kernels; all unless given.
    """
    device, requests, gamma = shape.device, shape.requests, shape.gamma
    vocabulary, f64 = shape.vocabulary, torch.float64
    anywhere: dict[str, Any] = {"device": device}
    # Where kernels run: uniforms of 1 reject every draft, and p above q leaves a residual.
    logits_RKV = torch.ones(requests, gamma, vocabulary, **anywhere)
    uniform_RT = torch.ones(requests, gamma + 1, dtype=f64, **anywhere)
    uniform_RK = torch.zeros(requests, gamma, dtype=f64, **anywhere)
    tokens_RK = torch.zeros(requests, gamma, dtype=torch.int64, **anywhere)
    lengths_R = torch.full((requests,), gamma, **anywhere)
    latent_Rr = torch.zeros(requests, shape.rank, dtype=shape.head, **anywhere)
    choice = RowChoice(temperature_R=torch.ones(requests, **anywhere), uniform_RK=uniform_RK)
    for k in range(gamma if slots is None else slots):
        triton_head.fill_slot(
            logits_RV=logits_RKV[:, k],
            latent_Rr=latent_Rr if shape.rank else None,
            weight_Vr=torch.zeros(vocabulary, shape.rank, dtype=shape.head, **anywhere)
            if shape.rank
            else None,
            choice=choice,
            uniform_R=uniform_RK[:, k],
        )
    survival_RK = triton_lengths.survival(
        logits_RK=torch.zeros(requests, gamma, **anywhere),
        inverse_temperature_K=torch.ones(gamma, dtype=f64, **anywhere),
        bias_K=torch.zeros(gamma, dtype=f64, **anywhere),
    )
    triton_lengths.assign_lengths(survival_RK=survival_RK, budget=requests * gamma)
    triton_rejection.verify_chain(
        drafts_RK=tokens_RK,
        draft_RKV=logits_RKV,
        target_MV=torch.ones(requests * (gamma + 1), vocabulary, **anywhere),
        start_R=torch.arange(requests, **anywhere) * (gamma + 1),
        lengths_R=lengths_R,
        uniform_RT=uniform_RT,
    )


def version() -> str:
    """Of Triton, whose compiler decides about registers."""
    return str(triton.__version__)
