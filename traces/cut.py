"""Cut, merge and scale traces; the sidecar travels along.

    python -m traces.cut traces/chat.jsonl --first 200 -o short.jsonl
    python -m traces.cut mine.jsonl --from 3600 --to 7200 --users 2 -o busy.jsonl

Owns the command and the order of its steps: merge, cut, more users, faster. What a step does is
``traces.superpose``'s and the schema's.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence

import msgspec

from sglang_dspark.cli import Parser, run_command
from sglang_dspark.files import refuse_onto_input
from traces.schema import Request, TraceMeta
from traces.store import find_trace, read_requests, shipped_traces, write_trace
from traces.superpose import merge, superpose


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("traces.cut", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(
        description="Take a part of a trace, merge several, or make it busier. The result is a "
        "trace with a sidecar of its own.",
        examples=[
            "chat --first 200 -o short.jsonl",
            "mine.jsonl --from 3600 --to 7200 --users 2 -o busy.jsonl",
        ],
        page="docs/rollout.md",
    )
    parser.add_argument(
        "trace", metavar="TRACE", help=f"{', '.join(shipped_traces())}, or a .jsonl file"
    )
    parser.add_argument("-o", "--out", required=True, metavar="OUT.jsonl", help="trace to write")
    parser.add_argument(
        "--merge",
        action="append",
        default=[],
        metavar="TRACE",
        help="another trace that runs beside it; may be repeated",
    )
    parser.add_argument(
        "--from",
        dest="from_s",
        type=float,
        default=0.0,
        metavar="S",
        help="leave out what arrives before",
    )
    parser.add_argument(
        "--to",
        dest="to_s",
        type=float,
        default=math.inf,
        metavar="S",
        help="leave out what arrives from then on (default: the end)",
    )
    parser.add_argument("--first", type=int, metavar="N", help="at most N requests")
    parser.add_argument(
        "--users",
        type=float,
        default=1.0,
        metavar="X",
        help="X times as many users: copies at other times",
    )
    parser.add_argument(
        "--faster",
        type=float,
        default=1.0,
        metavar="X",
        help="the same requests X times as fast: bursts too",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --users")
    parser.add_argument("--force", action="store_true", help="replace an earlier, other OUT")
    args = parser.parse_args(argv)
    _check(args)
    paths = [find_trace(name) for name in (args.trace, *args.merge)]
    refuse_onto_input(args.out, *paths)
    read = [read_requests(path) for path in paths]
    for path, (requests, _) in zip(paths, read, strict=True):
        if not requests:
            raise ValueError(f"{path}: holds no request; a trace needs at least one line")
    requests = cut(read[0][0] if len(read) == 1 else merge(*(r for r, _ in read)), args)
    words = sys.argv[1:] if argv is None else list(argv)
    metas = [meta for _, meta in read if meta is not None]
    trace = write_trace(
        args.out,
        requests,
        source="; ".join(meta.source for meta in metas) or f"trace {args.trace}",
        command=shlex.join(["python", "-m", "traces.cut", *words]),
        seed=args.seed if args.users != 1.0 else None,
        block_tokens=_block_tokens(metas),
        licence="; ".join(dict.fromkeys(m.licence for m in metas if m.licence)) or None,
        force=args.force,
    )
    print(f"{args.out}: {len(trace)} requests over {trace.arrival_s[-1] / 60:.1f} minutes")
    return 0


def cut(requests: Sequence[Request], args: argparse.Namespace) -> list[Request]:
    """The part from ``from_s`` to ``to_s``, its first requests, more users, faster; from 0 on."""
    kept = [r for r in requests if args.from_s <= r.arrival_s < args.to_s][: args.first]
    if not kept:
        raise ValueError(
            f"--from {args.from_s:g} --to {args.to_s:g}: no request arrives then; the trace runs "
            f"from {requests[0].arrival_s:g} to {requests[-1].arrival_s:g} s"
        )
    if args.users != 1.0:
        kept = superpose(kept, args.users, seed=args.seed)
    start_s = kept[0].arrival_s if args.from_s > 0 else 0.0
    return [
        msgspec.structs.replace(r, arrival_s=round((r.arrival_s - start_s) / args.faster, 6))
        for r in kept
    ]


def _block_tokens(metas: Sequence[TraceMeta]) -> int | None:
    sizes = {meta.block_tokens for meta in metas if meta.block_tokens is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"--merge: the traces have prefix blocks of {' and '.join(map(str, sorted(sizes)))} "
            "tokens; convert them with the same --block-tokens"
        )
    return next(iter(sizes), None)


def _check(args: argparse.Namespace) -> None:
    if not (0 <= args.from_s < args.to_s):
        raise ValueError(f"--from {args.from_s:g} --to {args.to_s:g}: give 0 <= from < to")
    if args.first is not None and args.first < 1:
        raise ValueError(f"--first {args.first} must be at least 1")
    if not 1e-6 <= args.faster <= 1e6:
        raise ValueError(f"--faster {args.faster:g} must be between 1e-6 and 1e6")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed} must be 0 or more")


if __name__ == "__main__":
    raise SystemExit(main())
