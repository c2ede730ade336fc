"""More users: a trace's traffic with copies of itself, each a population of its own.

Owns what a copy shares with the others and when it runs. More users are not the same bursts
compressed (``Trace.scaled``): copies run at other times, so that bursts add up only by chance.
Knows no file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np

from traces.columns import Trace, build_trace, trace_requests
from traces.schema import Request

SHIFT_S = 600.0
"""Copies run up to ten minutes apart: bursts fall elsewhere, the hour of the day stays."""
MOST_USERS = 1000.0


def superpose(requests: Sequence[Request], users: float, *, seed: int) -> list[Request]:
    """``users`` times as many users, in arrival order; below 1 some of them.

    Whole copies, and of the last one the part that a fraction asks for: sessions are kept or left
    out whole, each with that probability. A copy is moved by its own draw from ``SHIFT_S`` seconds
    (the trace's span where that is shorter) and runs around its end. Its request and session names
    get the copy's number, and so do its prefix blocks, except those that several sessions of the
    original share: they are the application's, not a user's. The first copy is the original.

    ``ValueError`` unless ``users`` is above 0 and at most 1000, or when nobody is left.
    """
    if not (math.isfinite(users) and 0 < users <= MOST_USERS):
        raise ValueError(f"users {users}: give a number above 0, {MOST_USERS:.0f} at most")
    rng = np.random.default_rng(seed)
    shared = _shared_blocks(requests)
    found: list[Request] = []
    for copy in range(math.ceil(users)):
        share = min(1.0, users - copy)
        kept = _thinned(requests, share, rng) if share < 1.0 else list(requests)
        found += kept if copy == 0 else _moved(kept, requests, copy, shared, rng)
    if not found:
        raise ValueError(f"users {users}: nobody of {len(requests)} requests is left; give more")
    found.sort(key=lambda request: request.arrival_s)
    return found


def more_users(trace: Trace, users: float, *, seed: int) -> Trace:
    """``superpose`` of a trace's columns; it keeps its name, path and digest."""
    requests = superpose(trace_requests(trace), users, seed=seed)
    return build_trace(
        requests,
        name=trace.name,
        path=trace.path,
        sha256=trace.sha256,
        block_tokens=trace.block_tokens or None,
        where=lambda row: f"{trace.path}: {requests[row].request_id}",
    )


def _user(request: Request) -> str:
    """Whose request it is: its session's, or its own."""
    return f"s{request.session_id}" if request.session_id is not None else f"r{request.request_id}"


def _shared_blocks(requests: Sequence[Request]) -> set[int | str]:
    """Prefix blocks that more than one session sends."""
    senders: defaultdict[int | str, set[str]] = defaultdict(set)
    for request in requests:
        for block in request.prefix_hashes or ():
            senders[block].add(_user(request))
    return {block for block, users in senders.items() if len(users) > 1}


def _thinned(requests: Sequence[Request], share: float, rng: np.random.Generator) -> list[Request]:
    users = list(dict.fromkeys(_user(request) for request in requests))
    kept = {
        user for user, drawn in zip(users, rng.random(len(users)), strict=True) if drawn < share
    }
    return [request for request in requests if _user(request) in kept]


def _moved(
    kept: Sequence[Request],
    original: Sequence[Request],
    copy: int,
    shared: set[int | str],
    rng: np.random.Generator,
) -> list[Request]:
    start_s, end_s = original[0].arrival_s, original[-1].arrival_s
    span_s = end_s - start_s
    shift_s = float(rng.uniform(0.0, min(SHIFT_S, span_s))) if span_s > 0 else 0.0
    moved = []
    waiting = {request.session_id for request in kept if request.delay_s is not None}
    around: dict[str | None, bool] = {}
    for request in kept:
        after_s = request.arrival_s - start_s + shift_s
        # A session that waits for answers stays whole: it goes where its first turn does.
        session = request.session_id if request.session_id in waiting else None
        beyond = (
            after_s > span_s if session is None else around.setdefault(session, after_s > span_s)
        )
        if beyond:
            after_s -= span_s
        blocks = request.prefix_hashes
        moved.append(
            msgspec.structs.replace(
                request,
                request_id=f"{request.request_id}+{copy}",
                arrival_s=round(start_s + after_s, 6),
                session_id=None if request.session_id is None else f"{request.session_id}+{copy}",
                prefix_hashes=None
                if blocks is None
                else [block if block in shared else f"{block}+{copy}" for block in blocks],
            )
        )
    return moved


def merge(*traces: Sequence[Request]) -> list[Request]:
    """Several traces' requests as one, each from its own start on, in arrival order.

    Names of requests, sessions and prefix blocks of all but the first get their trace's number:
    those of different traces are never the same.
    """
    found = []
    for number, trace in enumerate(traces):
        start_s = trace[0].arrival_s if trace else 0.0
        for request in trace:
            marked: dict[str, object] = {"arrival_s": request.arrival_s - start_s}
            if number:
                marked["request_id"] = f"{request.request_id}@{number}"
                if request.session_id is not None:
                    marked["session_id"] = f"{request.session_id}@{number}"
                if request.prefix_hashes is not None:
                    marked["prefix_hashes"] = [f"{b}@{number}" for b in request.prefix_hashes]
            found.append(msgspec.structs.replace(request, **marked))
    found.sort(key=lambda request: request.arrival_s)
    return found
