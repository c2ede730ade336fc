"""One part of a step log: a Parquet file that explains itself.

Owns the columns and the header. A row is a decode step; what there is one of for each request is a
list of R values in the order of ``request_ids``, and both logits are R x K values row by row (to
unnest: gamma is in the header). What a plan notes of a request is in the state of the request's
next step. Floats are kept bit for bit, NaN and -inf included; no column holds
text or token ids. The header, JSON in the file's metadata, carries what rebuilds the planner, in
every part, since the oldest parts are deleted. Knows no clock, no thread and no folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.costs.model import CostModel, as_json, decode_cost_model
from sglang_dspark.core.planner import Planner
from sglang_dspark.core.policy import POLICIES, PolicyFile
from sglang_dspark.core.state import BatchState, VerifyPlan
from sglang_dspark.files import decode_record
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.logs.writer import parquet_bytes, read_parquet

SCHEMA_VERSION = 3
_HEADER_KEY = "sglang_dspark.step_log"

_RECORD = {
    "step": pa.int64(),
    "end_s": pa.float64(),
    "computed_tokens": pa.int64(),
    "shape": pa.string(),
    "draft_s": pa.float64(),
    "plan_s": pa.float64(),
    "verify_s": pa.float64(),
    "commit_s": pa.float64(),
    "degraded": pa.string(),
}
_STATE = {"prefills_per_step": pa.float64(), "kv_room_tokens": pa.int64()}
_PLAN = {
    "predicted_step_s": pa.float64(),
    "expected_tokens": pa.float64(),
    "stop_reason": pa.string(),
}
_STATE_LISTS = {
    "context_tokens": pa.int64(),
    "stale_age": pa.int64(),
    "logits": pa.float64(),
    "stale_logits": pa.float64(),
    "slo_slack_s": pa.float64(),
    "note": pa.float64(),
    "priority": pa.int64(),
}
_PLAN_LISTS = {"lengths": pa.int64(), "draft_next": pa.bool_()}
_RECORD_LISTS = {"accepted": pa.int64()}
_MATRICES = ("logits", "stale_logits")

_SCALARS = {**_RECORD, **_STATE, **_PLAN}
_LISTS = {**_STATE_LISTS, **_PLAN_LISTS, **_RECORD_LISTS}
SCHEMA = pa.schema(
    [
        *((name, kind) for name, kind in _SCALARS.items()),
        ("request_ids", pa.list_(pa.string())),
        *((name, pa.list_(kind)) for name, kind in _LISTS.items()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class PartHeader:
    """What a part needs to be read and replayed on its own."""

    gamma: int
    """K."""
    max_requests: int
    """Requests the server's planner was built for; the cost tables end there."""
    policy: dict[str, Any]
    """The policy file as ``save_policy`` writes it."""
    cost_model: dict[str, Any]
    """The cost model as ``CostModel.save`` writes it."""
    versions: dict[str, str]
    """Of the software that decided and ran the steps."""
    schema_version: int = SCHEMA_VERSION
    """Of the columns."""
    dropped: int = 0
    """Records the writer had dropped before this part ended."""

    def policy_file(self) -> PolicyFile:
        """The policy that decided the part's steps. ``ValueError`` when the header is wrong."""
        file = self.policy
        kind = POLICIES.get(file.get("policy", ""))
        if kind is None:
            raise ValueError(f"no policy {file.get('policy')!r}; known: {', '.join(POLICIES)}")
        calibration = file.get("calibration", {})
        return PolicyFile(
            policy=decode_record(file.get("parameters", {}), kind, where="parameters"),
            calibration=decode_record(calibration, Calibration, where="calibration"),
        )

    def planner(self) -> Planner:
        """Its planner. ``ValueError`` when the header is wrong."""
        file = self.policy_file()
        return Planner(
            policy=file.policy,
            cost_model=decode_cost_model(self.cost_model, where="cost model"),
            gamma=self.gamma,
            max_requests=self.max_requests,
            calibration=file.calibration,
        )


