"""The turns of a session: what each of them waited for, and the prompt that it sent.

Owns ``delay_s``, the time from an answer to the next turn, by which a slower server gets fewer
requests, and what the file's input counts mean within a session. Knows no format.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np

from traces.importers.clock import UNITS
from traces.importers.imported import Imported

_OVERLAP_S = 1e-3
"""A turn that starts this much before the answer before it ended did not wait for it."""
_SHORTEST_S, _LONGEST_S = 0.02, 86400.0
"""Delays whose median is outside are in another unit than they are read in."""
_HISTORY_BLOCK_TOKENS = 64
"""Of a session's own prefix where the source has no blocks."""

AT_RECORDED = (
    "turns at their recorded times, whatever the server does: the file says neither a delay nor "
    "when the answer before ended"
)
OVERLAPPING = "turns sent before the answer before them ended: they keep their recorded times"
AT_ONCE = "turns without a time or a delay: sent when the answer before them ends"
BELOW = (
    "turns with fewer input tokens than their session holds: read as whole prompts "
    "(--turn-input new puts the session before them)"
)


def sessions_of(imported: Imported) -> dict[str, list[int]]:
    """The rows of each session, in order."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for row, request in enumerate(imported.requests):
        if request.session_id is not None:
            found[request.session_id].append(row)
    return found


def delays_to_seconds(imported: Imported, asked: str | None, path: str) -> None:
    """Bring the source's own delays to seconds. ``ValueError`` where they can be in no unit said.

    ``--time-unit`` goes for them too, unless only the unit that their format documents makes them
    as long as delays are.
    """
    given = [r.delay_s for r in imported.requests if r.delay_s]
    unit = asked or imported.delay_unit
    gaps = _recorded_gaps(imported)
    if given and not _plausible(given, gaps, unit):
        if asked is None:
            raise ValueError(
                f"{path}: half of its delays between turns are above "
                f"{float(np.median(given)) * UNITS[unit]:g} s if they are in {unit}, too short or "
                "far longer than the turns are apart; give --time-unit s, ms, us or ns"
            )
        if _plausible(given, gaps, imported.delay_unit):
            unit = imported.delay_unit
            imported.notes[f"delays are read in {unit}, unlike the times"] = len(given)
    for request in imported.requests:
        if request.delay_s is not None:
            request.delay_s = round(request.delay_s * UNITS[unit], 9)


def _recorded_gaps(imported: Imported) -> list[tuple[float, float]]:
    """(seconds between a turn and the one before it, its delay as the source has it)."""
    return [
        (now.arrival_s - last.arrival_s, now.delay_s)
        for rows in sessions_of(imported).values()
        for last, now in itertools.pairwise(imported.requests[row] for row in rows)
        if now.delay_s and now.arrival_s > last.arrival_s  # a time that is missing is not above
    ]


def _plausible(delays: list[float], gaps: list[tuple[float, float]], unit: str) -> bool:
    """Whether delays in this unit are as long as delays are, and not many times what turns are
    apart, which the next unit would be."""
    seconds = UNITS[unit]
    beyond = sum(delay * seconds > 20 * gap_s for gap_s, delay in gaps)
    usual = _SHORTEST_S <= float(np.median(delays)) * seconds <= _LONGEST_S
    return usual and 2 * beyond <= len(gaps)


def close_loops(imported: Imported) -> None:
    """Give every later turn its delay where the source tells it, and times where it has none.

    Requests are in order of arrival within each session, times in seconds, NaN where there are
    none. A turn without a time stands where it would be if answers took no time.
    """
    notes, requests = imported.notes, imported.requests
    for rows in sessions_of(imported).values():
        if requests[rows[0]].delay_s is not None:
            requests[rows[0]].delay_s = None
            notes["delays of first turns, which follow no answer"] += 1
        for before, row in itertools.pairwise(rows):
            turn, last = requests[row], requests[before]
            if turn.delay_s is None and math.isnan(turn.arrival_s):
                turn.delay_s = 0.0
                notes[AT_ONCE] += 1
            elif turn.delay_s is None:
                pause_s = turn.arrival_s - last.arrival_s - imported.lasted_s[before]
                if math.isnan(pause_s):
                    notes[AT_RECORDED] += 1
                elif pause_s < -_OVERLAP_S:
                    notes[OVERLAPPING] += 1
                else:
                    turn.delay_s = round(max(0.0, pause_s), 6)
            if math.isnan(turn.arrival_s):
                turn.arrival_s = last.arrival_s + (turn.delay_s or 0.0)
    alone = [r for r in requests if r.session_id is None and r.delay_s is not None]
    for request in alone:
        request.delay_s = None
    if alone:
        notes["delays of requests without a session"] += len(alone)


def settle_prompts(imported: Imported, turn_input: str | None) -> None:
    """Make every prompt whole: with ``new`` a turn sends its session's tokens before its own.

    ``turn_input`` is ``--turn-input``. The session's tokens are then a prefix that the turn before
    brought in, and its hashes say so.
    """
    below = repeated = 0
    for session, rows in sessions_of(imported).items():
        held = 0
        for row in rows:
            request = imported.requests[row]
            if held and turn_input == "new":
                request.prompt_tokens += held
                repeated += 1
            elif held and turn_input is None and imported.accumulates:
                below += request.prompt_tokens < held
            held = request.prompt_tokens + request.output_tokens
        if turn_input == "new" and len(rows) > 1:
            _share_history(imported, session, rows)
    if below:
        imported.notes[BELOW] = below
    if repeated:
        imported.notes[f"turns that repeat their session, in blocks of {_size(imported)}"] = (
            repeated
        )


def _size(imported: Imported) -> int:
    imported.block_tokens = imported.block_tokens or _HISTORY_BLOCK_TOKENS
    return imported.block_tokens


def _share_history(imported: Imported, session: str, rows: list[int]) -> None:
    """Full blocks of a session's prompts: the first turn's own, then the session's by place."""
    size = _size(imported)
    first = imported.requests[rows[0]]
    begun = list(first.prefix_hashes or ())[: first.prompt_tokens // size]
    first.prefix_hashes = begun or None
    for row in rows:
        request = imported.requests[row]
        places = range(len(begun), request.prompt_tokens // size)
        request.prefix_hashes = [*begun, *(f"{session}+{place}" for place in places)] or None
