"""Where the tuner looks: what every policy says may be varied (``Policy.axes``), as families.

Owns the way from a point of the unit cube to a policy file and back. Knows no score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import qmc

from sglang_dspark.core.axis import TEMPERATURE, Axis
from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.policy import POLICIES, PolicyFile
from simulator.slo import Slo

_DRAWS_PER_AXIS = 14


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
    for name in names:
        if name not in POLICIES:
            raise ValueError(f"--policy {name}: no policy to tune; choose of {', '.join(POLICIES)}")
    return [
        Family(
            policy=kind.name,
            held=held | {name: getattr(slo, name) for name in kind.from_slo},
            axes=tuple(replace(axis, high=gamma) if axis.drafts else axis for axis in kind.axes),
            gamma=gamma,
            calibration=calibration,
        )
        for kind in POLICIES.values()
        if kind.name in (names or POLICIES)
        for held in kind.variants
    ]
