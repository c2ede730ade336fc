"""``python -m traces.export TRACE -o OUT``: a trace for other tools, and for a real server.

    python -m traces.export chat -o chat.csv
    python -m traces.export mine.jsonl -o mine.aiperf.jsonl --format aiperf

Owns the rows of each format and the account of what it has no place for. What the file cannot say
of itself stands beside it (``traces.exported``), so that ``traces.convert`` reads it back.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sglang_dspark.cli import Parser, called_as, run_command
from sglang_dspark.files import atomic_write, refuse_onto_input, refuse_replacing
from traces.columns import Trace, trace_requests
from traces.exported import ExportMeta, write_export_meta
from traces.schema import Request
from traces.store import find_trace, load_trace, read_requests, shipped_traces

Row = dict[str, Any]

CSV_COLUMNS = (
    "request_id", "arrival_s", "prompt_tokens", "output_tokens", "domain", "session_id", "delay_s",
    "prefix_hashes", "block_tokens", "temperature", "max_new_tokens", "priority", "slo",
)  # fmt: skip
_NO_PLACE = ("domain", "max_new_tokens", "slo")
"""Fields that neither Mooncake nor AIPerf has."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("traces.export", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(
        description="Write a trace as CSV, or as Mooncake's or AIPerf's JSONL, so that it drives a "
        "real server. What the format has no place for is said and counted.",
        examples=["chat -o chat.csv", "mine.jsonl -o mine.aiperf.jsonl --format aiperf"],
        page="docs/traces.md",
    )
    parser.add_argument(
        "trace", metavar="TRACE", help=f"{', '.join(shipped_traces())}, or a .jsonl file"
    )
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="file to write")
    parser.add_argument(
        "--format", choices=tuple(_WRITERS), metavar="NAME",
        help=f"{', '.join(_WRITERS)} (default: csv where OUT ends in .csv)",
    )  # fmt: skip
    parser.add_argument(
        "--block-tokens", type=int, metavar="N",
        help="write prefix hashes of larger blocks, a multiple of the trace's",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace an earlier, other OUT")
    args = parser.parse_args(argv)
    kind = args.format or ("csv" if str(args.out).endswith(".csv") else None)
    if kind is None:
        raise ValueError(f"-o {args.out}: give --format {', '.join(_WRITERS)}")
    path = find_trace(args.trace)
    refuse_onto_input(args.out, path)
    trace = load_trace(path)
    words = sys.argv[1:] if argv is None else list(argv)
    meta = export(
        trace,
        read_requests(path)[0],
        args.out,
        kind=kind,
        block_tokens=args.block_tokens,
        command=shlex.join(["python", "-m", "traces.export", *words]),
        force=args.force,
    )
    for reason, count in (meta.dropped or {}).items():
        print(f"{called_as('traces.export')}: {reason}: {count}", file=sys.stderr)
    blocks = f", hashes of {meta.block_tokens} tokens" if meta.block_tokens else ""
    print(f"{args.out}: {len(trace)} requests ({kind}, times in {meta.time_unit}{blocks})")
    if kind == "aiperf" and meta.block_tokens:
        print(f"give AIPerf --isl-block-size {meta.block_tokens}")
    return 0


def export(
    trace: Trace,
    requests: Sequence[Request],
    out: str,
    *,
    kind: str,
    block_tokens: int | None,
    command: str,
    force: bool,
) -> ExportMeta:
    """Write the file and its sidecar; ``requests`` are the trace's, with their names."""
    size, step = _block_step(trace, block_tokens)
    dropped: Counter[str] = Counter()
    numbered = [request.prefix_hashes for request in trace_requests(trace)]
    if kind == "csv":
        numbered = [request.prefix_hashes for request in requests]
    coarse = [(hashes or [])[step - 1 :: step] for hashes in numbered]
    data = _WRITERS[kind](trace, requests, coarse, size, dropped)
    meta = ExportMeta(
        source=f"trace {trace.name} (sha256 {trace.sha256[:16]})",
        command=command,
        format=kind,
        sha256=hashlib.sha256(data).hexdigest(),
        time_unit="s" if kind == "csv" else "ms",
        block_tokens=size or None,
        turn_input="new" if kind == "aiperf" else "whole",
        dropped={reason: count for reason, count in dropped.items() if count} or None,
    )
    refuse_replacing(out, data, force=force)
    with atomic_write(out, "wb") as file:
        file.write(data)
        write_export_meta(out, meta)
    return meta


def _block_step(trace: Trace, asked: int | None) -> tuple[int, int]:
    """(tokens per written hash, how many of the trace's are one of them)."""
    size = trace.block_tokens
    if asked is None or not size:
        return size, 1
    if asked < size or asked % size:
        raise ValueError(
            f"--block-tokens {asked}: {trace.path} has blocks of {size}; give a multiple of it"
        )
    return asked, asked // size


Hashes = Sequence[list[int | str]]


def _csv(
    trace: Trace, requests: Sequence[Request], hashes: Hashes, size: int, dropped: Counter[str]
) -> bytes:
    """Every field of this project under its own name; hashes with blanks between them, or as JSON
    where they are texts."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for request, blocks in zip(requests, hashes, strict=True):
        row = {name: getattr(request, name, None) for name in CSV_COLUMNS}
        numbers = all(isinstance(block, int) and block >= 0 for block in blocks)
        row["prefix_hashes"] = " ".join(map(str, blocks)) if numbers else json.dumps(blocks)
        row["block_tokens"] = size if blocks else None
        writer.writerow(row)
    return text.getvalue().encode()


def _mooncake(
    trace: Trace, requests: Sequence[Request], hashes: Hashes, size: int, dropped: Counter[str]
) -> bytes:
    """Whole prompts at whole milliseconds; Mooncake knows no sessions."""

    def rows() -> Iterator[Row]:
        for request, row in zip(requests, _lengths(requests, hashes, size), strict=True):
            milliseconds = 1e3 * request.arrival_s
            dropped["times rounded to milliseconds"] += (
                abs(milliseconds - round(milliseconds)) > 1e-6
            )
            for name in (*_NO_PLACE, "session_id", "delay_s", "temperature", "priority"):
                dropped[f"not carried: {name}"] += getattr(request, name) is not None
            yield {"timestamp": round(milliseconds)} | row

    return _json_lines(rows())


def _aiperf(
    trace: Trace, requests: Sequence[Request], hashes: Hashes, size: int, dropped: Counter[str]
) -> bytes:
    """Sessions turn by turn: AIPerf sends the session and its answers before each turn's own input.

    A turn that waits has its delay, others their times. A prompt that is no longer than what its
    session holds cannot be a turn there: it begins a session of its own.
    """
    held: dict[str, int] = {}
    parts: Counter[str] = Counter()

    def rows() -> Iterator[Row]:
        for at, (request, row) in enumerate(
            zip(requests, _lengths(requests, hashes, size), strict=True)
        ):
            for name in _NO_PLACE:
                dropped[f"not carried: {name}"] += getattr(request, name) is not None
            extra = {
                name: getattr(request, name)
                for name in ("temperature", "priority")
                if getattr(request, name) is not None
            }
            timing: Row = {"timestamp": _milliseconds(request.arrival_s)}
            session = request.session_id
            if session is not None:
                before = held.get(session, 0)
                follows = before and request.prompt_tokens > before
                if before and not follows:
                    parts[session] += 1
                    dropped["turns no longer than their session, begun as one of their own"] += 1
                elif follows:
                    row = {"input_length": request.prompt_tokens - before,
                           "output_length": request.output_tokens}  # fmt: skip
                    if trace.follows[at] >= 0:
                        timing = {"delay": _milliseconds(request.delay_s or 0.0)}
                part = f"#{parts[session] + 1}" if parts[session] else ""
                timing = {"session_id": f"{session}{part}"} | timing
                held[session] = request.prompt_tokens + request.output_tokens
            yield timing | row | ({"extra": extra} if extra else {})

    return _json_lines(rows())


def _lengths(requests: Sequence[Request], hashes: Hashes, size: int) -> Iterator[Row]:
    """Token counts with a hash for every block; who shares with nobody has numbers of his own."""
    number = 1 + max((int(h) for blocks in hashes for h in blocks), default=-1)
    for request, blocks in zip(requests, hashes, strict=True):
        row: Row = {
            "input_length": request.prompt_tokens,
            "output_length": request.output_tokens,
        }
        if size:
            missing = -(-request.prompt_tokens // size) - len(blocks)
            row["hash_ids"] = [*blocks, *range(number, number + missing)]
            number += missing
        yield row


def _milliseconds(seconds: float) -> int | float:
    milliseconds = round(1e3 * seconds, 3)
    return int(milliseconds) if milliseconds.is_integer() else milliseconds


def _json_lines(rows: Iterator[Row]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


_WRITERS: dict[str, Callable[[Trace, Sequence[Request], Hashes, int, Counter[str]], bytes]] = {
    "csv": _csv,
    "mooncake": _mooncake,
    "aiperf": _aiperf,
}


if __name__ == "__main__":
    raise SystemExit(main())
