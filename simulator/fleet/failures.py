"""When a replica fails, and what a request is once its replica failed.

Owns the draw of failure times and the fresh start of a request. Knows no router and no event loop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from sglang_dspark.core.compiled import compiled
from simulator.acceptance.tables import AcceptanceTables, begin_request
from simulator.engine.layout import WAITING, Records
from simulator.fleet.config import FailureConfig
from simulator.rng import round_key, uniform, word

_FAILURE_STEP = -(1 << 41)  # far from the rounds and routes of the request of the same number


@compiled
def _luck(seed: int, replica: int, failure: int) -> float:
    return uniform(word(round_key(seed, replica, _FAILURE_STEP + failure), 0))


def failure_gaps_s(config: FailureConfig, seed: int, replica: int) -> Iterator[float]:
    """Seconds that the replica is up before each failure; keyed by (seed, replica, failure).

    None for a configuration that lists its failures.
    """
    if config.mean_time_between_s is None:
        return
    for failure in itertools.count():
        yield -config.mean_time_between_s * math.log(_luck(seed, replica, failure))


def start_again(
    requests: Records, r: int, acceptance: AcceptanceTables, seed: int, *, ready_s: float
) -> None:
    """Request ``r`` as it was before it was sent, to be sent again at ``ready_s``.

    Its tokens are lost: a router has no way to go on with the answer of another replica. It meets
    the same luck again. ``verified`` and ``accepted`` keep the work done in vain.
    """
    row = requests[r]
    for name in (
        "generated", "kv_len", "prefill_end", "cached_tokens", "rounds", "history",
        "locked_blocks", "retractions", "longest_itl_s", "kv_ready",
    ):  # fmt: skip
        row[name] = 0
    for name in ("first_token_s", "last_emit_s", "finish_s", "transfer_s"):
        row[name] = np.nan
    _, row["step_state"] = begin_request(
        acceptance, seed, r, int(row["domain"]), int(row["output_limit"])
    )
    row["status"] = WAITING
    row["ready_s"] = ready_s
    row["retries"] += 1
