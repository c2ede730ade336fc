"""Predict every published record under every protocol, and write both down.

    python -m benchmarks.zoo [--records FOLDER] [-o FILE] [--page docs/validation.md]

A minute of one core. The same records give the same numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from benchmarks.zoo.page import write_page
from benchmarks.zoo.protocols import PROTOCOLS, as_rows, predict
from benchmarks.zoo.records import FOLDER, all_records
from benchmarks.zoo.score import score, unexplained_by, widen
from sglang_dspark.cli import progress_bar, run_command
from sglang_dspark.files import write_json

RESULTS = Path(__file__).parents[1] / "results" / "zoo.json"


def predict_all(folder: Path, bar: Any) -> dict[str, Any]:
    """The results file."""
    records = all_records(folder)
    if not records:
        raise ValueError(f"{folder}: no .json record; give a folder of them")
    found: dict[str, Any] = {**provenance("python -m benchmarks.zoo"), "protocols": {}}
    for protocol in PROTOCOLS:
        rows: dict[str, dict[str, Any]] = {}
        for name, record in records.items():
            bar.set_description_str(f"{protocol}: {name}")
            points, pairs, moved = predict(record, protocol, lambda: bar.update(1))
            if not points:
                continue
            rows[name] = {"moved": moved, "points": as_rows(points), "pairs": as_rows(pairs)}
        widen(rows)
        for row in rows.values():
            row["score"] = score(row["points"], row["pairs"])
        found["protocols"][protocol] = {
            "unexplained": unexplained_by(rows),
            "score": score(
                [point for row in rows.values() for point in row["points"]],
                [pair for row in rows.values() for pair in row["pairs"]],
            ),
            "records": rows,
        }
    return found


def _command(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, default=FOLDER, help="folder of records")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS, help="results as JSON")
    parser.add_argument("--page", type=Path, help="page whose tables of the zoo are rewritten")
    arguments = parser.parse_args(argv)
    with progress_bar(unit="replay", leave=False) as bar:
        found = predict_all(arguments.records, bar)
    write_json(arguments.out, found)
    for protocol, rows in found["protocols"].items():
        print(protocol, rows["score"])
        for name, row in rows["records"].items():
            print("  ", name, row["score"])
    if arguments.page:
        write_page(arguments.page, found, all_records(arguments.records))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("benchmarks.zoo", lambda: _command(argv))
