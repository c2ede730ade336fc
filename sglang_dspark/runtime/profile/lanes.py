"""How a server's decode steps are pinned and read: this project's worker, or SGLang's own DSPARK.

Both answer with ``Step``; which one a server speaks, ``lane_of`` finds out. Times are the server's
own. Knows no grid and no fit; imports no SGLang.

Symbols: R requests, K draft positions (gamma), M tokens of the target's forward.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from sglang_dspark.server_client import Held, ServerClient, Unreachable

RECENT = 512
"""Steps that the worker is asked to remember."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One decode step as the server ran it."""

    number: int
    end_s: float
    """The server's clock when the results were known; NaN where it does not say."""
    requests: int
    planned_tokens: int
    computed_tokens: int
    """Of the target's forward, padding excluded."""
    context_tokens: int
    """Summed over the requests; -1 where the server does not say."""
    accepted: int
    """Draft tokens accepted; -1 where the server does not say."""
    wall_s: float
    """From the step before to this one; NaN where the one before was no decode step."""
    draft_s: float
    plan_s: float
    verify_s: float
    commit_s: float
    """Parts; NaN where the server does not time them."""
    shape: str
    """``uniform``, ``ragged`` or empty."""


class Lane(Protocol):
    """A server whose verified length can be pinned."""

    client: ServerClient
    gamma: int
    name: str

    def pin(self, length: float | None, requests: int) -> None:
        """Verify ``length`` drafts of each request (on average); None gives the policy back."""
        ...

    def steps(self) -> list[Step]:
        """The last steps, oldest first."""
        ...


def lane_of(client: ServerClient) -> Lane:
    """The lane that this server speaks. ``Unreachable`` says what to start it with."""
    state = client.state()
    if "dspark_control" in state:
        return WorkerLane(client, state)
    record = state.get("dspark_info_record")
    if record:
        return BuiltInLane(client, record)
    raise Unreachable(
        f"{client.url} shows no decode steps; start it with --speculative-algorithm DSPARK and "
        "this plugin, or, for SGLang's own DSPARK, with "
        "SGLANG_DSPARK_DEBUG_DUMP=core,step_cpu_time,draft_gpu_time,target_verify_gpu_time"
    )


class WorkerLane:
    """This project's worker (``runtime/worker/control.py``)."""

    name = "sglang-dspark worker"

    def __init__(self, client: ServerClient, state: dict[str, Any]) -> None:
        self.client = client
        self.gamma = int(state["dspark_control"]["gamma"])
        client.set_state(dspark_recent_steps=RECENT)

    def pin(self, length: float | None, requests: int) -> None:
        """The same whole length for every request."""
        if length is not None and length != int(length):
            raise ValueError(f"length {length} must be whole: the worker pins each request's")
        self.client.set_state(dspark_force_length=None if length is None else int(length))

    def steps(self) -> list[Step]:
        """From the control's window."""
        shown = self.client.state()["dspark_control"]
        return worker_steps(shown["columns"], shown["steps"])


def worker_steps(columns: list[str], rows: list[list[Any]]) -> list[Step]:
    """Steps from the rows that the control shows.

    ``wall_s`` is NaN where the one before is not the step before, or had another batch size.
    """
    found: list[Step] = []
    before: dict[str, Any] = {}
    for row in rows:
        step = dict(zip(columns, row, strict=True))
        follows = before and before["step"] + 1 == step["step"]
        same = follows and before["requests"] == step["requests"]
        found.append(
            Step(
                number=step["step"],
                end_s=step["end_s"],
                requests=step["requests"],
                planned_tokens=step["planned_tokens"],
                computed_tokens=step["computed_tokens"],
                context_tokens=step["context_tokens"],
                accepted=step["accepted"],
                wall_s=step["end_s"] - before["end_s"] if same else math.nan,
                draft_s=step["draft_s"],
                plan_s=step["plan_s"],
                verify_s=step["verify_s"],
                commit_s=step["commit_s"],
                shape=step["shape"],
            )
        )
        before = step
    return found


