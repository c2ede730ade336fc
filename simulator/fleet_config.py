"""Fleet settings: how requests reach several replicas, checked field by field.

Owns what the ``fleet`` key of a configuration file may hold. Knows no trace, no cost model and no
event loop: whether the parts fit a scenario is ``Scenario``'s to say.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

ROUTERS = ("round-robin", "least-loaded", "power-of-two", "prefix-affine")


def check_number(name: str, value: float, *, least: float = 0.0, above: bool = True) -> None:
    """``ValueError`` unless ``value`` is finite and above ``least`` (or at least ``least``)."""
    if not (math.isfinite(value) and (value > least if above else value >= least)):
        bound = "above" if above else "at least"
        raise ValueError(f"fleet: {name} {value} must be a finite number {bound} {least:g}")


def check_router(name: str, value: str, known: tuple[str, ...]) -> None:
    """``ValueError`` unless ``value`` is one of the ``known`` routers."""
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"fleet: {name} {value!r} is unknown; {hint}routers: {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """How several replicas share the traffic. The default is a plain round-robin router."""

    router: str = "round-robin"
    """Chooses the replica of each request; ``simulator.routing`` says how."""
    report_interval_s: float = 0.1
    """Replicas report their load this often; between two reports a router knows what it sent."""

    def __post_init__(self) -> None:
        check_router("router", self.router, ROUTERS)
        check_number("report_interval_s", self.report_interval_s)
