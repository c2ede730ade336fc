"""What the target is asked: prompts as JSONL, in DeepSpec's form, as plain text or as tokens.

Owns the prompt record and its reading and writing, with the line number in every complaint. Knows
no tokenizer, target or server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_dspark.files import atomic_write, read_text, refuse_unknown

_KINDS = ("turns", "text", "tokens")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt; exactly one of ``turns``, ``text`` and ``tokens`` is given."""

    id: str
    """Unique in its file; samples carry it."""
    domain: str = "default"
    """Name under which evaluation groups the prompt."""
    turns: tuple[str, ...] | None = None
    """The user's messages of a conversation, answered one after the other (DeepSpec's form)."""
    text: str | None = None
    """Plain text to continue, without a chat template."""
    tokens: tuple[int, ...] | None = None
    """Token ids to continue."""

    def __post_init__(self) -> None:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"prompt {self.id!r}: give exactly one of {', '.join(_KINDS)}")
        if not getattr(self, given[0]):
            raise ValueError(f"prompt {self.id!r}: {given[0]} is empty; give some text")

    @property
    def answers(self) -> int:
        """How many answers the prompt asks for: one per turn."""
        return len(self.turns) if self.turns is not None else 1


def json_lines(path: str | Path, *, size_bytes: int | None = None) -> Iterator[tuple[str, Any]]:
    """(``file:line``, object) for each line that is not blank; a malformed line is refused.

    ``size_bytes`` reads only so many leading bytes, where a writer may still be appending.
    """
    text = read_text(path)
    if size_bytes is not None:
        text = text.encode()[:size_bytes].decode()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not valid JSON ({error.msg}); mend the line") from None
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, got {type(value).__name__}; mend it")
        yield where, value


def token_list(value: Any, where: str) -> tuple[int, ...]:
    """``value`` as token ids; ``ValueError`` when it is not a list of whole numbers >= 0."""
    if isinstance(value, list) and all(type(t) is int and t >= 0 for t in value):
        return tuple(value)
    raise ValueError(f"{where}: expected a list of token ids (whole numbers, 0 or more); mend it")


def _prompt(value: dict[str, Any], number: int, where: str) -> Prompt:
    refuse_unknown(value, ("id", "domain", "prompt", *_KINDS), where)
    if "prompt" in value:
        value = {**value, "text": value["prompt"]}
    turns, text, tokens = (value.get(kind) for kind in _KINDS)
    if turns is not None and not (
        isinstance(turns, list) and all(isinstance(turn, str) for turn in turns)
    ):
        raise ValueError(f"{where}: turns must be a list of strings; mend the line")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where}: text must be a string; mend the line")
    try:
        return Prompt(
            id=str(value.get("id", f"line-{number:06d}")),
            domain=str(value.get("domain", "default")),
            turns=None if turns is None else tuple(turns),
            text=text,
            tokens=None if tokens is None else token_list(tokens, f"{where}: tokens"),
        )
    except ValueError as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from None


def read_prompts(path: str | Path, *, limit: int | None = None) -> list[Prompt]:
    """The prompts of a JSONL file, at most ``limit``; ids must not repeat."""
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for where, value in json_lines(path):
        if limit is not None and len(prompts) >= limit:
            break
        prompt = _prompt(value, len(prompts), where)
        if prompt.id in seen:
            raise ValueError(f"{where}: id {prompt.id!r} appears twice; give each prompt its own")
        seen.add(prompt.id)
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path}: no prompts; give one JSON object per line")
    return prompts


def write_prompts(path: str | Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts as JSONL that ``read_prompts`` reads back."""
    with atomic_write(path) as file:
        for prompt in prompts:
            kind = next(k for k in _KINDS if getattr(prompt, k) is not None)
            record = {"id": prompt.id, "domain": prompt.domain, kind: getattr(prompt, kind)}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
