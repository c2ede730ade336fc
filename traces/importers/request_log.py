"""Logs of requests that a server answered.

Three kinds of line, told apart by their fields:

- SGLang's own log (``--log-requests --log-requests-format json``): events ``request.finished`` with
  ``out.meta_info``; each line may carry the logger's ``[date time]`` in front. Saved answers of
  ``/generate`` (``meta_info`` alone) are read as well.
- answers of an OpenAI-style API: ``usage`` and ``created``, alone or inside ``response``.
- one result of ``sglang.bench_serving --output-details``: ``input_lens``, ``output_lens``.

Knows no tokenizer: counts come from the server. None of them tells which prefix was shared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sglang_dspark.files import read_text
from traces.importers.imported import Imported, json_object, seconds, tokens
from traces.importers.tables import clock_s
from traces.schema import Request
from traces.store import shown

_NOT_JSON = (
    "passed over: log lines that are not JSON (sglang writes it with --log-requests-format json)"
)


def read_log(path: Path) -> tuple[Imported, bool, float | None]:
    """Requests, whether they have arrivals, and the request rate that a benchmark was run at."""
    imported = Imported()
    records = list(_records(path, imported))
    benchmarks = [(where, record) for where, record in records if "input_lens" in record]
    if benchmarks:
        if len(records) > 1:
            raise ValueError(
                f"{records[1][0]}: a second record after a benchmark's; "
                "a trace is one run: keep one line of the file"
            )
        return imported, False, _benchmark(*benchmarks[0], imported)
    # Wall clocks of the log and of meta_info may lie in different zones: one of them for all.
    finished = [r for _, r in records if "meta_info" in r]
    by_received = all("request_received_ts" in r["meta_info"] for r in finished)
    taken: dict[str, int] = {}
    for where, record in records:
        if "meta_info" in record:
            request = _sglang(where, record, by_received)
        else:
            request = _openai(where, record)
        if request is None:
            imported.notes["left out: aborted before its first token"] += 1
            continue
        again = taken.get(request.request_id, 0)
        taken[request.request_id] = again + 1
        if again:
            request.request_id = f"{request.request_id}#{again + 1}"
            imported.notes["request_id used before, numbered"] += 1
        imported.keep(request)
    return imported, True, None


def _records(path: Path, imported: Imported) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines that tell of an answered request, brought to one shape."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        where = f"{path}:{number}"
        text = line.strip()
        if text.startswith("[") and "] {" in text:
            text = text[text.index("] {") + 2 :]
        if not text:
            continue
        if not text.startswith("{"):
            imported.notes[_NOT_JSON] += 1
            continue
        record = json_object(where, text)
        if "event" in record and record["event"] != "request.finished":
            imported.notes["passed over: other events"] += 1
            continue
        yield where, _answer(where, record)


def _answer(where: str, record: dict[str, Any]) -> dict[str, Any]:
    """The object that holds the counts, with what its envelope knows beside it."""
    if "out" in record:
        inner = _object(where, record, "out")
        envelope = {name: record[name] for name in ("timestamp", "rid", "obj") if name in record}
        record = envelope | inner
    elif "response" in record:
        inner = _object(where, record, "response")
        if "body" in inner:
            inner = _object(where, inner, "body")
        record = {"id": record["custom_id"]} | inner if "custom_id" in record else inner
    if "meta_info" in record:
        _object(where, record, "meta_info")
    elif "usage" in record:
        _object(where, record, "usage")
    elif "input_lens" not in record:
        raise ValueError(
            f"{where}: none of meta_info, usage and input_lens; this reads SGLang's JSON request "
            "log, OpenAI-style answers and bench_serving --output-details"
        )
    return record


def _sglang(where: str, record: dict[str, Any], by_received: bool) -> Request | None:
    meta = record["meta_info"]
    reason = meta.get("finish_reason")
    output_tokens = tokens(where, meta, "completion_tokens")
    if output_tokens == 0 and isinstance(reason, dict) and reason.get("type") == "abort":
        return None
    if by_received:
        arrival_s = seconds(where, meta, "request_received_ts")
    elif "timestamp" in record and "e2e_latency" in meta:
        arrival_s = clock_s(where, record["timestamp"]) - seconds(where, meta, "e2e_latency")
    else:
        raise ValueError(
            f"{where}: neither request_received_ts nor timestamp with e2e_latency, so no arrival; "
            "log with --log-requests-format json, or run the server with --enable-metrics"
        )
    obj = record.get("obj")
    asked: dict[str, Any] = obj if isinstance(obj, dict) else {}
    given = asked.get("sampling_params")
    sampling: dict[str, Any] = given if isinstance(given, dict) else {}
    most = sampling.get("max_new_tokens")
    session = asked.get("session_id")
    if session is None and isinstance(asked.get("session_params"), dict):
        session = asked["session_params"].get("id")
    return Request(
        request_id=str(meta.get("id", record.get("rid", where))),
        arrival_s=arrival_s,
        prompt_tokens=tokens(where, meta, "prompt_tokens"),
        output_tokens=output_tokens,
        session_id=None if session is None else str(session),
        temperature=_temperature(where, sampling),
        max_new_tokens=most if isinstance(most, int) and most >= output_tokens else None,
        priority=_priority(where, asked),
    )


def _openai(where: str, record: dict[str, Any]) -> Request:
    usage = record["usage"]
    # The Responses API renamed the fields of Chat Completions.
    old = "prompt_tokens" in usage
    created = "created" if "created" in record else "created_at"
    if created not in record:
        raise ValueError(f"{where}: no created, so no arrival; keep it in the log")
    return Request(
        request_id=str(record.get("id", where)),
        arrival_s=seconds(where, record, created),
        prompt_tokens=tokens(where, usage, "prompt_tokens" if old else "input_tokens"),
        output_tokens=tokens(where, usage, "completion_tokens" if old else "output_tokens"),
        temperature=_temperature(where, record),
    )


def _benchmark(where: str, record: dict[str, Any], imported: Imported) -> float | None:
    prompts, outputs = record["input_lens"], record.get("output_lens")
    failed = record.get("errors") or [""] * len(prompts)
    if not isinstance(outputs, list) or not len(prompts) == len(outputs) == len(failed):
        raise ValueError(f"{where}: input_lens, output_lens and errors must be equally long lists")
    for row, (prompt, output, error) in enumerate(zip(prompts, outputs, failed, strict=True)):
        pair = {f"input_lens[{row}]": prompt, f"output_lens[{row}]": output}
        if error:
            imported.notes["left out: failed in the benchmark"] += 1
            continue
        imported.keep(
            Request(
                request_id=f"r{row}",
                arrival_s=0.0,
                prompt_tokens=tokens(where, pair, f"input_lens[{row}]"),
                output_tokens=tokens(where, pair, f"output_lens[{row}]"),
            )
        )
    rate = record.get("request_rate")
    usable = isinstance(rate, int | float) and 0 < rate < math.inf
    return float(rate) if usable and rate is not None else None


def _object(where: str, record: dict[str, Any], name: str) -> dict[str, Any]:
    inner = record[name]
    if not isinstance(inner, dict):
        raise ValueError(
            f"{where}: {name} {shown(inner)} is not an object; mend or remove the line"
        )
    return inner


def _temperature(where: str, record: dict[str, Any]) -> float | None:
    return None if record.get("temperature") is None else seconds(where, record, "temperature")


def _priority(where: str, record: dict[str, Any]) -> int | None:
    priority = record.get("priority")
    if priority is not None and not isinstance(priority, int):
        raise ValueError(
            f"{where}: priority {shown(priority)} must be a whole number; mend the line"
        )
    return priority
