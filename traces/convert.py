"""``python -m traces.convert INPUT -o OUT.jsonl``: public traces and server logs into the schema.

Owns the command: which files, what was said of them, the account of rows. Knows no format
(``traces.importers``).
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sglang_dspark.cli import Parser, called_as, progress_bar, run_command
from sglang_dspark.files import os_problem, read_record, refuse_onto_input, refuse_unknown
from traces.columns import Trace
from traces.exported import export_notes
from traces.importers.clock import UNITS
from traces.importers.detect import FORMATS, detect_format
from traces.importers.imported import Imported
from traces.importers.settle import Options, import_source
from traces.importers.sources import Source
from traces.schema import TraceMeta, meta_path
from traces.store import write_trace

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet", ".arrow")
"""Of the files that are taken of a folder."""
_COLUMNS = (
    "timestamp", "input_length", "output_length", "session_id", "delay", "hash_ids",
)  # fmt: skip


def convert(
    source: Source,
    out: str,
    imported: Imported,
    *,
    kind: str,
    seed: int,
    domain: str | None,
    command: str,
    force: bool = False,
) -> Trace:
    """Write the imported requests as a trace; a name that was used before gets a number."""
    names: dict[str, int] = {}
    for request in imported.requests:
        request.domain = domain or request.domain
        again = names[request.request_id] = names.get(request.request_id, 0) + 1
        if again > 1:
            request.request_id = f"{request.request_id}#{again}"
            imported.notes["request_id used before, numbered"] += 1
    files = [f"{path.name} (sha256 {_digest(path)[:16]})" for path in source.paths]
    shown = ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
    return write_trace(
        out,
        imported.requests,
        source=f"{kind} file{'s' * (len(files) > 1)} {shown}",
        command=command,
        seed=seed if imported.drawn else None,
        block_tokens=imported.block_tokens,
        notes=dict(imported.notes) or None,
        force=force,
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("traces.convert", lambda: _main(argv))


def _parser() -> Parser:
    parser = Parser(
        description="Make a trace of a public one, of a benchmark's result or of a server's log. "
        "What the file lacks, and what of it is not carried, is said and counted.",
        examples=[
            "conversation_trace.jsonl -o mooncake.jsonl",
            "server.log -o mine.jsonl --domain chat",
            "prod.csv -o prod.jsonl --columns timestamp=at,input_length=in,output_length=out",
            "shards/ -o agents.jsonl --rate 0.5",
        ],
        page="docs/traces.md",
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT",
        help="file to read, gzipped or not; several of one kind, or a folder of them, are one",
    )  # fmt: skip
    parser.add_argument("-o", "--out", required=True, metavar="OUT.jsonl", help="trace to write")
    parser.add_argument(
        "--format", choices=("auto", *FORMATS), default="auto", metavar="NAME",
        help=f"what the input is, where that is not told from it: {', '.join(FORMATS)}",
    )  # fmt: skip
    parser.add_argument(
        "--time-unit", choices=tuple(UNITS), metavar="UNIT",
        help="of its times: s, ms, us or ns (default: told from the format, their size and the "
        "rate, or asked for)",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=float, metavar="REQ_S",
        help="Poisson arrivals, for a source without any; of sessions, where it has those",
    )  # fmt: skip
    parser.add_argument(
        "--block-tokens", type=int, metavar="N",
        help="tokens that a prefix hash stands for (default: as the file or its format says)",
    )  # fmt: skip
    parser.add_argument(
        "--turn-input", choices=("whole", "new"), metavar="HOW",
        help="what a later turn's input tokens are: whole, its prompt, or new, what it adds to its "
        "session (default: whole)",
    )  # fmt: skip
    parser.add_argument(
        "--columns", metavar="OURS=THEIRS,...",
        help=f"what the input calls {', '.join(_COLUMNS)}",
    )  # fmt: skip
    parser.add_argument(
        "--rows", metavar="FIRST:END",
        help="only these records of the input, counted from 0",
    )  # fmt: skip
    parser.add_argument(
        "--run", type=int, metavar="N", help="which of several benchmark runs, counted from 1"
    )
    parser.add_argument(
        "--quantum", type=float, metavar="S",
        help="seconds that arrivals were rounded to; 0 keeps them (default: detected)",
    )  # fmt: skip
    parser.add_argument("--domain", help="of every request, such as chat, code or math")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals that are drawn or spread")
    parser.add_argument("--force", action="store_true", help="replace an earlier, other trace")
    return parser


def _main(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    _check_arguments(args)
    paths = _files(args.inputs)
    refuse_onto_input(args.out, *paths)
    source = Source(
        paths,
        renamed=_columns(args.columns) if args.columns is not None else None,
        rows=_rows(args.rows) if args.rows is not None else None,
    )
    kind = detect_format(source) if args.format == "auto" else args.format
    if kind == "trace" and args.format == "auto" and len(source.kinds() & {"csv"}) == 0:
        args.block_tokens = args.block_tokens or _own_block_tokens(paths)
    options = export_notes(
        paths[0],
        Options(
            time_unit=args.time_unit,
            rate_req_s=args.rate,
            quantum_s=args.quantum,
            block_tokens=args.block_tokens,
            turn_input=args.turn_input,
            run=args.run,
            seed=args.seed,
        ),
    )
    size = sum(path.stat().st_size for path in paths)
    with progress_bar(
        total=size, unit="B", unit_scale=True, desc=f"reading {kind}", leave=False, delay=1.0
    ) as bar:
        imported = import_source(source, kind, options, on_bytes=bar.update)
    words = sys.argv[1:] if argv is None else list(argv)
    trace = convert(
        source,
        args.out,
        imported,
        kind=kind,
        seed=args.seed,
        domain=args.domain,
        command=shlex.join(["python", "-m", "traces.convert", *words]),
        force=args.force,
    )
    for reason, count in imported.notes.items():
        print(f"{called_as('traces.convert')}: {reason}: {count}", file=sys.stderr)
    print(f"{args.out}: {len(trace)} requests over {_span(trace)} ({kind})")
    return 0


def _span(trace: Trace) -> str:
    """How long it is and how fast requests come, so that a wrong unit is seen."""
    seconds = float(trace.arrival_s[-1])
    span = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.3g} s"
    return f"{span}, {(len(trace) - 1) / seconds:.3g} requests/s" if seconds > 0 else span


def _files(inputs: Sequence[str]) -> list[Path]:
    """The files to read, in the order given; a folder's by name."""
    found: list[Path] = []
    for given in map(Path, inputs):
        if given.is_dir():
            inside = sorted(p for p in given.iterdir() if p.name.endswith(_SUFFIXES))
            inside = [p for p in inside if not p.name.endswith((".meta.json", ".export.json"))]
            if not inside:
                raise ValueError(f"{given}: holds no {', '.join(_SUFFIXES)} file")
            found += inside
        else:
            found.append(given)
    repeated = next((path for path in found if found.count(path) > 1), None)
    if repeated is not None:
        raise ValueError(f"{repeated}: given twice, and its requests would count twice")
    return found


