"""Result folders as numbers: ``summary.json``, ``config.json`` and the two Parquet files, checked.

Owns what a page may read and the sentence for a folder that does not hold it. The formulas are
those of ``simulator.study.metrics``; knows nothing of drawing.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sglang_dspark.files import os_problem, read_json
from simulator.engine.layout import REQUEST, STATUS_NAMES, Records
from simulator.study.results import read_results

SCHEMA_VERSION = 2
Floats = npt.NDArray[np.float64]
_AGAIN = "run python -m simulator.run again"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a page reads of one policy at one load in ``summary.json``."""

    policy: str
    concurrency: int | None
    """Clients of a closed loop; None replays the trace's arrivals."""
    requests: int
    output_tok_s: float | None
    tok_s_user_p50: float | None
    verify_tokens_per_request_step: float | None
    prices: dict[str, Any] | None = None
    """90 % intervals of figures with the doubt about prices; None where none was stated."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a page reads of ``summary.json``."""

    trace: str
    trace_sha256: str
    cost_model: str
    cost_model_origin: str
    acceptance: str
    seed: int
    slo: str
    replicas: int
    gpus: int
    """Of all replicas."""
    interrupted: bool
    policies: list[Row]
    acceptance_mismatch: list[str] = field(default_factory=list)
    """Sentences on an acceptance profile that is not the cost model's own."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a page reads of ``config.json``."""

    rate: float
    engine: dict[str, Any]
    provenance: dict[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """One result folder."""

    path: Path
    summary: Summary
    settings: Settings

    @property
    def concurrencies(self) -> tuple[int | None, ...]:
        """The loads it holds, in the order of the summary."""
        return tuple(dict.fromkeys(row.concurrency for row in self.summary.policies))

    def row(self, policy: str, concurrency: int | None) -> Row | None:
        """The summary's entry of one run."""
        for row in self.summary.policies:
            if (row.policy, row.concurrency) == (policy, concurrency):
                return row
        return None


@dataclass(frozen=True, kw_only=True)
class BatchProfile:
    """Decode steps of one run summed by their number of running requests (the index)."""

    steps: npt.NDArray[np.int64]
    verified: npt.NDArray[np.int64]
    """Tokens the target verified, anchors included."""
    committed: npt.NDArray[np.int64]
    """Tokens emitted."""
    seconds: Floats


def load_replay(path: str | Path) -> Replay:
    """Check and read a folder's JSON files; ``ValueError`` where they are not a result."""
    path = Path(path)
    summary = read_results(path)
    version = summary.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}/summary.json: schema_version {version} is not {SCHEMA_VERSION}; {_AGAIN} "
            "with this version"
        )
    if not summary["policies"]:
        raise ValueError(f"{path}/summary.json: 'policies' is empty: no run began; {_AGAIN}")
    return Replay(
        path=path,
        summary=_decode(summary, Summary, path / "summary.json"),
        settings=_decode(read_json(path / "config.json"), Settings, path / "config.json"),
    )


def _decode(value: Any, kind: type[Any], file: Path) -> Any:
    """``value`` as ``kind``; keys that no page reads are left alone."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{file}: {error}; {_AGAIN}") from None


def _runs(file: Path, columns: list[str]) -> Iterator[tuple[str, int | None, pa.Table]]:
    """Each run's rows, one row group at a time, so that memory does not grow with the file."""
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file; {_AGAIN} to complete the folder")
    try:
        with pq.ParquetFile(file) as parquet:
            missing = [c for c in columns if c not in parquet.schema_arrow.names]
            if missing:
                raise ValueError(f"{file}: no column {missing[0]!r}; {_AGAIN} with this version")
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, ["policy", "concurrency", *columns])
                labels = table.select(["policy", "concurrency"])
                for label in labels.group_by(["policy", "concurrency"]).aggregate([]).to_pylist():
                    policy, concurrency = label["policy"], label["concurrency"]
                    at_load = pc.field("concurrency") == concurrency
                    if concurrency is None:
                        at_load = pc.field("concurrency").is_null()
                    yield (
                        policy,
                        concurrency,
                        table.filter((pc.field("policy").cast(pa.string()) == policy) & at_load),
                    )
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{file}: not a Parquet file: {reason}; {_AGAIN}") from None
    except OSError as error:
        raise os_problem("read", file, error) from None


def _require_all(replay: Replay, concurrency: int | None, found: Container[str], name: str) -> None:
    for row in replay.summary.policies:
        if row.concurrency == concurrency and row.policy not in found:
            raise ValueError(
                f"{replay.path / name}: no rows of policy {row.policy!r}, which summary.json "
                f"lists; {_AGAIN}"
            )


def read_requests(
    replay: Replay, concurrency: int | None, *, whole_run: bool = False
) -> dict[str, Records]:
    """Per policy the REQUEST records at one load, as ``simulator.study.metrics`` takes them.

    Those that are judged; all of the ``whole_run``, or where none is judged.
    """
    columns = ["arrival_s", "first_token_s", "finish_s", "generated"]
    parts: dict[str, list[Records]] = {}
    for policy, load, table in _runs(
        replay.path / "requests.parquet", ["status", "judged", *columns]
    ):
        if load == concurrency:
            if not whole_run and pc.any(table["judged"]).as_py():
                table = table.filter(table["judged"])
            rows = np.zeros(table.num_rows, REQUEST)
            for name in columns:
                rows[name] = table[name].to_numpy()
            names = table["status"].cast(pa.string())
            rows["status"] = pc.index_in(names, pa.array(STATUS_NAMES)).to_numpy()
            parts.setdefault(policy, []).append(rows)
    _require_all(replay, concurrency, parts, "requests.parquet")
    return {policy: np.concatenate(rows) for policy, rows in parts.items()}


def read_batch_profiles(replay: Replay, concurrency: int | None) -> dict[str, BatchProfile]:
    """Per policy its decode steps by running requests, at one load, over all replicas."""
    columns = ["steps", "verified_tokens", "committed_tokens", "seconds"]
    found: dict[str, BatchProfile] = {}
    for policy, load, table in _runs(replay.path / "batches.parquet", ["requests", *columns]):
        if load == concurrency:
            sizes = table["requests"].to_numpy()
            values = []
            for name in columns:
                column = table[name].to_numpy()
                values.append(np.zeros(int(sizes.max(initial=0)) + 1, column.dtype))
                values[-1][sizes] = column
            steps, verified, committed, seconds = values
            found[policy] = BatchProfile(
                steps=steps, verified=verified, committed=committed, seconds=seconds
            )
    if not replay.summary.interrupted:  # a run stopped at once has no steps
        _require_all(replay, concurrency, found, "batches.parquet")
    return found
