"""The files that a recorder leaves of a ``logged_scenes`` server: an operator's input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sglang_dspark.core.costs.model import CostModel
from sglang_dspark.core.policy import GlobalBudget, PolicyFile
from sglang_dspark.logs.step_log import StepLog
from sglang_dspark.logs.step_parts import header_of
from tests.simulator.fit.logged_scenes import GAMMA, Log
from traces import Request, write_trace
from traces.measured import Measured, measured_path, write_measured

BLOCK_TOKENS = 64

SERVER: dict[str, Any] = {
    "url": "http://127.0.0.1:30000",
    "asked_s": 1.0,
    "version": "0.5.21",
    "page_size": 1,
    "chunked_prefill_size": 8192,
    "max_prefill_tokens": 16384,
    "max_running_requests": 16,
    "max_total_num_tokens": 100_000,
    "schedule_policy": "fcfs",
    "disable_radix_cache": False,
    "disable_overlap_schedule": True,
    "enable_mixed_chunk": False,
    "prefill_decode_interval": 0,
    "speculative_algorithm": "DSPARK",
    "min_free_slots_delay": 1,
    "memory_usage": [{"token_capacity": 100_000}],
    "running_requests_limit": [16],
}
"""``server.json`` of the server that the scenes play."""


def write_recording(folder: Path, log: Log, *, planning: CostModel) -> None:
    """``steps/`` with ``server.json``, ``mine.jsonl`` and ``mine.measured.jsonl`` in ``folder``;
    requests that did not end are missing, as in a request log."""
    header = header_of(
        policy=PolicyFile(policy=GlobalBudget()), cost_model=planning, gamma=GAMMA,
        max_requests=16, versions={},
    )  # fmt: skip
    writer = StepLog(folder / "steps", header=header, queue_records=10_000)
    for record in log.records:
        writer.observe(record)
    writer.close()
    (folder / "steps" / "server.json").write_text(json.dumps(SERVER))
    names = sorted(log.ended_s, key=lambda name: log.sent_s[name])
    first_s = log.sent_s[names[0]]
    requests = [
        Request(
            request_id=name,
            arrival_s=log.sent_s[name] - first_s,
            prompt_tokens=log.prompts[name],
            output_tokens=log.outputs[name],
            max_new_tokens=512,
            prefix_hashes=_hashes(name, log.prompts[name], log.served[name].cached_tokens or 0),
        )
        for name in names
    ]
    trace = folder / "mine.jsonl"
    write_trace(trace, requests, source="test", command="test", block_tokens=BLOCK_TOKENS)
    write_measured(measured_path(trace), [_row(name, log) for name in names])


def _hashes(name: str, prompt: int, cached: int) -> list[int | str] | None:
    """Cached beginnings are all of one text; the rest is the request's own."""
    shared = cached // BLOCK_TOKENS
    own = [f"{name}-{block}" for block in range(shared, prompt // BLOCK_TOKENS)]
    return [*range(shared), *own] or None


def _row(name: str, log: Log) -> Measured:
    one, sent_s = log.served[name], log.sent_s[name]
    ttft_s, latency_s = one.first_s - sent_s, log.ended_s[name] - sent_s
    return Measured(
        request_id=name, finish="stop", streamed=True, queue_s=one.entry_s - sent_s, ttft_s=ttft_s,
        tpot_s=(latency_s - ttft_s) / (log.outputs[name] - 1), latency_s=latency_s,
        cached_tokens=one.cached_tokens, retractions=0, decode_steps=1, received_s=sent_s,
    )  # fmt: skip
