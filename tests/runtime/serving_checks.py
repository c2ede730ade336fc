"""Checks that several serving tests make of a server's own records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sglang_dspark.logs.records import StepRecord
from sglang_dspark.logs.step_log import ReplayCounts, replay
from tests.waiting import HUNG_S

_PART_S = 0.8
"""More than ``serving_patches.quick_step_log`` lets a part wait, and its writing."""


def settle(log: Path) -> None:
    """Wait until the step log has no more to say."""
    seen, deadline = -1, time.monotonic() + HUNG_S
    while time.monotonic() < deadline:
        parts = len(list(log.glob("*.parquet")))
        if parts and parts == seen:
            return
        seen = parts
        time.sleep(_PART_S)


def replayed(log: Path) -> ReplayCounts:
    """Every step the server has recorded, planned again by ``sglang_dspark.core``."""
    settle(log)
    counts = replay(log)
    assert counts.dropped == 0
    return counts


def contexts_follow(records: Sequence[StepRecord]) -> int:
    """How often a request's context was its last one and what that step committed: always, but
    for requests that were sent back to the queue in between."""
    expected: dict[str, int] = {}
    followed = 0
    for record in records:
        ends = record.state.context_tokens + record.accepted + 1
        for rid, context, end in zip(
            record.request_ids, record.state.context_tokens.tolist(), ends.tolist(), strict=True
        ):
            assert expected.get(rid, context) == context, (rid, record.step)
            followed += rid in expected
            expected[rid] = end
    return followed


@dataclass
class Drafting:
    """For whom the steps of a log drafted."""

    everyone: int = 0
    some: int = 0
    nobody: int = 0
    probes: int = 0
    """Requests drafted for after steps in which they were not."""
    longest_wait: int = 0
    """Steps of a request in a row without a draft."""

    @classmethod
    def of(cls, records: Sequence[StepRecord], *, obeyed: bool = True) -> Drafting:
        """``obeyed``: whoever the last plan left out was not drafted for, and no other."""
        found, waited, wanted = cls(), dict[str, int](), dict[str, bool]()
        for record in records:
            drafted = record.state.logits[:, 0] != -np.inf
            found.everyone += bool(drafted.all())
            found.nobody += not drafted.any()
            found.some += bool(drafted.any() and not drafted.all())
            assert not record.plan.lengths[~drafted].any()
            rows = zip(record.request_ids, drafted, record.plan.draft_next, strict=True)
            for rid, draft, draft_next in rows:
                assert not obeyed or wanted.get(rid, draft) == draft
                wanted[rid] = bool(draft_next)
                found.probes += bool(draft and waited.get(rid, 0))
                waited[rid] = 0 if draft else waited.get(rid, 0) + 1
                found.longest_wait = max(found.longest_wait, waited[rid])
        return found
