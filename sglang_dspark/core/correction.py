"""Online correction: small, bounded changes of prices and confidences, learned from past steps.

Owns what is learned and how fast, as pure functions of (evidence, outcome) -> evidence; the planner
that applies it is in ``corrected_planner.py``. Off by default. Knows no clock: seconds are handed
in. The same outcomes in the same order give the same corrections, bit for bit.

What is corrected. Each of three parts of a step's price (draft, verify, host) by a factor, shared
by all loads: every step, at any load, says something of it, so that no load stays wrongly priced
for want of visits. One factor for the whole step would leave every choice of a budget as it is. And
the logit of each draft position by a bias, that is, the odds of acceptance by a factor. All factors
stay within 1 / bound .. bound.

No dead spots. A correction without new evidence returns to the file's values: it halves within
about five half-lives and in each half-life after that, so that a position which was corrected out
of every plan is tried again. Where the file itself is so wrong that a position is never planned,
only ``explore_every`` helps: it verifies one request whole at fixed steps, and costs what up to
gamma more tokens cost, once in so many steps.

Lossless. Let F be everything that happened in completed steps: committed tokens, drafts, outcomes,
measured seconds. The corrections of a step are functions of F, and the tokens it drafts and the
numbers its rejection sampling draws are independent of all in F but the context they continue. So,
given F, a corrected policy is one policy with one fixed cost model and one fixed calibration, of
which the argument of each policy holds: whether token k is verified depends on F and on confidences
that were known before token k was drawn; a biased sigmoid still is a probability below 1, so that
no position outranks one before it. Hence the step's tokens given F are the target's, and by
induction over steps so is the whole output, jointly over requests. What would break it is a
correction that has seen the outcome of the step it is used in: ``learn`` belongs after the commit,
and which of the latest steps it has seen yet may depend on their timing, never on undecided tokens.

Ranks. Measured seconds differ from rank to rank, and so do corrections. Ranks must not act on their
own: rank 0's plan is carried out on all of them.

Symbols: R requests in the step, K draft positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sglang_dspark.core.compiled import compiled
from sglang_dspark.core.costs.tables import (
    RAGGED,
    UNIFORM,
    CostTables,
    adaptive_seconds,
    draft_seconds,
    verify_seconds,
)
from sglang_dspark.core.state import Floats, Ints
from sglang_dspark.core.survival import sigmoid

PARTS = ("draft", "verify", "host")
"""Of a step's price, in the order of every array of them."""

_MOST_TO_PRIOR = 32.0
"""Full evidence weighs so many times what the file does."""
_PRIOR_INFORMATION = 5.0
"""Of the file's calibration at each position: that of twenty rows at even odds."""


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What is corrected, how far and how fast: ``correction`` in a policy file."""

    cost: bool = False
    """Correct the prices of drafting, verifying and the host."""
    calibration: bool = False
    """Correct the odds of acceptance at each position."""
    bound: float = 2.0
    """Factors on seconds and on odds stay within 1 / bound .. bound."""
    half_life_steps: float = 500.0
    """Steps after which an outcome weighs half."""
    explore_every: int = 0
    """Verify one request whole in every so many steps, another each time; 0: never."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bound) and 1.0 < self.bound <= 10.0):
            raise ValueError(f"bound {self.bound} must be above 1 and at most 10; 2 is the default")
        if not (math.isfinite(self.half_life_steps) and self.half_life_steps >= 1.0):
            raise ValueError(
                f"half_life_steps {self.half_life_steps} must be a finite number from 1"
            )
        if self.explore_every < 0:
            raise ValueError(f"explore_every {self.explore_every} must be 0 (never) or more steps")

    @property
    def on(self) -> bool:
        """Whether plans may differ from those of the files."""
        return self.cost or self.calibration or self.explore_every > 0

    @property
    def kept(self) -> float:
        """Share of an outcome's weight left after one step."""
        return float(0.5 ** (1.0 / self.half_life_steps))


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A completed step: what was verified of what, what came of it, how long the parts took."""

    logits: Floats
    """[R, K] raw confidence logits the step was planned with."""
    lengths: Ints
    """[R] draft tokens verified."""
    accepted: Ints
    """[R] of them, the leading ones accepted."""
    context_tokens: int
    """Sum over the requests, before the step."""
    computed_tokens: int
    """Rows of the target's forward."""
    seconds: tuple[float, float, float]
    """Measured, by ``PARTS``."""
    planned: bool = True
    """False: not the policy's own step, say after NaN confidences; its confidences are not judged,
    its seconds are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """All that is remembered of past steps."""

    steps: int
    """Steps learned from."""
    log_ratio: Floats
    """[3] weighted sum of log(measured / predicted seconds)."""
    weight: Floats
    """[3] sum of the weights."""
    bias: Floats
    """[K] the correction of each position's logit."""
    information: Floats
    """[K] how firmly the recent rows hold it: the weighted sum of c (1 - c)."""


