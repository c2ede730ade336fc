"""What the laptop run is made of: its sizes, and the commands that lead from nothing to its logs.

Owns the recipes and the stages; every stage is one of this package's own commands, so whatever it
prints can be had by hand. Knows neither how stages are run nor what their results mean.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_dspark import __version__

VERSION = 2
"""Raise it when the same recipe makes something else: old caches are then left alone."""

PACKAGE = "sglang_dspark.draft"


@dataclass(frozen=True, kw_only=True)
class DrafterRecipe:
    """One drafter of a corpus."""

    kind: str = "dspark"
    """As ``train --kind``."""
    drafter: dict[str, Any] = field(default_factory=dict)
    """Its shape, as in a training configuration."""
    training: dict[str, Any] = field(default_factory=dict)
    """Training settings over the corpus's."""
    temperatures: tuple[float, ...] = (1.0,)
    """Decode temperatures it is evaluated at."""


@dataclass(frozen=True, kw_only=True)
class CorpusRecipe:
    """One corpus: its target, its data, its drafters."""

    corpus: str
    """``stdlib`` or ``templated``."""
    target_steps: int
    prompts: int
    """Answered by the target, for training."""
    answer_tokens: int
    """At most, per prompt."""
    training: dict[str, Any]
    """Training settings that its drafters share."""
    drafters: dict[str, DrafterRecipe]
    """By the name that reports use."""
    held_out_prompts: int
    """For evaluation."""
    decoded_tokens: int
    """At most, per evaluated prompt."""


