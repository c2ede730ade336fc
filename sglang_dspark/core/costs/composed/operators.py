"""``Operators``: one model's operators on one kind of GPU, with the seconds their tables hold.

The only module that imports ``aiconfigurator_core`` (the extra ``operators``), and that only when
it is called. Owns what is an attention, what is missing and what stands in for it. Knows no step:
whoever asks says how many requests and tokens an operator sees.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sglang_dspark.core.costs.composed.assumed import Assumed
from sglang_dspark.core.costs.composed.gpus import Gpu
from sglang_dspark.core.costs.composed.targets import Layout, Target

MEASURED = "silicon"
ASSUMED = "data sheet"
_KERNELS = ("GenerationAttention", "GenerationMLA", "ContextAttention", "ContextMLA")
_KV_SAMPLE_TOKENS = 4096


def hub_configs() -> dict[str, Path]:
    """By name on the hub: the configurations that the operator package brings."""
    import aiconfigurator_core
    from aiconfigurator_core.sdk.common import DefaultHFModels

    folder = Path(aiconfigurator_core.__file__).parent / "model_configs"
    ending = "_config.json"
    files = {
        file.name.removesuffix(ending).replace("--", "/"): file
        for file in sorted(folder.glob(f"*{ending}"))
    }
    # Of any other name the package would ask the hub.
    return {name: file for name, file in files.items() if name in DefaultHFModels}


def package_version() -> str:
    """The version of the operator package."""
    from importlib import metadata

    return metadata.version("aiconfigurator-core")


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
    """Its place in the compiled list."""
    wire: str
    """Itself, for the estimator; of a branch's operator, which has no place of its own."""
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
        with quiet(), _one_sentence(target):
            self._compile(dtype, kv_dtype)

    def _compile(self, dtype: str, kv_dtype: str) -> None:
        from aiconfigurator_core.sdk import engine
        from aiconfigurator_core.sdk.config_builders import build_model_config
        from aiconfigurator_core.sdk.models import get_model, helpers
        from aiconfigurator_core.sdk.perf_database import get_version_slots

        target, system, layout = self.target, self.gpu.system, self.layout
        how = {
            "attention_dp_size": layout.dp,
            "moe_tp_size": layout.tp // layout.ep,
            "moe_ep_size": layout.ep,
            "gemm_quant_mode": dtype or None,
            "moe_quant_mode": dtype or None,
            "kvcache_quant_mode": kv_dtype or None,
        }
        with _path(target) as path:
            if not dtype:
                # Experts in FP4 are filed under the kernel that the engine runs on these GPUs.
                mode = helpers.resolve_dsv4_moe_arch_mode(path, system, self.engine)
                mode = mode or helpers.resolve_kimi_k3_moe_arch_mode(path, system, self.engine)
                how["moe_quant_mode"] = mode.name if mode else None
            config = build_model_config(layout.attention_tp, 1, **how)
            self._model = get_model(path, config, self.engine)
            self._handle = engine.EngineHandle(
                engine.compile_engine(
                    path, system, self.engine, tp_size=layout.attention_tp, **how
                )
            )
        self._config = config
        slots = get_version_slots(system, self.engine) or {}
        self.engine_version = str(slots.get("current", "unknown"))
        wires = json.loads(engine.build_ops_json(self._model.generation_ops))
        ops = zip(self._model.generation_ops, wires, strict=True)
        self.generation = [_operator(i, op, wire) for i, (op, wire) in enumerate(ops)]
        wires = json.loads(engine.build_ops_json(self._model.context_ops))
        ops = zip(self._model.context_ops, wires, strict=True)
        self.context = [_operator(i, op, wire) for i, (op, wire) in enumerate(ops)]

    @property
    def dtype(self) -> str:
        """Of the weights: of the experts too where theirs is another."""
        gemm, moe = self._config.gemm_quant_mode.name, self._config.moe_quant_mode
        if not any(op.branches or "moe" in op.name for op in self.generation):
            return str(gemm)
        return str(gemm) if moe is None or moe.name == gemm else f"{gemm}, experts {moe.name}"

    @property
    def kv_dtype(self) -> str:
        """Of keys and values."""
        return str(self._config.kvcache_quant_mode.name)

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self._model._num_layers)

    @property
    def attention_params(self) -> float:
        """Weights of the attentions of all layers on one GPU, as a plain attention has them."""
        text = self.target.text
        heads = self.target.whole("num_attention_heads")
        width = text.get("head_dim") or self.target.whole("hidden_size") // heads
        kv = text.get("num_key_value_heads", heads)
        wide = 2 * (heads + kv) * width * self.target.whole("hidden_size")
        return float(wide * self.layers / self.layout.attention_tp)

    @property
    def weights_bytes(self) -> float:
        """Bytes of the model's weights over all GPUs of the replica."""
        ops = self._model.context_ops
        tied = self.target.text.get("tie_word_embeddings") or self.target.config.get(
            "tie_word_embeddings"
        )
        held = sum(
            op.get_weights() for op in ops if not (tied and op._name.endswith("logits_gemm"))
        )
        empty = [
            op for op in self._model.context_ops
            if "attention" in op._name and not op.get_weights()
            and type(op).__name__ not in _KERNELS
        ]  # fmt: skip
        if empty:  # a module that does not tell its weights
            held += self.attention_params * self._weight_bytes
        return float(held) * self.layout.tp

    @property
    def _weight_bytes(self) -> float:
        return float(self._config.gemm_quant_mode.value.memory)

    def kv_bytes(self, tokens: int = _KV_SAMPLE_TOKENS) -> float:
        """Bytes per token of one request of ``tokens``, over all GPUs that hold it."""
        held = self._model.get_kvcache_bytes_per_sequence(tokens)
        return float(held) / tokens * self.layout.attention_tp

    def price(self, operator: Operator, batch: int, context: int) -> list[Priced]:
        """One decoding operator at ``batch`` rows, of as many requests of ``context`` tokens.

        Of branches beside each other the longer one counts.
        """
        return self._price(operator, batch, context, prefix=0, prompt=False)

    def price_prompt(self, operator: Operator, tokens: int, prefix: int) -> list[Priced]:
        """One operator of a prompt of ``tokens`` new tokens behind ``prefix`` cached ones."""
        return self._price(operator, 1, tokens, prefix=prefix, prompt=True)

    def gemm(self, name: str, *, rows: int, wide: int, deep: int) -> Priced:
        """A product in bf16 of ``rows`` with a matrix [deep, wide], on each GPU."""
        spec = {
            "name": name, "scale_factor": 1.0, "n": wide, "k": deep, "quant_mode": "bfloat16",
            "scale_num_tokens": 1, "low_precision_input": False, "seq_split": 1,
            "below_grid_sol": False,
        }  # fmt: skip
        operator = Operator(name=name, index=-1, wire=json.dumps([{"Gemm": spec}]))
        return self.price(operator, rows, 1)[0]

    def _price(
        self, operator: Operator, batch: int, s: int, *, prefix: int, prompt: bool
    ) -> list[Priced]:
        if operator.branches:
            priced = [
                [one for op in branch for one in self._price(op, batch, s, prefix=prefix, prompt=prompt)]
                for branch in operator.branches
            ]
            return max(priced, key=lambda branch: sum(one.seconds for one in branch))
        from aiconfigurator_core.sdk.errors import (
            EmpiricalNotImplementedError,
            InterpolationDataNotAvailableError,
            PerfDataNotAvailableError,
        )

        shape: dict[str, Any] = {"batch_size": batch, "s": s, "prefix": prefix}
        try:
            if operator.index < 0:
                found = self._handle.evaluate_ops_json(operator.wire, is_context=prompt, **shape)
            elif prompt:
                found = self._handle.evaluate_context_ops([operator.index], **shape)
            else:
                found = self._handle.evaluate_generation_ops([operator.index], **shape)
        except (
            PerfDataNotAvailableError,
            EmpiricalNotImplementedError,
            InterpolationDataNotAvailableError,
        ):
            rows = batch * s if prompt else batch
            pairs = s * (prefix + s / 2) if prompt else batch * s
            return [Priced(operator.name, self._stand_in(operator, rows, pairs, shape, prompt), ASSUMED)]
        except ValueError as error:
            raise ValueError(
                f"{self.target.label} in {self.dtype} cannot be priced on {self.gpu.sheet.name}: "
                f"{error}; give another --dtype or --gpu"
            ) from None
        return [Priced(operator.name, ms / 1e3, source) for _, ms, _, source in found]

    def _stand_in(
        self, operator: Operator, rows: int, pairs: float, shape: Mapping[str, Any], prompt: bool
    ) -> float:
        """Seconds of an operator without a table, from the data sheet."""
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
        params = self.attention_params
        read = pairs / rows if prompt else pairs  # a prompt reads what is cached once
        return self.assumed.linear(params, params * self._weight_bytes, rows) + (
            self.assumed.reading(read * self.kv_bytes() / self.layout.attention_tp)
        )


