"""What ``dspark traces record`` left, as one stretch of traffic: steps, requests, settings.

Owns the reading of a step log, of a trace with its measured times, and of ``server.json``, and the
sentences for what does not belong together. Knows no fit and no simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_dspark.core.costs.model import CostModel, decode_cost_model
from sglang_dspark.core.policy import PolicyFile
from sglang_dspark.logs.step_log import read, shared_header
from sglang_dspark.logs.step_parts import PartHeader
from sglang_dspark.runtime.settings import unpriced
from simulator.study.server import ServerSettings, server_settings
from simulator.twin.prefixes import grain_of, refined
from simulator.twin.timings import Seen, Segment
from traces import Request, TraceMeta, read_requests
from traces.measured import Measured, beside, read_measured


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """One server over one stretch of time."""

    segment: Segment
    served: PolicyFile
    """What decided its steps, as the log's header says."""
    belief: CostModel | None
    """What that planned with; None where no price was given or told."""
    settings: ServerSettings
    notes: tuple[str, ...]
    """What the recording does not say, or says of more than it holds."""


def read_recording(
    log: str, requests: str, *, measured: str | None, server: str | None
) -> Recording:
    """Everything of one recording. ``ValueError`` in one sentence on what is missing or does not
    fit."""
    rows, meta = read_requests(requests)
    path = Path(measured) if measured else beside(requests)
    if path is None:
        raise ValueError(
            f"{requests}: has no .measured.jsonl beside it; make both with dspark traces record "
            "--from, or name the file with --measured"
        )
    times = read_measured(path)
    settings = server_settings(server or log)
    header = shared_header(log)
    steps = list(read(log))
    kept = [row for row in rows if row.request_id in times]
    if not kept:
        raise ValueError(f"{path}: holds no request of {requests}; give the file made with it")
    if any(times[row.request_id].received_s is None for row in kept):
        raise ValueError(
            f"{path}: does not say when requests arrived on the step log's clock; make it again "
            "with dspark traces record --from"
        )
    stepped = {rid for step in steps for rid in step.request_ids}
    if not any(row.request_id in stepped for row in kept):
        raise ValueError(f"{log}: its steps served no request of {requests}; are both of one time?")
    segment, notes = _segment(kept, times, meta, settings)
    segment.steps.extend(steps)
    foreign = len(stepped - {row.request_id for row in kept})
    if foreign:
        notes.append(f"{foreign} requests of the step log are not in the trace, and not replayed")
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} requests of the trace were not measured; left out")
    priced = header.cost_model["name"] != unpriced().name
    return Recording(
        segment=segment,
        served=header.policy_file(),
        belief=decode_cost_model(header.cost_model, where=f"{log}: header") if priced else None,
        settings=settings,
        notes=(*notes, *_header_notes(header, priced), *settings.not_simulated),
    )


def _header_notes(header: PartHeader, priced: bool) -> list[str]:
    if header.policy_file().policy.needs_prices and not priced:
        return [
            "the log does not say what prices its policy planned with: the fitted ones stand in"
        ]
    return []


def _segment(
    rows: Sequence[Request],
    times: dict[str, Measured],
    meta: TraceMeta | None,
    settings: ServerSettings,
) -> tuple[Segment, list[str]]:
    """The requests, with prefixes as fine as the server shares them; its steps are to be added."""
    notes = []
    prompts = [row.prompt_tokens for row in rows]
    cached = [times[row.request_id].cached_tokens for row in rows]
    block = meta.block_tokens if meta and meta.block_tokens else 0
    names: list[tuple[int, ...]] = [()] * len(rows)
    if block and settings.engine.enable_prefix_cache:
        grain = grain_of(prompts, page_size=settings.engine.page_size, block_tokens=block)
        hashes = [row.prefix_hashes or () for row in rows]
        found = refined(prompts, hashes, cached, block_tokens=block, grain=grain)
        names, block = found.names, found.block_tokens
        total = sum(tokens or 0 for tokens in cached)
        if found.lost > 0.02 * max(total, 1):
            notes.append(
                f"{found.lost / total:.0%} of the cached tokens were of no earlier prompt of the "
                "trace, answers for instance: a replay prefills them"
            )
    elif any(cached):
        notes.append("the trace has no prefix hashes: a replay prefills every prompt in full")
    unlimited = sum(row.max_new_tokens is None for row in rows)
    if unlimited:
        notes.append(
            f"{unlimited} requests do not say their max_new_tokens: admission reserves "
            f"{settings.engine.admission_new_tokens} tokens for each"
        )
    streamed = sum(times[row.request_id].streamed for row in rows)
    if 0 < streamed < len(rows):
        notes.append(
            f"{streamed} of {len(rows)} requests were streamed: first tokens of the others are "
            "timed before they leave the engine"
        )
    seen = [
        _seen(row, times[row.request_id], prefix) for row, prefix in zip(rows, names, strict=True)
    ]
    return (
        Segment(policy="served", load="recorded", third=0, seen=seen, steps=[],
                block_tokens=max(block, 1)),
        notes,
    )  # fmt: skip


def _seen(row: Request, one: Measured, prefix: tuple[int, ...]) -> Seen:
    sent_s = one.received_s
    assert sent_s is not None
    nan = float("nan")
    return Seen(
        rid=row.request_id,
        domain=row.domain or "",
        prompt_tokens=row.prompt_tokens,
        prefix=prefix,
        sent_s=sent_s,
        entry_s=nan if one.queue_s is None else sent_s + one.queue_s,
        first_s=nan if one.ttft_s is None else sent_s + one.ttft_s,
        end_s=sent_s + one.latency_s,
        output_tokens=row.output_tokens,
        cached_tokens=one.cached_tokens,
        max_new_tokens=row.max_new_tokens,
    )
