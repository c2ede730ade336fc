"""What is to be measured and what has been: the grid of a profile and its journal.

Owns which points there are for a server's limits, and the journal beside the output, from which an
interrupted run goes on. Knows no HTTP and no fit.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_dspark.files import atomic_write, decode_record, os_problem, read_text
from sglang_dspark.runtime.profile.fit import DecodePoint, PrefillPoint


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server can hold."""

    gamma: int
    requests: int
    context_tokens: int
    """Of one request, prompt and answer."""
    pool_tokens: int
    """KV tokens of all requests together."""
    chunk_tokens: int
    """Prompt tokens of one prefill forward; 0 for no limit."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Decode points that one batch of requests serves: the lengths are pinned in turn."""

    requests: int
    prompt_tokens: int
    lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All points."""

    batches: tuple[Batch, ...]
    prefill_tokens: tuple[int, ...]

    @property
    def points(self) -> int:
        """How many."""
        return sum(len(batch.lengths) for batch in self.batches) + len(self.prefill_tokens)


def grid_of(limits: Limits, *, quick: bool, answer_tokens: int) -> Grid:
    """Powers of two in requests; of the lengths none, few, half and all; two contexts.

    Leaves out what the pool cannot hold with ``answer_tokens`` for every request. ``ValueError``
    when that leaves less than two batch sizes and one context.
    """
    gamma = limits.gamma
    lengths = {0, gamma // 2, gamma} if quick else {0, 1, 2, 3, gamma // 2, gamma - 1, gamma}
    kept = tuple(sorted(length for length in lengths if 0 <= length <= gamma))
    room = limits.context_tokens - answer_tokens
    short = min(256, max(room // 8, 1))
    long = min(8 * short, room)
    if room < 2:
        raise ValueError(
            f"a context of {limits.context_tokens} tokens leaves no room for answers of "
            f"{answer_tokens}; start the server with a larger --context-length or give fewer "
            "--steps"
        )

    def fits(requests: int, prompt: int) -> bool:
        return requests * (prompt + answer_tokens) <= 0.9 * limits.pool_tokens

    ladder = [r for r in _ladder(limits.requests, 4 if quick else 2) if fits(r, short)]
    if len(ladder) < 2 and limits.requests > 1:
        raise ValueError(
            f"a pool of {limits.pool_tokens} KV tokens holds {len(ladder)} batch sizes of the "
            "grid; give the server more memory (--mem-fraction-static, --max-total-tokens)"
        )
    batches = [Batch(requests=r, prompt_tokens=short, lengths=kept) for r in ladder]
    for requests in [r for r in ladder if fits(r, long)][:: 1 if quick else 2]:
        if long >= 2 * short:
            batches.append(
                Batch(requests=requests, prompt_tokens=long, lengths=(gamma // 2, gamma))
            )
    most = min(room, limits.chunk_tokens or room)
    sizes = sorted(
        {max(most // part, 1) for part in ((1, 4, 16) if quick else (1, 2, 4, 8, 16, 64))}
    )
    return Grid(batches=tuple(batches), prefill_tokens=tuple(sizes))


def _ladder(last: int, factor: int) -> list[int]:
    """1, factor, factor^2, ..., and the last."""
    sizes, size = [], 1
    while size < last:
        sizes.append(size)
        size *= factor
    return [*sizes, last]


class Journal:
    """What has been measured, a line each, in a file beside the output.

    The first line says of which server with which settings; a journal of another one is refused.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.decode: dict[tuple[int, int, float], DecodePoint] = {}
        """By requests, prompt tokens and length; of two measurements the later."""
        self.repeated: set[tuple[int, int, float]] = set()
        """Keys that were measured a second time."""
        self.prefill: dict[int, list[PrefillPoint]] = {}
        """By prompt tokens."""
        self.power: list[float] = []
        if path.exists():
            self._read(json.loads(json.dumps(identity)))
        else:
            self._append({"identity": identity})

    def _read(self, identity: dict[str, Any]) -> None:
        lines = read_text(self.path).splitlines()
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                if number == len(lines):  # the run was killed while it wrote
                    with atomic_write(self.path) as file:
                        file.writelines(f"{whole}\n" for whole in lines[:-1])
                    break
                raise ValueError(
                    f"{self.path}:{number}: not JSON; delete the journal to begin anew"
                ) from None
            if number == 1 and value.get("identity") != identity:
                raise ValueError(
                    f"{self.path}: was begun with {value.get('identity')}, this is {identity}; "
                    "delete the journal to begin anew, or give another -o"
                )
            where = f"{self.path}:{number}"
            if "decode" in value:
                point = decode_record(value["decode"], DecodePoint, where=where)
                self._remember(point, value["prompt_tokens"])
            if "prefill" in value:
                points = [decode_record(one, PrefillPoint, where=where) for one in value["prefill"]]
                self.prefill[points[0].tokens] = points
            self.power += [value["watts"]] if value.get("watts") else []

    def add_decode(self, point: DecodePoint, prompt_tokens: int, watts: float | None) -> None:
        """One decode point, and what the GPU drew meanwhile."""
        self._remember(point, prompt_tokens)
        self.power += [watts] if watts else []
        self._append(
            {"decode": dataclasses.asdict(point), "prompt_tokens": prompt_tokens, "watts": watts}
        )

    def _remember(self, point: DecodePoint, prompt_tokens: int) -> None:
        key = (point.requests, prompt_tokens, point.length)
        if key in self.decode:
            self.repeated.add(key)
        self.decode[key] = point

    def add_prefill(self, points: Sequence[PrefillPoint]) -> None:
        """The prompts of one size."""
        self.prefill[points[0].tokens] = list(points)
        self._append({"prefill": [dataclasses.asdict(point) for point in points]})

    def missing(self, batch: Batch) -> list[int]:
        """Lengths of a batch that are still to be measured."""
        done = self.decode
        return [k for k in batch.lengths if (batch.requests, batch.prompt_tokens, k) not in done]

    def _append(self, value: dict[str, Any]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(value, allow_nan=False) + "\n")
        except OSError as error:
            raise os_problem("write the journal", self.path, error) from None


def chunks_of(tokens: int, limits: Limits) -> int:
    """Forwards that a prompt takes."""
    return -(-tokens // limits.chunk_tokens) if limits.chunk_tokens else 1


def flattened(groups: Iterable[Sequence[PrefillPoint]]) -> list[PrefillPoint]:
    """All prompts."""
    return [point for group in groups for point in group]
