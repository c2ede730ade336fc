"""From what a reader returns to requests with arrivals from 0 on, blocks of one size, and delays.

Owns the order of the repairs, and the choice of the reader. Knows no field of any format.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from traces.importers.aiperf_records import read_aiperf_records
from traces.importers.arrivals import draw_arrivals, sort_by_arrival, with_arrivals
from traces.importers.bailian import read_bailian
from traces.importers.benchmarks import read_bench, read_guidellm
from traces.importers.blocks import settle_blocks
from traces.importers.conversations import read_copilot, read_weka
from traces.importers.dynamo import read_dynamo
from traces.importers.imported import Imported
from traces.importers.mooncake import read_mooncake
from traces.importers.request_log import read_log
from traces.importers.sources import Source
from traces.importers.tables import (
    read_azure,
    read_baseten,
    read_burstgpt,
    read_own,
    read_servegen,
    read_vidur,
)
from traces.importers.texts import Advance
from traces.importers.turns import (
    close_loops,
    delays_to_seconds,
    sessions_of,
    settle_prompts,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user says of a file; None leaves it to the file."""

    time_unit: str | None = None
    rate_req_s: float | None = None
    quantum_s: float | None = None
    block_tokens: int | None = None
    turn_input: str | None = None
    run: int | None = None
    seed: int = 0


def import_source(
    source: Source, kind: str, options: Options, *, on_bytes: Advance = lambda read: None
) -> Imported:
    """The requests of a file in order of arrival, from 0 on. ``ValueError`` says what is wrong."""
    imported = _reader(kind, source, options)(on_bytes=on_bytes)
    imported.clock.asked = options.time_unit
    imported.notes.update(source.notes)
    path = str(source.paths[0])
    if not imported.requests:
        left = "".join(f"; {reason}: {count}" for reason, count in imported.notes.items())
        raise ValueError(f"{path}: holds no request{left}; check --format ({kind} was read)")
    _settle_times(imported, path, options)
    settle_blocks(imported, options.block_tokens)
    settle_prompts(imported, options.turn_input)
    close_loops(imported)
    sort_by_arrival(imported)
    with_arrivals(imported, quantum_s=_quantum(imported, options), seed=options.seed)
    if len(imported.models) > 1:
        for model, count in imported.models.items():
            imported.notes[f"requests to model {model}, replayed as one with the others"] = count
    return imported


def _reader(kind: str, source: Source, options: Options) -> Callable[..., Imported]:
    runs = {"bench": read_bench, "guidellm": read_guidellm}
    if kind in runs:
        return functools.partial(runs[kind], source, run=options.run)
    if options.run is not None:
        raise ValueError(f"--run {options.run}: a {kind} file has no runs; leave it out")
    if kind in ("mooncake", "guidellm-trace"):
        return functools.partial(read_mooncake, source, guidellm=kind == "guidellm-trace")
    if kind == "weka":
        return functools.partial(read_weka, source, asked=options.time_unit)
    if kind == "trace":
        return functools.partial(read_own, source, block_tokens=options.block_tokens)
    readers: dict[str, Callable[..., Imported]] = {
        "aiperf": read_aiperf_records,
        "bailian": read_bailian,
        "azure": read_azure,
        "burstgpt": read_burstgpt,
        "baseten": read_baseten,
        "copilot": read_copilot,
        "dynamo": read_dynamo,
        "vidur": read_vidur,
        "servegen": read_servegen,
        "log": read_log,
    }
    return functools.partial(readers[kind], source)


def _settle_times(imported: Imported, path: str, options: Options) -> None:
    """Bring times and delays to seconds, or draw them where the file has none."""
    times = imported.times()
    timed = ~np.isnan(times)
    if timed.any() and not imported.per_session:
        _refuse_rate(path, options)
    if timed.any():
        rows = np.flatnonzero(timed)
        in_seconds, found = imported.clock.seconds(
            path, times[timed], lambda row: imported.where(int(rows[row]))
        )
        times[timed] = in_seconds - in_seconds.min()
        for request, time in zip(imported.requests, times.tolist(), strict=True):
            request.arrival_s = time
        for note in found:
            imported.notes[note] = int(timed.sum())
    delays_to_seconds(imported, options.time_unit, path)
    if timed.all() and not imported.per_session:
        moved = sort_by_arrival(imported)
        if moved:
            imported.notes["out of order, sorted by arrival"] = moved
        return
    if timed.any() and not imported.per_session:
        _check_first_turns(imported)
        return
    rate = options.rate_req_s or imported.rate_req_s
    if rate is None:
        sessions = any(request.session_id is not None for request in imported.requests)
        raise ValueError(
            f"{path}: has no arrival times of its sessions; give --rate SESSIONS_S for Poisson "
            "arrivals of them"
            if sessions
            else f"{path}: has no arrival times; give --rate REQ_S for Poisson arrivals"
        )
    draw_arrivals(imported, rate_req_s=rate, seed=options.seed)


def _refuse_rate(path: str, options: Options) -> None:
    if options.rate_req_s is not None:
        raise ValueError(
            f"--rate {options.rate_req_s}: {path} has its own arrivals; leave --rate out here and "
            "scale at replay"
        )


def _check_first_turns(imported: Imported) -> None:
    """Where some requests have times, every session's first turn must, and who is in none."""
    first = {rows[0] for rows in sessions_of(imported).values()}
    for row, request in enumerate(imported.requests):
        if math.isnan(request.arrival_s) and (request.session_id is None or row in first):
            raise ValueError(
                f"{imported.where(row)}: no timestamp, and it follows no turn of a session; "
                "mend or remove the row"
            )


def _quantum(imported: Imported, options: Options) -> float | None:
    """Drawn times are no rounded ones, nor are those of turns that wait for answers."""
    waits = any(request.delay_s is not None for request in imported.requests)
    if (imported.drawn or waits) and options.quantum_s is None:
        return 0.0
    return options.quantum_s
