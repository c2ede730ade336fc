"""What benchmarks leave: SGLang's bench_serving, vLLM's bench serve, GuideLLM's report.

Knows that a file holds several runs, of which a trace is one, which of the three tells when its
requests were sent, and what a result of speculation cannot be.
"""

from __future__ import annotations

import math
from typing import Any

from traces.importers import fields
from traces.importers.clock import Clock
from traces.importers.imported import Imported
from traces.importers.readers import Record
from traces.importers.sources import Source
from traces.importers.texts import Advance
from traces.schema import Request

FAILED = "left out: failed in the benchmark"
_EMPTY = "left out: not a token came back in the benchmark"


def read_bench(source: Source, *, run: int | None, on_bytes: Advance) -> Imported:
    """One run of bench_serving or of vLLM's bench serve; with start times where it has them."""
    runs = list(source.records(on_bytes=on_bytes))
    place, record = _one(source, runs, run)
    where = source.where(place)
    clock = Clock(unit="s", owner="start_times", certain=True)
    imported = Imported(name=source.where, clock=clock)
    _check_speculation(where, record)
    if "input_lens" not in record:
        raise ValueError(
            f"{where}: a benchmark's averages, without its requests; run it with "
            "--output-details (SGLang) or --save-detailed (vLLM)"
        )
    columns = _columns(where, record)
    for row in range(len(columns["input_lens"])):
        _bench_request(imported, where, place, columns, row)
    rate = fields.as_number(record.get("request_rate"))
    if rate is not None and 0 < rate < math.inf:
        imported.rate_req_s = rate
    return imported


def _one(source: Source, runs: list[tuple[int, Any]], run: int | None) -> tuple[int, Any]:
    if not runs:
        raise ValueError(f"{source.paths[0]}: holds no run; give the file of a benchmark")
    if run is None and len(runs) > 1:
        raise ValueError(
            f"{source.paths[0]}: holds {len(runs)} runs; a trace is one run: give --run 1 to "
            f"{len(runs)}"
        )
    if run is not None and not 1 <= run <= len(runs):
        raise ValueError(f"--run {run}: {source.paths[0]} holds {len(runs)}; give 1 to {len(runs)}")
    return runs[(run or 1) - 1]


def _columns(where: str, record: Record) -> dict[str, list[Any]]:
    """The lists of one value a request; ``ValueError`` where they are not equally long."""
    count = len(record["input_lens"]) if isinstance(record["input_lens"], list) else -1
    found = {}
    for name in ("input_lens", "output_lens", "errors", "start_times", "ttfts", "itls"):
        values = record.get(name)
        if not values and name != "output_lens" and name != "input_lens":
            continue
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(
                f"{where}: input_lens, output_lens and {name} must be equally long lists"
                if name not in ("input_lens", "output_lens")
                else f"{where}: input_lens, output_lens and errors must be equally long lists"
            )
        found[name] = values
    return found


def _bench_request(
    imported: Imported, where: str, place: int, columns: dict[str, list[Any]], row: int
) -> None:
    values = {f"{name}[{row}]": values[row] for name, values in columns.items()}
    if values.get(f"errors[{row}]"):
        imported.notes[FAILED] += 1
        return
    output_tokens = fields.tokens(where, values, f"output_lens[{row}]")
    if output_tokens == 0:
        imported.notes[_EMPTY] += 1
        return
    start = f"start_times[{row}]"
    imported.keep(
        Request(
            request_id=f"r{row}",
            arrival_s=imported.clock.read(where, values, start) if start in values else math.nan,
            prompt_tokens=fields.tokens(where, values, f"input_lens[{row}]"),
            output_tokens=output_tokens,
        ),
        place,
        lasted_s=_lasted_s(where, values, row),
    )


def _lasted_s(where: str, values: Record, row: int) -> float:
    """First token and the gaps after it; NaN where the run tells neither."""
    first, gaps = f"ttfts[{row}]", values.get(f"itls[{row}]")
    if first not in values or not isinstance(gaps, list) or not gaps:
        return math.nan
    named = {f"itls[{row}][{i}]": gap for i, gap in enumerate(gaps)}
    return fields.amount(where, values, first) + sum(
        fields.amount(where, named, name) for name in named
    )