@dataclass(frozen=True, kw_only=True)
class DemoRecipe:
    """A whole run; equal recipes of one version share their cache."""

    name: str
    corpora: tuple[CorpusRecipe, ...]
    batch: int = 64
    """Prompts generated or evaluated together."""
    seed: int = 0

    def key(self) -> str:
        """Names the recipe's folder in the cache."""
        text = json.dumps([VERSION, __version__, dataclasses.asdict(self)], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


_SHAPE = {"depth": 2, "num_anchors": 32}
_TRAINING = {
    "batch": 16,
    "micro_batch": 16,
    "max_tokens": 256,
    "learning_rate": 5e-3,
    "betas": [0.9, 0.95],
}


def _drafters(
    temperatures: tuple[float, ...], shape: dict[str, Any], *, baselines: bool
) -> dict[str, DrafterRecipe]:
    rank = shape.get("markov_rank", 64)
    bare = {key: value for key, value in shape.items() if key != "markov_rank"}
    dspark = DrafterRecipe(drafter={**bare, "markov_rank": rank}, temperatures=temperatures)
    if not baselines:
        return {"dspark": dspark}
    eagle = {key: value for key, value in bare.items() if key in ("num_anchors", "gamma")}
    return {
        "dspark": dspark,
        "no-markov": DrafterRecipe(drafter={**bare, "markov_rank": 0}),
        "dflash": DrafterRecipe(kind="dflash", drafter=bare),
        "eagle3": DrafterRecipe(kind="eagle3", drafter=eagle),
    }


def laptop() -> DemoRecipe:
    """About 10 minutes on two cores: both corpora, all baselines on the standard library."""
    return DemoRecipe(
        name="laptop",
        corpora=(
            CorpusRecipe(
                corpus="stdlib",
                target_steps=600,
                prompts=2000,
                answer_tokens=160,
                training={**_TRAINING, "epochs": 2.0},
                drafters=_drafters((1.0, 0.7), _SHAPE, baselines=True),
                held_out_prompts=256,
                decoded_tokens=96,
            ),
            CorpusRecipe(
                corpus="templated",
                target_steps=300,
                prompts=2500,
                answer_tokens=128,
                training={**_TRAINING, "epochs": 1.6},
                drafters=_drafters((1.0, 1.4), _SHAPE, baselines=False),
                held_out_prompts=384,
                decoded_tokens=96,
            ),
        ),
    )


def seconds() -> DemoRecipe:
    """The same stages in seconds, for tests: nothing it measures means anything."""
    shape = {"depth": 1, "num_anchors": 4, "markov_rank": 8, "gamma": 3}
    training = {**_TRAINING, "epochs": 1.0, "batch": 8, "micro_batch": 8}
    return DemoRecipe(
        name="seconds",
        corpora=(
            CorpusRecipe(
                corpus="templated",
                target_steps=2,
                prompts=16,
                answer_tokens=12,
                training=training,
                drafters=_drafters((1.0, 1.4), shape, baselines=True),
                held_out_prompts=24,
                decoded_tokens=24,
            ),
        ),
        batch=16,
    )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command. Run from the cache folder, so that paths in its results are relative."""

    name: str
    module: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Stages that must be done before."""
    settings: tuple[str, dict[str, Any]] | None = None
    """A JSON file to write beforehand."""
    replaces: tuple[str, ...] = ()
    """What an interrupted start may have left and the command would refuse."""


def evaluation_name(corpus: str, drafter: str, temperature: float) -> str:
    """Of the stage and its folder."""
    return f"{corpus}-{drafter}-T{temperature:g}"


def _arguments(*positional: str, **flags: object) -> tuple[str, ...]:
    """A command line: ``max_tokens=8`` becomes ``--max-tokens 8``."""
    words = list(positional)
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return tuple(words)


def corpus_stages(recipe: CorpusRecipe, *, batch: int, seed: int) -> list[Stage]:
    """Everything for one corpus, in order."""
    corpus = recipe.corpus
    target, prompts, samples = f"{corpus}-target", f"{corpus}-prompts.jsonl", f"{corpus}-samples"
    total = recipe.prompts + recipe.held_out_prompts
    stages = [
        Stage(
            name=target,
            module=f"{PACKAGE}.pretrain",
            arguments=_arguments(
                corpus,
                out=target,
                steps=recipe.target_steps,
                prompts_out=prompts,
                prompts=total,
                seed=seed,
            ),
            replaces=(target,),
        ),
        Stage(
            name=samples,
            module=f"{PACKAGE}.generate",
            arguments=_arguments(
                prompts,
                target=target,
                out=f"{samples}.jsonl",
                limit=recipe.prompts,
                max_tokens=recipe.answer_tokens,
                batch=batch,
                seed=seed,
            ),
            needs=(target,),
        ),
    ]
    for name, drafter in recipe.drafters.items():
        trained = f"{corpus}-{name}"
        settings = {
            "target": target,
            "data": f"{samples}.jsonl",
            "out": trained,
            "kind": drafter.kind,
            "drafter": drafter.drafter,
            "seed": seed,
            **recipe.training,
            **drafter.training,
        }
        stages.append(
            Stage(
                name=trained,
                module=f"{PACKAGE}.train",
                arguments=("--config", f"{trained}.train.json"),
                needs=(samples,),
                settings=(f"{trained}.train.json", settings),
            )
        )
        for temperature in drafter.temperatures:
            evaluated = evaluation_name(corpus, name, temperature)
            stages.append(
                Stage(
                    name=evaluated,
                    module=f"{PACKAGE}.evaluate",
                    arguments=_arguments(
                        prompts,
                        target=target,
                        drafter=f"{trained}/last",
                        out=evaluated,
                        skip=recipe.prompts,
                        batch=batch,
                        temperature=temperature,
                        seed=seed + 1,
                        new_tokens=recipe.decoded_tokens,
                    ),
                    needs=(trained,),
                )
            )
    first = recipe.drafters["dspark"]
    logs = [evaluation_name(corpus, "dspark", t) for t in first.temperatures]
    stages.append(
        Stage(
            name=f"{corpus}-calibration",
            module=f"{PACKAGE}.calibrate",
            arguments=_arguments(
                *(f"{log}/rounds.parquet" for log in logs), out=f"{corpus}-calibration"
            ),
            needs=tuple(logs),
        )
    )
    return stages


def stages(recipe: DemoRecipe) -> list[Stage]:
    """Of all corpora, in an order in which each stage's needs come first."""
    return [
        stage
        for corpus in recipe.corpora
        for stage in corpus_stages(corpus, batch=recipe.batch, seed=recipe.seed)
    ]


def last_checkpoint(folder: Path) -> Path:
    """The newest ``step_N`` of a training folder."""
    found = sorted(folder.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    if not found:
        raise ValueError(f"{folder}: no checkpoint; train the drafter first")
    return found[-1]
