"""The request log: lengths, times and shared prefixes of every request a server answered.

Owns what is hooked into SGLang for it: where a request leaves for the scheduler, where its tokens
come back, where it is aborted, and the scheduler's own times, which travel only with metrics
otherwise. The same places exist in SGLang 0.5.15.post1 and in 0.5.16 and later. Knows no policy: a
server that does not speculate is recorded as well. ``traces.record`` makes a trace of it.

SGLang is imported by ``register`` only. A hook never raises into the server: what it cannot cope
with ends the log with one warning.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_dspark.logs.request_parts import (
    BLOCK_TOKENS,
    PREFIX,
    TITLE,
    RequestHeader,
    RequestRecord,
    encode,
    part_bytes,
    prefix_hashes,
)
from sglang_dspark.logs.writer import PartWriter
from sglang_dspark.runtime.settings import Settings, flag

logger = logging.getLogger(__name__)

MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
TIMES = "sglang.srt.observability.req_time_stats.SchedulerReqTimeStats.__getstate__"
_HEALTH_CHECK = "HEALTH_CHECK"
_MOST_OPEN = 1 << 17
"""Requests on their way; beyond it the oldest are forgotten, since SGLang lost them too."""


@dataclass(slots=True)
class _Open:
    """A request on its way; its prompt is kept only until the log's thread has hashed it."""

    tokens: Any
    root: str
    prompt_tokens: int
    created: float
    streamed: bool
    starting: bool
    session_id: str | None
    temperature: float | None
    priority: int | None
    max_new_tokens: int | None
    first: float = 0.0
    hashes: Any = None


@dataclass(slots=True)
class _Finished:
    """What there is of a record before its prompt is hashed."""

    open: _Open
    fields: dict[str, Any]


class RequestLog(PartWriter[_Finished]):
    """Writes finished requests to ``folder``, and hashes prompts as they arrive."""

    def __init__(
        self,
        folder: str | Path,
        *,
        limit_mb: int = 256,
        versions: dict[str, str] | None = None,
        interval_s: float = 10.0,
        queue_records: int = 8192,
        poll_s: float = 0.1,
    ) -> None:
        self._header = RequestHeader(block_tokens=BLOCK_TOKENS, versions=versions or {})
        self._key = secrets.token_bytes(32)  # never written: a restart empties the cache as well
        self._fresh: deque[_Open] = deque()
        super().__init__(
            folder,
            prefix=PREFIX,
            title=TITLE,
            limit_mb=limit_mb,
            interval_s=interval_s,
            queue_records=queue_records,
            poll_s=poll_s,
        )

    def hash_soon(self, request: _Open) -> None:
        """Take an arrival, by reference; called on a serving thread."""
        if self.stopped or len(self._fresh) >= self._queue_records:
            request.tokens = None
        else:
            self._fresh.append(request)

    def look(self) -> None:
        """Hash what arrived since."""
        while self._fresh:
            self._hash(self._fresh.popleft())

    def encode(self, records: Sequence[_Finished]) -> Any:
        """As ``request_parts`` does."""
        for record in records:
            self._hash(record.open)
        return encode(
            [RequestRecord(prefix_hashes=record.open.hashes, **record.fields) for record in records]
        )

    def part_bytes(self, batches: Sequence[Any]) -> Any:
        """As ``request_parts`` does, with what was dropped so far."""
        return part_bytes(batches, dataclasses.replace(self._header, dropped=self.dropped))

    def _hash(self, request: _Open) -> None:
        if request.hashes is not None:
            return
        tokens, request.tokens = request.tokens, None
        request.hashes = prefix_hashes(
            () if tokens is None else tokens, key=self._key, root=request.root
        )


