"""Recorded verify rounds as columns, and the Parquet log they travel in.

The log is the one that ``--acceptance`` of the simulator replays: request, step, domain, logits
(K raw confidence logits), accepted (leading draft tokens that the target accepts out of the whole
block), plus the decode temperature where it is known. Knows no model and no statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sglang_dspark.files import atomic_write, os_problem

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
    """[N] 0..K."""
    temperature: Floats
    """[N] decode temperature; NaN where unknown."""

    def __post_init__(self) -> None:
        rows = len(self.request)
        for name in ("step", "domain", "logits", "accepted", "temperature"):
            if len(getattr(self, name)) != rows:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows, request {rows}")
        if self.logits.ndim != 2 or self.logits.shape[1] < 1:
            raise ValueError(f"logits have shape {self.logits.shape}; give [rounds, positions]")
        if not np.isfinite(self.logits).all():
            row = int((~np.isfinite(self.logits)).any(axis=1).argmax())
            raise ValueError(f"logits of round {row} are not finite; leave the round out")
        if rows and not (self.accepted.min() >= 0 and self.accepted.max() <= self.gamma):
            raise ValueError(f"accepted must be 0..{self.gamma}; the log holds something else")

    def __len__(self) -> int:
        return len(self.request)

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
        return Rounds(
            request=self.request[keep],
            step=self.step[keep],
            domain=self.domain[keep],
            logits=self.logits[keep],
            accepted=self.accepted[keep],
            temperature=self.temperature[keep],
        )

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
    """Logs one after the other, their requests renumbered so that none collide."""
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
    return Rounds(
        request=np.concatenate(request),
        step=np.concatenate([part.step for part in parts]),
        domain=np.concatenate([part.domain for part in parts]),
        logits=np.concatenate([part.logits for part in parts]),
        accepted=np.concatenate([part.accepted for part in parts]),
        temperature=np.concatenate([part.temperature for part in parts]),
    )


def write_rounds(path: str | Path, rounds: Rounds) -> None:
    """Write the log; whole or not at all."""
    table = pa.table(
        {
            "request": pa.array(rounds.request),
            "step": pa.array(rounds.step),
            "domain": pa.array(rounds.domain.tolist(), type=pa.string()),
            "logits": pa.array(rounds.logits.tolist(), type=pa.list_(pa.float32())),
            "accepted": pa.array(rounds.accepted),
            "temperature": pa.array(rounds.temperature, from_pandas=True),
        }
    )
    with atomic_write(path, "wb") as file:
        pq.write_table(table, file)


def read_rounds(path: str | Path) -> Rounds:
    """Read a log; ``ValueError`` names the file and what is wrong with it."""
    try:
        table = pq.read_table(path)
    except OSError as error:
        raise os_problem("read", path, error) from None
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a Parquet file ({reason}); record it again") from None
    for column in ("request", "step", "domain", "logits", "accepted"):
        if column not in table.column_names:
            raise ValueError(f"{path}: column {column!r} is missing; make it with draft.evaluate")
        if table[column].null_count:
            raise ValueError(f"{path}: column {column!r} has empty rows; every round needs one")
    if table.num_rows == 0:
        raise ValueError(f"{path}: the log has no rounds; record some first")
    lists = table["logits"].to_pylist()
    widths = {len(row) for row in lists}
    if len(widths) != 1:
        raise ValueError(f"{path}: rows of 'logits' have {sorted(widths)} values; all need one K")
    temperature = np.full(table.num_rows, np.nan)
    if "temperature" in table.column_names:
        column = table["temperature"].to_pylist()
        temperature = np.array([np.nan if value is None else value for value in column])
    try:
        return Rounds(
            request=np.array(table["request"].to_pylist(), dtype=np.int64),
            step=np.array(table["step"].to_pylist(), dtype=np.int64),
            domain=np.array([str(name) for name in table["domain"].to_pylist()]),
            logits=np.array(lists, dtype=np.float64),
            accepted=np.array(table["accepted"].to_pylist(), dtype=np.int64),
            temperature=temperature.astype(np.float64),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
