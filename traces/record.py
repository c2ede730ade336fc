"""Record a running server, and make a trace of what it recorded.

    python -m traces.record --url http://127.0.0.1:30000 -o live          until Ctrl-C
    python -m traces.record --url http://127.0.0.1:30000 --seconds 900 -o live
    python -m traces.record --from live -o live.jsonl

The first two fill a folder with step and request parts: copies of the logs of a server that runs
this project's plugin on the same machine, or steps made of what SGLang 0.5.16 and later tell of
their own DSPARK. The third turns the request parts of a folder, this one or the one that a server
writes itself, into a trace for ``simulator.run``, with the measured times beside it.

Owns the loop, the progress line and the exit status: 0 done, 1 the server went away, 2 wrong input.
"""

from __future__ import annotations

import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sglang_dspark.cli import Parser, called_as, run_command
from sglang_dspark.server_client import ServerClient, Unreachable
from traces.measured import measured_path
from traces.pulling import Pull
from traces.recorded import trace_of_log

NAME = "traces.record"
_SAY_EVERY_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(NAME, lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = Parser(
        description="Record a running server into a folder, until Ctrl-C or for some seconds; then "
        "make a trace of such a folder, or of the one that a server writes itself.\n\n"
        "Recorded are the logs of a server on this machine that runs this project's plugin, or "
        "what SGLang 0.5.16 and later tell of their own DSPARK. Status 1: the server went away.",
        examples=[
            "--url http://127.0.0.1:30000 -o live",
            "--url http://127.0.0.1:30000 --seconds 900 -o live",
            "--from live -o live.jsonl",
        ],
        page="docs/rollout.md",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--url", metavar="URL", help="server to record")
    source.add_argument(
        "--from", dest="log", metavar="DIR", help="request parts to make a trace of"
    )
    parser.add_argument("-o", "--out", required=True, metavar="DIR|OUT.jsonl",
                        help="folder to fill, or with --from the trace to write")  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="how long to record (default: until Ctrl-C)"
    )
    parser.add_argument(
        "--every", type=float, default=5.0, metavar="S", help="seconds between looks"
    )
    parser.add_argument(
        "--patience", type=float, default=60.0, metavar="S",
        help="seconds without an answer after which the server counts as gone",
    )  # fmt: skip
    parser.add_argument(
        "--keep", action="store_true", help="leave SGLang's own records in the server"
    )
    parser.add_argument("--domain", help="domain of every request of the trace")
    parser.add_argument("--force", action="store_true", help="replace an earlier, other trace")
    args = parser.parse_args(argv)
    if args.log is not None:
        words = sys.argv[1:] if argv is None else list(argv)
        command = shlex.join(["python", "-m", NAME, *words])
        return _convert(args.log, args.out, command=command, domain=args.domain, force=args.force)
    for name in ("seconds", "every", "patience"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} {value} must be a number of seconds above 0")
    pull = Pull(client=ServerClient(args.url), folder=Path(args.out), keep=args.keep)
    return record(pull, seconds=args.seconds, every_s=args.every, patience_s=args.patience)


def _convert(log: str, out: str, *, command: str, domain: str | None, force: bool) -> int:
    if not out.endswith(".jsonl"):
        raise ValueError(f"-o {out}: a trace is one file; give it a name that ends with .jsonl")
    trace = trace_of_log(log, out, command=command, domain=domain, force=force)
    minutes = trace.arrival_s[-1] / 60
    print(f"{out}: {len(trace)} requests over {minutes:.1f} minutes; times in {measured_path(out)}")
    return 0


def record(
    pull: Pull,
    *,
    seconds: float | None,
    every_s: float,
    patience_s: float,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], bool] | None = None,
) -> int:
    """Look every ``every_s`` until the time is over, Ctrl-C, or a server that stays away.

    The first look must succeed: a wrong address is wrong input. ``wait`` sleeps and says whether to
    stop; by default it is Ctrl-C that stops, between two looks.
    """
    start_s = answered_s = clock()
    end_s = math.inf if seconds is None else start_s + seconds
    line = _Line()
    pull.look()
    for hint in sorted(pull.hints):
        print(f"{called_as(NAME)}: {hint}", file=sys.stderr)
    problem, over = "", False
    with _interruptible() as told_to_stop:
        wait = wait or told_to_stop.wait
        while not over:
            line.say(pull, clock() - start_s, seconds, problem)
            # Told to stop, there is one more look: at what came since the last.
            over = wait(max(0.0, min(every_s, end_s - clock()))) or clock() >= end_s
            try:
                pull.look()
                answered_s, problem = clock(), ""
            except Unreachable as error:
                problem = str(error)
                over = over or clock() - answered_s >= patience_s
    line.end()
    print(_summary(pull))
    if problem:
        print(f"{called_as(NAME)}: {problem}; what was recorded until then stands", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, once: a second one interrupts as usual."""
    told_to_stop = threading.Event()

    def stop(number: int, frame: object) -> None:
        told_to_stop.set()
        signal.signal(signal.SIGINT, before)

    if threading.current_thread() is not threading.main_thread():
        yield told_to_stop
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield told_to_stop
    finally:
        signal.signal(signal.SIGINT, before)


def _summary(pull: Pull) -> str:
    told = f" from {', '.join(sorted(pull.sources))}" if pull.sources else ""
    found = [f"{pull.folder}: {pull.parts} parts copied, {pull.steps} steps written{told}"]
    for count, what in (
        (pull.restarts, "restarts of the server"),
        (pull.unusable, "records that could not be read"),
        (pull.without_confidence, "steps without confidences (their logits stand at +inf)"),
    ):
        if count:
            found.append(f"{count} {what}")
    return "; ".join(found)


class _Line:
    """One progress line on stderr: rewritten on a terminal, seldom in a file."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._said_s = -math.inf

    def say(self, pull: Pull, elapsed_s: float, seconds: float | None, problem: str) -> None:
        """Where the recording stands."""
        if not self._terminal and elapsed_s - self._said_s < _SAY_EVERY_S:
            return
        self._said_s = elapsed_s
        of = f" of {seconds:.0f}" if seconds else ""
        wait = "; no answer, waiting" if problem else ""
        text = f"{elapsed_s:.0f}{of} s: {pull.parts} parts, {pull.steps} steps{wait}"
        end = "" if self._terminal else "\n"
        print(f"\r{text:<79}" if self._terminal else text, end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._terminal:
            print(file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
