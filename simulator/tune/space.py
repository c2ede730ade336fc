"""Where the tuner looks: every policy's parameters with their bounds, as data.

Owns the way from a point of the unit cube to a policy file and back. Knows no score.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import qmc

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.policy import POLICIES, PolicyFile
from simulator.slo import Slo

_DRAWS_PER_AXIS = 14
_DIGITS = 3  # of a found parameter: what lies below does not show in any figure


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One parameter and its bounds."""

    name: str
    low: float
    high: float
    log: bool = False
    """Even steps are even ratios."""
    whole: bool = False
    """An integer."""

    def value(self, unit: float) -> float | int:
        """The parameter at ``unit`` in 0..1, rounded to what is worth writing down."""
        unit = min(max(unit, 0.0), 1.0)
        if self.log:
            value = self.low * (self.high / self.low) ** unit
        else:
            value = self.low + unit * (self.high - self.low)
        return round(value) if self.whole else float(f"{value:.{_DIGITS}g}")

    def unit(self, value: float) -> float:
        """Where ``value`` lies in 0..1; bounds where it lies outside."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


TEMPERATURE = Axis(name="temperature", low=0.5, high=2.0, log=True)
"""Common to all positions, on top of the current calibration; 1 leaves that as it is."""

_FROM_SLO = "as the SLO bounds it"

SPACE: tuple[tuple[str, dict[str, Any], tuple[Axis, ...]], ...] = (
    ("none", {}, ()),
    ("fixed", {}, (Axis(name="length", low=1, high=64, whole=True),)),
    # A temperature would only move the threshold.
    ("threshold", {}, (Axis(name="threshold", low=0.02, high=0.98),)),
    ("early_stop", {}, (TEMPERATURE,)),
    ("global", {}, (TEMPERATURE,)),
    ("sglang", {"table": "sps"}, (TEMPERATURE,)),
    ("sglang", {"table": "additive"}, (TEMPERATURE,)),
    (
        "goodput",
        {"ttft_ms": _FROM_SLO, "tpot_ms": _FROM_SLO},
        (
            Axis(name="min_gain", low=0.001, high=0.5, log=True),
            Axis(name="probe_rounds", low=2, high=256, log=True, whole=True),
            Axis(name="slack_weight", low=0.0, high=4.0),
            TEMPERATURE,
        ),
    ),
)
"""(policy, what is held, what is searched). Policies and parameters that this release does not
have are left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """One policy's candidates."""

    policy: str
    held: dict[str, Any]
    axes: tuple[Axis, ...]
    gamma: int
    calibration: Calibration
    """What the temperature is applied on top of."""

    @property
    def name(self) -> str:
        """The policy and what is held."""
        return ":".join([self.policy, *(v for v in self.held.values() if isinstance(v, str))])

    def build(self, unit: Sequence[float]) -> PolicyFile:
        """The candidate at a point of the unit cube."""
        values = {a.name: a.value(float(u)) for a, u in zip(self.axes, unit, strict=True)}
        temperature = values.pop(TEMPERATURE.name, 1.0)
        parameters: dict[str, Any] = self.held | values
        policy = POLICIES[self.policy](**parameters)
        return PolicyFile(policy=policy, calibration=self._calibrated(temperature))

    def _calibrated(self, temperature: float) -> Calibration:
        if temperature == 1.0:
            return self.calibration
        base = self.calibration.temperatures or (1.0,) * self.gamma
        return dataclasses.replace(
            self.calibration, temperatures=tuple(t * temperature for t in base)
        )

    @cached_property
    def default(self) -> tuple[float, ...]:
        """The point of the policy's own defaults."""
        policy = POLICIES[self.policy](**self.held)
        found = []
        for axis in self.axes:
            value = getattr(policy, axis.name, 1.0)
            found.append(axis.unit(axis.high if value is None else value))  # None: all of gamma
        return tuple(found)

    def draws(self) -> list[tuple[float, ...]]:
        """The defaults, then points that fill the cube evenly; a whole axis alone in full."""
        size = len(self.axes)
        if size == 0:
            return [()]
        if size == 1 and self.axes[0].whole:
            steps = int(self.axes[0].high - self.axes[0].low)
            return [self.default, *((i / max(steps, 1),) for i in range(steps + 1))]
        # Unscrambled Halton points need no seed; the first is the corner.
        points = qmc.Halton(size, scramble=False).random(_DRAWS_PER_AXIS * size + 1)[1:]
        return [self.default, *map(tuple, np.asarray(points).tolist())]


def describe(file: PolicyFile) -> str:
    """A policy with its parameters and its calibration, for people."""
    values = dataclasses.asdict(file.policy)
    text = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
    name = f"{file.policy.name} ({text})" if text else file.policy.name
    temperatures = sorted(set(file.calibration.temperatures))
    if not temperatures:
        return name
    low, high = f"{temperatures[0]:g}", f"{temperatures[-1]:g}"
    return f"{name}, temperature {low if low == high else f'{low} to {high}'}"


def families(names: Sequence[str], gamma: int, calibration: Calibration, slo: Slo) -> list[Family]:
    """The families of the policies ``names`` (all where empty), for drafts of ``gamma`` tokens.

    ``ValueError`` for a name that is not in the space.
    """
    known = list(dict.fromkeys(policy for policy, _, _ in SPACE if policy in POLICIES))
    for name in names:
        if name not in known:
            raise ValueError(f"--policy {name}: no policy to tune; choose of {', '.join(known)}")
    found = []
    for policy, held, axes in SPACE:
        if policy not in (names or known):
            continue
        fields = {field.name for field in dataclasses.fields(POLICIES[policy])}
        bound = [
            dataclasses.replace(axis, high=gamma) if axis.name == "length" else axis
            for axis in axes
            if axis is TEMPERATURE or axis.name in fields
        ]
        found.append(
            Family(
                policy=policy,
                held={
                    name: getattr(slo, name) if value is _FROM_SLO else value
                    for name, value in held.items()
                    if name in fields
                },
                axes=tuple(bound),
                gamma=gamma,
                calibration=calibration,
            )
        )
    return found
