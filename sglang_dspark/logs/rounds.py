"""Recorded verify rounds as columns: what ``acceptance_log`` writes and reads.

Owns what a column means and what holds of every row. Knows no file, no model and no statistics.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounds:
    """N verify rounds, row by row; ``ValueError`` when the columns disagree."""

    request: Ints
    """[N] which request; a request has one domain."""
    step: Ints
    """[N] the request's rounds, counted from 0."""
    domain: npt.NDArray[Any]
    """[N] names."""
    logits: Floats
    """[N, K] raw confidence logits, finite."""
    accepted: Ints
    """[N] leading draft tokens that the target accepts out of the **whole** block, 0..K: rounds
    that a policy had cut short say too little."""
    temperature: Floats
    """[N] decode temperature; NaN where unknown."""
    position: Ints | None = None
    """[N] output tokens before each round, the prefill's not counted; None: as if every round had
    committed what was accepted."""
    output_tokens: Ints | None = None
    """[N] how long the request's answer was, the same in all its rounds; None as above."""
    context_tokens: Ints | None = None
    """[N] tokens before each round's drafts, the prompt's counted; None: unknown."""

    def __post_init__(self) -> None:
        rows = len(self.request)
        for name, column in self.columns().items():
            if len(column) != rows:
                raise ValueError(f"{name} has {len(column)} rows, request {rows}")
        if self.logits.ndim != 2 or self.logits.shape[1] < 1:
            raise ValueError(f"logits have shape {self.logits.shape}; give [rounds, positions]")
        if not np.isfinite(self.logits).all():
            row = int((~np.isfinite(self.logits)).any(axis=1).argmax())
            raise ValueError(f"logits of round {row} are not finite; leave the round out")
        if rows and not (self.accepted.min() >= 0 and self.accepted.max() <= self.gamma):
            raise ValueError(f"accepted must be 0..{self.gamma}; the log holds something else")

    def __len__(self) -> int:
        return len(self.request)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns that there are, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in named.items() if column is not None}

    @property
    def gamma(self) -> int:
        """K."""
        return int(self.logits.shape[1])

    @property
    def survived(self) -> Mask:
        """[N, K] whether the first k + 1 draft tokens were all accepted."""
        mask: Mask = np.arange(self.gamma) < self.accepted[:, None]
        return mask

    def where(self, keep: npt.NDArray[Any]) -> Rounds:
        """The rounds that a mask or an index keeps."""
        return Rounds(**{name: column[keep] for name, column in self.columns().items()})

    def domains(self) -> list[str]:
        """Sorted names."""
        return sorted({str(name) for name in self.domain})

    def temperatures(self) -> list[float]:
        """Distinct decode temperatures, sorted; NaN last when some are unknown."""
        known = np.unique(self.temperature[~np.isnan(self.temperature)]).tolist()
        return known + ([float("nan")] if np.isnan(self.temperature).any() else [])

    def at_temperature(self, temperature: float) -> Rounds:
        """The rounds decoded at one of ``temperatures()``."""
        return self.where(
            np.isnan(self.temperature) if np.isnan(temperature) else self.temperature == temperature
        )


def join_rounds(parts: list[Rounds]) -> Rounds:
    """Logs one after the other, their requests renumbered so that none collide.

    Positions and answers' lengths are kept where every log has them.
    """
    if not parts:
        raise ValueError("no logs to join; give at least one")
    gammas = sorted({part.gamma for part in parts})
    if len(gammas) > 1:
        raise ValueError(f"logs have {gammas} draft positions; join logs of one draft length")
    first = 0
    request = []
    for part in parts:
        codes = np.unique(part.request, return_inverse=True)[1]
        request.append(codes.astype(np.int64) + first)
        first += int(codes.max()) + 1 if len(codes) else 0
    columns = [
        part.columns() | {"request": codes} for part, codes in zip(parts, request, strict=True)
    ]
    shared = [name for name in columns[0] if all(name in one for one in columns)]
    return Rounds(**{name: np.concatenate([one[name] for one in columns]) for name in shared})
