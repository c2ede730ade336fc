"""``python -m traces.describe TRACE [-o PICTURE] [--json]``: what a trace is like.

Owns the command and the table. Knows nothing of the figures' definitions (``traces.statistics``) or
of the drawing (``traces.picture``).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from sglang_dspark.cli import Parser, run_command
from sglang_dspark.files import atomic_write, read_record
from traces.columns import Trace
from traces.picture import draw
from traces.schema import TraceMeta, meta_path
from traces.statistics import Lengths, Statistics, statistics
from traces.store import find_trace, load_trace, shipped_traces


def table(figures: Statistics, *, source: str) -> str:
    """The figures as text, a line each."""
    arrivals, sessions, prefix = figures.arrivals, figures.sessions, figures.prefix
    lines = [
        f"{figures.trace}: {figures.requests:,} requests over {arrivals.span_s / 60:.1f} minutes",
        f"  source            {source}",
        f"  sha256            {figures.sha256[:16]}",
        f"  rate              {_number(arrivals.rate_req_s)} req/s",
        f"  interarrival CV   {_number(arrivals.interarrival_cv)}  (Poisson: 1)",
        "  dispersion index  "
        + ("  ".join(f"{w}: {_number(v)}" for w, v in arrivals.dispersion.items()) or "-")
        + "  (Poisson: 1)",
        f"  busiest 10 s      {arrivals.busiest_10s} requests (mean {_number(arrivals.mean_10s)})",
        "  tokens                  mean       p50       p90       p99         total",
        _lengths("prompt", figures.prompt_tokens),
        _lengths("output", figures.output_tokens),
    ]
    if figures.domains:
        lines.append("  domain                share  requests   prompt mean   output mean")
    for name, part in figures.domains.items():
        lines.append(
            f"    {name:<18}{100 * part.share:5.1f} %{part.requests:10,}"
            f"{part.prompt_tokens_mean:14,.0f}{part.output_tokens_mean:14,.0f}"
        )
    for name, count in figures.slo.items():
        lines.append(f"  slo {name:<13} {100 * count / figures.requests:.1f} % ({count:,})")
    if sessions.sessions:
        lines.append(
            f"  sessions          {sessions.sessions:,}, turns mean {_number(sessions.turns_mean)} "
            f"most {sessions.turns_max}, gap p50 {_number(sessions.gap_p50_s)} s"
        )
        lines.append(
            f"  later turns       {sessions.waiting:,} wait for the answer before them, the others "
            "come at their recorded times"
        )
    if prefix.hit_share is not None and prefix.hit_tokens_share is not None:
        lines.append(
            f"  prefix reuse      {100 * prefix.hit_share:.1f} % of {prefix.blocks:,} blocks of "
            f"{prefix.block_tokens} tokens, {100 * prefix.hit_tokens_share:.1f} % of prompt tokens "
            "(infinite cache)"
        )
    else:
        lines.append("  prefix reuse      no prefix_hashes in this trace")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _lengths(name: str, lengths: Lengths) -> str:
    columns = "".join(
        f"{value:10,.0f}" for value in (lengths.mean, lengths.p50, lengths.p90, lengths.p99)
    )
    return f"    {name:<14}{columns}{lengths.total:14,}"


def save_picture(trace: Trace, figures: Statistics, out: Path, *, source: str) -> None:
    """Draw to PNG, PDF or SVG by the file's suffix."""
    kind = out.suffix.removeprefix(".").lower()
    if kind not in ("png", "pdf", "svg"):
        raise ValueError(f"{out}: a picture ends in .png, .pdf or .svg; rename it")
    figure = draw(trace, figures, source=source)
    with atomic_write(out, "wb") as file:
        figure.savefig(file, format=kind, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("traces.describe", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(
        description="Say what a trace is like: rate, burstiness, lengths, domains, prefix reuse.",
        examples=["chat", "mine.jsonl -o mine.png", "mixed --json"],
        page="docs/rollout.md",
    )
    parser.add_argument(
        "trace", metavar="TRACE", help=f"{', '.join(shipped_traces())}, or a .jsonl file"
    )
    parser.add_argument("-o", "--out", metavar="PICTURE", help="a .png, .pdf or .svg to draw")
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object")
    args = parser.parse_args(argv)
    path = find_trace(args.trace)
    trace = load_trace(path)
    sidecar = meta_path(path)
    source = read_record(sidecar, TraceMeta).source if sidecar.exists() else "source not recorded"
    figures = statistics(trace)
    if args.out is not None:
        save_picture(trace, figures, Path(args.out), source=source)
    if args.json:
        print(json.dumps(dataclasses.asdict(figures), indent=1, allow_nan=False))
    else:
        print(table(figures, source=source))
        if args.out is not None:
            print(f"  picture           {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
