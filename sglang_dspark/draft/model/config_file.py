"""A drafter's ``config.json``, written; what is in it is each kind's own.

Knows no key.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sglang_dspark.files import atomic_write


class ConfigFile:
    """What writes itself as ``config.json``."""

    def to_dict(self) -> dict[str, Any]:
        """config.json's object."""
        raise NotImplementedError

    def to_json(self) -> str:
        """config.json's text, laid out as transformers does, so that its files round-trip."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"

    def write(self, path: str | Path) -> None:
        """Write config.json, into a folder or under the given name, atomically."""
        file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
        with atomic_write(file) as stream:
            stream.write(self.to_json())
