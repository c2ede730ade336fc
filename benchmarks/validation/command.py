"""Predict what others published or measured, and write both down side by side.

    python -m benchmarks.validation [-o benchmarks/results/validation.json]

Five studies: vLLM's frontier on 8 B300, the paper's Figures 7 and 8, queueing theory, the digital
twin (read from ``results/digital_twin.json``) and the acceptance profiles. The published numbers
are in ``benchmarks/published_serving.json``. No study is calibrated on more than two of the
points it predicts; the result names them. About a minute on one core. Draw it with

    python -m benchmarks.validation.page benchmarks/results/validation.json \
        -o docs/figures/validation.png --docs docs/validation.md
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.provenance import commit, hardware
from benchmarks.validation.basics import acceptance, queues, twin
from benchmarks.validation.paper import MODELS, paper_model
from benchmarks.validation.record import Validation
from benchmarks.validation.vllm import frontier
from sglang_dspark.cli import Parser, run_command
from sglang_dspark.files import read_json, write_json

HERE = Path(__file__).resolve().parents[1]
PUBLISHED = HERE / "published_serving.json"
TWIN = HERE / "results" / "digital_twin.json"
OUT = HERE / "results" / "validation.json"
DIGITS = 6


def rounded(value: Any) -> Any:
    """Floats with six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def validation() -> Validation:
    """Every study."""
    records = read_json(PUBLISHED)["records"]
    with tqdm(unit=" replays", disable=None) as bar:

        def tick() -> None:
            bar.update()

        return Validation(
            schema_version=1,
            command="python -m benchmarks.validation",
            commit=commit(),
            hardware=hardware(),
            python=platform.python_version(),
            frontier=frontier(records, tick),
            paper=[paper_model(records, key, tick) for key in MODELS],
            queues=queues(tick),
            twin_source=f"benchmarks/results/{TWIN.name}",
            twin=twin(TWIN),
            acceptance=acceptance(tick),
        )


def _command(arguments: argparse.Namespace) -> int:
    write_json(arguments.out, rounded(dataclasses.asdict(validation())))
    print(f"Wrote {arguments.out}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m benchmarks.validation", description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", default=str(OUT), metavar="FILE", help="JSON of all studies")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("benchmarks.validation", lambda: _command(_parser().parse_args(argv)))
