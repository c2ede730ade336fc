"""``python -m traces.synthesize -o OUT.jsonl``: a trace from a mixture file.

Owns the command and the merging of domains into one trace. Same mixture, options and seed: same
bytes. Knows nothing of the distributions (``traces.draws``, ``traces.sessions``).
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sglang_dspark.cli import Parser, run_command
from traces.columns import Trace
from traces.mixture import (
    Bursty,
    Diurnal,
    Domain,
    Gamma,
    Mixture,
    Poisson,
    load_mixture,
    shipped_mixtures,
)
from traces.schema import Request
from traces.sessions import Block, Drawn, draw_domain
from traces.store import write_trace


def synthesize(mixture: Mixture, *, seed: int) -> list[Request]:
    """The requests of a mixture in arrival order, named r0, r1, ... and their sessions s0, ..."""
    drawn = [
        request
        for domain in mixture.domains
        for request in draw_domain(
            domain,
            rate_req_s=mixture.rate_req_s * domain.share,
            span_s=60 * mixture.minutes,
            block_tokens=mixture.block_tokens,
            seed=seed,
        )
    ]
    drawn.sort(key=lambda request: request.arrival_s)
    sessions: dict[tuple[str, int], int] = {}
    blocks: dict[Block, int] = {}
    return [_named(row, request, sessions, blocks) for row, request in enumerate(drawn)]


def _named(
    row: int, drawn: Drawn, sessions: dict[tuple[str, int], int], blocks: dict[Block, int]
) -> Request:
    session_id = None
    if drawn.session is not None:
        key = (drawn.domain, drawn.session)
        session_id = f"s{sessions.setdefault(key, len(sessions))}"
    return Request(
        request_id=f"r{row}",
        arrival_s=drawn.arrival_s,
        prompt_tokens=drawn.prompt_tokens,
        output_tokens=drawn.output_tokens,
        domain=drawn.domain,
        session_id=session_id,
        prefix_hashes=[blocks.setdefault(b, len(blocks)) for b in drawn.blocks] or None,
        temperature=drawn.temperature,
        priority=drawn.priority,
        slo=drawn.slo,
    )


def with_arrivals(mixture: Mixture, process: str, cv: float) -> Mixture:
    """The mixture with every domain's arrival process replaced by a plain one of that name.

    Diurnal: one period, half as many at the trough and half again at the peak. Bursty: all arrivals
    in bursts of 10 s that fill a fifth of the time.
    """
    span_s = 60 * mixture.minutes
    chosen: Poisson | Gamma | Diurnal | Bursty = Poisson()
    if process == "gamma":
        chosen = Gamma(cv=cv)
    elif process == "diurnal":
        chosen = Diurnal(amplitude=0.5, period_s=span_s, peak_s=span_s / 2, cv=cv)
    elif process == "bursty":
        chosen = Bursty(burst_share=0.2, burst_s=10, cv=cv)
    domains: list[Domain] = [msgspec.structs.replace(d, arrivals=chosen) for d in mixture.domains]
    return msgspec.structs.replace(mixture, domains=domains)


def write_synthetic(
    mixture: Mixture, *, mixture_path: Path, seed: int, out: str, command: str, force: bool = False
) -> Trace:
    """Generate and write the trace with its sidecar."""
    digest = hashlib.sha256(mixture_path.read_bytes()).hexdigest()
    return write_trace(
        out,
        synthesize(mixture, seed=seed),
        source=f"synthetic, from mixture {mixture_path.stem} (sha256 {digest[:16]})",
        command=command,
        seed=seed,
        block_tokens=mixture.block_tokens,
        statistics_from=mixture.statistics_from,
        licence=mixture.licence,
        force=force,
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("traces.synthesize", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(
        description="Make a trace from a mixture; the same mixture, options and seed make the same "
        "bytes.",
        examples=[
            "-o mine.jsonl",
            "-o busy.jsonl --mixture mixed --rate 10 --minutes 60 --seed 1",
            "-o bursts.jsonl --mixture chat --arrivals bursty --cv 2",
        ],
        page="docs/rollout.md",
    )
    parser.add_argument("-o", "--out", required=True, metavar="OUT.jsonl", help="trace to write")
    parser.add_argument(
        "--mixture",
        default="chat",
        metavar="NAME|FILE",
        help=f"{', '.join(shipped_mixtures())}, or a file of that kind (default: chat)",
    )
    parser.add_argument(
        "--rate", type=float, metavar="REQ_S", help="requests per second (default: the mixture's)"
    )
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="length (default: the mixture's)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every draw")
    parser.add_argument(
        "--arrivals",
        choices=("poisson", "gamma", "diurnal", "bursty"),
        help="replace the arrivals of every domain by plain ones (default: the mixture's)",
    )
    parser.add_argument(
        "--cv", type=float, metavar="X",
        help="with --arrivals: variation of the gaps, 1 as Poisson's; gamma needs it (default: 1)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace an earlier, other trace")
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed} must be 0 or more")
    if args.cv is not None and args.arrivals in (None, "poisson"):
        raise ValueError("--cv needs --arrivals gamma, diurnal or bursty beside it")
    if args.arrivals == "gamma" and args.cv is None:
        raise ValueError("--arrivals gamma needs --cv; 1 is Poisson, above 1 is burstier")
    mixture, path = load_mixture(args.mixture)
    changes = {"rate_req_s": args.rate, "minutes": args.minutes}
    mixture = _changed(
        mixture, {name: value for name, value in changes.items() if value is not None}
    )
    if args.arrivals is not None:
        mixture = with_arrivals(mixture, args.arrivals, 1.0 if args.cv is None else args.cv)
    words = sys.argv[1:] if argv is None else list(argv)
    trace = write_synthetic(
        mixture,
        mixture_path=path,
        seed=args.seed,
        out=args.out,
        command=shlex.join(["python", "-m", "traces.synthesize", *words]),
        force=args.force,
    )
    print(f"{args.out}: {len(trace)} requests over {trace.arrival_s[-1] / 60:.1f} minutes")
    return 0


def _changed(mixture: Mixture, changes: dict[str, float]) -> Mixture:
    try:
        # replace() would skip the checks that a file goes through.
        return msgspec.convert(msgspec.to_builtins(mixture) | changes, Mixture)
    except msgspec.ValidationError as error:
        raise ValueError(f"--rate or --minutes: {error}; give another value") from None


if __name__ == "__main__":
    raise SystemExit(main())
