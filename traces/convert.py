"""``python -m traces.convert INPUT -o OUT.jsonl``: public traces and server logs into the schema.

Owns the choice of importer and the account of rows. Knows no format beyond how to tell it
(``traces.importers``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sglang_dspark.cli import Parser, called_as, run_command
from sglang_dspark.files import read_text, refuse_onto_input
from traces.columns import Trace
from traces.importers.arrivals import with_arrivals, without_arrivals
from traces.importers.imported import Imported
from traces.importers.mooncake import BLOCK_TOKENS, read_mooncake
from traces.importers.request_log import read_log
from traces.importers.tables import read_azure, read_servegen, read_vidur
from traces.store import write_trace

FORMATS = ("mooncake", "azure", "vidur", "servegen", "log")
_HEADERS = {"TIMESTAMP": "azure", "num_prefill_tokens": "vidur", "timestamp_s": "servegen"}


def detect_format(path: Path) -> str:
    """The format of a file by its first line."""
    lines = (line for line in read_text(path).split("\n") if line.strip())
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{path}: is empty; give a file with at least one request")
    for column in first.strip().split(","):
        if column.strip() in _HEADERS:
            return _HEADERS[column.strip()]
    try:
        record = json.loads(first)
    except ValueError:
        record = None
    if isinstance(record, dict) and "input_length" in record:
        return "mooncake"
    if record is not None or any("{" in line for line in (first, *lines)):
        return "log"
    raise ValueError(
        f"{path}:1: {first[:60]!r} begins no known format; "
        f"give --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    )


def import_file(
    path: Path,
    *,
    kind: str,
    rate_req_s: float | None,
    quantum_s: float | None,
    block_tokens: int,
    seed: int,
) -> Imported:
    """The requests of a file with arrivals from 0 on."""
    timed, measured_rate = True, None
    if kind == "mooncake":
        imported = read_mooncake(path, block_tokens=block_tokens)
    elif kind == "azure":
        imported = read_azure(path)
    elif kind == "vidur":
        imported, timed = read_vidur(path)
    elif kind == "servegen":
        imported = read_servegen(path)
    else:
        imported, timed, measured_rate = read_log(path)
    if not imported.requests:
        left = "".join(f"; {reason}: {count}" for reason, count in imported.notes.items())
        raise ValueError(f"{path}: holds no request{left}; check --format ({kind} was read)")
    if timed:
        if rate_req_s is not None:
            raise ValueError(
                f"--rate {rate_req_s}: {path} has its own arrivals; leave --rate out here and "
                "scale at replay"
            )
        with_arrivals(imported, quantum_s=quantum_s, seed=seed)
        return imported
    rate_req_s = measured_rate if rate_req_s is None else rate_req_s
    if rate_req_s is None:
        raise ValueError(f"{path}: has no arrival times; give --rate REQ_S for Poisson arrivals")
    without_arrivals(imported, rate_req_s=rate_req_s, seed=seed)
    return imported


def convert(
    path: Path,
    out: str,
    imported: Imported,
    *,
    kind: str,
    seed: int,
    domain: str | None,
    command: str,
    force: bool = False,
) -> Trace:
    """Write the imported requests as a trace."""
    for request in imported.requests:
        request.domain = domain
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return write_trace(
        out,
        imported.requests,
        source=f"{kind} file {path.name} (sha256 {digest[:16]})",
        command=command,
        seed=seed if imported.drawn else None,
        block_tokens=imported.block_tokens,
        notes=dict(imported.notes) or None,
        force=force,
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("traces.convert", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(
        description="Make a trace of a public one (Mooncake, Azure, Vidur, ServeGen) or of a "
        "server's log.",
        examples=[
            "conversation_trace.jsonl -o mooncake.jsonl",
            "server.log -o mine.jsonl --domain chat",
            "vidur.csv -o vidur.jsonl --rate 2",
        ],
        page="docs/rollout.md",
    )
    parser.add_argument("input", metavar="INPUT", help="file to read")
    parser.add_argument("-o", "--out", required=True, metavar="OUT.jsonl", help="trace to write")
    parser.add_argument(
        "--format", choices=("auto", *FORMATS), default="auto", help="what the input is"
    )
    parser.add_argument(
        "--rate", type=float, metavar="REQ_S", help="Poisson arrivals, for a source without any"
    )
    parser.add_argument(
        "--quantum",
        type=float,
        metavar="S",
        help="seconds that arrivals were rounded to; 0 keeps them (default: detected)",
    )
    parser.add_argument(
        "--block-tokens", type=int, default=BLOCK_TOKENS, metavar="N",
        help="tokens that a hash of a mooncake trace stands for",
    )  # fmt: skip
    parser.add_argument("--domain", help="of every request, such as chat, code or math")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals that are drawn or spread")
    parser.add_argument("--force", action="store_true", help="replace an earlier, other trace")
    args = parser.parse_args(argv)
    refuse_onto_input(args.out, args.input)
    _check_arguments(args)
    path = Path(args.input)
    kind = detect_format(path) if args.format == "auto" else args.format
    imported = import_file(
        path,
        kind=kind,
        rate_req_s=args.rate,
        quantum_s=args.quantum,
        block_tokens=args.block_tokens,
        seed=args.seed,
    )
    words = sys.argv[1:] if argv is None else list(argv)
    trace = convert(
        path,
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
    print(f"{args.out}: {len(trace)} requests over {trace.arrival_s[-1] / 60:.1f} minutes ({kind})")
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.rate is not None and not 0 < args.rate < math.inf:
        raise ValueError(f"--rate {args.rate} must be a number above 0")
    if args.quantum is not None and not 0 <= args.quantum < math.inf:
        raise ValueError(f"--quantum {args.quantum} must be a number of seconds, 0 or more")
    if args.block_tokens < 1:
        raise ValueError(f"--block-tokens {args.block_tokens} must be at least 1")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed} must be 0 or more")


if __name__ == "__main__":
    raise SystemExit(main())
