"""The laptop run: from the text of the installed Python to the paper's claims, in one command.

    python -m sglang_dspark.draft.demo

Trains a small target on each corpus, has it write training data, trains DSpark and its baselines,
evaluates, calibrates, and prints the paper's claims beside what was measured. Everything made is
cached by recipe and version; stopped or killed, the same command goes on. Owns the command and
``build``, through which tests and server suites get the cached checkpoints.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sglang_dspark.cli import Parser
from sglang_dspark.draft.demo.claims import Claim, claims, report
from sglang_dspark.draft.demo.recipe import (
    DemoRecipe,
    evaluation_name,
    laptop,
    last_checkpoint,
    seconds,
    stages,
)
from sglang_dspark.draft.demo.runner import needed, run_beside, run_here, stage_times
from sglang_dspark.draft.evaluation.calibration_fit import Fit
from sglang_dspark.files import make_folder, read_json, write_json

RECIPES: dict[str, Callable[[], DemoRecipe]] = {"laptop": laptop, "seconds": seconds}


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/sglang-dspark``, or ``~/.cache/sglang-dspark``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sglang-dspark"


def build(
    recipe: DemoRecipe,
    cache: str | Path,
    *,
    goals: Sequence[str] | None = None,
    workers: int = 2,
    say: Callable[[str], object] = lambda line: None,
) -> Path:
    """Make what is missing of ``goals`` (all stages) and return the recipe's folder in the cache.

    ``workers`` 0 runs the stages in this process.
    """
    every = stages(recipe)
    chosen = needed(every, [stage.name for stage in every] if goals is None else goals)
    folder = make_folder(Path(cache).resolve() / recipe.key())
    with _alone_in(folder):
        if workers:
            run_beside(folder, chosen, say, workers=workers)
        else:
            run_here(folder, chosen, say)
    return folder


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process builds here; the lock goes with its holder, however it ends."""
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def trained_pair(
    recipe: DemoRecipe, cache: str | Path, *, corpus: str, drafter: str = "dspark", workers: int = 2
) -> tuple[Path, Path]:
    """(target folder, drafter checkpoint) of a corpus, made where they are missing."""
    folder = build(recipe, cache, goals=[f"{corpus}-{drafter}"], workers=workers)
    return folder / f"{corpus}-target", last_checkpoint(folder / f"{corpus}-{drafter}")


def measure(recipe: DemoRecipe, folder: Path) -> list[Claim]:
    """The claims, from a finished run's logs."""
    from sglang_dspark.draft.evaluation.calibrate import fit_all
    from sglang_dspark.logs.acceptance_log import read_rounds
    from sglang_dspark.logs.rounds import Rounds, join_rounds

    rounds: dict[str, Rounds] = {}
    fits: dict[str, dict[float, list[Fit]]] = {}
    for one in recipe.corpora:
        for name, drafter in one.drafters.items():
            for temperature in drafter.temperatures:
                log = evaluation_name(one.corpus, name, temperature)
                rounds[log] = read_rounds(folder / log / "rounds.parquet")
        logs = [
            rounds[evaluation_name(one.corpus, "dspark", temperature)]
            for temperature in one.drafters["dspark"].temperatures
        ]
        fits[one.corpus] = fit_all(join_rounds(logs))
    first = evaluation_name(recipe.corpora[0].corpus, "dspark", 1.0)
    spent: Any = read_json(folder / first / "metrics.json")["batch_round_ms"]
    found = claims(rounds=rounds, fits=fits, batch_round_ms=spent)
    _draw(recipe, folder, rounds, fits)
    return found


def _draw(recipe: DemoRecipe, folder: Path, rounds: Any, fits: Any) -> None:
    """Pictures that compare: drafters by position, and confidences before and after the fits."""
    from sglang_dspark.draft.evaluation.calibration_fit import split_rounds
    from sglang_dspark.draft.evaluation.reliability import acceptance, reliability, survival_of
    from sglang_dspark.draft.evaluation.report_figures import (
        acceptance_figure,
        reliability_figure,
        save_figure,
    )

    shown: dict[str, dict[str, Any]] = {}
    for one in recipe.corpora:
        for name in one.drafters:
            log = rounds[evaluation_name(one.corpus, name, 1.0)]
            shown.setdefault(name, {})[one.corpus] = acceptance(log)
        for temperature, methods in fits[one.corpus].items():
            log = rounds[evaluation_name(one.corpus, "dspark", temperature)]
            held = split_rounds(log, 0.3, 0)[1]
            survival = {"raw": survival_of(held.logits)}
            for fit in methods:
                given = fit.calibration
                survival[fit.method] = survival_of(
                    held.logits, given.temperatures, given.biases or 0.0
                )
            found = {name: reliability(made, held.survived) for name, made in survival.items()}
            figure = reliability_figure(survival, held.survived, found)
            save_figure(figure, folder / f"reliability-{one.corpus}-T{temperature:g}.png")
    save_figure(acceptance_figure(shown), folder / "conditional_acceptance.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(
        description="From the text of the installed Python to the paper's claims, on a laptop: "
        "trains small targets, DSpark and its baselines, evaluates, calibrates, and prints the "
        "claims beside what was measured. What is made is kept; killed, the same command goes on.",
        examples=["", "--until templated-dspark", "--recipe seconds --cache demo"],
        page="docs/serving.md",
    )
    parser.add_argument(
        "--recipe", choices=tuple(RECIPES), default="laptop", help="laptop: minutes; seconds: a try"
    )
    parser.add_argument("--cache", default=str(default_cache()), help="folder for all that is made")
    parser.add_argument("--workers", type=int, default=2, help="stages at a time; 0: in-process")
    parser.add_argument("--until", nargs="+", metavar="STAGE", help="make only these, no report")
    given = parser.parse_args(arguments)
    if given.workers < 0:
        raise ValueError(f"--workers {given.workers}: give 0 or more")
    if find_spec("torch") is None:  # or else the first stage would say so, from its own process
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    recipe = RECIPES[given.recipe]()
    start_s = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - start_s:5.0f} s] {line}", file=sys.stderr, flush=True)

    folder = build(recipe, given.cache, goals=given.until, workers=given.workers, say=say)
    if given.until is None:
        found = measure(recipe, folder)
        times = stage_times(folder, stages(recipe))
        write_json(
            folder / "claims.json",
            {"claims": [dataclasses.asdict(claim) for claim in found], "stages": times},
        )
        print(report(found))
        spent_s = sum(one["cpu_s"] for one in times.values())
        print(
            f"{spent_s:.0f} CPU-s in {len(times)} stages, {time.perf_counter() - start_s:.0f} s now"
        )
    print(f"all of it is in {folder}", file=sys.stderr)
