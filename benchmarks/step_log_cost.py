"""What watching a step costs: ``python -m benchmarks.step_log_cost``.

Gamma 7. What is timed, in microseconds for one decode step:

metrics    ``WorkerMetrics.observe`` on the scheduler's thread
log        ``StepLog.observe`` on the scheduler's thread, its writer running beside it
encode     CPU time of the log's thread that may hold the interpreter
write      CPU time of the log's thread that does not: compressing, writing
flush      one ``WorkerMetrics.flush`` into mapped files, twice a second whatever the load
disk B     bytes of the log on disk, a step

Every step is another of 512 random ones. ``of a step`` is metrics + log against a step of 10 ms.
Medians; compilation is not counted. Writes ``benchmarks/results/step_log_cost.json``.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(NUMBA_NUM_THREADS="1", OMP_NUM_THREADS="1")

import numpy as np

from benchmarks.provenance import provenance
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.core.costs.library import load_cost_model
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import GlobalBudget, PolicyFile
from sglang_dspark.core.state import BatchState
from sglang_dspark.files import make_folder, write_json
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.logs.step_log import StepLog
from sglang_dspark.logs.step_parts import encode, header_of, part_bytes
from sglang_dspark.runtime.metrics import WorkerMetrics

GAMMA = 7
REQUESTS = (1, 8, 64, 256)
RECORDS = 512
STEP_S = 0.010
RESULTS = Path(__file__).parent / "results" / "step_log_cost.json"
LABELS = {"model_name": "m", "engine_type": "unified", "tp_rank": 0, "pp_rank": 0, "moe_ep_rank": 0}
MODEL = load_cost_model("h200-qwen3-8b-analytic")


def records_of(rows: int, planner: Planner) -> list[StepRecord]:
    """Random steps as the server would record them, request ids of 32 hex digits."""
    rng = np.random.default_rng(rows)
    ids = tuple(rng.bytes(16).hex() for _ in range(rows))
    records = []
    for step in range(RECORDS):
        logits, stale = rng.normal(1.5, 2.0, (2, rows, GAMMA)).astype(np.float32)
        state = BatchState(
            logits=logits.astype(np.float64),
            stale_logits=stale.astype(np.float64),
            stale_age=np.full(rows, 2),
            context_tokens=rng.integers(1, 8192, rows),
        )
        plan = planner.plan(state)
        records.append(
            StepRecord(
                step=step,
                end_s=1.7e9 + step * STEP_S,
                request_ids=ids,
                state=state,
                plan=plan,
                accepted=(rng.random(rows) * (plan.lengths + 1)).astype(np.int64),
                computed_tokens=plan.step_tokens,
                shape="ragged",
                draft_s=0.001,
                plan_s=0.0001,
                verify_s=0.008,
                commit_s=0.0009,
            )
        )
    return records


def median_us(observe: Callable[[StepRecord], None], records: list[StepRecord]) -> float:
    """Of one call; a pause after every 64 lets the threads beside it run, as a step would."""
    times = []
    for i, record in enumerate(records * 4):
        start = time.perf_counter()
        observe(record)
        times.append(time.perf_counter() - start)
        if i % 64 == 63:
            time.sleep(0.1)
    return float(np.median(times)) * 1e6


def measure(rows: int, folder: Path) -> dict[str, float]:
    """One row of the table."""
    from prometheus_client import CollectorRegistry

    planner = Planner(policy=GlobalBudget(), cost_model=MODEL, gamma=GAMMA, max_requests=rows)
    records = records_of(rows, planner)
    header = header_of(
        policy=PolicyFile(policy=GlobalBudget()),
        cost_model=MODEL,
        gamma=GAMMA,
        max_requests=rows,
        versions={},
    )
    metrics = WorkerMetrics(
        gamma=GAMMA,
        policy="global",
        cost_model=MODEL.name,
        labels=LABELS,
        interval_s=0,
        registry=CollectorRegistry(),
    )
    metrics_us = median_us(metrics.observe, records)
    flushes = []
    for record in records[:200]:
        metrics.observe(record)
        start = time.perf_counter()
        metrics.flush()
        flushes.append(time.perf_counter() - start)
    log = StepLog(folder / str(rows), header=header)
    log_us = median_us(log.observe, records)
    log.close()
    if log.dropped:
        raise ValueError(f"{log.dropped} records dropped; the disk is too slow to measure on")
    start = time.thread_time()
    batches = [encode(records[i : i + 32]) for i in range(0, RECORDS, 32)]
    encode_us = (time.thread_time() - start) / RECORDS * 1e6
    start = time.thread_time()
    content = part_bytes(batches, header)
    (folder / "part").write_bytes(content)
    write_us = (time.thread_time() - start) / RECORDS * 1e6
    return {
        "requests": rows,
        "metrics_us": round(metrics_us, 2),
        "log_us": round(log_us, 2),
        "of_a_step": round((metrics_us + log_us) / (STEP_S * 1e6), 5),
        "encode_us": round(encode_us, 1),
        "write_us": round(write_us, 1),
        "flush_us": round(float(np.median(flushes)) * 1e6, 1),
        "disk_bytes_per_step": round(content.size / RECORDS),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table and write the file."""
    parser = Parser(description="What the step log and the metrics cost a decode step.")
    parser.add_argument("--out", default=str(RESULTS), help="where the numbers go")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # prometheus_client maps files as it does in a server, and decides so when imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = name
        rows = [measure(requests, folder) for requests in REQUESTS]
    print("  R   metrics us   log us   of a 10 ms step  encode us  write us   flush us   disk B")
    for row in rows:
        print(
            f"{row['requests']:3d} {row['metrics_us']:12.2f} {row['log_us']:8.2f} "
            f"{row['of_a_step']:16.3%} {row['encode_us']:11.1f} {row['write_us']:9.1f} "
            f"{row['flush_us']:10.1f} "
            f"{row['disk_bytes_per_step']:8d}"
        )
    make_folder(Path(options.out).parent)
    result = provenance("python -m benchmarks.step_log_cost") | {
        "gamma": GAMMA,
        "step_s": STEP_S,
        "steps": rows,
    }
    write_json(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("step_log_cost", main))