def _check_speculation(where: str, record: Record) -> None:
    """``ValueError`` for an acceptance that no speculation has."""
    info = record.get("server_info")
    drafted = info.get("speculative_num_draft_tokens") if isinstance(info, dict) else None
    length = fields.optional(where, record, "accept_length")
    if length is None:
        length = fields.optional(where, record, "spec_decode_acceptance_length")
    most = fields.as_number(drafted)
    if length and (length < 1 or (most and length > most + 1)):
        beyond = f" and at most the {most:g} drafted and one" if most else ""
        raise ValueError(
            f"{where}: accept_length {length:g} must be at least 1{beyond}; mend the record"
        )
    rate = fields.optional(where, record, "spec_decode_acceptance_rate")
    if rate is not None and rate > 100:
        raise ValueError(
            f"{where}: spec_decode_acceptance_rate {rate:g} % is above 100; mend the record"
        )
    check_accepted(
        where, record, "spec_decode_accepted_tokens", "spec_decode_draft_tokens"
    )  # fmt: skip


def check_accepted(where: str, record: Record, accepted: str, drafted: str) -> None:
    """``ValueError`` where more tokens were accepted than were drafted."""
    took, had = (fields.optional(where, record, name) for name in (accepted, drafted))
    if took is not None and had is not None and took > had:
        raise ValueError(
            f"{where}: {accepted} {took:g} is above {drafted} {had:g}: more accepted than drafted; "
            "mend or remove the record"
        )


def read_guidellm(source: Source, *, run: int | None, on_bytes: Advance) -> Imported:
    """One benchmark of a GuideLLM report: the requests that it completed."""
    found = [
        (place, benchmark)
        for place, report in source.records(on_bytes=on_bytes)
        for benchmark in _list(source.where(place), report, "benchmarks")
    ]
    place, benchmark = _one(source, found, run)
    where = source.where(place)
    clock = Clock(unit="s", owner="GuideLLM", certain=True)
    imported = Imported(name=source.where, clock=clock)
    requests = benchmark.get("requests")
    if not isinstance(requests, dict):
        raise ValueError(
            f"{where}: a benchmark without its requests; write the report with all of them "
            "(--output-path benchmarks.json)"
        )
    for kind in ("errored", "incomplete"):
        if isinstance(requests.get(kind), list) and requests[kind]:
            imported.notes[f"left out: {kind}"] = len(requests[kind])
    for number, request in enumerate(_list(where, requests, "successful")):
        spot = f"{where}: requests.successful[{number}]"
        _guidellm_request(imported, spot, place, request, number)
    return imported


def _guidellm_request(
    imported: Imported, spot: str, place: int, request: Record, number: int
) -> None:
    # Releases before 0.4 keep times and counts in the request itself.
    info = request.get("info", request.get("scheduler_info"))
    timings = info.get("timings", info.get("request_timings")) if isinstance(info, dict) else None
    timings = timings if isinstance(timings, dict) else request
    start, end = ("request_start", "request_end")
    if start not in timings:
        start, end = ("start_time", "end_time")
    began = imported.clock.read(spot, timings, start)
    ended = fields.optional(spot, timings, end)
    if ended is not None and ended < began:
        raise ValueError(f"{spot}: {end} {ended:g} is before {start} {began:g}; mend the record")
    imported.keep(
        Request(
            request_id=fields.name(request, "request_id") or f"r{number}",
            arrival_s=began,
            prompt_tokens=_counted(spot, request, "input_metrics", "prompt_tokens"),
            output_tokens=_counted(spot, request, "output_metrics", "output_tokens"),
        ),
        place,
        lasted_s=math.nan if ended is None else ended - began,
    )


def _counted(spot: str, request: Record, metrics: str, older: str) -> int:
    """Tokens of one side, wherever the release puts them."""
    counts = request.get(metrics)
    if isinstance(counts, dict):
        for name in ("total_tokens", "text_tokens"):
            if not fields.is_absent(counts.get(name)):
                return fields.tokens(f"{spot}: {metrics}", counts, name)
        return fields.tokens(f"{spot}: {metrics}", counts, "text_tokens")
    return fields.tokens(spot, request, older)


def _list(where: str, record: Record, name: str) -> list[Record]:
    found = record.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{where}: {name} {fields.shown(found)} must be a list of objects")
    return found