def _columns(text: str) -> dict[str, str]:
    """Their name to ours."""
    renamed: dict[str, str] = {}
    for part in text.split(","):
        ours, _, theirs = (word.strip() for word in part.partition("="))
        if not theirs:
            raise ValueError(f"--columns {text}: {part!r} is not OURS=THEIRS")
        refuse_unknown([ours], _COLUMNS, "--columns")
        renamed[theirs] = ours
    return renamed


def _rows(text: str) -> tuple[int, int | None]:
    first, colon, end = text.partition(":")
    try:
        found = (int(first or 0), int(end) if end else None)
    except ValueError:
        raise ValueError(f"--rows {text}: give FIRST:END, two whole numbers") from None
    if not colon or found[0] < 0 or (found[1] is not None and found[1] <= found[0]):
        raise ValueError(f"--rows {text}: give FIRST:END with 0 <= FIRST < END")
    return found


def _own_block_tokens(paths: Sequence[Path]) -> int | None:
    """As the sidecar of a trace of this project says."""
    sidecar = meta_path(paths[0])
    return read_record(sidecar, TraceMeta).block_tokens if sidecar.is_file() else None


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise os_problem("read", path, error) from None


def _check_arguments(args: argparse.Namespace) -> None:
    if args.rate is not None and not 0 < args.rate < math.inf:
        raise ValueError(f"--rate {args.rate} must be a number above 0")
    if args.quantum is not None and not 0 <= args.quantum < math.inf:
        raise ValueError(f"--quantum {args.quantum} must be a number of seconds, 0 or more")
    if args.block_tokens is not None and args.block_tokens < 1:
        raise ValueError(f"--block-tokens {args.block_tokens} must be at least 1")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed} must be 0 or more")


if __name__ == "__main__":
    raise SystemExit(main())
