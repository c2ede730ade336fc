"""Gives SGLang's own DSPARK a known law of acceptance, in trimmed steps too.

SGLANG_SIMULATE_ACC_LEN accepts the same number in every step and is refused where steps are
trimmed, since it may exceed what was verified. Here each position survives with probability c as
long as those before it did, and no more is accepted than was verified. Loaded as a plugin of the
servers that ``steer`` starts; SGLANG_SIMULATE_ACC_LEN=1 beside it keeps SGLang from
accepting inside the CUDA graph. Does nothing unless asked by environment variable.
"""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

SURVIVAL = "DSPARK_BENCHMARK_SURVIVAL"
"""Environment variable: c."""
BARE_CPU = "DSPARK_BENCHMARK_BARE_CPU"
"""Environment variable: fit SGLang's unsteered DSPARK for a CPU."""
_EXECUTOR = "sglang.srt.speculative.dspark_components.dspark_verify.TargetVerifyExecutor"


def register() -> None:
    """Hook the law in, in the process that runs the model."""
    if os.environ.get(BARE_CPU):
        from sglang_dspark.runtime.steer import cpu

        cpu.register()
    if not os.environ.get(SURVIVAL) or multiprocessing.parent_process() is None:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{_EXECUTOR}.accept_and_finalize", _remember_layout, HookType.AROUND)
    HookRegistry.register(f"{_EXECUTOR}._simulated_correct_len", _accepted, HookType.AROUND)


def _remember_layout(original: Any, executor: Any, **given: Any) -> Any:
    executor.benchmark_layout = given.get("layout")
    return original(executor, **given)


def _accepted(original: Any, executor: Any, *, bs: int, dtype: Any, device: Any) -> Any:
    """[R] drafts accepted: a run of survivals, cut at what was verified."""
    import torch

    survives = torch.rand(bs, executor.gamma, device=device) < float(os.environ[SURVIVAL])
    run = survives.to(torch.int64).cumprod(dim=1).sum(dim=1).to(dtype)
    layout = executor.benchmark_layout
    return run if layout is None else torch.minimum(run, (layout.verify_lens - 1).to(dtype))
