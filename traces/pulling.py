"""Pulls what a running server tells about its requests and steps into a folder, look by look.

Owns one look at a server and what comes of it on disk: copies of the parts of logs that lie on this
machine, step parts made of SGLang's own record, and ``server.json``. Every file appears whole or
not at all, and no step or part twice, whatever ends the recording. Knows no loop and no progress
line (``traces.record``).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from sglang_dspark.core.policy import PolicyFile, SGLangPlanner
from sglang_dspark.files import atomic_write, make_folder, os_problem, write_json
from sglang_dspark.logs.info_records import Converter, InfoDump, Ledger, dumps_of
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.logs.request_parts import PREFIX as REQUESTS
from sglang_dspark.logs.step_parts import PartHeader, encode, header_of, part_bytes
from sglang_dspark.logs.writer import part_pattern
from sglang_dspark.runtime.settings import unpriced
from sglang_dspark.server_client import ServerClient, Unreachable

STEPS = "steps"
CLEAR_AT = 1000
"""Records that SGLang may hold before it is asked to forget them: it shows all at every look, and
its scheduler stands still meanwhile."""
_PART_RECORDS = 2000
_GROUP = 32
_TOLD = (
    "version", "model_path", "served_model_name", "dtype", "kv_cache_dtype", "device", "tp_size",
    "dp_size", "page_size", "chunked_prefill_size", "max_prefill_tokens", "max_running_requests",
    "max_total_num_tokens", "mem_fraction_static", "attention_backend", "schedule_policy",
    "disable_radix_cache", "disable_overlap_schedule", "disable_cuda_graph", "enable_mixed_chunk",
    "prefill_decode_interval", "speculative_algorithm", "speculative_num_draft_tokens",
    "speculative_dspark_block_size", "min_free_slots_delay", "random_seed",
)  # fmt: skip
"""Of /server_info, what a replay may need; the rest holds keys and passwords."""
_TOLD_BY_RANK = {
    "memory_usage": "memory_usage",
    "running_requests_limit": "effective_max_running_requests_per_dp",
}
"""The same of its ``internal_states``, one for each data-parallel rank."""


def told_by_rank(info: dict[str, Any]) -> dict[str, list[Any]]:
    """Of /server_info, what each data-parallel rank tells, by the names of ``server.json``."""
    states = info.get("internal_states") or []
    return {name: [state.get(key) for state in states] for name, key in _TOLD_BY_RANK.items()}


@dataclass(kw_only=True)
class _Scheduler:
    """What is remembered of one data-parallel rank."""

    ledger: Ledger = field(default_factory=Ledger)
    converter: Converter | None = None
    run: int = 0


@dataclass(kw_only=True)
class Pull:
    """A recording of one server into ``folder``."""

    client: ServerClient
    folder: Path
    keep: bool = False
    """Never ask the server to forget what was pulled."""
    steps: int = 0
    """Step records written here, copies not counted."""
    parts: int = 0
    """Parts copied from logs on this machine."""
    unusable: int = 0
    """Records of SGLang's that could not be read."""
    without_confidence: int = 0
    """Step records whose server had no confidences."""
    restarts: int = 0
    sources: set[str] = field(default_factory=set)
    """What the server has told from: ``step log``, ``request log``, ``dspark_info_record``."""
    hints: set[str] = field(default_factory=set)
    """What it could tell and does not, with the remedy."""
    _ranks: dict[int, _Scheduler] = field(default_factory=dict)
    _copied: set[str] = field(default_factory=set)
    _looked_s: float = 0.0
    _serial: int = 0
    _started_ms: int = field(default_factory=lambda: time.time_ns() // 10**6)

    def __post_init__(self) -> None:
        make_folder(self.folder)
        self._copied.update(path.name for path in self.folder.glob("*.parquet"))

    def look(self) -> None:
        """Ask once and keep what is new.

        ``Unreachable`` when there is no answer or it is not SGLang's, any other ``ValueError`` when
        the folder cannot be written.
        """
        asked_s = time.time()
        info, dumps = self._ask()
        if not self._looked_s:
            self._describe(info)
        logs = info["internal_states"][0].get("dspark_logs") if info["internal_states"] else None
        self.hints.clear()
        has_steps = self._copy(logs, "step_log", STEPS)
        has_requests = self._copy(logs, "request_log", REQUESTS)
        shown = 0
        if not has_steps:
            for rank, dump in enumerate(dumps):
                if dump is not None:
                    shown += len(dump.records)
                    self._take(rank, dump, info, asked_s)
        self._looked_s = asked_s
        self._advise(dumps, has_steps, has_requests)
        if shown >= CLEAR_AT and not self.keep:
            # Only now that all of them are on disk.
            self.client.post(
                "/set_internal_state", {"server_args": {"dspark_clear_info_records": True}}
            )

    def _ask(self) -> tuple[dict[str, Any], list[InfoDump | None]]:
        try:
            info = self.client.get("/server_info")
            return info, dumps_of(info)
        except Unreachable:
            raise
        except (ValueError, HTTPException) as error:  # the latter: it died while it answered
            raise Unreachable(f"{self.client.url}: {error}") from None

    def _describe(self, info: dict[str, Any]) -> None:
        told = {name: info[name] for name in _TOLD if name in info} | told_by_rank(info)
        write_json(
            self.folder / "server.json",
            {"url": self.client.url, "asked_s": time.time(), **told},
        )

    def _copy(self, logs: Any, name: str, prefix: str) -> bool:
        """Copy the new parts of a log; False when there is none within reach."""
        folder = logs.get(name) if isinstance(logs, dict) else None
        if not isinstance(folder, str):
            return False
        title = name.replace("_", " ")
        if logs.get("host") != socket.gethostname() or not os.path.isdir(folder):
            self.hints.add(
                f"the {title} lies on {logs.get('host')} in {folder}; copy it from there"
            )
            return False
        self.sources.add(title)
        if os.path.realpath(folder) == os.path.realpath(self.folder):
            return True
        for path in sorted(Path(folder).glob(part_pattern(prefix))):
            if path.name not in self._copied:
                with suppress(FileNotFoundError):  # the log's bound took it
                    self._copy_one(path)
        return True

    def _copy_one(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise os_problem("read", path, error) from None
        with atomic_write(self.folder / path.name, "wb") as file:
            file.write(content)
        self._copied.add(path.name)
        self.parts += 1

    def _take(self, rank: int, dump: InfoDump, info: dict[str, Any], now_s: float) -> None:
        """Write what is new in a scheduler's record."""
        self.sources.add("dspark_info_record")
        known = self._ranks.setdefault(rank, _Scheduler())
        unusable = known.ledger.unusable
        fresh = known.ledger.new(dump.records)
        self.unusable += known.ledger.unusable - unusable
        if known.ledger.run != known.run:
            known.run, known.converter = known.ledger.run, None
            self.restarts += 1
        converter = known.converter
        if converter is None or (converter.gamma, converter.mode) != (dump.gamma, dump.mode):
            converter = known.converter = Converter(gamma=dump.gamma, mode=dump.mode)
        before = converter.unusable, converter.without_confidence
        steps = converter.convert(fresh, now_s=now_s, since_s=self._looked_s)
        self.unusable += converter.unusable - before[0]
        self.without_confidence += converter.without_confidence - before[1]
        for part in _chunks(steps, _PART_RECORDS):
            self._write(part, _header(dump, info), rank)

    def _write(self, steps: Sequence[StepRecord], header: PartHeader, rank: int) -> None:
        content = part_bytes([encode(group) for group in _chunks(steps, _GROUP)], header)
        # Data-parallel ranks are writers of their own, as if each had its log.
        writer = f"{STEPS}-{self._started_ms:013d}-{os.getpid()}r{rank}"
        with atomic_write(self.folder / f"{writer}-{self._serial:06d}.parquet", "wb") as file:
            file.write(content)
        self._serial += 1
        self.steps += len(steps)

    def _advise(
        self, dumps: Sequence[InfoDump | None], has_steps: bool, has_requests: bool
    ) -> None:
        told = [dump for dump in dumps if dump is not None]
        if not has_steps and not told:
            self.hints.add(
                "no steps: start the server with --speculative-dspark-step-log DIR, or SGLang's "
                "own DSPARK with SGLANG_DSPARK_DEBUG_DUMP=core,step_cpu_time,reqs"
            )
        elif not has_steps and any("reqs" not in dump.components for dump in told):
            self.hints.add(
                "steps without their requests: start SGLang with "
                "SGLANG_DSPARK_DEBUG_DUMP=core,step_cpu_time,reqs"
            )
        if not has_requests:
            self.hints.add(
                "no requests: start the server with --speculative-dspark-request-log DIR"
            )


def _header(dump: InfoDump, info: dict[str, Any]) -> PartHeader:
    requests = info.get("max_running_requests")
    note = "decided inside SGLang; its table is not told, so these plans cannot be replayed"
    return header_of(
        policy=PolicyFile(policy=SGLangPlanner(), note=note),
        cost_model=unpriced(),
        gamma=dump.gamma,
        max_requests=requests if isinstance(requests, int) and requests > 0 else 1,
        versions={"sglang": str(info.get("version", "")), "record": f"dspark_info {dump.mode}"},
    )


def _chunks(items: Sequence[StepRecord], size: int) -> Iterator[Sequence[StepRecord]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
