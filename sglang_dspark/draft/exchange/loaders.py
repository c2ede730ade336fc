"""Who loads a drafter: DeepSpec, SGLang's releases, this project's lanes, vLLM.

Owns what each of them takes, as their sources say (DeepSpec's loader; SGLang 0.5.21's and 0.5.23's
``models/dspark``, ``dspark_config``; vLLM's speculators configs). Knows no tensors but whether
embedding and lm_head are there.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_dspark.draft.model.conventions import (
    BUNDLED,
    DEEPSPEC,
    DFLASH,
    GENERIC,
    SPECULATORS,
)
from sglang_dspark.draft.model.deepseek_v4.config import BundledConfig
from sglang_dspark.draft.model.recipes import AnyConfig


@dataclass(frozen=True, kw_only=True)
class Loader:
    """One loader and its answer."""

    name: str
    loads: bool
    why: str
    """How, or why not."""


def loaders(config: AnyConfig, convention: str, *, has_ends: bool) -> list[Loader]:
    """Everyone's answer to this checkpoint."""
    return [
        _deepspec(config, convention, has_ends=has_ends),
        _builtin(config, convention),
        _worker_lane(config, convention),
        _vllm(config, convention),
    ]


def _answer(name: str, reasons: list[str], how: str) -> Loader:
    return Loader(name=name, loads=not reasons, why="; ".join(reasons) or how)


def _anchored(config: AnyConfig) -> bool:
    return getattr(config, "sample_from_anchor", True) is not False


def _deepspec(config: AnyConfig, convention: str, *, has_ends: bool) -> Loader:
    reasons = []
    if isinstance(config, BundledConfig):
        return _answer("DeepSpec", ["it has no DeepSeek-V4 drafter"], "")
    if convention != DEEPSPEC:
        reasons.append("wants DeepSpec's own keys (dspark draft convert --to deepspec)")
    if not _anchored(config):
        reasons.append("its slot k predicts the token after it")
    if convention == DEEPSPEC and not has_ends:
        reasons.append("wants embedding and lm_head in the file")
    return _answer("DeepSpec", reasons, "from_pretrained")


def _builtin(config: AnyConfig, convention: str) -> Loader:
    name = "SGLang 0.5.16 and later (built-in DSPARK, steer lane)"
    reasons = []
    if not config.markov_rank:
        reasons.append("it wants a Markov head")
    if isinstance(config, BundledConfig):
        return _answer(name, reasons, "by the target's own path, or this folder as draft path")
    if convention == DFLASH:
        reasons.append("it is DFlash's: --speculative-algorithm DFLASH")
    if config.family.sandwich:
        reasons.append("it has no Gemma4 drafter")
    if config.family.autoregressive:
        reasons.append("it is no DSpark drafter")
    if convention == SPECULATORS:
        reasons.append("0.5.21 reads no transformer_layer_config (convert --to generic)")
    return _answer(name, reasons, "--speculative-draft-model-path")


def _worker_lane(config: AnyConfig, convention: str) -> Loader:
    name = "SGLang 0.5.15.post1 with this project's worker lane"
    reasons = []
    if isinstance(config, BundledConfig):
        reasons.append("it serves no DeepSeek-V4")
    elif config.family.autoregressive:
        reasons.append("it is no DSpark drafter")
    if not _anchored(config):
        reasons.append("its slot k predicts the token after it")
    return _answer(name, reasons, "--speculative-draft-model-path")


def _vllm(config: AnyConfig, convention: str) -> Loader:
    reasons = []
    if convention not in (BUNDLED, GENERIC, SPECULATORS, DEEPSPEC):
        reasons.append("method dflash")
    if isinstance(config, BundledConfig):
        return _answer("vLLM (method dspark)", reasons, "by the target's own path")
    if config.head not in ("vanilla", "none"):
        reasons.append("its Markov head is vanilla")
    if config.family.sandwich or config.family.autoregressive:
        reasons.append("it has no such drafter")
    return _answer("vLLM (method dspark)", reasons, "speculative_config model")
