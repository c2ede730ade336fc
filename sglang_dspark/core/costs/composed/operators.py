"""``Operators``: one model's operators on one kind of GPU, with the seconds their tables hold.

Owns which operator is an attention, which are beside each other, and what stands in for a time that
no table holds. Knows no step: whoever asks says how many rows an operator sees.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sglang_dspark.core.costs.composed import sizes
from sglang_dspark.core.costs.composed.assumed import Assumed
from sglang_dspark.core.costs.composed.gpus import Gpu
from sglang_dspark.core.costs.composed.package import compiled
from sglang_dspark.core.costs.composed.targets import Layout, Target

MEASURED = "silicon"
ASSUMED = "data sheet"


class Priced(NamedTuple):
    """One operator in one step."""

    name: str
    seconds: float
    source: str
    """``silicon`` was measured; every other word says how the time was derived."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """One operator, or the branches of those that run beside each other."""

    name: str
    index: int
    """Its place in the compiled list; -1 for one without."""
    wire: str
    """Itself, as the estimator reads it."""
    branches: tuple[tuple[Operator, ...], ...] = ()
    attention: bool = False
    """Whether it reads the keys and values of its requests."""
    projects: bool = False
    """Of an attention: whether the projections around it are inside."""


class Operators:
    """The operators of ``target`` spread by ``layout`` over GPUs of one kind.

    ``ValueError`` in one sentence for a configuration or a dtype that the tables do not know;
    ``ModuleNotFoundError`` without the extra ``operators``.
    """

    def __init__(
        self,
        target: Target,
        gpu: Gpu,
        layout: Layout,
        *,
        engine: str = "sglang",
        dtype: str = "",
        kv_dtype: str = "",
    ) -> None:
        self.target, self.gpu, self.layout, self.engine = target, gpu, layout, engine
        self.assumed = Assumed(gpu=gpu)
        model = compiled(target, gpu, layout, engine=engine, dtype=dtype, kv_dtype=kv_dtype)
        self._model, self._handle = model, model.handle
        self.engine_version = model.engine_version
        self.generation = _operators(model.model.generation_ops)
        self.context = _operators(model.model.context_ops)
        self.layers = int(model.model._num_layers)
        self.dtype = sizes.dtype_words(model)
        self.kv_dtype = str(model.config.kvcache_quant_mode.name)
        self.weights_bytes = sizes.weights_bytes(model, target, layout)
        self.kv_bytes = sizes.kv_bytes(model, layout)

    def price(self, operator: Operator, rows: int, context: int) -> list[Priced]:
        """One decoding operator at ``rows``; an attention's rows are requests of ``context``.

        Of branches beside each other the longer one counts.
        """
        return self._price(operator, {"batch_size": rows, "s": context, "prefix": 0}, False)

    def price_prompt(self, operator: Operator, tokens: int, prefix: int) -> list[Priced]:
        """One operator of a prompt of ``tokens`` new tokens behind ``prefix`` cached ones."""
        return self._price(operator, {"batch_size": 1, "s": tokens, "prefix": prefix}, True)

    def gemm(self, name: str, *, rows: int, wide: int, deep: int) -> Priced:
        """A product in bf16 of ``rows`` with a matrix [deep, wide], on each GPU."""
        spec = {
            "name": name, "scale_factor": 1.0, "n": wide, "k": deep, "quant_mode": "bfloat16",
            "scale_num_tokens": 1, "low_precision_input": False, "seq_split": 1,
            "below_grid_sol": False,
        }  # fmt: skip
        return self.price(_without_a_place({"Gemm": spec}), rows, 1)[0]

    def _price(self, operator: Operator, shape: Mapping[str, int], prompt: bool) -> list[Priced]:
        if operator.branches:
            priced = [
                [one for op in branch for one in self._price(op, shape, prompt)]
                for branch in operator.branches
            ]
            return max(priced, key=lambda branch: sum(one.seconds for one in branch))
        from aiconfigurator_core.sdk import errors

        try:
            found = self._evaluate(operator, shape, prompt)
        except (errors.PerfDataNotAvailableError, errors.EmpiricalNotImplementedError):
            return [Priced(operator.name, self._stand_in(operator, shape, prompt), ASSUMED)]
        except ValueError as error:
            raise ValueError(
                f"{self.target.label} in {self.dtype} cannot be priced on {self.gpu.sheet.name}: "
                f"{error}; give another --dtype or --gpu"
            ) from None
        return [Priced(operator.name, ms / 1e3, source) for _, ms, _, source in found]

    def _evaluate(self, operator: Operator, shape: Mapping[str, int], prompt: bool) -> Any:
        if operator.index < 0:
            return self._handle.evaluate_ops_json(operator.wire, is_context=prompt, **shape)
        if prompt:
            return self._handle.evaluate_context_ops([operator.index], **shape)
        return self._handle.evaluate_generation_ops([operator.index], **shape)

    def _stand_in(self, operator: Operator, shape: Mapping[str, int], prompt: bool) -> float:
        """Seconds of an operator without a table: its limits, or a plain attention's."""
        from aiconfigurator_core.sdk.errors import SolNotImplementedError

        with contextlib.suppress(SolNotImplementedError):
            limits = self._handle.evaluate_ops_sol_json(operator.wire, is_context=prompt, **shape)
            return sum(
                self.assumed.of_limits(math_ms / 1e3, memory_ms / 1e3)
                for _, _, math_ms, memory_ms in limits
            )
        if not operator.attention:
            raise ValueError(
                f"{self.target.label} on {self.gpu.sheet.name}: no table has {operator.name} and "
                "no formula stands in for it; give another --dtype, --gpu or --ep"
            )
        batch, s, prefix = shape["batch_size"], shape["s"], shape["prefix"]
        rows, read_tokens = (s, prefix + s) if prompt else (batch, batch * s)
        params = sizes.attention_params(self._model, self.target, self.layout)
        weights = params * sizes.bytes_per_weight(self._model)
        read = read_tokens * self.kv_bytes / self.layout.attention_tp
        return self.assumed.linear(params, weights, rows) + self.assumed.reading(read)


def _operators(ops: Any) -> list[Operator]:
    """The package's operators as this project sees them."""
    from aiconfigurator_core.sdk.engine import build_ops_json

    wires = json.loads(build_ops_json(ops))
    return [_operator(i, op, wire) for i, (op, wire) in enumerate(zip(ops, wires, strict=True))]


def _operator(index: int, op: Any, wire: Mapping[str, Any]) -> Operator:
    spec = wire.get("Overlap")
    if spec is not None:
        branches = tuple(
            tuple(_without_a_place(one) for one in spec[group]) for group in ("group_a", "group_b")
        )
        return Operator(name=_plain(spec["name"]), index=index, wire="", branches=branches)
    # These two names are the package's own mark of an attention.
    attention = op._name in ("generation_attention", "context_attention")
    return Operator(
        name=_plain(op._name),
        index=index,
        wire=json.dumps([wire]),
        attention=attention,
        projects=attention and type(op).__name__ not in sizes.KERNELS,
    )


def _without_a_place(wire: Mapping[str, Any]) -> Operator:
    (spec,) = wire.values()
    return Operator(name=_plain(spec["name"]), index=-1, wire=json.dumps([wire]))


def _plain(name: str) -> str:
    return name.removeprefix("generation_").removeprefix("context_")