def header_of(
    *,
    policy: PolicyFile,
    cost_model: CostModel,
    gamma: int,
    max_requests: int,
    versions: Mapping[str, str],
) -> PartHeader:
    """The header of every part that a server with these settings writes."""
    return PartHeader(
        gamma=gamma,
        max_requests=max_requests,
        policy=_as_read(
            {
                "schema_version": 1,
                "policy": policy.policy.name,
                "parameters": dataclasses.asdict(policy.policy),
                "calibration": dataclasses.asdict(policy.calibration),
                "note": policy.note,
            }
        ),
        cost_model=_as_read(as_json(cost_model)),
        versions=dict(versions),
    )


def _as_read(value: dict[str, Any]) -> dict[str, Any]:
    """The value as JSON gives it back, so that a header equals the one read from its part."""
    plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    return plain


def _list_column(arrays: Sequence[np.ndarray[Any, Any]], kind: Any) -> Any:
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([array.size for array in arrays], out=offsets[1:])
    values = np.concatenate([array.ravel() for array in arrays])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, kind))


def encode(records: Sequence[StepRecord]) -> Any:
    """The records, at least one, as a ``pyarrow.RecordBatch`` of ``SCHEMA``."""
    states, plans = [r.state for r in records], [r.plan for r in records]
    columns: dict[str, Any] = {"request_ids": [r.request_ids for r in records]}
    sources: tuple[tuple[Sequence[Any], dict[str, Any], dict[str, Any]], ...] = (
        (records, _RECORD, _RECORD_LISTS),
        (states, _STATE, _STATE_LISTS),
        (plans, _PLAN, _PLAN_LISTS),
    )
    for objects, scalars, lists in sources:
        for name in scalars:
            columns[name] = [getattr(one, name) for one in objects]
        for name, kind in lists.items():
            columns[name] = _list_column([getattr(one, name) for one in objects], kind)
    return pa.RecordBatch.from_arrays(
        [
            column if isinstance(column, pa.Array) else pa.array(column, field.type)
            for field, column in ((field, columns[field.name]) for field in SCHEMA)
        ],
        schema=SCHEMA,
    )


def part_bytes(batches: Sequence[Any], header: PartHeader) -> Any:
    """A whole file of these batches, in memory."""
    return parquet_bytes(batches, schema=SCHEMA, key=_HEADER_KEY, header=dataclasses.asdict(header))


def read_part(path: Path) -> tuple[PartHeader, Iterator[StepRecord]]:
    """The header and the steps of one file. ``ValueError`` naming the file when it is not one.

    ``FileNotFoundError`` passes: a running server may delete its oldest part meanwhile.
    """
    table, value = read_parquet(
        path, schemas={SCHEMA_VERSION: SCHEMA}, key=_HEADER_KEY, title="step log"
    )
    header = decode_record(value, PartHeader, where=f"{path}: header")
    return header, _records(table, header.gamma, path)


def _records(table: Any, gamma: int, path: Path) -> Iterator[StepRecord]:
    source: dict[str, Any] = {name: table.column(name).to_pylist() for name in _SCALARS}
    names = table.column("request_ids").to_pylist()
    for name in _LISTS:
        column = table.column(name).combine_chunks()
        # A copy: Arrow's memory is read-only, for which compiled code would compile once more.
        values = np.array(column.flatten().to_numpy(zero_copy_only=False))
        ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
        source[name] = np.split(values, ends[:-1])

    def fields(row: int, *groups: dict[str, Any]) -> dict[str, Any]:
        found = {name: source[name][row] for group in groups for name in group}
        shape = (len(names[row]), gamma)
        return {k: v.reshape(shape) if k in _MATRICES else v for k, v in found.items()}

    for row in range(table.num_rows):
        try:
            yield StepRecord(
                request_ids=tuple(names[row]),
                state=BatchState(**fields(row, _STATE, _STATE_LISTS)),
                plan=VerifyPlan(**fields(row, _PLAN, _PLAN_LISTS)),
                **fields(row, _RECORD, _RECORD_LISTS),
            )
        except ValueError as error:
            raise ValueError(f"{path}: row {row}: {error}") from None