class RequestRecorder:
    """The hooks in the process that takes requests, and what they share.

    The log and its thread begin with the first request, so that no thread is there to be lost when
    SGLang forks.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failed = ""
        self._log: RequestLog | None = None
        self._open: dict[str, _Open] = {}
        # One difference for the whole log: the wall clock may step, intervals must not.
        self._wall = time.time() - time.perf_counter()

    def log(self) -> RequestLog:
        """The writer."""
        if self._log is None:
            assert self.settings.request_log is not None
            self._log = RequestLog(
                self.settings.request_log,
                limit_mb=self.settings.request_log_mb,
                versions={"sglang": importlib.metadata.version("sglang")},
            )
        return self._log

    def _safely(self, do: Callable[..., None], *args: Any) -> None:
        if self.failed or self.settings.request_log is None:
            return
        try:
            do(*args)
        except Exception as error:
            self.failed = f"{type(error).__name__}: {error}"
            self._open.clear()
            logger.warning(
                "DSPARK request log stopped, the server goes on without it: %s", self.failed
            )

    def dispatched(self, manager: Any, message: Any, *args: Any, **kwargs: Any) -> None:
        """Before ``_dispatch_to_scheduler``."""
        name = type(message).__name__
        if name == "TokenizedGenerateReqInput":
            self._safely(self._arrive, manager, [message])
        elif name == "BatchTokenizedGenerateReqInput":
            self._safely(self._arrive, manager, message.batch)

    async def answered(
        self, original: Any, manager: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Around ``_handle_batch_output``, which unpacks the scheduler's times."""
        now = time.perf_counter()
        try:
            return await original(manager, batch, *args, **kwargs)
        finally:
            self._safely(self._tokens, batch, now)

    def aborted(self, manager: Any, message: Any, *args: Any, **kwargs: Any) -> None:
        """Before ``_handle_abort_req``: a request that never left the queue."""
        self._safely(self._abort, manager, message)

    async def told(self, original: Any, manager: Any, *args: Any, **kwargs: Any) -> Any:
        """Around ``get_internal_state``, where /server_info asks: where the logs are."""
        states = await original(manager, *args, **kwargs)
        for state in states:
            if isinstance(state, dict):
                state["dspark_logs"] = self.summary()
        return states

    def summary(self) -> dict[str, Any]:
        """Plain JSON values."""

        def whole(folder: str | None) -> str | None:
            return None if folder is None else os.path.abspath(folder)

        log = self._log
        return {
            "host": socket.gethostname(),
            "step_log": whole(self.settings.step_log),
            "request_log": whole(self.settings.request_log),
            "requests": log.written if log else 0,
            "dropped": log.dropped if log else 0,
            "stopped": self.failed or (log.stopped if log else ""),
        }

    def _arrive(self, manager: Any, messages: Sequence[Any]) -> None:
        log = self.log()
        starting = getattr(manager.server_status, "name", "") == "Starting"
        for message in messages:
            if str(message.rid).startswith(_HEALTH_CHECK):
                continue
            state = manager.rid_to_state.get(message.rid)
            session = message.session_params
            named = getattr(session, "id", None) if session is not None else message.session_id
            # A session's prompt is only what it adds, and pictures stand in as placeholders: what
            # the cache would share cannot be told from these tokens.
            plain = session is None and message.mm_inputs is None
            tokens = message.input_ids
            request = _Open(
                tokens=tokens if plain else None,
                root=repr((message.lora_id, message.extra_key)),
                prompt_tokens=0 if tokens is None else len(tokens),
                created=(state and state.time_stats.created_time) or time.perf_counter(),
                streamed=bool(message.stream),
                starting=starting,
                session_id=None if named is None else str(named),
                temperature=_temperature(message.sampling_params),
                priority=message.priority,
                max_new_tokens=getattr(message.sampling_params, "max_new_tokens", None),
            )
            self._open[message.rid] = request
            log.hash_soon(request)
        while len(self._open) > _MOST_OPEN:
            del self._open[next(iter(self._open))]

    def _tokens(self, batch: Any, now: float) -> None:
        reasons = batch.finished_reasons
        for row, rid in enumerate(batch.rids):
            request = self._open.get(rid)
            if request is None:
                continue
            if not request.first:
                request.first = now
            reason = reasons[row]
            if reason is not None:
                del self._open[rid]
                self._finish(rid, request, now, reason, batch, row)

    def _finish(
        self, rid: str, request: _Open, now: float, reason: Any, batch: Any, row: int
    ) -> None:
        prefilled = entered = None
        if batch.time_stats is not None:
            prefilled = _between(request, batch.time_stats[row], "prefill_finished_time", now)
            entered = _between(request, batch.time_stats[row], "forward_entry_time", now)
        output = int(batch.completion_tokens[row])
        first = request.first - request.created if request.streamed else prefilled
        self._write(
            rid,
            request,
            now,
            finish=str(reason.get("type", "")),
            prompt_tokens=int(batch.prompt_tokens[row]),
            output_tokens=output,
            cached_tokens=int(batch.cached_tokens[row]),
            queue_s=entered,
            prefill_s=None if prefilled is None or entered is None else prefilled - entered,
            ttft_s=first if output else None,
            retractions=_at(batch.retraction_counts, row) or 0,
            decode_steps=_at(getattr(batch, "spec_verify_ct", None), row),
        )

    def _abort(self, manager: Any, message: Any) -> None:
        request = self._open.pop(message.rid, None)
        if request is None:
            return
        state = manager.rid_to_state.get(message.rid)
        first = request.first - request.created if request.first and request.streamed else None
        self._write(
            message.rid,
            request,
            time.perf_counter(),
            finish="abort",
            prompt_tokens=request.prompt_tokens,
            output_tokens=len(state.output_ids) if state is not None else 0,
            cached_tokens=None,
            queue_s=None,
            prefill_s=None,
            ttft_s=first,
            retractions=0,
            decode_steps=None,
        )

    def _write(self, rid: str, request: _Open, now: float, **fields: Any) -> None:
        fields.update(
            request_id=str(rid),
            arrival_s=request.created + self._wall,
            latency_s=now - request.created,
            streamed=request.streamed,
            starting=request.starting,
            session_id=request.session_id,
            temperature=request.temperature,
            priority=request.priority,
            max_new_tokens=request.max_new_tokens,
        )
        self.log().observe(_Finished(request, fields))


