"""How fast the machine was while it served, beside the cost model that was fitted to it.

Owns the drift of a stretch of steps and the cost model at another speed. Knows no replay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.costs.tables import RAGGED, UNIFORM, decode_step_seconds
from sglang_dspark.logs.records import StepRecord
from simulator.fit.gaps import step_times


def drift(steps: Sequence[StepRecord], model: CostModel) -> float:
    """Time that the decode steps took over what the model says of the same steps.

    Above 1 the machine was slower than while the model was fitted: an error that no replay mends.
    NaN where no step follows another.
    """
    times = step_times(steps, {})
    tables = model.tables(int(times.tokens.max()), int(times.requests.max()))
    plain = np.isfinite(times.gap_s)
    took_s = (times.draft_s + times.target_s + times.gap_s)[plain].sum()
    shape = np.where(times.uniform, UNIFORM, RAGGED)
    context = times.context_tokens.astype(float)
    columns = (times.tokens, times.requests, times.drafted, context, shape)
    says_s = sum(
        decode_step_seconds(tables, *size)
        for size in zip(*(column[plain].tolist() for column in columns), strict=True)
    )
    return float(took_s / says_s) if says_s else float("nan")


def at_speed(model: CostModel, factor: float) -> CostModel:
    """The model of a machine that takes ``factor`` times as long for everything."""

    def times(*seconds: float) -> tuple[float, ...]:
        return tuple(factor * one for one in seconds)

    assert model.additive is not None
    assert model.prefill is not None
    assert model.host is not None
    additive, draft, prefill = model.additive, model.draft, model.prefill
    return dataclasses.replace(
        model,
        additive=dataclasses.replace(
            additive,
            bias_s=factor * additive.bias_s,
            alpha_s=times(*additive.alpha_s),
            theta_s=times(*additive.theta_s),
        ),
        draft=draft and dataclasses.replace(draft, seconds=times(*draft.seconds)),
        prefill=dataclasses.replace(
            prefill,
            base_s=factor * prefill.base_s,
            token_s=factor * prefill.token_s,
            pair_s=factor * prefill.pair_s,
        ),
        host=dataclasses.replace(model.host, step_s=factor * model.host.step_s),
        context=model.context
        and dataclasses.replace(model.context, token_s=factor * model.context.token_s),
    )
