"""One value of a source record: counts, numbers, names, lists of hashes.

Owns the sentences for a value that is not what its format says. Knows no format and no file;
``where`` names the spot.
"""

from __future__ import annotations

import json
import math
from typing import Any

from traces.columns import MAX_TOKENS
from traces.store import shown

__all__ = ["shown"]


MOST = 4.2e18
"""Above it no number is a time, not even in nanoseconds since 1970."""


class Row(dict[str, Any]):
    """A row of a table, under names in small letters; ``header`` has them as the file does."""

    __slots__ = ("header",)

    def __init__(self, values: Any, header: dict[str, str]) -> None:
        super().__init__(values)
        self.header = header


def called(record: dict[str, Any], field: str) -> str:
    """What the file calls a field."""
    return record.header.get(field, field) if isinstance(record, Row) else field


def tokens(where: str, record: dict[str, Any], field: str) -> int:
    """A token count, 0 or more."""
    value = given(where, record, field)
    number = as_number(value)
    if number is None or not math.isfinite(number) or not number.is_integer() or not (
        0 <= number <= MAX_TOKENS
    ):  # fmt: skip
        raise ValueError(
            f"{where}: {called(record, field)} {shown(value)} must be a whole number from 0 to "
            f"{MAX_TOKENS}; mend or remove the row"
        )
    return int(number)


def amount(where: str, record: dict[str, Any], field: str) -> float:
    """A finite number in whatever unit the field has, 0 or more."""
    value = given(where, record, field)
    number = as_number(value)
    if number is None or not math.isfinite(number) or not 0 <= number < MOST:
        raise ValueError(
            f"{where}: {called(record, field)} {shown(value)} must be a finite number, 0 or more; "
            "mend or remove the row"
        )
    return number


def optional(where: str, record: dict[str, Any], field: str) -> float | None:
    """``amount``, or None where the record has none or an empty one."""
    return None if is_absent(record.get(field)) else amount(where, record, field)


def whole(where: str, record: dict[str, Any], field: str) -> int | None:
    """A whole number of any sign, or None where there is none."""
    value = record.get(field)
    if is_absent(value):
        return None
    number = as_number(value)
    if number is None or not math.isfinite(number) or not number.is_integer():
        raise ValueError(
            f"{where}: {called(record, field)} {shown(value)} must be a whole number; mend or "
            "remove the row"
        )
    return int(number)


def name(record: dict[str, Any], field: str) -> str | None:
    """A name, whatever it is written as, or None where there is none."""
    value = record.get(field)
    if is_absent(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value)


def hashes(where: str, record: dict[str, Any], field: str) -> list[int | str]:
    """Block hashes: a list, or the text of one as CSV holds it; empty where there is none."""
    value = record.get(field)
    if is_absent(value):
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.startswith("[") else [
                int(part) if part.isdecimal() else part for part in value.split()
            ]  # fmt: skip
        except ValueError:
            value = None
    if not isinstance(value, list) or not all(type(h) in (int, str) for h in value):
        raise ValueError(
            f"{where}: {called(record, field)} {shown(record[field])} must be a list of numbers or "
            "texts"
        )
    return value


def inner(where: str, record: dict[str, Any], field: str) -> dict[str, Any]:
    """An object in the record."""
    value = given(where, record, field)
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: {field} {shown(value)} is not an object; mend or remove the line"
        )
    return value


def given(where: str, record: dict[str, Any], field: str) -> Any:
    """The field's value; ``ValueError`` where there is none."""
    if field not in record and isinstance(record, Row):
        raise ValueError(
            f"{where}: no column {field} in the header, which has "
            f"{', '.join(record.header.values())}; --columns says what the file calls it"
        )
    if field not in record:
        raise ValueError(f"{where}: no {field}; mend or remove the row")
    return record[field]


def is_absent(value: Any) -> bool:
    """Whether a value says nothing: null or an empty text."""
    return value is None or value == ""


def as_number(value: Any) -> float | None:
    """A number, or a text that is one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