def _operator(index: int, op: Any, wire: Mapping[str, Any]) -> Operator:
    """One of the model's operators as this project sees it."""
    (kind, spec), = wire.items()
    if kind == "Overlap":
        branches = tuple(
            tuple(
                Operator(name=_plain(next(iter(one.values()))["name"]), index=-1, wire=json.dumps([one]))
                for one in spec[group]
            )
            for group in ("group_a", "group_b")
        )
        return Operator(name=_plain(spec["name"]), index=index, wire="", branches=branches)
    attention = op._name in ("generation_attention", "context_attention")
    return Operator(
        name=_plain(op._name),
        index=index,
        wire=json.dumps([wire]),
        attention=attention,
        projects=attention and type(op).__name__ not in _KERNELS,
    )


def _plain(name: str) -> str:
    return name.removeprefix("generation_").removeprefix("context_")


@contextlib.contextmanager
def _path(target: Target) -> Iterator[str]:
    """What the operator package takes for a model: its name, or a folder with its config."""
    if target.hub:
        yield target.hub
        return
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / target.slug
        at.mkdir()
        (at / "config.json").write_text(json.dumps(dict(target.config)), encoding="utf-8")
        yield str(at)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the operator package logs about its tables: it is for those who fill them."""
    logger = logging.getLogger("aiconfigurator_core")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _one_sentence(target: Target) -> Iterator[None]:
    """What the operator package says of a configuration it cannot read, in one sentence."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"{target.source}: {error.args[0]} is missing or unknown; give the model's own "
            "config.json, and a dtype that the tables have"
        ) from None
    except (ValueError, AssertionError, TypeError, AttributeError, NotImplementedError) as error:
        text = " ".join(str(error).split()).rstrip(". ")
        raise ValueError(
            f"{target.source}: cannot be composed: {text}; change the config or --tp, --ep, --dp"
        ) from None
