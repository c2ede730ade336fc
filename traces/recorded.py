"""From a server's request log to a trace, with what was measured beside it.

Owns which recorded requests a trace can hold. The file beside it is ``traces.measured``'s. Knows no
server (``traces.record``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from sglang_dspark.logs.request_parts import RequestLogRead, RequestRecord, read_requests
from traces.columns import Trace
from traces.measured import Measured, measured_path, write_measured
from traces.schema import Request
from traces.store import write_trace


def trace_of_log(
    folder: str | Path,
    out: str | Path,
    *,
    command: str,
    domain: str | None = None,
    force: bool = False,
) -> Trace:
    """Write the trace of a request log. ``ValueError`` when there is no request to keep.

    Arrivals count from the first kept request. Left out, and counted in the sidecar's notes: what
    generated nothing, and the warm-up that a server sends itself before others may.
    """
    log = read_requests(folder)
    notes: Counter[str] = Counter()
    kept = _kept(log, notes)
    if not kept:
        reasons = "".join(f"; {reason}: {count}" for reason, count in notes.items())
        raise ValueError(f"{folder}: holds no request that generated tokens{reasons}")
    names = _unique(kept, notes)
    first_s = kept[0].arrival_s
    numbers: dict[int, int] = {}
    requests = [
        Request(
            request_id=name,
            arrival_s=round(record.arrival_s - first_s, 6),
            prompt_tokens=record.prompt_tokens,
            output_tokens=record.output_tokens,
            domain=domain,
            session_id=record.session_id,
            prefix_hashes=_numbered(record, log.block_tokens, numbers),
            temperature=record.temperature,
            priority=record.priority,
            max_new_tokens=_most_new(record),
        )
        for name, record in zip(names, kept, strict=True)
    ]
    since = datetime.fromtimestamp(first_s, UTC).isoformat(timespec="seconds")
    trace = write_trace(
        out,
        requests,
        source=f"request log {Path(folder).name}, from {since}",
        command=command,
        block_tokens=log.block_tokens if numbers else None,
        notes=dict(notes) or None,
        force=force,
    )
    rows = (_measured(name, record) for name, record in zip(names, kept, strict=True))
    write_measured(measured_path(out), rows)
    return trace


def _kept(log: RequestLogRead, notes: Counter[str]) -> list[RequestRecord]:
    if log.dropped:
        notes["missing: dropped by the recorder"] = log.dropped
    # An engine without a server never says that it is up: then nothing tells the two apart.
    ever_up = any(not record.starting for record in log.records)
    kept = []
    for record in log.records:
        if record.starting and ever_up:
            notes["left out: the server's own warm-up"] += 1
        elif record.output_tokens < 1:
            notes["left out: generated nothing"] += 1
        elif record.prompt_tokens < 1:
            notes["left out: no prompt tokens"] += 1
        else:
            notes["kept: aborted, as far as it came"] += record.finish == "abort"
            kept.append(record)
    for reason in [reason for reason, count in notes.items() if not count]:
        del notes[reason]
    return kept


def _unique(records: Sequence[RequestRecord], notes: Counter[str]) -> list[str]:
    taken: set[str] = set()
    names = []
    for record in records:
        name, again = record.request_id, 1
        while name in taken:
            again += 1
            name = f"{record.request_id}#{again}"
        if again > 1:
            notes["request_id used before, numbered"] += 1
        taken.add(name)
        names.append(name)
    return names


def _most_new(record: RequestRecord) -> int | None:
    """Its limit; None where it had none or the log does not say."""
    return max(record.max_new_tokens, record.output_tokens) if record.max_new_tokens else None


def _numbered(
    record: RequestRecord, block_tokens: int, numbers: dict[int, int]
) -> list[int | str] | None:
    """Hashes as numbers in order of first appearance; a prompt of a session may be longer."""
    most = record.prompt_tokens // block_tokens
    hashes = record.prefix_hashes[:most].tolist()
    return [numbers.setdefault(value, len(numbers)) for value in hashes] or None


def _measured(name: str, record: RequestRecord) -> Measured:
    return Measured(
        request_id=name,
        finish=record.finish,
        streamed=record.streamed,
        queue_s=record.queue_s,
        ttft_s=record.ttft_s,
        tpot_s=record.tpot_s,
        latency_s=record.latency_s,
        cached_tokens=record.cached_tokens,
        retractions=record.retractions,
        decode_steps=record.decode_steps,
        prefill_s=record.prefill_s,
        received_s=round(record.arrival_s, 6),
    )
