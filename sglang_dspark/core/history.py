"""What an engine remembers for its policy: the newest confidences as of a few steps ago, prefills.

Owns the law of ``BatchState.stale_logits``, ``stale_age`` and ``prefills_per_step``. Knows no
policy, and neither how a request got its slot nor why nothing was drafted for it.
"""

from __future__ import annotations

import numpy as np

from sglang_dspark.core.goodput import PREFILL_MEMORY
from sglang_dspark.core.state import Bools, Floats, Ints

LAG_STEPS = 2
"""Age of the confidences that a budget is made from (paper 5.2)."""


class ConfidenceMemory:
    """Rows of raw confidence logits, one request for each slot.

    A request's row is the newest one known ``LAG_STEPS`` of its own steps ago: where a step brought
    none, the one before stays, a step older. So a request that is not drafted for is judged by what
    was last seen of it, and the age says for how long it was not.
    """

    def __init__(self, slots: int, gamma: int) -> None:
        self._newest = np.full((LAG_STEPS + 1, slots, gamma), np.nan)
        self._age = np.zeros((LAG_STEPS + 1, slots), dtype=np.int64)

    def forget(self, slots: Ints) -> None:
        """These slots start a request."""
        self._newest[:, slots] = np.nan

    def advance(self, slots: Ints, logits: Floats, known: Bools) -> tuple[Floats, Ints]:
        """One step of these slots' requests: their (``stale_logits``, ``stale_age``) in it.

        ``logits`` [R, K] are the step's own, ``known`` [R] says which of them are to be remembered.
        A NaN row and age 0 where none was known yet.
        """
        newest, age = self._newest, self._age
        newest[:-1, slots], age[:-1, slots] = newest[1:, slots], age[1:, slots]
        newest[-1, slots] = np.where(known[:, None], logits, newest[-2, slots])
        age[-1, slots] = np.where(known, 0, age[-2, slots] + 1)
        stale = newest[0, slots]
        return stale, np.where(np.isnan(stale[:, 0]), 0, age[0, slots] + LAG_STEPS)


class PrefillRate:
    """Prefill steps for each decode step: the newest adds ``PREFILL_MEMORY`` to the average."""

    def __init__(self) -> None:
        self._since = 0
        self._average = 0.0

    def prefill(self) -> None:
        """A prefill step runs."""
        self._since += 1

    def step(self) -> float:
        """A decode step is planned: ``prefills_per_step`` in it."""
        self._average += PREFILL_MEMORY * (self._since - self._average)
        self._since = 0
        return self._average
