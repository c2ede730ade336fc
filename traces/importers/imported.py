"""What an importer returns, and source files as rows with line numbers.

Owns the sentences for a row that is not what its format says. Knows no format.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_dspark.files import read_text
from traces.columns import MAX_TOKENS
from traces.schema import Request
from traces.store import shown


@dataclass(kw_only=True)
class Imported:
    """Requests in source order, and what happened to rows that could not be kept as they are."""

    requests: list[Request] = field(default_factory=list)
    block_tokens: int | None = None
    drawn: bool = False
    """Whether any arrival time was drawn at random."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was done to rows, and to how many."""

    def keep(self, request: Request) -> None:
        """Append a request; one that generated nothing still costs its prefill and its first token.

        A row without prompt tokens is no request that a server could have run: left out.
        """
        if request.prompt_tokens == 0:
            self.notes["left out: no prompt tokens"] += 1
            return
        if request.output_tokens == 0:
            self.notes["0 output tokens raised to 1"] += 1
            request.output_tokens = 1
        self.requests.append(request)


def csv_rows(
    path: Path, *columns: str, optional: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """(file:line, row) of a CSV file whose header has ``columns``."""
    reader = csv.reader(read_text(path).splitlines(keepends=True), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for name in columns:
            if name not in header:
                raise ValueError(
                    f"{path}:1: no column {name}; the header must have {', '.join(columns)}"
                )
        wanted = {name: header.index(name) for name in (*columns, *optional) if name in header}
        for row in reader:
            if not row:
                continue
            where = f"{path}:{reader.line_num}"
            if len(row) != len(header):
                raise ValueError(
                    f"{where}: {len(row)} values under {len(header)} columns; "
                    "mend or remove the row"
                )
            yield where, {name: row[index] for name, index in wanted.items()}
    except csv.Error as error:
        raise ValueError(
            f"{path}:{reader.line_num}: not valid CSV ({error}); mend the row"
        ) from None


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of a JSONL file; blank lines are passed over."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", json_object(f"{path}:{number}", line)


def json_object(where: str, line: str) -> dict[str, Any]:
    """The object on a line. Infinity and NaN pass: servers write them beside the counts."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not valid JSON ({error.msg}); mend or remove the line"
        ) from None
    except (ValueError, RecursionError):  # also Python's limit on the digits of a number
        raise ValueError(
            f"{where}: nested too deep or a number too long; mend or remove the line"
        ) from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {shown(record)} is not a JSON object; mend or remove the line")
    return record


def tokens(where: str, record: dict[str, Any], name: str) -> int:
    """A token count, 0 or more."""
    value = _given(where, record, name)
    number = _number(value)
    if number is None or not number.is_integer() or not 0 <= number <= MAX_TOKENS:
        raise ValueError(
            f"{where}: {name} {shown(value)} must be a whole number from 0 to {MAX_TOKENS}; "
            "mend or remove the row"
        )
    return int(number)


def seconds(where: str, record: dict[str, Any], name: str) -> float:
    """A finite time in whatever unit the field has, 0 or more."""
    value = _given(where, record, name)
    number = _number(value)
    if number is None or not math.isfinite(number) or number < 0:
        raise ValueError(
            f"{where}: {name} {shown(value)} must be a finite number, 0 or more; "
            "mend or remove the row"
        )
    return number


def _given(where: str, record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise ValueError(f"{where}: no {name}; mend or remove the row")
    return record[name]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
