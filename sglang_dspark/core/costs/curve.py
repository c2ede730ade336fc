"""``Curve``: seconds as a function of a whole size, from probes, padding and a rule beyond them.

One law for every kind of cost model: exact at the probes, non-decreasing, and beyond the last probe
never flatter than the curve's own average. Knows neither files nor what the size counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.costs.roofline import RooflineCost
from sglang_dspark.core.costs.schema import AdditiveCost, GraphTiers, StepTable

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Seconds at sizes 1, 2, ...; size 0 costs nothing.

    Up to the last tier a size costs what the next tier costs, since it is padded to it. Beyond the
    tiers nothing is padded: times lie on the line between probes, and a size before the first probe
    there costs what that probe costs, so that the cliff stands at the tier.
    """

    probes: Floats
    """Sizes with a time, strictly increasing."""
    seconds: Floats
    """Time of each, never decreasing."""
    tiers: Floats
    """Sizes that smaller ones are padded to, strictly increasing; empty for none."""
    beyond_last_s: float = 0.0
    """Added beyond the last tier, where no probe lies."""

    def at(self, sizes: Floats) -> Floats:
        """Seconds at ``sizes`` >= 1."""
        last_tier = self.tiers[-1] if self.tiers.size else 0.0
        outside = sizes > last_tier
        padded = sizes
        if self.tiers.size:
            tier = np.searchsorted(self.tiers, np.minimum(sizes, last_tier))
            eager = self.probes[self.probes > last_tier]
            first_eager = eager[0] if eager.size else last_tier
            padded = np.where(outside, np.maximum(sizes, first_eager), self.tiers[tier])
        last, last_s = self.probes[-1], self.seconds[-1]
        inside = np.interp(padded, self.probes, self.seconds)
        beyond = last_s + self.slope_s * (padded - last)
        price = np.where(outside & (self.tiers.size > 0), self.beyond_last_s, 0.0)
        return np.where(padded > last, beyond, inside) + price

    @property
    def slope_s(self) -> float:
        """Seconds per unit of size beyond the last probe: the overall average or the last
        segment's, whichever is steeper."""
        slope = self.seconds[-1] / self.probes[-1]
        if self.probes.size > 1:
            rise = self.seconds[-1] - self.seconds[-2]
            slope = max(slope, rise / (self.probes[-1] - self.probes[-2]))
        return float(slope)

    def dense(self, most: int) -> tuple[Floats, float]:
        """[most+1] seconds at 0..most, and a slope beyond that no larger size exceeds."""
        end = int(max(most, self.probes[-1], self.tiers[-1] if self.tiers.size else 0)) + 1
        sizes = np.arange(1, end + 1, dtype=np.float64)
        seconds = np.concatenate(([0.0], self.at(sizes)))
        rest = sizes[most:] - most
        steepest = ((seconds[most + 1 :] - seconds[most]) / rest).max()
        return seconds[: most + 1].copy(), max(self.slope_s, float(steepest))


def table_curve(table: StepTable, graphs: GraphTiers) -> Curve:
    """Kind ``table``: a staircase without tiers takes its probes for tiers."""
    tiers = graphs.tiers_tokens
    if not tiers and table.between == "staircase":
        tiers = table.tokens
    probes = np.array(table.tokens, dtype=np.float64)
    seconds = np.array(table.seconds, dtype=np.float64)
    if table.between == "staircase":
        # Tiers between probes cost what the next probe costs.
        captured = np.array([t for t in tiers if t not in table.tokens], dtype=np.float64)
        captured = captured[captured < probes[-1]]
        stairs = seconds[np.searchsorted(probes, captured)]
        order = np.argsort(np.concatenate((probes, captured)))
        probes = np.concatenate((probes, captured))[order]
        seconds = np.concatenate((seconds, stairs))[order]
    return Curve(
        probes=probes,
        seconds=seconds,
        tiers=np.array(tiers, dtype=np.float64),
        beyond_last_s=graphs.beyond_last_s,
    )


def additive_curve(additive: AdditiveCost, graphs: GraphTiers) -> Curve:
    """Kind ``additive``: bias + theta(M); alpha(R) is priced apart."""
    return Curve(
        probes=np.array(additive.tokens, dtype=np.float64),
        seconds=additive.bias_s + np.array(additive.theta_s, dtype=np.float64),
        tiers=np.array(graphs.tiers_tokens, dtype=np.float64),
        beyond_last_s=graphs.beyond_last_s,
    )


def roofline_curve(roofline: RooflineCost, graphs: GraphTiers, most: int) -> Curve:
    """Kind ``roofline``: the formula at every size up to ``most`` tokens."""
    probes = np.arange(1, most + 1, dtype=np.float64)
    return Curve(
        probes=probes,
        seconds=np.array([roofline.verify_s(m) for m in range(1, most + 1)]),
        tiers=np.array(graphs.tiers_tokens, dtype=np.float64),
        beyond_last_s=graphs.beyond_last_s,
    )