class BuiltInLane:
    """SGLang's own DSPARK (0.5.16 and later): a fraction of the full budget, its debug records."""

    name = "SGLang's DSPARK"

    def __init__(self, client: ServerClient, record: dict[str, Any]) -> None:
        self.client = client
        self.gamma = int(record["gamma"])
        self._pinned = False
        self.stuck = False
        """Whether the server went on pinned when it was asked to stop."""
        components = set(record["components"])
        if not {"core", "step_cpu_time"} <= components:
            raise Unreachable(
                f"{client.url} records {', '.join(sorted(components))} of each step; start it with "
                "SGLANG_DSPARK_DEBUG_DUMP=core,step_cpu_time,draft_gpu_time,target_verify_gpu_time"
            )

    def pin(self, length: float | None, requests: int) -> None:
        """The budget of ``length`` tokens for each of ``requests``; forgets the steps so far."""
        forget = {"dspark_clear_info_records": True}
        if length is not None:
            full = self.gamma * requests
            # SGLang rounds down what it computes in floating point: aim at the middle of a token.
            fraction = min((round(length * requests) + 0.5) / full, 1.0)
            self.client.set_state(dspark_force_budget_frac=fraction, **forget)
            self._pinned = True
        elif not self._pinned:
            self.client.set_state(**forget)
        else:
            self._release(forget)

    def _release(self, forget: dict[str, Any]) -> None:
        """Give the policy back. Releases whose HTTP takes numbers alone (0.5.17 to 0.5.21, at
        least) cannot: there everything is verified until a restart."""
        try:
            self.client.set_state(dspark_force_budget_frac=None, **forget)
            self._pinned = False
        except Unreachable:
            self.client.set_state(dspark_force_budget_frac=1.0, **forget)
            self.stuck = True

    def steps(self) -> list[Step]:
        """From the debug records."""
        record = self.client.state()["dspark_info_record"] or {}
        return built_in_steps(record.get("records", []))


def built_in_steps(records: list[dict[str, Any]]) -> list[Step]:
    """Steps from SGLang's records; what a record lacks is NaN or -1."""

    def seconds(record: dict[str, Any], name: str) -> float:
        value = record.get(name)
        return math.nan if value is None else float(value) / 1000

    found = []
    for record in records:
        requests = int(record.get("bs", record.get("num_running_reqs", -1)))
        computed = int(record.get("num_verify_tokens", -1))
        budget = record.get("budget")
        details = record.get("reqs") or []
        found.append(
            Step(
                number=int(record["forward_ct"]),
                end_s=math.nan,
                requests=requests,
                planned_tokens=computed if budget is None else requests + int(budget),
                computed_tokens=computed,
                context_tokens=sum(d["prefix_len"] for d in details) if details else -1,
                accepted=sum(d["correct_drafts"] for d in details) if details else -1,
                wall_s=seconds(record, "step_cpu_ms"),
                draft_s=seconds(record, "draft_gpu_ms"),
                plan_s=math.nan,
                verify_s=seconds(record, "target_verify_gpu_ms"),
                commit_s=math.nan,
                shape="",
            )
        )
    return found


def wait_for(ready: Callable[[], bool], *, timeout_s: float, what: str, every_s: float) -> None:
    """Return once ``ready``; ``Unreachable`` with ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise Unreachable(f"{what} within {timeout_s:g} s; look at the server's log")
        time.sleep(every_s)


def collect(
    lane: Lane,
    held: Held,
    *,
    requests: int,
    length: float | None,
    count: int,
    warm_up: int = 4,
    timeout_s: float = 120.0,
    every_s: float = 0.5,
) -> list[Step]:
    """``count`` steps of ``requests`` with the length pinned, after ``warm_up`` of them.

    ``Unreachable`` when the batch ends or never grows to ``requests``; whether the server did what
    was asked is for the caller to judge.
    """
    full = {s.number for s in lane.steps()}
    lane.pin(length, requests)
    seen = max(full, default=-1)
    planned = None if length is None else requests + round(length * requests)
    good: list[Step] = []

    def enough() -> bool:
        nonlocal good
        if held.error:
            raise Unreachable(f"a batch of {requests} failed: {held.error}")
        steps = [s for s in lane.steps() if s.number > seen and s.requests == requests]
        # The step in flight when the length was pinned is another one's.
        asked = [i for i, s in enumerate(steps) if planned in (None, s.computed_tokens)]
        good = steps[asked[0] + warm_up :] if asked else []
        if len(steps) >= 4 * (count + warm_up) and not asked:
            good = steps[-count:]  # the server does not follow: let the caller see
        if held.over.is_set() and len(good) < count:
            raise Unreachable(
                f"the batch of {requests} ended after {len(good)} of {count} steps; allow longer "
                "answers (--context-length)"
            )
        return len(good) >= count

    wait_for(
        enough,
        timeout_s=timeout_s,
        what=f"no {count} steps of {requests} requests",
        every_s=every_s,
    )
    return good[-count:]