def nothing_learned(gamma: int) -> Evidence:
    """The start: no correction."""
    zeros = np.zeros
    return Evidence(
        steps=0,
        log_ratio=zeros(3),
        weight=zeros(3),
        bias=zeros(gamma),
        information=zeros(gamma),
    )


def learn(
    evidence: Evidence,
    outcome: Outcome,
    *,
    correction: Correction,
    costs: CostTables,
    inverse_temperature: Floats,
    bias: Floats,
) -> Evidence:
    """The evidence after one more completed step. ``costs`` and calibration are the file's own."""
    if not outcome.lengths.size:
        return evidence
    # Compiled code is one for each layout and type of array: these it was compiled for.
    logits = np.ascontiguousarray(outcome.logits, dtype=np.float64)
    lengths = np.ascontiguousarray(outcome.lengths, dtype=np.int64)
    accepted = np.ascontiguousarray(outcome.accepted, dtype=np.int64)
    after = Evidence(
        steps=evidence.steps + 1,
        log_ratio=evidence.log_ratio.copy(),
        weight=evidence.weight.copy(),
        bias=evidence.bias.copy(),
        information=evidence.information.copy(),
    )
    kept, most = correction.kept, math.log(correction.bound)
    if correction.cost:
        rows, drafted = lengths.size, int(np.count_nonzero(logits[:, 0] != -np.inf))
        tokens, context = int(outcome.computed_tokens), float(outcome.context_tokens)
        draft_s, verify_s, host_s = (float(part_s) for part_s in outcome.seconds)
        measured = (draft_s, verify_s, host_s)
        sums = (after.log_ratio, after.weight)
        shape = UNIFORM if (lengths == lengths[0]).all() else RAGGED
        size = (rows, drafted, tokens, shape)
        _learn_prices(costs, size, context, measured, kept, 2.0 * most, *sums)
    if correction.calibration:
        if not outcome.planned:
            lengths = np.zeros_like(lengths)
        pace = (kept, most, _PRIOR_INFORMATION)
        found = (after.bias, after.information)
        _learn_bias(logits, lengths, accepted, inverse_temperature, bias, pace, *found)
    return after


@compiled
def _learn_prices(
    costs: CostTables,
    size: tuple[int, int, int, int],
    context_tokens: float,
    measured: tuple[float, float, float],
    kept: float,
    most: float,
    log_ratio: Floats,
    weight: Floats,
) -> None:
    """Sums of logarithms, each clipped to -most .. most: one hiccup moves little.

    A part that the model prices at nothing is taken to be inside the forward's price. What deciding
    costs is the host's. ``size``: requests, those drafted for, tokens and shape.
    """
    rows, drafted, tokens, shape = size
    draft_s, verify_s, host_s = measured
    predicted_draft_s = draft_seconds(costs, drafted)
    if not predicted_draft_s > 0.0:
        verify_s += draft_s
    predicted_host_s = costs.host_s + adaptive_seconds(costs, rows, shape)
    if not predicted_host_s > 0.0:
        verify_s += host_s
    predicted_verify_s = verify_seconds(costs, tokens, rows, context_tokens, shape)
    pairs = (
        (predicted_draft_s, draft_s),
        (predicted_verify_s, verify_s),
        (predicted_host_s, host_s),
    )
    for part in range(3):
        log_ratio[part] *= kept
        weight[part] *= kept
        predicted_s, measured_s = pairs[part]
        if predicted_s > 0.0 and 0.0 < measured_s < np.inf:
            found = math.log(measured_s / predicted_s)
            log_ratio[part] += min(max(found, -most), most)
            weight[part] += 1.0


