"""How many replicas a pool should have, and the SimPy process that sees to it.

Owns the decision; the transitions themselves are ``fleet.stage``'s. Knows no router and no
engine: it is told how many requests are in flight.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import simpy

from simulator.fleet.config import AutoscaleConfig
from simulator.fleet.replica import AWAY, DRAINING, OFF, STARTING, UP, Replica
from simulator.fleet.stage import Stage

Wait = Generator[simpy.Event, Any, None]


class Scaler:
    """Remembers what was wanted, so that a short lull lets no replica go."""

    def __init__(self, config: AutoscaleConfig) -> None:
        self._config = config
        self._wanted: deque[tuple[float, int]] = deque()

    def decide(self, now_s: float, in_flight: int) -> int:
        """Replicas to have from ``now_s`` on, within bounds: the most wanted lately."""
        config = self._config
        wanted = math.ceil(in_flight / config.target_in_flight)
        self._wanted.append((now_s, min(max(wanted, config.least), config.most)))
        while self._wanted[0][0] < now_s - config.stabilisation_s:
            self._wanted.popleft()
        return max(count for _, count in self._wanted)


def keep_scaled(
    env: simpy.Environment, stage: Stage, replicas: Sequence[Replica], config: AutoscaleConfig
) -> Wait:
    """Every interval, count what is in flight and start or drain replicas of the pool."""
    scaler = Scaler(config)
    while True:
        yield env.timeout(config.interval_s)
        in_flight = len(stage.waiting)
        in_flight += sum(replica.sent - replica.left_by(env.now) for replica in replicas)
        _resize(env, stage, replicas, scaler.decide(env.now, in_flight), config.startup_s)


def _resize(
    env: simpy.Environment,
    stage: Stage,
    replicas: Sequence[Replica],
    wanted: int,
    startup_s: float,
) -> None:
    """Draining replicas are taken back first; of those that go, the ones still starting."""
    held = [replica for replica in replicas if replica.phase in (STARTING, UP, AWAY)]
    for replica in [r for r in replicas if r.phase == DRAINING][: max(0, wanted - len(held))]:
        stage.open(replica, env.now)
        held.append(replica)
    for replica in [r for r in replicas if r.phase == OFF][: max(0, wanted - len(held))]:
        stage.start(replica, env.now)
        env.process(_start_up(env, stage, replica, startup_s))
        held.append(replica)
    held.sort(key=lambda replica: (replica.phase != STARTING, -replica.number))
    for replica in held[: max(0, len(held) - wanted)]:
        stage.drain(replica, env.now)


def _start_up(env: simpy.Environment, stage: Stage, replica: Replica, startup_s: float) -> Wait:
    change = replica.changes
    yield env.timeout(startup_s)
    if replica.changes == change:  # else it was let go meanwhile
        stage.open(replica, env.now)
