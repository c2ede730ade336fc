"""Run a drafter over prompts and record every round, resumably.

Owns how prompts become batches, conversations and logged rounds. A batch's outcome depends on the
batch alone (its prompts, its own seed), and each is written whole, so an evaluation that was killed
goes on where it was and ends with the same log. Knows no statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sglang_dspark.draft.data.answers import prompt_tokens, stop_tokens
from sglang_dspark.draft.data.prompts import Prompt
from sglang_dspark.draft.evaluation.decode import PARTS, VerifyAll, speculate
from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.draft.model.target import Target
from sglang_dspark.files import make_folder, read_json, write_json
from sglang_dspark.logs.acceptance_log import read_rounds, write_rounds
from sglang_dspark.logs.rounds import Rounds, join_rounds


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How prompts are decoded."""

    sampling: Sampling
    new_tokens: int = 128
    """At most, per answer."""
    batch: int = 32
    """Prompts decoded together."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """Every round of an evaluation, all of them fully verified."""

    rounds: Rounds
    tokens: int
    """Committed, over all answers."""
    batch_rounds: int
    """Rounds that the batches took: what ``seconds`` were spent on."""
    seconds: dict[str, float]
    """Wall time by part of a round, see ``decode.PARTS``."""


def record_batch(
    *,
    target: Target,
    drafter: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    settings: Settings,
    number: int,
) -> Recording:
    """Answer every turn of the prompts; ``number`` is the batch's own, for its seed."""
    answers: list[list[str]] = [[] for _ in prompts]
    parts, tokens, batch_rounds = [], 0, 0
    seconds = dict.fromkeys(PARTS, 0.0)
    stops = stop_tokens(target, tokenizer)
    for turn in range(max(prompt.answers for prompt in prompts)):
        asked = [i for i, prompt in enumerate(prompts) if prompt.answers > turn]
        decoded = speculate(
            target=target,
            drafter=drafter,
            prompts=[prompt_tokens(tokenizer, prompts[i], answers[i]) for i in asked],
            sampling=settings.sampling,
            planner=VerifyAll(drafter.config.gamma),
            new_tokens=settings.new_tokens,
            stops=stops,
            generator=torch.Generator().manual_seed(
                (settings.seed * 1_000_003 + number) * 1_009 + turn
            ),
        )
        for i, output in zip(asked, decoded.tokens, strict=True):
            tokens += len(output)
            if prompts[i].answers > 1:
                body = output[:-1] if output[-1] in stops else output
                answers[i].append(tokenizer.decode(body))
        log = decoded.log
        if len(log.step):
            batch_rounds += int(log.step.max()) + 1
        for part, spent_s in decoded.seconds.items():
            seconds[part] += spent_s
        domains = np.array([prompts[i].domain for i in asked])
        parts.append(
            Rounds(
                request=log.request,
                step=log.step,
                domain=domains[log.request],
                logits=log.logits.astype(np.float32).astype(np.float64),
                accepted=log.accepted,
                temperature=np.full(len(log.step), settings.sampling.temperature),
                context_tokens=log.context,
            )
        )
    return Recording(
        rounds=join_rounds(parts), tokens=tokens, batch_rounds=batch_rounds, seconds=seconds
    )


def join_recordings(parts: Sequence[Recording]) -> Recording:
    """One after the other."""
    return Recording(
        rounds=join_rounds([part.rounds for part in parts]),
        tokens=sum(part.tokens for part in parts),
        batch_rounds=sum(part.batch_rounds for part in parts),
        seconds={name: sum(part.seconds[name] for part in parts) for name in PARTS},
    )


def _stored(folder: Path, number: int) -> Recording | None:
    """A batch that an earlier start finished. The log is written last, so it vouches for both."""
    log = folder / f"{number:06d}.parquet"
    if not log.exists():
        return None
    beside = read_json(log.with_suffix(".json"))
    return Recording(rounds=read_rounds(log), **beside)


def record(
    *,
    target: Target,
    drafter: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    settings: Settings,
    folder: str | Path | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Recording:
    """Every batch; ``folder`` keeps those done. ``progress`` hears how many prompts were."""
    parts: list[Recording] = []
    goal = None if folder is None else make_folder(folder)
    for number, first in enumerate(range(0, len(prompts), settings.batch)):
        group = prompts[first : first + settings.batch]
        part = None if goal is None else _stored(goal, number)
        if part is None:
            part = record_batch(
                target=target,
                drafter=drafter,
                tokenizer=tokenizer,
                prompts=group,
                settings=settings,
                number=number,
            )
            if goal is not None and len(part.rounds):
                rest = {name: getattr(part, name) for name in ("tokens", "batch_rounds", "seconds")}
                write_json(goal / f"{number:06d}.json", rest)
                write_rounds(goal / f"{number:06d}.parquet", part.rounds)
        parts.append(part)
        progress(len(group))
    if not sum(len(part.rounds) for part in parts):
        raise ValueError("no round was decoded; ask for 2 or more new tokens")
    return join_recordings(parts)
