"""What recording requests costs a server: ``python -m benchmarks.recorder_cost``.

The recorder works in the process that takes requests, and in the scheduler only where a finished
request's times are packed. Microseconds of processor time, medians:

arrive     ``RequestRecorder.dispatched`` of one request, on the thread that serves HTTP
message    one message of a decode step through ``answered``, R streams in it, none finished
finish     what a finished request adds to that
hash       per prompt, on the log's own thread; it holds the interpreter meanwhile
write      per request, on the log's own thread: encoding, compressing, writing
pack       what the scheduler spends more on a finished request's times
scheduler  pack x requests finished a step, of a step of 10 ms: what decoding waits for
server     everything but that, of 10 ms of the other process's core

when R streams run, each of ``TOKENS`` tokens at 3 a step, and prompts come no faster than
``PREFILL_TOKENS_S``, more than a GPU prefills.

disk B     bytes of the log a request

Writes ``benchmarks/results/recorder_cost.json``.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.update(NUMBA_NUM_THREADS="1", OMP_NUM_THREADS="1")

import numpy as np

from benchmarks.provenance import provenance
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.files import make_folder, write_json
from sglang_dspark.logs.request_parts import BLOCK_TOKENS, prefix_hashes
from sglang_dspark.runtime.request_log import RequestLog, RequestRecorder, _times
from sglang_dspark.runtime.settings import Settings

REQUESTS = (8, 64, 256)
PROMPTS = (1000, 16000)
TOKENS = 300
TOKENS_A_STEP = 3.0
PREFILL_TOKENS_S = 100_000
STEP_S = 0.010
RESULTS = Path(__file__).parent / "results" / "recorder_cost.json"


class TokenizedGenerateReqInput(SimpleNamespace):
    """By its name the recorder knows SGLang's message."""


class Stats:
    """The times of one request in SGLang's scheduler."""

    def __init__(self) -> None:
        self.enable_metrics = False
        self.completion_time = time.perf_counter()
        self.forward_entry_time = self.prefill_finished_time = self.completion_time

    def packed(self) -> dict[str, Any]:
        """As SGLang's ``__getstate__``."""
        if not self.enable_metrics:
            return {}
        return {
            "wait_queue_entry_time": 0.0,
            "forward_entry_time": self.forward_entry_time,
            "prefill_finished_time": self.prefill_finished_time,
            "diff_realtime_monotonic": 0.0,
        }


def message(number: int, tokens: Any) -> TokenizedGenerateReqInput:
    """A request on its way to the scheduler."""
    return TokenizedGenerateReqInput(
        rid=f"{number:032x}",
        input_ids=tokens,
        stream=True,
        session_params=None,
        session_id=None,
        mm_inputs=None,
        lora_id=None,
        extra_key=None,
        priority=None,
        sampling_params=SimpleNamespace(temperature=1.0, top_k=1 << 30),
    )


def output(rids: list[str], reason: Any) -> SimpleNamespace:
    """A step's message of these requests' tokens."""
    count = len(rids)
    return SimpleNamespace(
        rids=rids,
        finished_reasons=[reason] * count,
        time_stats=[Stats() for _ in rids],
        prompt_tokens=[1000] * count,
        completion_tokens=[300] * count,
        cached_tokens=[0] * count,
        retraction_counts=[0] * count,
        spec_verify_ct=[100] * count,
    )


async def nothing(*args: Any) -> None:
    """Stands for what SGLang does with the message itself."""


def median_us(do: Callable[[], object], times: int = 400) -> float:
    """Of one call on this thread, its own processor time."""
    spent = []
    for _ in range(times):
        start = time.thread_time_ns()
        do()
        spent.append(time.thread_time_ns() - start)
    return float(np.median(spent)) / 1e3


def messages_us(recorder: RequestRecorder, batch: Any) -> float:
    """Of one message, what awaiting ``nothing`` takes left out."""

    async def run(with_recorder: bool) -> float:
        spent = []
        for _ in range(400):
            start = time.thread_time_ns()
            if with_recorder:
                await recorder.answered(nothing, None, batch)
            else:
                await nothing(None, batch)
            spent.append(time.thread_time_ns() - start)
        return float(np.median(spent)) / 1e3

    return asyncio.run(run(True)) - asyncio.run(run(False))


