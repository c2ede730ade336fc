"""Which prompts shared how much, finer than the recorded hashes say it.

A recorded hash stands for 64 tokens, while a server with pages of one token shares any beginning.
How many tokens of a prompt were cached was measured, however: what goes beyond the whole blocks it
had in common with earlier prompts it shared with one that began with the same blocks. Owns the
names of finer blocks that say so. Knows no file and no time.

A prompt that continues an earlier *answer* shares what no prompt before it held: such tokens are
prefilled in a replay, and ``lost`` counts them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

_MOST_BLOCKS = 20_000_000
"""Names in all: coarser blocks are taken beyond it."""


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """Names of the leading blocks of every prompt."""

    block_tokens: int
    names: list[tuple[int, ...]]
    """Of every request's whole blocks; equal name, equal prompt up to there."""
    lost: int
    """Tokens that were cached though no earlier prompt held them."""


def grain_of(prompt_tokens: Sequence[int], *, page_size: int, block_tokens: int) -> int:
    """Tokens of a finer block: a multiple of the page that divides a recorded block, as fine as
    the number of prompts allows; ``block_tokens`` where there is none."""
    total = sum(prompt_tokens)
    for grain in range(page_size, block_tokens, page_size):
        if block_tokens % grain == 0 and total / grain <= _MOST_BLOCKS:
            return grain
    return block_tokens


def refined(
    prompt_tokens: Sequence[int],
    hashes: Sequence[Sequence[int | str]],
    cached_tokens: Sequence[int | None],
    *,
    block_tokens: int,
    grain: int,
) -> Prefixes:
    """Blocks of ``grain`` tokens such that each prompt shares what was measured.

    Requests come in order of arrival. Whole recorded blocks that were seen before are shared
    whatever was measured, since a cache may have lost them by then: that is the replay's to find.
    """
    each = block_tokens // grain
    fresh = itertools.count()
    of_hash: dict[int | str, tuple[int, ...]] = {}
    latest: dict[int | str | None, tuple[int, ...]] = {}
    names: list[tuple[int, ...]] = []
    lost = 0
    for tokens, listed, cached in zip(prompt_tokens, hashes, cached_tokens, strict=True):
        path: list[int] = []
        known = 0
        while known < len(listed) and listed[known] in of_hash:
            path += of_hash[listed[known]]
            known += 1
        whole = tokens // grain
        wanted = min((cached or 0) // grain, whole)
        if wanted > len(path):
            donor = latest.get(listed[known - 1] if known else None, ())
            # No further than the end of the block: there the hashes differ.
            end = min(wanted, len(path) + each)
            path += donor[len(path) : end]
            lost += grain * (wanted - len(path))
        path += itertools.islice(fresh, max(whole - len(path), 0))
        path = path[:whole]
        for number, value in enumerate(listed):
            inside = tuple(path[number * each : (number + 1) * each])
            if len(inside) == each:
                of_hash.setdefault(value, inside)
        names.append(tuple(path))
        for key in (None, *listed):
            latest[key] = names[-1]
    return Prefixes(block_tokens=grain, names=names, lost=lost)
