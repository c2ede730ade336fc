"""What the target answered: samples as append-only JSONL that survives a kill at any byte.

Owns the sample record, the log's growth and its resume, and reading it back for training. A line
counts once its newline is on disk; a half-written last line is cut off at the next start. Knows
nothing of how answers are made.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sglang_dspark.draft.data.prompts import json_lines, token_list
from sglang_dspark.files import make_folder, os_problem, read_json, refuse_unknown, write_json

FINISHES = ("stop", "length")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One answer of the target with the tokens that it saw before it."""

    id: str
    """The prompt's id."""
    turn: int = 0
    """Which answer of the conversation, from 0."""
    domain: str = "default"
    """The prompt's domain."""
    prompt: tuple[int, ...]
    """Tokens before the answer, chat template and earlier turns included."""
    response: tuple[int, ...]
    """The answer's tokens, its stop token included when ``finish`` is ``stop``."""
    finish: str
    """``stop``, or ``length`` where the token limit ended it."""
    text: str | None = None
    """The answer's text where later turns need it."""

    @property
    def key(self) -> tuple[str, int]:
        """What must not repeat in a log."""
        return self.id, self.turn

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and answer."""
        return self.prompt + self.response


def _sample(value: dict[str, Any], where: str) -> Sample:
    names = [field.name for field in dataclasses.fields(Sample)]
    refuse_unknown(value, names, where)
    for name in ("id", "prompt", "response", "finish"):
        if name not in value:
            raise ValueError(f"{where}: {name} is missing; a sample needs it, generate it again")
    if value["finish"] not in FINISHES:
        raise ValueError(f"{where}: finish {value['finish']!r} must be stop or length; mend it")
    turn, text = value.get("turn", 0), value.get("text")
    if type(turn) is not int or turn < 0:
        raise ValueError(f"{where}: turn {turn!r} must be a whole number, 0 or more; mend it")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where}: text must be a string or null; mend the line")
    return Sample(
        id=str(value["id"]),
        turn=turn,
        domain=str(value.get("domain", "default")),
        prompt=token_list(value["prompt"], f"{where}: prompt"),
        response=token_list(value["response"], f"{where}: response"),
        finish=value["finish"],
        text=text,
    )


def read_samples(path: str | Path, *, size_bytes: int | None = None) -> list[Sample]:
    """A log's samples in file order; ``ValueError`` for a malformed or a doubled line."""
    samples: list[Sample] = []
    first_seen: dict[tuple[str, int], str] = {}
    for where, value in json_lines(path, size_bytes=size_bytes):
        sample = _sample(value, where)
        if sample.key in first_seen:
            raise ValueError(
                f"{where}: id {sample.id!r} turn {sample.turn} is already on "
                f"{first_seen[sample.key]}; remove one"
            )
        first_seen[sample.key] = where
        samples.append(sample)
    return samples


def training_samples(path: str | Path) -> list[Sample]:
    """A finished log's samples by id and turn: their order is not the order of arrival."""
    samples = sorted(read_samples(path), key=lambda sample: sample.key)
    if not samples:
        raise ValueError(f"{path}: no samples; generate some first")
    return samples


class SampleLog:
    """A growing log. ``settings`` says what makes the samples; a resume must bring the same."""

    def __init__(self, path: str | Path, *, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        make_folder(self.path.parent)
        self._check_settings(settings)
        whole = self._cut_partial_line()
        self.samples = read_samples(self.path, size_bytes=whole) if whole else []
        try:
            self._file = open(self.path, "ab")  # noqa: SIM115  closed by __exit__
        except OSError as error:
            raise os_problem("write", self.path, error) from None

    def _check_settings(self, settings: dict[str, Any]) -> None:
        beside = self.path.with_name(self.path.name + ".settings.json")
        if not beside.exists():
            if self.path.exists() and self.path.stat().st_size:
                raise ValueError(
                    f"{self.path}: exists without {beside.name}, so it cannot be continued; "
                    "give a new file"
                )
            write_json(beside, settings)
            return
        refuse_other_settings(beside, settings, what=str(self.path), again="a new file")

    def _cut_partial_line(self) -> int:
        """Remove what follows the last newline; returns the bytes that stay."""
        if not self.path.exists():
            return 0
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        return whole

    def keep_first(self, count: int) -> None:
        """Forget all but the first ``count`` samples, on disk too."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        lines = [line for line in lines if line.strip()]
        os.truncate(self.path, sum(len(line) for line in lines[:count]))
        self.samples = self.samples[:count]

    def append(self, samples: Iterable[Sample]) -> None:
        """Add samples; on disk when this returns."""
        added = list(samples)
        lines = []
        for sample in added:
            record = {k: v for k, v in dataclasses.asdict(sample).items() if v is not None}
            lines.append(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
        try:
            self._file.write("".join(lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise os_problem("write", self.path, error) from None
        self.samples.extend(added)

    def __enter__(self) -> SampleLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def refuse_other_settings(
    written: Path, settings: dict[str, Any], *, what: str, again: str
) -> None:
    """``ValueError`` unless ``settings`` are those in the JSON file ``written``: what was begun
    with some goes on with the same."""
    before = read_json(written)
    for key in sorted({*before, *settings}):
        if before.get(key) != settings.get(key):
            raise ValueError(
                f"{what}: was begun with {key} {before.get(key)!r}, now it is "
                f"{settings.get(key)!r}; give the same or {again}"
            )