def measure(requests: int, prompt: int, folder: Path) -> dict[str, float]:
    """One row of the table."""
    rng = np.random.default_rng(0)
    tokens = array("q", rng.integers(0, 150_000, prompt).tolist())
    stats = SimpleNamespace(created_time=time.perf_counter())
    manager = SimpleNamespace(
        server_status=SimpleNamespace(name="Up"),
        rid_to_state={f"{n:032x}": SimpleNamespace(time_stats=stats) for n in range(4000)},
    )
    recorder = RequestRecorder(Settings(request_log=str(folder)))
    recorder._log = log = RequestLog(folder, poll_s=3600, queue_records=1 << 20)
    arrivals = [message(number, tokens) for number in range(2000)]
    waiting = iter(arrivals)
    arrive = median_us(lambda: recorder.dispatched(manager, next(waiting)), len(arrivals))
    hash_ = median_us(lambda: prefix_hashes(tokens, key=b"k" * 32), 50)
    rids = [one.rid for one in arrivals]
    running = messages_us(recorder, output(rids[:requests], None))
    ends = iter([output([rid], {"type": "stop"}) for rid in rids])
    finish = median_us(lambda: recorder._tokens(next(ends), time.perf_counter()), len(arrivals))
    records = list(log._queue)
    for record in records:  # different prompts: equal ones would compress to nothing
        record.open.hashes = rng.integers(-(2**63), 2**63, prompt // BLOCK_TOKENS)
    start = time.thread_time()
    groups = [records[start : start + 32] for start in range(0, len(records), 32)]
    content = log.part_bytes([log.encode(group) for group in groups])
    (folder / "part").write_bytes(content)
    write = (time.thread_time() - start) / len(records) * 1e6
    log._queue.clear()
    log.close()
    done = Stats()
    plain, hooked = (
        median_us(lambda state=state: pickle.dumps(state()))  # type: ignore[misc]
        for state in (done.packed, lambda: _times(lambda stats: stats.packed(), done))
    )
    a_step = min(requests * TOKENS_A_STEP / TOKENS, PREFILL_TOKENS_S * STEP_S / prompt)
    elsewhere = running + a_step * (arrive + finish + hash_ + write)
    return {
        "requests": requests,
        "prompt_tokens": prompt,
        "arrive_us": round(arrive, 2),
        "message_us": round(running, 2),
        "finish_us": round(finish, 2),
        "hash_us": round(hash_, 1),
        "write_us": round(write, 1),
        "pack_us": round(hooked - plain, 2),
        "requests_a_step": round(a_step, 3),
        "scheduler_of_a_step": round(a_step * (hooked - plain) / (STEP_S * 1e6), 6),
        "server_of_a_step": round(elsewhere / (STEP_S * 1e6), 5),
        "disk_bytes_per_request": round(content.size / len(records)),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table and write the file."""
    parser = Parser(description="What the request log costs a server.")
    parser.add_argument("--out", default=str(RESULTS), help="where the numbers go")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for requests in REQUESTS:
            for prompt in PROMPTS:
                folder = make_folder(Path(name) / f"{requests}-{prompt}")
                rows.append(measure(requests, prompt, folder))
    print("  R  prompt  arrive  message  finish    hash   write   pack  scheduler  server  disk B")
    for row in rows:
        print(
            f"{row['requests']:3d} {row['prompt_tokens']:7d} {row['arrive_us']:7.2f} "
            f"{row['message_us']:8.2f} {row['finish_us']:7.2f} {row['hash_us']:7.1f} "
            f"{row['write_us']:7.1f} {row['pack_us']:6.2f} {row['scheduler_of_a_step']:10.4%} "
            f"{row['server_of_a_step']:7.3%} "
            f"{row['disk_bytes_per_request']:7d}"
        )
    make_folder(Path(options.out).parent)
    result = provenance("python -m benchmarks.recorder_cost") | {
        "step_s": STEP_S,
        "tokens_a_request": TOKENS,
        "tokens_a_step": TOKENS_A_STEP,
        "prefill_tokens_s": PREFILL_TOKENS_S,
        "rows": rows,
    }
    write_json(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("recorder_cost", main))
