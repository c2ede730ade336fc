"""How long a step of any server can take: what tells milliseconds from seconds in a file of prices.

Loose on purpose: from a hundredth of a kernel's launch on the fastest GPU to minutes of text on a
laptop's CPU. Knows no file.
"""

from __future__ import annotations

LEAST_STEP_S = 1e-5
"""A step launches many kernels, of which each takes microseconds: 100,000 steps per second."""
MOST_STEP_S = 10.0
"""0.1 steps per second: slower than a large model's full batch on a CPU."""


def refuse_outside(seconds: float, *, what: str) -> None:
    """``ValueError`` beginning with ``what`` where no step takes so long, or so short a time."""
    if not LEAST_STEP_S <= seconds <= MOST_STEP_S:
        raise ValueError(
            f"{what} is a step of {seconds:g} s, outside {LEAST_STEP_S:g} to "
            f"{MOST_STEP_S:g} s, which no server leaves; give seconds, not milliseconds"
        )
