"""The step log: every (state, plan, outcome) of a server, bounded on disk, replayable anywhere.

Replay: ``python -m sglang_dspark.logs.step_log FOLDER``

Owns reading and replaying a folder. How it is written beside a server and kept within its bound is
``writer``, what a file looks like ``step_parts``. Knows neither SGLang nor torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.cli import Parser, run_command
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.state import VerifyPlan
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.logs.step_parts import PartHeader, encode, part_bytes, read_part
from sglang_dspark.logs.writer import PartWriter, by_writer

_PREFIX, _TITLE = "steps", "step log"
_FORECAST_TOLERANCE = 1e-12
"""Relative: another processor may fuse a multiplication with an addition."""


class StepLog(PartWriter[StepRecord]):
    """Writes every step's record to ``folder``: a ``PartWriter`` of ``steps-*.parquet``."""

    def __init__(
        self,
        folder: str | Path,
        *,
        header: PartHeader,
        limit_mb: int = 256,
        interval_s: float = 10.0,
        queue_records: int = 1024,
        poll_s: float = 0.1,
    ) -> None:
        self.header = header
        super().__init__(
            folder,
            prefix=_PREFIX,
            title=_TITLE,
            limit_mb=limit_mb,
            interval_s=interval_s,
            queue_records=queue_records,
            poll_s=poll_s,
        )

    def encode(self, records: Sequence[StepRecord]) -> Any:
        """As ``step_parts`` does."""
        return encode(records)

    def part_bytes(self, batches: Sequence[Any]) -> Any:
        """As ``step_parts`` does, with what was dropped so far."""
        return part_bytes(batches, dataclasses.replace(self.header, dropped=self.dropped))


def _parts(folder: str | Path) -> Iterator[tuple[str, PartHeader, Iterator[StepRecord]]]:
    """Writer, header and steps of every part."""
    return by_writer(folder, prefix=_PREFIX, title=_TITLE, read=read_part)


def read(folder: str | Path) -> Iterator[StepRecord]:
    """Every step in the folder, oldest first within each server's run.

    ``ValueError`` when there is none or a file is not a part.
    """
    for _, _, records in _parts(folder):
        yield from records


def shared_header(folder: str | Path) -> PartHeader:
    """What every part of the folder says of its server.

    ``ValueError`` where parts are of different policies, prices or draft lengths.
    """
    found: PartHeader | None = None
    for writer, header, _ in _parts(folder):
        if found is not None and any(
            getattr(header, name) != getattr(found, name)
            for name in ("policy", "cost_model", "gamma")
        ):
            raise ValueError(
                f"{folder}: {writer} was served under another policy, other prices or another "
                "draft length than the parts before it; keep the parts of one server start"
            )
        found = header
    assert found is not None
    return found


@dataclass(frozen=True, kw_only=True)
class ReplayCounts:
    """What replaying a log found."""

    steps: int
    """Steps in the log."""
    same: int
    """Whose state gave the recorded plan again."""
    different: int
    """Whose state gave another plan."""
    degraded: int
    """Which were verified in full without asking the policy; nothing to compare."""
    dropped: int
    """Records that the writers say they dropped."""
    first_different: str = ""
    """What the first difference is."""


def difference(recorded: VerifyPlan, replayed: VerifyPlan) -> str:
    """What tells the two plans apart; empty when they are the same."""
    for name in ("lengths", "draft_next"):
        before, after = getattr(recorded, name), getattr(replayed, name)
        if not np.array_equal(before, after):
            return f"{name} {before.tolist()} recorded, {after.tolist()} now"
    if recorded.stop_reason != replayed.stop_reason:
        return f"stop_reason {recorded.stop_reason!r} recorded, {replayed.stop_reason!r} now"
    for name in ("predicted_step_s", "expected_tokens"):
        before, after = getattr(recorded, name), getattr(replayed, name)
        both_nan = math.isnan(before) and math.isnan(after)
        if not both_nan and not math.isclose(before, after, rel_tol=_FORECAST_TOLERANCE):
            return f"{name} {before!r} recorded, {after!r} now"
    return ""


def replay(folder: str | Path) -> ReplayCounts:
    """Plan every recorded state again, with the policy, prices and calibration of its part."""
    steps = degraded = different = 0
    first = ""
    dropped: dict[str, int] = {}
    planner: Planner | None = None
    settings: Any = None
    for writer, header, records in _parts(folder):
        wanted = (header.policy, header.cost_model, header.gamma, header.max_requests)
        if planner is None or wanted != settings:
            try:
                planner, settings = header.planner(), wanted
            except ValueError as error:
                raise ValueError(f"{folder}: the header of {writer}: {error}") from None
        dropped[writer] = header.dropped  # each part states the writer's sum so far
        for record in records:
            steps += 1
            if record.degraded:
                degraded += 1
                continue
            found = difference(record.plan, planner.plan(record.state))
            different += bool(found)
            first = first or (found and f"step {record.step}: {found}")
    return ReplayCounts(
        steps=steps,
        same=steps - degraded - different,
        different=different,
        degraded=degraded,
        dropped=sum(dropped.values()),
        first_different=first,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay a folder: one line; status 0 when every plan is the same, 1 when one differs."""
    parser = Parser(
        description="Plan every recorded state again and compare. Status 1 when a plan differs.",
        examples=["steps"],
        page="docs/serving.md",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="what the server's --speculative-dspark-step-log named"
    )
    counts = replay(parser.parse_args(arguments).folder)
    line = (
        f"{counts.steps} steps: {counts.same} plans the same, {counts.different} different, "
        f"{counts.degraded} degraded (not the policy's), {counts.dropped} records dropped"
    )
    print(line + (f"; first difference: {counts.first_different}" if counts.different else ""))
    return 1 if counts.different else 0


if __name__ == "__main__":
    raise SystemExit(run_command("sglang_dspark.runtime.step_log", main))
