"""What is verified depends on load and prices; only what is planned is computed.

Read where an operator reads it: /metrics and /server_info. The step log of the same server replays
through the core, also by its command.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sglang_dspark.logs.step_log import read
from tests.runtime.servers import Nursery, Server, dspark_arguments
from tests.runtime.serving_checks import replayed
from tests.runtime.serving_client import Job, metrics, serve, server_info, total
from tests.runtime.serving_scenes import GAMMA, Pair, write_costs
from tests.waiting import HUNG_S

LEVELS = (1, 2, 4, 8, 16)
BUCKETS = {1: "1", 2: "2", 4: "3-4", 8: "5-8", 16: "9-16"}
"""Of /server_info, by the concurrency that fills them."""
NEW_TOKENS = 48
_METRICS_S = 1.2
"""Metrics are carried over twice a second."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Sums of /metrics."""

    verified: float
    drafted: float
    trimmed: float
    planned: float
    computed: float

    @classmethod
    def of(cls, server: Server) -> Counted:
        """Since the server started, once nothing more is carried over."""
        found = cls.now(server)
        while True:
            time.sleep(_METRICS_S)
            before, found = found, cls.now(server)
            if found == before:
                return found

    @classmethod
    def now(cls, server: Server) -> Counted:
        """What stands there."""
        found = metrics(server.url)
        return cls(
            **{
                name: total(found, f"sglang:dspark_{name}_tokens_total")
                for name in ("verified", "drafted", "trimmed", "planned", "computed")
            }
        )

    def since(self, before: Counted) -> Counted:
        """The difference."""
        return Counted(
            **{name: value - getattr(before, name) for name, value in vars(self).items()}
        )

    @property
    def per_request(self) -> float:
        """Draft tokens verified per request and step: each plans one row more."""
        return self.verified / (self.planned - self.verified)


def load(server: Server, pair: Pair, concurrency: int) -> None:
    """Sampled answers to different questions, so many at a time."""
    body = {"temperature": 1.0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    jobs = [
        Job(prompt=pair.conversation(number)[:14], sampling=body)
        for number in range(max(8, 3 * concurrency))
    ]
    outcomes = serve(server.url, jobs, concurrency=concurrency)
    assert all(outcome.whole for outcome in outcomes)


def by_load(server: Server, pair: Pair) -> dict[int, Counted]:
    """What was counted at each concurrency."""
    found = {}
    before = Counted.of(server)
    for level in LEVELS:
        load(server, pair, level)
        after = Counted.of(server)
        found[level] = after.since(before)
        before = after
    return found


def told(server: Server) -> dict[str, Any]:
    """DSPARK's block of /server_info."""
    block: dict[str, Any] = server_info(server.url)["internal_states"][0]["dspark"]
    return block


@pytest.mark.law
def test_dear_tokens_are_verified_less_the_busier_the_server(
    pair: Pair, nursery: Nursery, tmp_path: Path
) -> None:
    costs = write_costs(tmp_path / "dear.json", token_share=1.0, requests=16)
    log = tmp_path / "steps"
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="global", cost_model=costs, requests=16
    )
    with nursery.start(
        [*arguments, "--speculative-dspark-step-log", str(log)],
        patch="tests.runtime.serving_patches:quick_step_log",
    ) as server:
        found = by_load(server, pair)
        block = told(server)
        counts = replayed(log)
    verified = [found[level].per_request for level in LEVELS]
    print(
        "verified per request at",
        [f"{level}: {v:.2f}" for level, v in zip(LEVELS, verified, strict=True)],
    )
    assert all(more > less - 0.1 for more, less in itertools.pairwise(verified))
    assert verified[-1] < 0.6 * verified[0]
    for counted in found.values():
        assert counted.computed == counted.planned
        assert counted.trimmed > 0
    buckets = [block["verified_per_request"][BUCKETS[level]] for level in LEVELS]
    assert buckets[-1] < 0.6 * buckets[0]
    assert block["computed_tokens"] == block["planned_tokens"]
    assert counts.different == 0, counts.first_different
    assert counts.same == counts.steps == block["steps"]
    for record in read(log):
        assert record.computed_tokens == int((1 + record.plan.lengths).sum())
    command = [sys.executable, "-m", "sglang_dspark.logs.step_log", str(log)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=HUNG_S)
    assert said.returncode == 0, said.stderr
    assert f"{counts.steps} steps: {counts.steps} plans the same" in said.stdout


@pytest.mark.law
def test_cheap_tokens_are_all_verified(pair: Pair, nursery: Nursery, tmp_path: Path) -> None:
    costs = write_costs(tmp_path / "cheap.json", token_share=1e-9, requests=16)
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy="global", cost_model=costs, requests=16
    )
    with nursery.start(arguments) as server:
        load(server, pair, 16)
        counted = Counted.of(server)
        block = told(server)
    print(f"{counted.per_request:.3f} of {GAMMA} verified per request")
    # A token that is surely rejected gains less than the least price: float64 cannot add it.
    assert counted.verified > 0.998 * counted.drafted
    assert counted.computed == counted.planned
    shapes = block["steps_by_shape"]
    assert shapes["uniform"] > 0.9 * sum(shapes.values())
