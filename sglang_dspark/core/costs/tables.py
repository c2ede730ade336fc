"""``CostTables``: a cost model as dense arrays, and the compiled functions that price one step.

The simulator's kernels, its reference engine and the budget policies all call these functions, so
that a step has one price. Knows no file, no kind of model and no hardware.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.compiled import compiled

Floats = npt.NDArray[np.float64]

UNIFORM, DECIDED, RAGGED, PLAIN = range(4)
"""The shape of a step. ``UNIFORM``: all requests verify equally many tokens, and nobody looked at a
confidence for it. ``DECIDED``: somebody did, and all verify all that was drafted. ``RAGGED``: some
verify less than was drafted, or than others. ``PLAIN``: a step of a server that does not speculate,
one token of each request."""

LEAST_CONTEXT_SHARE = 0.25
"""A context shorter than the reference never takes more than three quarters off a forward."""


class CostTables(NamedTuple):
    """Seconds for every step size up to M tokens and R requests; lines beyond. All float64."""

    verify_s: Floats
    """[M+1] one target forward over m tokens at the reference context; [0] is 0."""
    verify_slope_s: float
    """Seconds per token beyond M."""
    request_s: Floats
    """[R+1] seconds that depend on the number of requests in the forward; [0] is 0."""
    request_slope_s: float
    """Seconds per request beyond R."""
    draft_s: Floats
    """[R+1] seconds to draft the whole block for R requests; zeros without a drafter."""
    draft_slope_s: float
    """Seconds per drafted request beyond R."""
    context_s: float
    """Seconds per context token above or below the reference."""
    context_reference_tokens: float
    """Context tokens per request at which ``verify_s`` holds."""
    prefill_base_s: float
    """Seconds of a prefill step that depend on nothing."""
    prefill_token_s: float
    """Seconds per new prompt token."""
    prefill_pair_s: float
    """Seconds per attended pair: new tokens times the tokens before them."""
    host_s: float
    """Host seconds per step that the GPU waits for."""
    ragged_s: Floats
    """[M+1] as ``verify_s`` for a ragged step; the same where the model knows no difference."""
    ragged_slope_s: float
    """Seconds per token beyond M of a ragged step."""
    plain_s: Floats
    """[M+1] as ``verify_s`` for a plain step; the same where the model knows no difference."""
    plain_slope_s: float
    """Seconds per token beyond M of a plain step."""
    measured_tokens: int
    """Largest step, in tokens, that the model vouches for."""
    measured_requests: int
    """Most requests in a step that the model vouches for."""
    prefill_floor_s: float = 0.0
    """Least seconds of a prefill step: reading the weights, however short the prompt."""
    ragged_floor_s: float = 0.0
    """Least seconds of a ragged step's forward: launching it from the host."""
    adaptive_s: float = 0.0
    """Seconds of every step whose lengths are decided in it."""
    adaptive_request_s: float = 0.0
    """Seconds of each of its requests."""
    overlapped_s: float = 0.0
    """Host seconds per step beside the device: what a decode step takes at least, but for
    ``host_s``."""
    shaped: bool = False
    """Whether a step's shape, or deciding it, has a price."""


def without_overlap(tables: CostTables) -> CostTables:
    """The prices of a server that schedules between steps: the device waits for all of the host."""
    host_s = tables.host_s + tables.overlapped_s
    return tables._replace(host_s=host_s, overlapped_s=0.0)


@compiled
def _read(values: Floats, slope: float, index: int) -> float:
    """``values[index]``, continued along ``slope`` past the end."""
    last = values.size - 1
    if index <= last:
        return values[index]
    return values[last] + slope * (index - last)


@compiled
def verify_seconds(
    tables: CostTables, tokens: int, requests: int, context_tokens: float, shape: int
) -> float:
    """Seconds of one target forward over ``tokens`` of ``requests``.

    ``context_tokens`` is the sum over the requests. Zero for zero tokens; never below a quarter of
    the forward at the reference context, nor, if ragged, below ``ragged_floor_s``.
    """
    if tokens <= 0:
        return 0.0
    if shape == RAGGED:
        forward = _read(tables.ragged_s, tables.ragged_slope_s, tokens)
    elif shape == PLAIN:
        forward = _read(tables.plain_s, tables.plain_slope_s, tokens)
    else:
        forward = _read(tables.verify_s, tables.verify_slope_s, tokens)
    extra = context_tokens - requests * tables.context_reference_tokens
    priced = max(forward + tables.context_s * extra, LEAST_CONTEXT_SHARE * forward)
    priced += _read(tables.request_s, tables.request_slope_s, requests)
    return max(priced, tables.ragged_floor_s) if shape == RAGGED else priced


@compiled
def adaptive_seconds(tables: CostTables, requests: int, shape: int) -> float:
    """What deciding a step's lengths costs, beside reading confidences that are there anyway."""
    if shape in (UNIFORM, PLAIN):
        return 0.0
    return tables.adaptive_s + tables.adaptive_request_s * requests


@compiled
def draft_seconds(tables: CostTables, requests: int) -> float:
    """Seconds to draft for ``requests`` requests; zero for none."""
    return _read(tables.draft_s, tables.draft_slope_s, requests)


@compiled
def prefill_seconds(tables: CostTables, new_tokens: int, attended_pairs: float) -> float:
    """Seconds of one prefill step; zero without new tokens.

    ``attended_pairs`` sums new * (cached + new / 2) over the step's chunks.
    """
    if new_tokens <= 0:
        return 0.0
    linear = tables.prefill_base_s + tables.prefill_token_s * new_tokens
    return max(linear, tables.prefill_floor_s) + tables.prefill_pair_s * attended_pairs


@compiled
def decode_step_seconds(
    tables: CostTables,
    tokens: int,
    requests: int,
    drafted: int,
    context_tokens: float,
    shape: int,
) -> float:
    """Seconds of one decode step: verify ``tokens`` of ``requests``, draft for ``drafted``.

    verify + draft + adaptive, at least ``overlapped_s``, and ``host_s``.
    """
    verify = verify_seconds(tables, tokens, requests, context_tokens, shape)
    device = verify + draft_seconds(tables, drafted) + adaptive_seconds(tables, requests, shape)
    return max(device, tables.overlapped_s) + tables.host_s
