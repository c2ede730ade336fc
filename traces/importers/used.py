"""What of a source's records a trace cannot hold: said by name, with how many records had it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from traces.importers.fields import called


class Used:
    """The fields that an importer reads; others are counted into ``notes``."""

    def __init__(self, notes: Counter[str], names: Iterable[str]) -> None:
        self._notes = notes
        self._names = frozenset(names)

    def note(self, record: dict[str, Any], prefix: str = "") -> None:
        """Count the record's fields that are not read and say something."""
        for name, value in record.items():
            if name not in self._names and value not in (None, "", [], {}):
                self._notes[f"not carried: {prefix}{called(record, name)}"] += 1