def _temperature(sampling: Any) -> float | None:
    """SGLang turns a temperature of 0 into top-k 1 at temperature 1."""
    temperature = getattr(sampling, "temperature", None)
    if temperature is None:
        return None
    return 0.0 if getattr(sampling, "top_k", None) == 1 else float(temperature)


def _between(request: _Open, times: Any, name: str, now: float) -> float | None:
    """Seconds from arrival to a time of the scheduler's; None when it is not on this clock."""
    at = getattr(times, name, 0.0)
    return at - request.created if request.created <= at <= now else None


def _at(values: Any, row: int) -> int | None:
    return int(values[row]) if values is not None and len(values) > row else None


def _times(original: Any, stats: Any, *args: Any, **kwargs: Any) -> Any:
    """Around the packing of a request's times: once it is done they travel, metrics or not."""
    if not stats.completion_time:
        return original(stats, *args, **kwargs)
    asked, stats.enable_metrics = stats.enable_metrics, True
    try:
        state = original(stats, *args, **kwargs)
    finally:
        stats.enable_metrics = asked
    # The detokenizer unpacks it and packs it again; without this it would leave the times out.
    state["enable_metrics"] = True
    return state


def check(server_args: Any) -> None:
    """``ValueError`` for a server whose requests do not pass where the hooks are."""
    for attribute, served in (("tokenizer_worker_num", 1), ("grpc_mode", False)):
        value = getattr(server_args, attribute, served)
        if value not in (served, None):
            raise ValueError(
                f"--{attribute.replace('_', '-')} {value}: the request log needs one HTTP process "
                f"that takes all requests; leave it out, or drop {flag('request_log')}"
            )
    if os.environ.get("SGLANG_RUST_SERVER", "").lower() in ("1", "true"):
        raise ValueError(
            "SGLANG_RUST_SERVER: the request log does not see what SGLang's Rust server takes; "
            f"unset it, or drop {flag('request_log')}"
        )


def register_times() -> None:
    """Hook the scheduler's side; for every process that may run one."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if not any(hook is _times for _, hook, _ in HookRegistry._hooks.get(TIMES, ())):
        HookRegistry.register(TIMES, _times, HookType.AROUND)


def register(settings: Settings) -> RequestRecorder:
    """Hook the process that takes the requests, once."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    told = f"{MANAGER}.get_internal_state"
    for _, hook, _ in HookRegistry._hooks.get(told, ()):
        if isinstance(known := getattr(hook, "__self__", None), RequestRecorder):
            known.settings = settings
            return known
    recorder = RequestRecorder(settings)
    HookRegistry.register(told, recorder.told, HookType.AROUND)
    for method, hook, kind in (
        ("_dispatch_to_scheduler", recorder.dispatched, HookType.BEFORE),
        ("_handle_batch_output", recorder.answered, HookType.AROUND),
        ("_handle_abort_req", recorder.aborted, HookType.BEFORE),
    ):
        HookRegistry.register(f"{MANAGER}.{method}", hook, kind)
    register_times()
    return recorder
