"""What vLLM's frontier needs and nobody published: V4-Pro's step costs and acceptance.

Owns the transfer of V4-Flash's published curve and the acceptance process; ``docs/validation.md``
argues for each. Runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from benchmarks.validation.record import Transfer
from benchmarks.validation.scenes import experts_touched, made_cost_model
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.costs.model import CostModel
from simulator.acceptance.load import load_acceptance
from simulator.acceptance.profile import SCHEMA_VERSION, FittedProfile
from simulator.acceptance.published.fit import domain_parameters, stored_belief
from simulator.acceptance.published.quadrature import Truth, shifted_to_length
from simulator.acceptance.published.solve import truth_for

FLASH = "b300x4-dsv4-flash-vllm"
FLASH_CAPTURED = 1024
"""Tokens of V4-Flash's largest CUDA graph; beyond it steps ran eagerly."""
HEAD = "dspark-qwen3-4b"
GAMMA = 7
TIERS = (1, 2, 4, *range(8, 257, 8), *range(272, 4097, 16))
"""Captured graphs, in vLLM's steps up to the 4096 tokens of the figure."""
CALIBRATED_TOKENS = (1, 256)
"""Of the steps whose times are given: no speculation at concurrency 1 and 256."""


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What was decided; the variants change one each."""

    output_mean: float = 1000.0
    """Of the exponential that output lengths are drawn from, before the cut at 2048."""
    lag_steps: int = 1
    """Age of the confidences that the budget is made of; the post says one step."""
    at_published_length: bool = True
    """Acceptance moved to the accepted length of all categories; else as on coding."""
    plain_transfer: bool = False
    """Step seconds = a + b x V4-Flash's curve, whatever the curve is made of."""
    mean_tpot: bool = False
    """Speed per user is 1 / the mean TPOT; else the median of 1 / TPOT."""
    draft_by_layer: bool = True
    """Drafting scaled by the active parameters of a layer; else of the whole model."""


class Costs(NamedTuple):
    """V4-Pro's cost model and how it came about."""

    model: CostModel
    transfer: Transfer


def survival_process(records: dict[str, Any], assumed: Assumed) -> Truth:
    """Acceptance by position as golden lengths fall off, at the level of the post's own text.

    Positions 1 to 6 from the accepted lengths by number of draft tokens; the seventh length lies
    below the sixth, so its conditional acceptance is taken to be the sixth's.
    """
    lengths = records["golden-lengths"]["accepted_length"][: GAMMA - 1]
    survival = np.diff([1.0, *lengths])
    conditional = survival / np.concatenate(([1.0], survival[:-1]))
    truth = truth_for(np.append(conditional, conditional[-1]))
    if assumed.at_published_length:
        return shifted_to_length(truth, records["vllm-blog-text"]["accepted_length"])
    return truth


def profile(truth: Truth) -> FittedProfile:
    """One domain for all prompts, believed in as the paper's chat head does."""
    head = load_acceptance(HEAD)
    assert isinstance(head, FittedProfile)
    return FittedProfile(
        schema_version=SCHEMA_VERSION,
        name="dspark7-v4-pro",
        gamma=GAMMA,
        default_domain="all",
        command="python -m benchmarks.validation",
        provenance=[],
        domains={"all": domain_parameters(truth, stored_belief(head.domains["chat"]))},
        achieved={},
    )


class Flash(NamedTuple):
    """V4-Flash's curve, and base, experts and token seconds fitted to it."""

    tokens: np.ndarray
    seconds: np.ndarray
    fitted: np.ndarray
    median_error: float


def _form(tokens: Any, model: dict[str, Any]) -> np.ndarray:
    """[len(tokens), 3]: one, the share of experts touched, the tokens."""
    sizes = np.asarray(tokens, dtype=np.float64)
    touched = experts_touched(sizes, experts=model["experts"], per_token=model["experts_per_token"])
    return np.stack((np.ones_like(sizes), touched, sizes), axis=1)


def fitted_flash(model: dict[str, Any]) -> Flash:
    """Least squares of the relative errors over the captured sizes, no term negative."""
    table = load_cost_model(FLASH).table
    assert table is not None
    tokens = np.array([m for m in table.tokens if m <= FLASH_CAPTURED])
    seconds = np.array(table.seconds[: tokens.size])
    form = _form(tokens, model)
    fitted = nnls(form / seconds[:, None], np.ones(tokens.size))[0]
    return Flash(tokens, seconds, fitted, float(np.median(np.abs(form @ fitted / seconds - 1))))


def _plain_shape(flash: Flash) -> np.ndarray:
    """V4-Flash's seconds at ``TIERS``; beyond its graphs along its seconds per token."""
    beyond = np.maximum(np.array(TIERS) - FLASH_CAPTURED, 0)
    inside: np.ndarray = np.interp(np.minimum(TIERS, FLASH_CAPTURED), flash.tokens, flash.seconds)
    return inside + flash.fitted[2] * beyond


def transferred(records: dict[str, Any], assumed: Assumed, step_s: np.ndarray) -> Costs:
    """V4-Pro's model in which steps of ``CALIBRATED_TOKENS`` take ``step_s``."""
    small, large = records["v4-models"]["flash"], records["v4-models"]["pro"]
    flash = fitted_flash(small)
    by_token = (large["parameters_active"] / 8) / (small["parameters_active"] / 4)
    by_layer = by_token * small["layers"] / large["layers"]
    token_s = float(flash.fitted[2] * by_token)
    ends = [TIERS.index(m) for m in CALIBRATED_TOKENS]
    linear_s = token_s * np.array(TIERS)
    shape = _form(TIERS, large)[:, 1]
    if assumed.plain_transfer:
        linear_s, shape = np.zeros(len(TIERS)), _plain_shape(flash)
    rest_s = step_s - linear_s[ends]
    scale = (rest_s[1] - rest_s[0]) / (shape[ends[1]] - shape[ends[0]])
    base = rest_s[0] - scale * shape[ends[0]]
    draft_factor = by_layer if assumed.draft_by_layer else by_token
    figure = records["vllm-fig3-pareto"]
    draft = load_cost_model(FLASH).draft
    assert draft is not None
    model = made_cost_model(
        "b300x8-dsv4-pro-transferred",
        source=f"{FLASH}, transferred",
        hardware=figure["hardware"],
        model=figure["model"],
        gpus=8,
        tokens=TIERS,
        seconds=(base + scale * shape + linear_s).tolist(),
        between="staircase",
        draft={
            "gamma": GAMMA,
            "requests": list(draft.requests),
            "seconds": [draft_factor * s for s in draft.seconds],
            "between": "staircase",
        },
        prefill_token_s=token_s,
        kv_pool_tokens=4_000_000,
    )
    transfer = Transfer(
        base_s=float(base),
        experts_s=float(scale),
        token_s=token_s,
        flash_base_s=float(flash.fitted[0]),
        flash_experts_s=float(flash.fitted[1]),
        flash_token_s=float(flash.fitted[2]),
        flash_fit_median_error=flash.median_error,
        token_factor=by_token,
        draft_factor=draft_factor,
    )
    return Costs(model, transfer)
