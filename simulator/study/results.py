"""A result folder: ``summary.json``, ``config.json``, ``requests.parquet``, ``batches.parquet``.

And ``steps.parquet`` where it was asked for: every step, which is most of a run's bytes.

Owns the column names and units. Each policy's worker writes its own parts under a temporary
folder; the parent joins them and renames, so a folder either holds a whole result or the old one.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sglang_dspark.core.state import STOP_REASONS
from sglang_dspark.files import make_folder, os_problem, read_json, write_json
from simulator.engine.layout import DECODE_STEP, STATUS_NAMES, STEP_NAMES, Records
from simulator.fleet.scenario import Outcome

_REQUEST_COLUMNS = (
    "arrival_s", "first_token_s", "finish_s", "longest_itl_s", "transfer_s", "prompt_tokens",
    "generated", "cached_tokens", "rounds", "undrafted", "verified", "accepted",
    "retractions", "retries",
)  # fmt: skip
_STEP_COLUMNS = (
    "start_s", "duration_s", "predicted_s", "expected_tokens", "requests", "computed_tokens",
    "verify_tokens", "committed_tokens", "prefill_tokens", "running", "queued",
    "context_tokens", "kv_free_tokens",
)  # fmt: skip


def _labels(label: dict[str, Any], rows: int) -> dict[str, pa.Array]:
    """The columns that say which run of the summary a row belongs to."""
    columns = {"policy": pa.array([label["policy"]] * rows, pa.string()).dictionary_encode()}
    columns["concurrency"] = pa.array([label["concurrency"]] * rows, pa.int32())
    return columns


def _names(codes: Any, names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int8)), pa.array(names))


def requests_table(outcome: Outcome, label: dict[str, Any]) -> pa.Table:
    """One row per request, in trace order; times in seconds since the first arrival.

    Figures of the steady state are over those that are ``judged``.
    """
    rows = outcome.requests
    trace = outcome.scenario.trace
    columns = _labels(label, rows.size) | {"request_id": pa.array(trace.request_id)}
    domains = [*trace.domain_names, ""]
    codes = np.where(trace.domain < 0, len(trace.domain_names), trace.domain)
    columns["domain"] = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(domains))
    judged = np.zeros(rows.size, np.bool_)
    judged[outcome.scenario.judged_requests] = True
    columns["judged"] = pa.array(judged)
    columns["status"] = _names(rows["status"], STATUS_NAMES)
    return pa.table(columns | {name: pa.array(rows[name]) for name in _REQUEST_COLUMNS})


def steps_table(replica: int, steps: Records, label: dict[str, Any]) -> pa.Table:
    """One row per engine step; ``stop_reason`` is meaningful for decode steps."""
    columns = _labels(label, steps.size)
    columns["replica"] = pa.array(np.full(steps.size, replica, np.int32))
    columns["kind"] = _names(steps["kind"], STEP_NAMES)
    columns["stop_reason"] = _names(steps["stop_reason"], STOP_REASONS)
    return pa.table(columns | {name: pa.array(steps[name]) for name in _STEP_COLUMNS})


class Batches:
    """A run's decode steps by their number of running requests, over all replicas."""

    def __init__(self) -> None:
        self._sums = np.zeros((4, 0))

    def add(self, steps: Records) -> None:
        """Count more steps; those of other kinds do not matter."""
        # Column by column: copying whole records costs more than all that is summed.
        decode = steps["kind"] == DECODE_STEP
        requests = steps["requests"][decode]
        size = int(requests.max(initial=-1)) + 1
        if self._sums.shape[1] < size:
            self._sums = np.pad(self._sums, ((0, 0), (0, size - self._sums.shape[1])))
        values = (
            np.ones(requests.size),
            steps["verify_tokens"][decode] + requests,
            steps["committed_tokens"][decode],
            steps["duration_s"][decode],
        )
        for i, value in enumerate(values):
            self._sums[i, :size] += np.bincount(requests, value, size)

    def table(self, label: dict[str, Any]) -> pa.Table:
        """One row per batch size that there was: steps, tokens verified (anchors included) and
        committed, and seconds."""
        sizes = np.flatnonzero(self._sums[0])
        columns = _labels(label, sizes.size) | {"requests": pa.array(sizes.astype(np.int32))}
        for i, name in enumerate(("steps", "verified_tokens", "committed_tokens")):
            columns[name] = pa.array(self._sums[i, sizes].astype(np.int64))
        return pa.table(columns | {"seconds": pa.array(self._sums[3, sizes])})


FILES = ("requests.parquet", "batches.parquet", "steps.parquet", "config.json", "summary.json")
"""Of a result folder; what else is there is somebody else's."""


class PartWriter:
    """Appends tables of one schema to a Parquet part; opens it with the first table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append; ``ValueError`` when the disk refuses."""
        try:
            if self._writer is None:
                self._writer = pq.ParquetWriter(self.path, table.schema, compression="zstd")
            self._writer.write_table(table)
        except OSError as error:
            raise os_problem("write", self.path, error) from None

    def close(self) -> None:
        """Finish the file; without a table there is none."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                raise os_problem("write", self.path, error) from None


class ResultFolder:
    """Where one command's results go."""

    def __init__(self, path: str | Path) -> None:
        self.path = make_folder(path)
        self.parts = self.path / "parts.tmp"
        shutil.rmtree(self.parts, ignore_errors=True)
        make_folder(self.parts)

    def part(self, kind: str, number: int) -> PartWriter:
        """The writer of run ``number``'s part of ``requests`` or ``steps``."""
        return PartWriter(self._part_path(kind, number))

    def _part_path(self, kind: str, number: int) -> Path:
        return self.parts / f"{kind}-{number:04d}.parquet"

    def finish(self, runs: Sequence[int], summary: dict[str, Any], config: Any) -> None:
        """Join the parts of ``runs``, write summary and configuration, drop the rest.

        Everything is on disk before the earlier result goes, and the summary comes last: a folder
        with a summary is whole, and of one run.
        """
        names = ["config.json", "summary.json"]
        try:
            for kind in ("requests", "batches", "steps"):
                if self._join(kind, runs):
                    names.insert(0, f"{kind}.parquet")
            write_json(self.parts / "config.json", config)
            write_json(self.parts / "summary.json", summary)
            for name in reversed(FILES):
                (self.path / name).unlink(missing_ok=True)
            for name in names:
                (self.parts / name).replace(self.path / name)
        except OSError as error:
            raise os_problem("write", self.path, error) from None
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the parts; whatever result stood in the folder before stays."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def _join(self, kind: str, runs: Sequence[int]) -> bool:
        """Whether any of the runs left a part."""
        parts = [path for path in (self._part_path(kind, run) for run in runs) if path.exists()]
        if len(parts) < 2:  # joined alone, a part is the same bytes
            for part in parts:
                part.replace(self.parts / f"{kind}.parquet")
            return bool(parts)
        joined = PartWriter(self.parts / f"{kind}.parquet")
        for part in parts:
            file = pq.ParquetFile(part)
            for group in range(file.num_row_groups):
                joined.write(file.read_row_group(group))
        joined.close()
        return True


def read_results(path: str | Path) -> dict[str, Any]:
    """``summary.json`` of a result folder; ``ValueError`` when the folder is no result."""
    summary = read_json(Path(path) / "summary.json")
    if not isinstance(summary, dict) or not isinstance(summary.get("policies"), list):
        raise ValueError(f"{path}/summary.json: no 'policies'; run python -m simulator.run again")
    return summary
