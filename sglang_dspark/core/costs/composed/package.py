"""``aiconfigurator-core``: what it brings, and one model compiled by it.

With ``operators`` the only module that imports it (the extra ``operators``), and that only when it
is called. Owns what is passed to it and how its complaints read. Never lets it ask the hub: it is
given names whose configuration it brings, or a folder. Knows no time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_dspark.core.costs.composed.gpus import Gpu
from sglang_dspark.core.costs.composed.targets import Layout, Target

PACKAGE = "aiconfigurator-core"
ENGINES = ("sglang", "vllm", "trtllm")
DTYPES = ("bfloat16", "fp8", "fp8_block", "nvfp4", "int4_wo")
"""Of the weights, experts included."""
KV_DTYPES = ("bfloat16", "fp8")


def hub_configs() -> dict[str, Path]:
    """By name on the hub: the configurations that the package brings."""
    import aiconfigurator_core
    from aiconfigurator_core.sdk.common import DefaultHFModels

    folder = Path(aiconfigurator_core.__file__).parent / "model_configs"
    ending = "_config.json"
    files = {
        file.name.removesuffix(ending).replace("--", "/"): file
        for file in sorted(folder.glob(f"*{ending}"))
    }
    return {name: file for name, file in files.items() if name in DefaultHFModels}


def package_version() -> str:
    """The installed version."""
    from importlib import metadata

    return metadata.version(PACKAGE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Compiled:
    """One model on one kind of GPU, in the package's own objects."""

    model: Any
    """Its operators, weights and KV bytes."""
    config: Any
    """Its dtypes and how it is spread."""
    handle: Any
    """The estimator of its operators' times."""
    engine_version: str
    """Of the engine whose kernels were timed."""


def compiled(
    target: Target, gpu: Gpu, layout: Layout, *, engine: str, dtype: str, kv_dtype: str
) -> Compiled:
    """The target compiled; empty dtypes are the checkpoint's own.

    ``ValueError`` in one sentence for what the package cannot read or does not know.
    """
    from aiconfigurator_core.sdk.config_builders import build_model_config
    from aiconfigurator_core.sdk.engine import EngineHandle, compile_engine
    from aiconfigurator_core.sdk.models import get_model, helpers
    from aiconfigurator_core.sdk.perf_database import get_version_slots

    how: dict[str, Any] = {
        "attention_dp_size": layout.dp,
        "moe_tp_size": layout.tp // layout.ep,
        "moe_ep_size": layout.ep,
        "gemm_quant_mode": dtype or None,
        "moe_quant_mode": dtype or None,
        "kvcache_quant_mode": kv_dtype or None,
    }
    with quiet(), _one_sentence(target), _path(target) as path:
        if not dtype:
            # Experts in FP4 are filed under the kernel that the engine runs on these GPUs.
            mode = helpers.resolve_dsv4_moe_arch_mode(path, gpu.system, engine)
            mode = mode or helpers.resolve_kimi_k3_moe_arch_mode(path, gpu.system, engine)
            how["moe_quant_mode"] = mode.name if mode else None
        config = build_model_config(layout.attention_tp, 1, **how)
        model = get_model(path, config, engine)
        spec = compile_engine(path, gpu.system, engine, tp_size=layout.attention_tp, **how)
        slots = get_version_slots(gpu.system, engine) or {}
        return Compiled(
            model=model,
            config=config,
            handle=EngineHandle(spec),
            engine_version=str(slots.get("current", "unknown")),
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the package logs about its tables: it is for those who fill them."""
    logger = logging.getLogger("aiconfigurator_core")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _path(target: Target) -> Iterator[str]:
    """What the package takes for a model: a name that it brings, or a folder with a config."""
    if target.hub:
        yield target.hub
        return
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / target.slug
        at.mkdir()
        (at / "config.json").write_text(json.dumps(dict(target.config)), encoding="utf-8")
        yield str(at)


@contextlib.contextmanager
def _one_sentence(target: Target) -> Iterator[None]:
    """What the package says of a configuration that it cannot read, in one sentence."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"{target.source}: {error.args[0]} is missing or unknown; give the model's own "
            "config.json"
        ) from None
    except (ValueError, AssertionError, TypeError, AttributeError, NotImplementedError) as error:
        text = " ".join(str(error).split()).rstrip(". ")
        raise ValueError(
            f"{target.source}: cannot be composed: {text}; change the config, a dtype or --tp, "
            "--ep, --dp"
        ) from None
