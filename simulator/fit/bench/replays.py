"""A benchmark point replayed: what it would have measured at given prices, and where time went.

Owns the law by which a price moves a figure: a loop that is never idle goes through the same steps
whatever they cost, so that

    d log(tokens/s) = - sum over steps of d seconds / seconds of all
and the same of TPOT over decoding steps and the prefills between them, of TTFT over prefills. What
an open loop does not need of its server's time moves no throughput. Exact in value at the prices
that were replayed; the slopes are those of the same steps. Knows no prior and no file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_dspark.core.costs.doubt import KNOTS, NAMES, Floats, knot_weights
from sglang_dspark.core.costs.model import CostModel
from simulator.engine.layout import DECODE_STEP, Records
from simulator.fit.bench.asked import Bench, scenario_of
from simulator.fit.bench.points import Point
from simulator.fleet.fleet import simulate
from simulator.fleet.scenario import Outcome, Scenario
from simulator.study.metrics import request_times

FIGURES = ("output_tok_s", "tpot_ms", "ttft_ms")
_PACE = 0.98
"""An open loop whose tokens come at so much of the offered rate was waiting for requests."""


class Replayed(NamedTuple):
    """A point as the simulator has it."""

    figures: dict[str, float]
    """By ``FIGURES``."""
    slopes: dict[str, Floats]
    """By figure, [names + 1]: of its logarithm by each of ``NAMES``, and by the logarithm of
    accepted draft tokens."""
    accepted_length: float


def replay(
    bench: Bench,
    point: Point,
    truth: CostModel,
    *,
    level: float = 0.0,
    belief: CostModel | None = None,
) -> Replayed:
    """The point at the prices ``truth``. ``KeyboardInterrupt`` where Ctrl-C cut it short."""
    scenario = scenario_of(bench, point, truth, level=level, belief=belief)
    collected: list[Records] = []
    outcome = simulate(scenario, on_steps=lambda _, steps: collected.append(steps.copy()))
    if outcome.interrupted:
        raise KeyboardInterrupt
    steps = np.concatenate(collected)
    spent = _seconds_by_name(truth, scenario, steps)
    figures = _figures(point, outcome, steps)
    decodes = steps["kind"] == DECODE_STEP
    rounds = max(int(steps["requests"][decodes].sum()), 1)
    accepted = int(steps["committed_tokens"][decodes].sum()) / rounds
    stated = point.accepted_length is not None or bench.full_length is not None
    return Replayed(figures, _slopes(point, figures, spent, accepted, stated), accepted)


def _figures(point: Point, outcome: Outcome, steps: Records) -> dict[str, float]:
    times = request_times(outcome.requests)
    whole_s = float((steps["start_s"] + steps["duration_s"]).max())
    middle = np.nanmedian if point.median else np.nanmean
    return {
        "output_tok_s": float(outcome.requests["generated"].sum()) / whole_s,
        "tpot_ms": 1e3 * float(middle(times["tpot"])) if point.output_tokens > 1 else np.nan,
        "ttft_ms": 1e3 * float(middle(times["ttft"])),
    }


def _seconds_by_name(model: CostModel, scenario: Scenario, steps: Records) -> tuple[Floats, Floats]:
    """([names] decoding, [names] prefills): seconds that each of ``NAMES`` adds per unit, then
    both totals as the last entry."""
    decode, prefill = np.zeros(len(NAMES) + 1), np.zeros(len(NAMES) + 1)
    is_decode = steps["kind"] == DECODE_STEP
    prefill_s = float(steps["duration_s"][~is_decode].sum())
    prefill[NAMES.index("prefill")] = prefill[-1] = prefill_s
    steps = steps[is_decode]
    if not steps.size:
        return decode, prefill
    requests = steps["requests"].astype(np.int64)
    tokens = requests + steps["verify_tokens"]
    tables = model.tables(int(tokens.max()), int(requests.max()))
    smallest_s = float(model.verify_curve.at(np.ones(1))[0])
    policy = scenario.policy.policy
    drafting = tables.draft_s[requests] if policy.drafts else np.zeros(steps.size)
    deciding = np.zeros(steps.size)
    if policy.reads_confidences:
        deciding += tables.adaptive_s + tables.adaptive_request_s * requests
    reference = requests * tables.context_reference_tokens
    context = tables.context_s * (steps["context_tokens"] - reference)
    forward = steps["duration_s"] - drafting - deciding - context - tables.host_s
    decode[: len(KNOTS)] = np.maximum(forward, 0.0) @ knot_weights(tokens.astype(np.float64))
    decode[NAMES.index("drafting")] = drafting.sum()
    if policy.drafts:
        decode[NAMES.index("speculating")] = smallest_s * steps.size
        decode[NAMES.index("speculating/root")] = smallest_s * float(np.sqrt(requests).sum())
    if policy.reads_confidences:
        decode[NAMES.index("deciding")] = smallest_s * steps.size
    decode[NAMES.index("context")] = context.sum()
    decode[-1] = steps["duration_s"].sum()
    return decode, prefill


def _slopes(
    point: Point,
    figures: dict[str, float],
    spent: tuple[Floats, Floats],
    accepted: float,
    stated: bool,
) -> dict[str, Floats]:
    decode, prefill = spent
    clients = point.concurrency or 8
    between = decode + (clients - 1) / clients * prefill
    both = decode + prefill
    more = 0.0 if stated or not point.speculates else (accepted - 1.0) / accepted
    token = np.append(-both[:-1] / both[-1], more)
    if point.rate and figures["output_tok_s"] > _PACE * point.rate * point.output_tokens:
        token = np.zeros(len(NAMES) + 1)
    return {
        "output_tok_s": token,
        "tpot_ms": np.append(between[:-1] / max(between[-1], 1e-12), -more),
        "ttft_ms": np.append(prefill[:-1] / max(prefill[-1], 1e-12), 0.0),
    }
