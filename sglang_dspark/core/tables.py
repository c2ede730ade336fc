"""A policy as compiled code reads it, and the arrays its decision is written into.

Owns the codes: each is a branch of ``sglang_dspark.core.decide``, and policies that decide alike
share one. Knows no decision, and no policy's name.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sglang_dspark.core.ranking import MOST_BINS
from sglang_dspark.core.state import Bools, Floats, Ints

NONE, FIXED, THRESHOLD, EARLY_STOP, GLOBAL, SGLANG, GOODPUT = range(7)
"""``PolicyTables.code``: how it is decided."""

TABLE_FLAT, TABLE_SPS, TABLE_ADDITIVE = range(3)
"""``PolicyTables.table``: what ``SGLANG`` looks steps up in."""


class PolicyTables(NamedTuple):
    """A policy's parameters, and of its facts (``sglang_dspark.core.policy.Policy``) those that the
    simulator's kernel asks for."""

    code: int
    drafts: bool
    chooses_drafts: bool
    as_sglang: bool
    reads_confidences: bool
    length: int
    """Draft tokens of every request, under a policy that reads no confidences."""
    threshold: float
    table: int
    """One of the ``TABLE_`` constants; only ``SGLANG`` looks."""
    steps_per_s: Floats
    """[M+1] SGLang's steps-per-second table, floor lookup applied."""
    alpha_s: Floats
    """[R+1] bias and request part of SGLang's additive table."""
    theta_s: Floats
    """[M+1] token part of SGLang's additive table."""
    min_gain: float = 0.0
    """Least predicted gain for verifying or drafting less; this and the next: ``GOODPUT`` only."""
    probe_rounds: int = 1
    """Steps after which a request that is not drafted for is drafted for again."""
    ttft_s: float = np.inf
    tpot_s: float = np.inf
    slack_weight: float = 0.0
    priority_weight: float = 0.0


class Workspace(NamedTuple):
    """Arrays the decision writes into, so that a step allocates nothing."""

    values: Floats
    counts: Ints
    lengths: Ints
    draft_next: Bools
    notes: Floats
    weighted: Floats
    """[R, K] survivals times weights."""
    prior: Floats
    shuffled: Floats
    """[R] a copy that may be put into another order."""


def make_workspace(max_requests: int, gamma: int) -> Workspace:
    """A workspace for up to ``max_requests`` requests of ``gamma`` draft tokens."""
    return Workspace(
        values=np.empty(max(max_requests * gamma, 1)),
        counts=np.empty(MOST_BINS + 1, dtype=np.int64),
        lengths=np.zeros(max(max_requests, 1), dtype=np.int64),
        draft_next=np.zeros(max(max_requests, 1), dtype=np.bool_),
        notes=np.full(max(max_requests, 1), np.nan),
        weighted=np.empty((max(max_requests, 1), gamma)),
        prior=np.empty(gamma),
        shuffled=np.empty(max(max_requests, 1)),
    )
