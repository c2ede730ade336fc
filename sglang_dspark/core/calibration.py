"""Calibration of confidence logits, and the two files it comes in.

Identity, Sequential Temperature Scaling (paper 3.2.1) and temperature-and-bias per position are
one law, c_k = sigmoid(z_k / T_k + b_k), with T = 1 and b = 0 where a kind has none. Reads SGLang's
STS file and this project's own. Fitting lives in ``sglang_dspark.draft``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sglang_dspark.core.state import Floats
from sglang_dspark.files import decode_record, read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Per-position temperatures and biases; both empty means identity for any gamma."""

    schema_version: int = 1
    """Of this file format."""
    temperatures: tuple[float, ...] = ()
    """T_k > 0, one for each draft position."""
    biases: tuple[float, ...] = ()
    """b_k added after the division, one for each position; empty means none."""
    decode_temperature: float | None = None
    """Sampling temperature at which it was fitted; None when unknown."""
    dataset: str = ""
    """What it was fitted on."""
    num_samples: int = 0
    """Rounds it was fitted on."""
    ece_before: tuple[float, ...] = ()
    """Expected calibration error per position before, as a fraction."""
    ece_after: tuple[float, ...] = ()
    """The same after, on held-out rounds."""

    def __post_init__(self) -> None:
        if self.schema_version != 1:
            raise ValueError(
                f"schema_version {self.schema_version} is unknown; this release reads 1"
            )
        for k, temperature in enumerate(self.temperatures):
            if not (math.isfinite(temperature) and temperature > 0):
                raise ValueError(f"temperature {temperature} at position {k + 1} must be > 0")
        for k, bias in enumerate(self.biases):
            if not math.isfinite(bias):
                raise ValueError(f"bias {bias} at position {k + 1} must be finite")
        if self.biases and len(self.biases) != len(self.temperatures):
            raise ValueError(
                f"{len(self.biases)} biases for {len(self.temperatures)} temperatures; "
                "give one of each for every draft position"
            )

    def arrays(self, gamma: int) -> tuple[Floats, Floats]:
        """(1/T, b), each [gamma]. ``ValueError`` when fitted for another draft length."""
        if not self.temperatures:
            return np.ones(gamma), np.zeros(gamma)
        if len(self.temperatures) != gamma:
            raise ValueError(
                f"calibration holds for draft length {len(self.temperatures)}, not {gamma}; "
                f"fit one for {gamma} or leave it out"
            )
        return 1.0 / np.array(self.temperatures), np.array(self.biases or [0.0] * gamma)


def load_calibration(path: str | Path) -> Calibration:
    """Read this project's file or SGLang's STS file; both are told apart by ``schema_version``.

    SGLang's has exactly ``temperatures, dataset, num_samples, ece_before, ece_after``.
    """
    value = read_json(path)
    if isinstance(value, dict) and "schema_version" not in value and not value.get("temperatures"):
        raise ValueError(f"{path}: an STS file needs temperatures, one for each draft position")
    return decode_record(value, Calibration, where=str(path))


def save_sts(path: str | Path, calibration: Calibration) -> None:
    """Write the file SGLang's ``--speculative-dspark-confidence-sts-path`` reads.

    ``ValueError`` when the calibration has biases: SGLang divides only.
    """
    if any(calibration.biases):
        raise ValueError("SGLang's STS file has no biases; fit temperatures alone for it")
    if not calibration.temperatures:
        raise ValueError("SGLang's STS file needs temperatures; the identity needs no file")
    names = ("temperatures", "dataset", "num_samples", "ece_before", "ece_after")
    write_json(path, {name: getattr(calibration, name) for name in names})
