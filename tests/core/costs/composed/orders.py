"""The operators and models that several tests here share, composed once per test run."""

from __future__ import annotations

import functools
from typing import Any

from sglang_dspark.core.costs.composed.command import order_of
from sglang_dspark.core.costs.composed.gpus import gpu_of
from sglang_dspark.core.costs.composed.model import compose
from sglang_dspark.core.costs.composed.operators import Operators
from sglang_dspark.core.costs.composed.package import hub_configs
from sglang_dspark.core.costs.composed.targets import Layout, target_of
from sglang_dspark.core.costs.model import CostModel


@functools.cache
def operators_of(model: str, gpu: str, tp: int = 1, ep: int = 1, dp: int = 1) -> Operators:
    layout = Layout(tp=tp, ep=ep, dp=dp)
    return Operators(target_of(model, hub_configs()), gpu_of(gpu), layout)


@functools.cache
def composed(
    model: str, gpu: str, tp: int = 1, ep: int = 1, dp: int = 1, **choices: Any
) -> CostModel:
    return compose(order_of(model=model, gpu=gpu, layout=Layout(tp=tp, ep=ep, dp=dp), **choices))
