"""The search: many candidates on few windows, the survivors on more, the best ones refined.

Owns the objective, its constraint and the order of candidates. All candidates see the same windows
under the same random numbers. Knows no held-out window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from sglang_dspark.core.policy import PolicyFile
from simulator.study.windows import Figures, overall, ratio
from simulator.tune.bench import Bench, Load
from simulator.tune.space import Family

OBJECTIVES = ("throughput", "in_slo", "speed")
ATTAINMENT_SLACK = 0.002
"""Share of requests by which a policy may fall behind the current one's SLO attainment."""
_RUNGS = (4, 2, 1)  # a quarter of the search windows, half, all
_KEPT = 3  # one in so many candidates survives a rung
_REFINED_FAMILIES = 2
_LINE_STEPS = 12
_SIMPLEX_STEPS = 32
_SIMPLEX_EDGE = 0.12


@dataclass(frozen=True, order=True)
class Score:
    """Larger is better: within the constraint first, then the objective, then users' speed."""

    allowed: bool
    """Whether SLO attainment holds up with the current policy's."""
    value: float
    """The objective over the current policy's, mean over loads; where not allowed, attainment
    lost, below 0."""
    speed: float
    """Per-user speed over the current policy's, which settles ties."""


def score(objective: str, ours: Figures, current: Figures) -> Score:
    """How good ``ours`` are beside ``current``; ``in_slo`` holds its constraint by itself."""
    speed = ratio(ours, current, "speed")
    if objective != "in_slo":
        lost = float((overall(current, "attainment") - overall(ours, "attainment")).max())
        if lost > ATTAINMENT_SLACK:
            return Score(False, -lost, speed)
    return Score(True, ratio(ours, current, objective), speed)


@dataclass(kw_only=True, eq=False)
class Search:
    """One search; what it has found is readable also after Ctrl-C."""

    bench: Bench
    families: Sequence[Family]
    current: PolicyFile
    objective: str
    loads: Sequence[Load]
    windows: Sequence[int]
    """Places of the search windows."""
    scores: dict[PolicyFile, Score] = field(default_factory=dict)
    """On all search windows."""
    rungs: list[dict[str, int]] = field(default_factory=list)
    """How many candidates ran on how many windows."""
    simulations: int = 0
    """That the whole search took."""
    _drawn: int = 0
    _points: dict[PolicyFile, tuple[Family, tuple[float, ...]]] = field(default_factory=dict)

    @property
    def refined(self) -> int:
        """Candidates that the local searches have added."""
        return len(self._points) - self._drawn

    def run(self) -> PolicyFile:
        """The best candidate: at least as good as the current policy and every default."""
        seeds = [self.current, *(family.build(family.default) for family in self.families)]
        alive = list(dict.fromkeys([*seeds, *self._candidates()]))
        self._drawn = len(self._points)
        for divisor in _RUNGS:
            windows = self._some_windows(divisor)
            found = self._score(alive, windows)
            self.rungs.append({"windows": len(windows), "candidates": len(alive)})
            if divisor == 1:
                self.scores |= found
                break
            ranked = sorted(alive, key=found.__getitem__, reverse=True)
            kept = set(ranked[: math.ceil(len(ranked) / _KEPT)])
            alive = [policy for policy in alive if policy in kept or policy in seeds]
        for policy in self._starts():
            self._refine(*self._points[policy])
        self.simulations = len(self.bench.known)
        return self.best()

    def best(self) -> PolicyFile:
        """The best so far; the current policy before anything ran on all windows."""
        if not self.scores:
            return self.current
        return max(self.scores, key=self.scores.__getitem__)  # the first on ties

    def best_by_family(self) -> dict[str, PolicyFile]:
        """Each family's best on all search windows, best first."""
        found: dict[str, PolicyFile] = {}
        for policy in sorted(self.scores, key=self.scores.__getitem__, reverse=True):
            if policy in self._points:
                found.setdefault(self._points[policy][0].name, policy)
        return found

    def _candidates(self) -> list[PolicyFile]:
        for family in self.families:
            for unit in family.draws():
                self._points.setdefault(family.build(unit), (family, unit))
        return list(self._points)

    def _some_windows(self, divisor: int) -> list[int]:
        count = max(1, len(self.windows) // divisor)
        places = np.linspace(0, len(self.windows) - 1, count).round().astype(int)
        return [self.windows[i] for i in places]

    def most_trials(self) -> int:
        """No more than so many simulations."""
        alive = len({*self._candidates(), self.current})
        seeds = 1 + len(self.families)
        total = 0
        for divisor in _RUNGS:
            total += alive * len(self._some_windows(divisor))
            alive = min(alive, math.ceil(alive / _KEPT) + seeds)
        steps = _SIMPLEX_STEPS if any(len(f.axes) > 1 for f in self.families) else _LINE_STEPS
        refined = sum(1 for family in self.families if family.axes)
        total += min(refined, _REFINED_FAMILIES) * steps * len(self.windows)
        return total * len(self.loads)

    def _score(
        self, policies: Sequence[PolicyFile], windows: Sequence[int]
    ) -> dict[PolicyFile, Score]:
        figures = self.bench.figures([self.current, *policies], self.loads, windows)
        found = [score(self.objective, ours, figures[0]) for ours in figures[1:]]
        return dict(zip(policies, found, strict=True))

    def _starts(self) -> list[PolicyFile]:
        """The best of the best families that have something to refine."""
        best = [policy for policy in self.best_by_family().values() if self._points[policy][0].axes]
        return best[:_REFINED_FAMILIES]

    def _loss(self, family: Family, unit: tuple[float, ...]) -> float:
        policy = family.build(unit)
        self._points.setdefault(policy, (family, unit))
        if policy not in self.scores:
            self.scores |= self._score([policy], self.windows)
        found = self.scores[policy]
        return -found.value if found.allowed else 1.0 - found.value

    def _refine(self, family: Family, unit: tuple[float, ...]) -> None:
        """A local search around ``unit``; every step lands in ``scores``."""
        if len(unit) == 1:
            near = 2.0 / len(family.draws())
            bounds = max(0.0, unit[0] - near), min(1.0, unit[0] + near)
            minimize_scalar(
                lambda u: self._loss(family, (float(u),)),
                bounds=bounds,
                method="bounded",
                options={"maxiter": _LINE_STEPS, "xatol": 1e-3},
            )
            return
        start = np.array(unit)
        # Edges point inwards, so that no vertex is clipped onto another.
        edges = np.diag(np.where(start > 0.5, -_SIMPLEX_EDGE, _SIMPLEX_EDGE))
        minimize(
            lambda u: self._loss(family, tuple(float(v) for v in u)),
            start,
            method="Nelder-Mead",
            bounds=[(0.0, 1.0)] * start.size,
            options={
                "maxfev": _SIMPLEX_STEPS,
                "initial_simplex": np.vstack([start, start + edges]),
                "xatol": 1e-2,
                "fatol": 1e-6,
            },
        )
