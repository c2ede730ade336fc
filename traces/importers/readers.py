"""Records of one file, each with its line or number: CSV rows, Parquet batches, JSON documents.

Owns the sentences for a row or a document that does not hold together. Knows no format's fields.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sglang_dspark.files import os_problem
from traces.importers.fields import Row, shown
from traces.importers.texts import Advance, delimiter_of, open_text

Record = dict[str, Any]

_BATCH_ROWS = 4096


def read_csv(path: Path, advance: Advance) -> Iterator[tuple[int, Record]]:
    """Rows under a header, whose names are stripped and in small letters."""
    with open_text(path, advance) as file:
        before, first = next(((i, line) for i, line in enumerate(file) if line.strip()), (0, ""))
        mark = delimiter_of(first)
        reader = csv.reader(itertools.chain([first], file), delimiter=mark, strict=True)
        comma = re.compile(r"-?\d+,\d+") if mark != "," else None
        try:
            written = [name.strip() for name in next(reader)]
            while not written[-1]:
                written.pop()  # a comma at the end of every line
            written = [name or f"column {i}" for i, name in enumerate(written, start=1)]
            header = [name.lower() for name in written]
            names = dict(zip(header, written, strict=True))
            repeated = next((name for name in header if header.count(name) > 1), None)
            if repeated is not None:
                raise ValueError(f"{path}:1: two columns {repeated!r}; rename one")
            for row in reader:
                where = f"{path}:{before + reader.line_num}"
                if not any(value.strip() for value in row):
                    continue
                while len(row) > len(header) and not row[-1].strip():
                    row.pop()
                if len(row) != len(header):
                    raise ValueError(
                        f"{where}: {len(row)} values under {len(header)} columns; "
                        "mend or remove the row"
                    )
                values = [value.strip() for value in row]
                if comma:  # decimal commas come with other delimiters
                    values = [v.replace(",", ".") if comma.fullmatch(v) else v for v in values]
                yield before + reader.line_num, Row(zip(header, values, strict=True), names)
        except csv.Error as error:
            raise ValueError(
                f"{path}:{before + reader.line_num}: not valid CSV ({error}); mend the row"
            ) from None


def read_table(
    path: Path, kind: str, columns: Sequence[str] | None, advance: Advance
) -> Iterator[tuple[int, Record]]:
    """Rows of a Parquet or Arrow file, batch by batch, only the columns needed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    try:
        with path.open("rb") as raw:
            if kind == "parquet":
                file = pq.ParquetFile(raw)
                names, rows = file.schema_arrow.names, file.metadata.num_rows
                kept = _kept(names, columns)
                batches = file.iter_batches(_BATCH_ROWS, columns=kept)
            else:
                reader = pa.ipc.open_file(raw)
                names = reader.schema.names
                kept = _kept(names, columns)
                rows = 0
                batches = (
                    reader.get_batch(i).select(kept) for i in range(reader.num_record_batches)
                )
            number = 0
            for batch in batches:
                for record in batch.to_pylist():
                    number += 1
                    # A column of numbers with gaps holds NaN where pandas wrote it.
                    yield number, folded({k: v for k, v in record.items() if not _is_gap(v)})
                advance(int(size * len(batch) / rows) if rows else 0)
    except pa.ArrowException as error:
        problem = " ".join(str(error).split())[:80]
        raise ValueError(f"{path}: damaged {kind} ({problem}); copy the file again") from None
    except OSError as error:
        if error.errno is None:
            problem = " ".join(str(error).split())[:80]
            raise ValueError(f"{path}: damaged {kind} ({problem}); copy the file again") from None
        raise os_problem("read", path, error) from None


def _kept(names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    return [name for name in names if columns is None or name.lower() in columns]


def folded(record: Record) -> Row:
    """A record under names in small letters."""
    return Row(
        {name.lower(): value for name, value in record.items()},
        {name.lower(): name for name in record},
    )


def _is_gap(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def read_document(path: Path, kind: str, advance: Advance) -> Iterator[tuple[int, Record]]:
    """The objects of a JSON array, or objects one after another, or one YAML document."""
    with open_text(path, advance) as file:
        text = file.read()
    values = _yaml(path, text) if kind == "yaml" else _json_values(path, text)
    number = 0
    for value in values:
        for record in value if isinstance(value, list) else [value]:
            number += 1
            if not isinstance(record, dict):
                raise ValueError(
                    f"{path}: record {number}: {shown(record)} is not an object; mend or remove it"
                )
            yield number, record


def _json_values(path: Path, text: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    text = text.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{error.lineno}: not valid JSON ({error.msg}); mend it"
            ) from None
        except (ValueError, RecursionError):
            raise ValueError(f"{path}: nested too deep or a number too long; mend it") from None
        yield value
        while at < len(text) and text[at] in " \r\n\t,":
            at += 1


def _yaml(path: Path, text: str) -> list[Any]:
    try:
        import yaml
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: is YAML, which needs the package pyyaml; install it, or write JSON"
        ) from None
    try:
        return [yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))]
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{path}: not valid YAML ({problem}); mend it") from None


def json_object(where: str, line: str) -> Record:
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
