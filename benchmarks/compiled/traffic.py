"""The bytes that a launch asks for, and the fewest that any kernel with its task could.

Owns one line of arithmetic for each kernel, in the names of its parameters;
``tests/runtime/kernels/counted_bytes.py`` counts the same under Triton's interpreter. What depends
on the data is counted at its most: a residual is read wherever one may be drawn from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.compiled.launches import Launch

F32, F64, I64 = 4, 8, 8
STATISTICS = 12
"""A tile's maximum, sum and best token."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of one launch."""

    asked: int
    """By all loads and stores that no mask takes out. What is asked for again may be in a cache."""
    distinct: int
    """Every byte read once and every byte written once: what a GPU's memory has to move at least,
    and all it moves where caches hold what is asked for again."""


def of(launch: Launch) -> Traffic:
    """The traffic of one launch."""
    return COUNTED[launch.kernel](launch)


def _bias(launch: Launch) -> Traffic:
    given = launch.arguments
    requests, vocabulary, tiles = given["requests"], given["vocabulary"], given["tiles"]
    logits = (2 if given["BIASED"] else 1) * F32 * requests * vocabulary
    found = STATISTICS * requests * tiles
    rank, element = given["rank"] if given["BIASED"] else 0, given["weight"].element_size()
    latent, weight = element * requests * rank, element * vocabulary * rank
    heat = F32 * requests
    return Traffic(
        asked=logits + found + tiles * (latent + heat) + launch.grid[0] * weight,
        distinct=logits + found + latent + heat + weight,
    )


def _probabilities(launch: Launch) -> Traffic:
    given = launch.arguments
    requests, programs = launch.grid
    logits = 2 * F32 * requests * given["vocabulary"]
    read = requests * (F32 + STATISTICS * given["tiles"])
    sums = F64 * requests * programs
    return Traffic(asked=logits + sums + programs * read, distinct=logits + sums + read)


def _draw(launch: Launch) -> Traffic:
    given = launch.arguments
    tile = F32 * min(given["BLOCK_V"], given["vocabulary"])
    each = F64 * given["draw_tiles"] + F64 + tile + I64
    return _once(launch.grid[0] * each)


def _accept(launch: Launch) -> Traffic:
    given = launch.arguments
    requests, programs = launch.grid
    read = requests * (2 * I64 + given["columns"] * (I64 + 2 * F32 + F64))
    rows = 2 * F32 * requests * given["vocabulary"]
    written = requests * (I64 + 2 * F64 * programs)
    # The drafts' own p and q lie in the rows, the first position's in those that are summed.
    first = 2 * F32 * requests
    return Traffic(asked=programs * read + rows + written, distinct=read - first + rows + written)


def _next(launch: Launch) -> Traffic:
    given = launch.arguments
    tile = 2 * F32 * min(given["BLOCK_V"], given["vocabulary"])
    each = 3 * I64 + 2 * F64 * given["tiles"] + F64 + tile + I64
    return _once(launch.grid[0] * each)


def _survival(launch: Launch) -> Traffic:
    given = launch.arguments
    requests, columns = given["requests"], given["columns"]
    element = given["logits"].element_size()
    tables = 2 * F64 * columns
    rows = (element + F64) * requests * columns
    return Traffic(
        asked=rows + element * requests + launch.grid[0] * tables, distinct=rows + tables
    )


def _assign(launch: Launch) -> Traffic:
    given = launch.arguments
    own, all_of_them = F64 * given["columns"], F64 * given["columns"] * given["requests"]
    requests = given["requests"]
    return Traffic(
        asked=requests * (own + all_of_them + I64), distinct=all_of_them + I64 * requests
    )


def _once(bytes_moved: int) -> Traffic:
    return Traffic(asked=bytes_moved, distinct=bytes_moved)


COUNTED: dict[str, Callable[[Launch], Traffic]] = {
    "_bias": _bias,
    "_probabilities": _probabilities,
    "_draw": _draw,
    "_accept": _accept,
    "_next": _next,
    "_survival": _survival,
    "_assign": _assign,
}


def fused_slot(shape: Any) -> int:
    """Bytes of a slot that nobody has written yet: logits read once as the bfloat16 that lm_head
    makes, W2 once, nothing of the vocabulary's size written. What three launches are held against.
    """
    return 2 * shape.requests * shape.vocabulary + shape.head.itemsize * (
        shape.vocabulary * shape.rank
    )
