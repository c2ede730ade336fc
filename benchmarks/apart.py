"""Measured cases in processes of their own, so that none finds another's memory or kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from sglang_dspark.files import make_folder, write_json

_RESULTS = Path(__file__).parent / "results"


def run_apart(module: str, *arguments: object) -> dict[str, Any]:
    """What ``module`` prints as JSON when it is run with ``arguments``."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def measure_cases(
    name: str, cases: Sequence[tuple[str, int]], *, about: dict[str, Any], warm_up: tuple[str, int]
) -> None:
    """Run ``benchmarks.NAME`` for every case, print the rows and write ``results/NAME.json``.

    ``warm_up`` is a small case that compiles, so that no measured process has to.
    """
    module = f"benchmarks.{name}"
    run_apart(module, *warm_up)
    rows = []
    for case in cases:
        rows.append(run_apart(module, *case))
        print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    result = provenance(f"python -m {module}") | about | {"cases": rows}
    write_json(make_folder(_RESULTS) / f"{name}.json", result)
