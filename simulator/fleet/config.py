"""Fleet settings: how requests reach several replicas, checked field by field.

Owns what the ``fleet`` key of a configuration file may hold. Knows no trace, no cost model and no
event loop: whether the parts fit a scenario is ``Scenario``'s to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang_dspark.files import did_you_mean
from simulator.engine.config import EngineConfig

ROUTERS = ("round-robin", "least-loaded", "power-of-two", "prefix-affine")
DECODE_ROUTERS = ROUTERS[:3]  # KV that was handed over shares no prefixes
ROLES = ("serve", "prefill", "decode")


def check_number(name: str, value: float, *, least: float = 0.0, above: bool = True) -> None:
    """``ValueError`` unless ``value`` is finite and above ``least`` (or at least ``least``)."""
    if not (math.isfinite(value) and (value > least if above else value >= least)):
        bound = "above" if above else "at least"
        raise ValueError(f"fleet: {name} {value} must be a finite number {bound} {least:g}")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """``ValueError`` unless ``value`` is one of the ``known``."""
    if value not in known:
        hint = did_you_mean(value, known, show=str)
        raise ValueError(f"fleet: {name} {value!r} is unknown; {hint}known: {', '.join(known)}")


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
class AutoscaleConfig:
    """How many replicas a pool holds at a time.

    Every ``interval_s`` it wants enough replicas for ``target_in_flight`` requests each, and has
    the most that it wanted within the last ``stabilisation_s`` (the rule of Kubernetes' horizontal
    autoscaler). A replica that is no longer wanted finishes what it holds.
    """

    target_in_flight: float
    """Requests in flight, waiting ones included, that one replica should have."""
    most: int
    """Replicas at most."""
    least: int = 1
    """Replicas at least."""
    startup_s: float
    """Seconds from the decision until a new replica takes requests; its GPUs are paid for."""
    interval_s: float = 15.0
    """Seconds between two decisions."""
    stabilisation_s: float = 300.0
    """A replica goes only after it was not wanted for so long."""

    def __post_init__(self) -> None:
        check_number("target_in_flight", self.target_in_flight)
        check_number("startup_s", self.startup_s, above=False)
        check_number("interval_s", self.interval_s)
        check_number("stabilisation_s", self.stabilisation_s, above=False)
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"fleet: autoscale between {self.least} and {self.most} replicas; least must be at "
                "least 1 and most no less"
            )


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Equal replicas."""

    role: str = "serve"
    """``serve``, or one stage of a disaggregated fleet: ``prefill``, ``decode``."""
    replicas: int | None = None
    """Replicas at the start; None takes the scenario's count, which one pool may."""
    cost_model: str | None = None
    """Name or file of their cost model; None takes the scenario's."""
    engine: EngineConfig | None = None
    """Their settings; None takes the scenario's."""
    autoscale: AutoscaleConfig | None = None
    """None: the number of replicas stays."""

    def __post_init__(self) -> None:
        check_choice("role", self.role, ROLES)
        if self.replicas is not None and self.replicas < 1:
            raise ValueError(f"fleet: a pool of {self.replicas} replicas must have at least 1")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """What it takes to move a prompt's KV from a prefill replica to a decode replica.

    Seconds = ``latency_s`` + prompt tokens x the cost model's ``kv_bytes_per_token`` /
    ``bytes_per_s``. Transfers do not slow each other or the engines down.
    """

    bytes_per_s: float
    """Bandwidth between two replicas."""
    latency_s: float = 0.0
    """Seconds before the first byte."""

    def __post_init__(self) -> None:
        check_number("bytes_per_s", self.bytes_per_s)
        check_number("latency_s", self.latency_s, above=False)


@dataclass(frozen=True, kw_only=True)
class ShedConfig:
    """The router refuses requests whose TTFT bound is hopeless; ``simulator.fleet.shedding``."""

    low_priority_headroom: float = 0.2
    """Part of its bound that each priority below the trace's highest leaves to those above."""

    def __post_init__(self) -> None:
        if not 0 <= self.low_priority_headroom < 1:
            raise ValueError(
                f"fleet: low_priority_headroom {self.low_priority_headroom} must lie in [0, 1)"
            )


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """How several replicas share the traffic. The default is a plain round-robin router."""

    router: str = "round-robin"
    """Chooses the replica of each request; ``simulator.fleet.routing`` says how."""
    report_interval_s: float = 0.1
    """Replicas report their load this often; between two reports a router knows what it sent."""

    failures: FailureConfig | None = None
    """None: no replica ever fails."""
    shed: ShedConfig | None = None
    """None: no request is refused for its wait."""
    pools: tuple[PoolConfig, ...] = ()
    """Unequal or scaled replicas; none given is one pool of the scenario's replicas."""
    decode_router: str = "least-loaded"
    """Chooses the decode replica when a prompt is prefilled."""
    transfer: TransferConfig | None = None
    """Needed with pools of roles ``prefill`` and ``decode``."""

    @property
    def disaggregated(self) -> bool:
        """Whether prefill and decode are done by different replicas."""
        return any(pool.role != "serve" for pool in self.pools)

    @property
    def steady(self) -> bool:
        """Whether all replicas are equal and always there."""
        return self.failures is None and not self.pools

    def __post_init__(self) -> None:
        check_choice("router", self.router, ROUTERS)
        check_number("report_interval_s", self.report_interval_s)
        check_choice("decode_router", self.decode_router, DECODE_ROUTERS)
        roles = sorted({pool.role for pool in self.pools})
        if self.disaggregated and roles != ["decode", "prefill"]:
            raise ValueError(
                f"fleet: pools of role {' and '.join(roles)}; a disaggregated fleet has prefill "
                "and decode pools, and no other"
            )
        if self.disaggregated != (self.transfer is not None):
            raise ValueError(
                "fleet: prefill and decode pools need 'transfer', and only they; add or remove it"
            )
        if sum(pool.replicas is None for pool in self.pools) > 1:
            raise ValueError(
                "fleet: several pools without 'replicas'; at most one takes the scenario's count"
            )
