"""The parts of a run that figures are read from: the whole of it, and its steady state.

Owns what lies between two looks at a run's counters. Which requests are judged is
``simulator.fleet.judged``'s to say, what is made of the counts ``metrics``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.engine.layout import STATE, Counts, Records, counts
from simulator.fleet.judged import open_window_s
from simulator.fleet.scenario import Outcome

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A stretch of a run."""

    start_s: Floats
    """[replicas] in a closed loop every replica has clients, and a steady state, of its own."""
    end_s: Floats
    """[replicas]."""
    now_s: float
    """When the run ended: what would have arrived later was not sent."""
    judged: slice
    """The requests whose latencies count."""
    itl: npt.NDArray[np.int64]
    """[ITL_BINS] counted in it, over all replicas."""
    lengths: npt.NDArray[np.int64]
    """[2, K + 1] counted in it, over all replicas."""
    before: Records
    """[replicas] STATE when it began."""
    after: Records
    """[replicas] STATE when it ended."""

    @property
    def duration_s(self) -> float:
        """Seconds it took, mean over replicas."""
        return float((self.end_s - self.start_s).mean())

    def counted(self, name: str) -> int:
        """Of a counter of STATE, over all replicas."""
        return int(self.after[name].sum() - self.before[name].sum())

    @property
    def busy_s(self) -> float:
        """Seconds of steps; those that an edge cuts count where they ended."""
        busy_s = self.after["busy_s"] - self.before["busy_s"]
        return float(np.minimum(busy_s, self.end_s - self.start_s).sum())


def _between(
    before: Sequence[Counts],
    after: Sequence[Counts],
    *,
    start_s: Floats,
    end_s: Floats,
    now_s: float,
    judged: slice,
) -> Part:
    pairs = list(zip(before, after, strict=True))
    return Part(
        start_s=start_s,
        end_s=end_s,
        now_s=now_s,
        judged=judged,
        itl=np.sum([b.itl - a.itl for a, b in pairs], axis=0),
        lengths=np.sum([b.lengths - a.lengths for a, b in pairs], axis=0),
        before=np.concatenate([one.state for one in before]),
        after=np.concatenate([one.state for one in after]),
    )


def whole_run(outcome: Outcome) -> Part:
    """From the first arrival to the end of the last step on any replica."""
    after = [counts(memory) for memory in outcome.memories]
    nothing = [
        Counts(np.zeros(1, STATE), np.zeros_like(one.itl), np.zeros_like(one.lengths))
        for one in after
    ]
    now_s = max(float(one.state["now_s"][0]) for one in after)
    everywhere = np.ones(len(after))
    return _between(
        nothing,
        after,
        start_s=everywhere * float(np.nanmin(outcome.requests["arrival_s"])),
        end_s=everywhere * now_s,
        now_s=now_s,
        judged=slice(None),
    )


def judged_part(outcome: Outcome) -> Part:
    """The time in which the judged requests were sent, however short."""
    scenario = outcome.scenario
    judged = scenario.judged_requests
    before, after = zip(*outcome.marks, strict=True)
    now_s = max(float(memory.state["now_s"][0]) for memory in outcome.memories)
    if scenario.concurrency is None:
        window_s = open_window_s(judged, scenario.recorded_s)
        start_s, end_s = (np.full(len(before), min(edge, now_s)) for edge in window_s)
    else:
        start_s, end_s = (
            np.array([float(one.state["now_s"][0]) for one in marks]) for marks in (before, after)
        )
    return _between(before, after, start_s=start_s, end_s=end_s, now_s=now_s, judged=judged)


def steady_part(outcome: Outcome) -> Part | None:
    """The same; None where it is too short to say anything.

    A closed loop of C clients has to see C finishes after the C-th, so that everybody is answered
    once while it is judged.
    """
    part = judged_part(outcome)
    least = outcome.scenario.concurrency or 0
    nobody = part.judged.start >= min(part.judged.stop, outcome.requests.size)
    short = nobody or (part.end_s <= part.start_s).any() or part.counted("done") < least
    return None if short else part
