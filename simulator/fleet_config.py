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
class FailureAt:
    """One failure."""

    replica: int
    """Its number, from 0."""
    at_s: float
    """Seconds after the first arrival; without effect while the replica is down."""

    def __post_init__(self) -> None:
        if self.replica < 0:
            raise ValueError(f"fleet: failure of replica {self.replica}; count replicas from 0")
        check_number("at_s", self.at_s, above=False)


@dataclass(frozen=True, kw_only=True)
class FailureConfig:
    """When replicas fail and how long they are away. Either a mean or a list of times."""

    restart_s: float
    """Seconds from a failure until the replica takes requests again, with empty caches."""
    mean_time_between_s: float | None = None
    """Mean seconds in which a replica is up before it fails; exponential, each for itself."""
    at: tuple[FailureAt, ...] = ()
    """Failures at given times."""
    most_retries: int = 100
    """A request that has been sent again so often is given up when its replica fails once more."""

    def __post_init__(self) -> None:
        check_number("restart_s", self.restart_s, above=False)
        if (self.mean_time_between_s is None) == (not self.at):
            raise ValueError(
                "fleet: failures need either mean_time_between_s or a list of times 'at', not both"
            )
        if self.mean_time_between_s is not None:
            check_number("mean_time_between_s", self.mean_time_between_s)
        if self.most_retries < 0:
            raise ValueError(f"fleet: most_retries {self.most_retries} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """How several replicas share the traffic. The default is a plain round-robin router."""

    router: str = "round-robin"
    """Chooses the replica of each request; ``simulator.routing`` says how."""
    report_interval_s: float = 0.1
    """Replicas report their load this often; between two reports a router knows what it sent."""

    failures: FailureConfig | None = None
    """None: no replica ever fails."""

    def __post_init__(self) -> None:
        check_router("router", self.router, ROUTERS)
        check_number("report_interval_s", self.report_interval_s)
