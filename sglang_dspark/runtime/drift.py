"""How far confidences are from what is accepted, measured online at every draft position.

Owns the definition of the calibration error and its sums, and what of a step a correction learns
from. Confidences are judged by the policy file's calibration, corrected online or not. Knows
neither SGLang nor Prometheus: it reads ``StepRecord`` and is read by ``metrics.py``.

Position k judges a row, one request in one step, when the policy decided the step, k was verified
and the k - 1 tokens before were accepted: only then does c_k = sigmoid(z_k / T_k + b_k) predict
anything that was seen. So the error is about what is verified. Policies choose by the confidences,
which leaves frequencies at a given confidence as they are, yet about the confidences that are
always cut nothing is learned; where no row reaches k, ``rows`` stand still and the error says what
it said last.

Shapes: K draft positions, B bins of confidence, N rows taken together.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.correction import Outcome
from sglang_dspark.core.state import Floats, Ints
from sglang_dspark.logs.records import StepRecord

BINS = 10
"""Equal parts of 0..1 in which mean confidence and acceptance are compared."""
HALF_LIFE_ROWS = 5000
"""A row weighs half as much once this many newer ones were judged at its position."""
LEAST_ROWS = 1000
"""Fewer rows give no error: chance alone would make it several hundredths."""
MOST_PENDING = 1024
"""Steps kept for the next ``read``; with more, the oldest go unjudged."""

_Step = tuple[Floats, Ints, Ints]


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Sums over the server's life, and the recent error; arrays [K]."""

    rows: Ints
    """Rows judged."""
    confidence: Floats
    """Sum of their c_k: the tokens expected to be accepted."""
    accepted: Ints
    """Of them, those whose token k was accepted."""
    error: Floats
    """Expected calibration error over recent rows, a fraction: mean over bins, weighted by rows, of
    |mean confidence - share accepted|. NaN where fewer than ``LEAST_ROWS`` were judged."""


class Drift:
    """Takes steps on the scheduler's thread, where it only keeps references; judges in ``read``.

    Rows that one ``read`` takes together do not age among themselves.
    """

    def __init__(self, gamma: int, calibration: Calibration | None = None) -> None:
        self._inverse_temperature, self._bias = (calibration or Calibration()).arrays(gamma)
        self._gamma = gamma
        self._pending: deque[_Step] = deque(maxlen=MOST_PENDING)
        self._reading = threading.Lock()
        self._rows = np.zeros(gamma, dtype=np.int64)
        self._accepted = np.zeros(gamma, dtype=np.int64)
        self._confidence = np.zeros(gamma)
        # By position and bin: recent rows, their confidences, their accepted tokens.
        self._recent = np.zeros((3, gamma, BINS))

    def observe(self, record: StepRecord) -> None:
        """Keep the step for the next ``read``. A degraded one says nothing of the policy's."""
        if not record.degraded and record.plan.lengths.size:
            self._pending.append((record.state.logits, record.plan.lengths, record.accepted))

    def read(self) -> Judged:
        """The sums so far, with every step that was observed."""
        with self._reading:
            steps = []
            # Not ``while self._pending``: new steps may come as fast as they are taken.
            for _ in range(len(self._pending)):
                steps.append(self._pending.popleft())
            if steps:
                self._judge(*(np.concatenate(column) for column in zip(*steps, strict=True)))
            weight, confidence, accepted = self._recent
            with np.errstate(invalid="ignore"):
                error = np.abs(confidence - accepted).sum(axis=1) / weight.sum(axis=1)
            return Judged(
                rows=self._rows.copy(),
                confidence=self._confidence.copy(),
                accepted=self._accepted.copy(),
                error=np.where(self._rows >= LEAST_ROWS, error, np.nan),
            )

    def _judge(self, logits: Floats, lengths: Ints, accepted: Ints) -> None:
        """Add N rows: ``logits`` [N, K], ``lengths`` and ``accepted`` [N]."""
        position = np.arange(1, self._gamma + 1)
        seen = (lengths[:, None] >= position) & (accepted[:, None] >= position - 1)
        calibrated = logits * self._inverse_temperature + self._bias
        row, k = np.nonzero(seen)
        confidence = 1.0 / (1.0 + np.exp(-np.maximum(calibrated[row, k], -700.0)))
        came = (accepted[row] > k).astype(np.float64)
        cell = k * BINS + np.minimum((confidence * BINS).astype(np.int64), BINS - 1)

        def by_cell(weights: Floats | None = None) -> npt.NDArray[np.float64]:
            sums = np.bincount(cell, weights=weights, minlength=self._gamma * BINS)
            return sums.reshape(self._gamma, BINS).astype(np.float64)

        fresh = np.stack([by_cell(), by_cell(confidence), by_cell(came)])
        rows = fresh[0].sum(axis=1)
        self._recent *= 0.5 ** (rows / HALF_LIFE_ROWS)[:, None]
        self._recent += fresh
        self._rows += rows.astype(np.int64)
        self._confidence += fresh[1].sum(axis=1)
        self._accepted += fresh[2].sum(axis=1).astype(np.int64)


def outcome_of(record: StepRecord) -> Outcome:
    """The step as ``sglang_dspark.core.correction`` learns from it; deciding is the host's part."""
    return Outcome(
        logits=record.state.logits,
        lengths=record.plan.lengths,
        accepted=record.accepted,
        context_tokens=int(record.state.context_tokens.sum()),
        computed_tokens=record.computed_tokens,
        seconds=(record.draft_s, record.verify_s, record.plan_s + record.commit_s),
        planned=not record.degraded,
    )