@compiled
def _learn_bias(
    logits: Floats,
    lengths: Ints,
    accepted: Ints,
    inverse_temperature: Floats,
    file_bias: Floats,
    pace: tuple[float, float, float],
    bias: Floats,
    information: Floats,
) -> None:
    """One Newton step of a logistic fit in which the past fades and the file's bias, 0, does not.

    Position k is judged by the rows verified to it whose first k - 1 tokens were accepted: only
    there does its confidence say anything of what was seen. ``pace``: the weight the past keeps,
    the bound of a bias, and the information in the file's.
    """
    kept, most, prior = pace
    for k in range(bias.size):
        surprise, fresh = 0.0, 0.0
        for r in range(lengths.size):
            if lengths[r] > k and accepted[r] >= k:
                logit = logits[r, k] * inverse_temperature[k] + file_bias[k] + bias[k]
                confidence = sigmoid(logit)
                came = 1.0 if accepted[r] > k else 0.0
                surprise += came - confidence
                fresh += confidence * (1.0 - confidence)
        held = information[k] * kept + fresh
        pull = surprise - (1.0 - kept) * prior * bias[k]
        bias[k] = min(max(bias[k] + pull / (held + prior), -most), most)
        information[k] = min(held, _MOST_TO_PRIOR * prior)


def factors(evidence: Evidence, correction: Correction) -> Floats:
    """[3] on the seconds of ``PARTS``, each within the bound; ones where prices stay."""
    prior = 1.0 / (_MOST_TO_PRIOR * (1.0 - correction.kept))
    most = math.log(correction.bound)
    mean = np.clip(evidence.log_ratio / (evidence.weight + prior), -most, most)
    # exp and log need not invert each other to the last bit.
    return np.clip(np.exp(mean), 1.0 / correction.bound, correction.bound)


def corrected_costs(costs: CostTables, factors: Floats) -> CostTables:
    """The tables with each part's seconds times its factor; prefills are left alone."""
    draft, verify, host = (float(factor) for factor in factors)
    return costs._replace(
        verify_s=costs.verify_s * verify,
        verify_slope_s=costs.verify_slope_s * verify,
        ragged_s=costs.ragged_s * verify,
        ragged_slope_s=costs.ragged_slope_s * verify,
        plain_s=costs.plain_s * verify,
        plain_slope_s=costs.plain_slope_s * verify,
        ragged_floor_s=costs.ragged_floor_s * verify,
        request_s=costs.request_s * verify,
        request_slope_s=costs.request_slope_s * verify,
        context_s=costs.context_s * verify,
        draft_s=costs.draft_s * draft,
        draft_slope_s=costs.draft_slope_s * draft,
        host_s=costs.host_s * host,
        adaptive_s=costs.adaptive_s * host,
        adaptive_request_s=costs.adaptive_request_s * host,
        overlapped_s=costs.overlapped_s * host,
    )


def explored_row(correction: Correction, step: int, requests: int) -> int:
    """Which request of step number ``step`` is verified whole; -1 for none.

    By counting alone, so that it cannot lean on any token.
    """
    every = correction.explore_every
    if every == 0 or requests == 0 or step % every:
        return -1
    return (step // every) % requests
