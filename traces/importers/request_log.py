"""Logs of a server's requests: one JSON object per request, counts as the server counted.

Three kinds of line, told apart by their fields:

- SGLang's own log (``--log-requests --log-requests-format json``): events ``request.finished`` with
  ``out.meta_info``; each line may carry the logger's ``[date time]`` in front. Saved answers of
  ``/generate`` (``meta_info`` alone) are read as well.
- answers of an OpenAI-style API: ``usage`` and ``created``, alone or inside ``response``.
- error answers of either: left out and counted.

Knows no tokenizer: counts come from the server. None of them tells which prefix was shared.
"""

from __future__ import annotations

import math
from typing import Any

from traces.importers import fields
from traces.importers.benchmarks import check_accepted
from traces.importers.clock import Clock
from traces.importers.imported import CACHED, Imported
from traces.importers.readers import Record
from traces.importers.sources import Source
from traces.importers.texts import Advance
from traces.schema import Request

_ERROR = "left out: error answers"
_ABORTED = "left out: aborted before its first token"


def read_log(source: Source, *, on_bytes: Advance) -> Imported:
    """The requests of a log that were answered."""
    source.lenient = True
    imported = Imported(name=source.where, clock=Clock(unit="s", owner="created"))
    # Wall clocks of the log and of meta_info may lie in different zones: one of them for all.
    by_received = all(
        "request_received_ts" in answer["meta_info"]
        for answer in _sampled_answers(source)
        if "meta_info" in answer
    )
    for place, record in source.records(on_bytes=on_bytes):
        where = source.where(place)
        answer = _answer(where, record, imported)
        if answer is None:
            continue
        request, lasted_s = (
            _sglang(where, answer, by_received, imported.clock)
            if "meta_info" in answer
            else (_openai(where, answer, imported.clock), math.nan)
        )
        if request is None:
            imported.notes[_ABORTED] += 1
            continue
        if _cached(answer):
            imported.notes[CACHED] += 1
        model = fields.name(answer, "model")
        imported.keep(request, place, lasted_s=lasted_s, model=model)
    return imported


def _sampled_answers(source: Source) -> list[Record]:
    nowhere = Imported(name=source.where)
    found = []
    for record in source.sample():
        try:
            answer = _answer("", record, nowhere)
        except ValueError:
            continue  # named with its line when it is read in full
        if answer is not None:
            found.append(answer)
    return found


def _answer(where: str, record: Record, imported: Imported) -> Record | None:
    """The object that holds the counts, with what its envelope knows beside it; None for others."""
    if "event" in record and record["event"] != "request.finished":
        imported.notes["passed over: other events"] += 1
        return None
    if "out" in record:
        inner = fields.inner(where, record, "out")
        envelope = {name: record[name] for name in ("timestamp", "rid", "obj") if name in record}
        record = envelope | inner
    elif "response" in record:
        inner = record["response"]
        if fields.is_absent(inner):
            imported.notes[_ERROR] += 1
            return None
        inner = fields.inner(where, record, "response")
        if "body" in inner:
            inner = fields.inner(where, inner, "body")
        record = {"id": record["custom_id"]} | inner if "custom_id" in record else inner
    if "meta_info" in record:
        fields.inner(where, record, "meta_info")
    elif not fields.is_absent(record.get("usage")):
        fields.inner(where, record, "usage")
    elif str(record.get("object", "")).endswith(".chunk"):
        imported.notes["passed over: parts of a stream without usage"] += 1
        return None
    elif is_error(record):
        imported.notes[_ERROR] += 1
        return None
    else:
        raise ValueError(
            f"{where}: neither meta_info nor usage; this reads SGLang's JSON request log and "
            "OpenAI-style answers: mend or remove the line"
        )
    return record


def _cached(answer: Record) -> bool:
    """Whether the server found a part of the prompt in its cache."""
    counts: Record = answer["meta_info" if "meta_info" in answer else "usage"]
    details = counts.get("prompt_tokens_details", counts.get("input_tokens_details"))
    inner: Record = details if isinstance(details, dict) else counts
    return bool(fields.as_number(inner.get("cached_tokens")))


def is_error(record: Record) -> bool:
    """Whether a record is the answer to a request that a server refused or lost."""
    return (
        not fields.is_absent(record.get("error"))
        or record.get("object") == "error"
        or record.get("status") in ("failed", "error", "cancelled", "expired")
        or (fields.as_number(record.get("code", record.get("status_code"))) or 0) >= 400
    )


def _sglang(
    where: str, record: Record, by_received: bool, clock: Clock
) -> tuple[Request | None, float]:
    meta: dict[str, Any] = record["meta_info"]
    reason = meta.get("finish_reason")
    output_tokens = fields.tokens(where, meta, "completion_tokens")
    if output_tokens == 0 and isinstance(reason, dict) and reason.get("type") == "abort":
        return None, math.nan
    check_accepted(where, meta, "spec_accept_token_num", "spec_draft_token_num")
    latency_s = fields.optional(where, meta, "e2e_latency")
    if by_received:
        arrival_s = clock.read(where, meta, "request_received_ts")
    elif "timestamp" in record and latency_s is not None:
        arrival_s = clock.read(where, record, "timestamp") - latency_s
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
    session = fields.name(asked, "session_id")
    if session is None and isinstance(asked.get("session_params"), dict):
        session = fields.name(asked["session_params"], "id")
    request = Request(
        request_id=str(meta.get("id", record.get("rid", where))),
        arrival_s=arrival_s,
        prompt_tokens=fields.tokens(where, meta, "prompt_tokens"),
        output_tokens=output_tokens,
        session_id=session,
        temperature=fields.optional(where, sampling, "temperature"),
        max_new_tokens=most if isinstance(most, int) and most >= output_tokens else None,
        priority=fields.whole(where, asked, "priority"),
    )
    return request, math.nan if latency_s is None else latency_s


def _openai(where: str, record: Record, clock: Clock) -> Request:
    usage = record["usage"]
    # The Responses API renamed the fields of Chat Completions.
    old = "prompt_tokens" in usage
    created = "created" if "created" in record else "created_at"
    if created not in record:
        raise ValueError(f"{where}: no created, so no arrival; keep it in the log")
    return Request(
        request_id=str(record.get("id", where)),
        arrival_s=clock.read(where, record, created),
        prompt_tokens=fields.tokens(where, usage, "prompt_tokens" if old else "input_tokens"),
        output_tokens=fields.tokens(where, usage, "completion_tokens" if old else "output_tokens"),
        temperature=fields.optional(where, record, "temperature"),
    )
