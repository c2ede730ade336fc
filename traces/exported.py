"""``NAME.export.json``: what an exported file cannot say of itself, beside it.

Formats of others have no field for their time unit, their block size and what a turn's input
counts. Owns the record, and how it stands in for the flags of ``traces.convert`` when the file
comes back. Knows no format.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

from sglang_dspark.files import read_record, write_json
from traces.importers.settle import Options


@dataclass(frozen=True, kw_only=True)
class ExportMeta:
    """What was exported, and how to read it."""

    source: str
    """The trace it was made of."""
    command: str
    """The command that made the file."""
    format: str
    """What ``dspark traces export --format`` was."""
    sha256: str
    """Digest of the file, so that an edited one is read like any other."""
    time_unit: str
    """Of its times: s or ms."""
    block_tokens: int | None
    """Tokens per hash; null where it has none."""
    turn_input: str
    """What a later turn's input tokens are: whole or new."""
    dropped: dict[str, int] | None = None
    """What of the trace the format has no place for, and of how many requests."""


def export_path(path: str | Path) -> Path:
    """The sidecar of an exported file: ``chat.csv`` has ``chat.csv.export.json``."""
    return Path(path).with_name(f"{Path(path).name}.export.json")


def write_export_meta(path: str | Path, meta: ExportMeta) -> None:
    """Write the sidecar of an exported file."""
    write_json(export_path(path), meta)


def export_notes(path: Path, options: Options) -> Options:
    """``options`` with what the sidecar of an exported file says, where the user did not."""
    sidecar = export_path(path)
    if not sidecar.is_file():
        return options
    meta = read_record(sidecar, ExportMeta)
    if meta.sha256 != hashlib.sha256(path.read_bytes()).hexdigest():
        return options
    return dataclasses.replace(
        options,
        time_unit=options.time_unit or meta.time_unit,
        block_tokens=options.block_tokens or meta.block_tokens,
        turn_input=options.turn_input or meta.turn_input,
    )
