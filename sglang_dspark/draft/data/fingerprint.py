"""Short digests that tell whether prepared data still belongs to its target, prompts or samples.

Owns what goes into a digest. Knows nothing of who compares them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sglang_dspark.files import os_problem

_PROBE_BYTES = 1 << 20


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a whole file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise os_problem("read", path, error) from None


def model_fingerprint(folder: str | Path) -> str:
    """Digest of a model folder: its config, and each weight file's name, size, head and tail.

    Not of every byte: a 60 GB target must not be read to find out that it is the same one. Two
    trainings of one architecture differ in their last megabyte as in any other.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{folder}: no .safetensors weights; give a model folder")
    try:
        digest.update((folder / "config.json").read_bytes())
        for path in weights:
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            with open(path, "rb") as file:
                digest.update(file.read(_PROBE_BYTES))
                file.seek(max(0, size - _PROBE_BYTES))
                digest.update(file.read(_PROBE_BYTES))
    except OSError as error:
        raise os_problem("read", error.filename or folder, error) from None
    return digest.hexdigest()[:32]
