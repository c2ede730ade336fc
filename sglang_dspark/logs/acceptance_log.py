"""The acceptance log: recorded verify rounds in a Parquet file, one row per round.

    request int, step int, domain string, logits list of K floats, accepted int
    temperature float, position int, output_tokens int, context_tokens int   where they are known

What each column means is in ``rounds.Rounds``. ``draft.evaluate`` and ``simulator.fit`` write the
log, ``draft.calibrate`` and the simulator's ``--acceptance`` read it. Owns the names, the types and
the rules that a row can be held to by itself; whether the rounds of a request follow each other is
the affair of whoever groups them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sglang_dspark.files import atomic_write, os_problem
from sglang_dspark.logs.rounds import Floats, Ints, Mask, Rounds

REQUIRED = ("request", "step", "domain", "logits", "accepted")


def write_rounds(path: str | Path, rounds: Rounds) -> None:
    """Write the log, whole or not at all; logits as 32-bit floats where that loses nothing."""
    columns: dict[str, Any] = rounds.columns()
    columns["domain"] = pa.array(rounds.domain.tolist(), type=pa.string())
    narrow = rounds.logits.astype(np.float32)
    logits = narrow if (narrow == rounds.logits).all() else rounds.logits
    columns["logits"] = pa.FixedSizeListArray.from_arrays(pa.array(logits.ravel()), rounds.gamma)
    columns["temperature"] = pa.array(rounds.temperature, from_pandas=True)
    if np.isnan(rounds.temperature).all():
        del columns["temperature"]
    with atomic_write(path, "wb") as file:
        pq.write_table(pa.table(columns), file, compression="zstd")


def read_rounds(path: str | Path) -> Rounds:
    """Read a log; ``ValueError`` names the file, the column, the row and the rule."""
    try:
        table = pq.read_table(path)
    except OSError as error:
        raise os_problem("read", path, error) from None
    except pa.ArrowException as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a Parquet file ({first_line}); record it again") from None
    for column in REQUIRED:
        if column not in table.column_names:
            raise ValueError(
                f"{path}: column {column!r} is missing; an acceptance log has the columns "
                f"{', '.join(REQUIRED)}"
            )
    if table.num_rows == 0:
        raise ValueError(f"{path}: the log has no rounds; record some traffic first")
    step, accepted = _integers(path, table, "step"), _integers(path, table, "accepted")
    logits = _logits(path, table)
    gamma = logits.shape[1]
    outside = (accepted < 0) | (accepted > gamma)
    refuse_row(path, "accepted", outside, accepted, f"it must be 0..{gamma}")
    refuse_row(path, "step", step < 0, step, "it must be >= 0")
    position = output_tokens = None
    if "position" in table.column_names:
        position = _integers(path, table, "position")
        refuse_row(path, "position", position < 0, position, "it must be >= 0")
    if "output_tokens" in table.column_names:
        output_tokens = _integers(path, table, "output_tokens")
        refuse_row(path, "output_tokens", output_tokens < 1, output_tokens, "it must be >= 1")
    context_tokens = None
    if "context_tokens" in table.column_names:
        context_tokens = _integers(path, table, "context_tokens")
        refuse_row(path, "context_tokens", context_tokens < 1, context_tokens, "it must be >= 1")
    return Rounds(
        request=_integers(path, table, "request"),
        step=step,
        domain=_strings(path, table),
        logits=logits,
        accepted=accepted,
        temperature=_temperature(path, table),
        position=position,
        output_tokens=output_tokens,
        context_tokens=context_tokens,
    )


def refuse_row(path: str | Path, column: str, bad: Mask, values: Any, rule: str) -> None:
    """``ValueError`` for the first bad row, rows counted from 0 as they stand in the file."""
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{path}: column {column!r}, row {row}: {values[row]} is wrong; {rule}")


def _refuse_nulls(path: str | Path, table: pa.Table, column: str) -> None:
    missing = pc.is_null(table[column]).to_numpy(zero_copy_only=False)
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        raise ValueError(f"{path}: column {column!r}, row {row}: no value; every row needs one")


def _integers(path: str | Path, table: pa.Table, column: str) -> Ints:
    kind = table[column].type
    if not pa.types.is_integer(kind):
        raise ValueError(f"{path}: column {column!r} holds {kind}; it must hold integers")
    _refuse_nulls(path, table, column)
    values: Ints = table[column].to_numpy().astype(np.int64)
    return values


def _strings(path: str | Path, table: pa.Table) -> Any:
    values = table["domain"]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise ValueError(f"{path}: column 'domain' holds {values.type}; it must hold strings")
    _refuse_nulls(path, table, "domain")
    return np.array(values.to_pylist())


def _temperature(path: str | Path, table: pa.Table) -> Floats:
    """NaN where there is none."""
    if "temperature" not in table.column_names:
        return np.full(table.num_rows, np.nan)
    kind = table["temperature"].type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise ValueError(f"{path}: column 'temperature' holds {kind}; it must hold numbers")
    values: Floats = table["temperature"].cast(pa.float64()).to_numpy()
    return values


def _logits(path: str | Path, table: pa.Table) -> Floats:
    kind = table["logits"].type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (is_list or pa.types.is_fixed_size_list(kind)) or not pa.types.is_floating(
        kind.value_type
    ):
        raise ValueError(f"{path}: column 'logits' holds {kind}; it must hold lists of floats")
    _refuse_nulls(path, table, "logits")
    lengths = pc.list_value_length(table["logits"]).to_numpy()
    gamma = int(lengths[0])
    if gamma < 1:
        raise ValueError(f"{path}: column 'logits', row 0: no values; a block has 1 or more")
    refuse_row(path, "logits", lengths != gamma, lengths, f"row 0 has {gamma} values, so must all")
    flat = pc.list_flatten(table["logits"]).to_numpy(zero_copy_only=False).astype(np.float64)
    logits: Floats = flat.reshape(-1, gamma)
    bad: Mask = ~np.all(np.isfinite(logits), axis=1)
    refuse_row(path, "logits", bad, logits, "every logit must be a finite number")
    return logits
