"""A parameter that may be searched: its bounds, and the way to and from a point of 0..1.

Knows no policy and no search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    drafts: bool = False
    """A number of draft tokens: the draft length is its upper bound."""

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
        if self.low == self.high:
            return 0.0
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


TEMPERATURE = Axis(name="temperature", low=0.5, high=2.0, log=True)
"""Of the calibration, no parameter of a policy: common to all positions, on top of the current one;
1 leaves that as it is."""
