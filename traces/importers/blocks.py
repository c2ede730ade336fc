"""Prefix hashes of a source: how many tokens each stands for, and that each stands for all before.

Owns the two ways in which hit rates come out wrong: a block size that is another format's, and
hashes that stand for their block alone. Knows no format.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traces.columns import Ints
from traces.importers.imported import Imported

_SIZES = tuple(1 << power for power in range(17))
_EVIDENCE = 4
"""Hashes of one request from which a size of powers of two is told from its neighbours."""


def settle_blocks(imported: Imported, asked: int | None) -> None:
    """Find the block size, check every count against it, and chain hashes that are not.

    ``asked`` is ``--block-tokens``. ``ValueError`` naming the row where counts and size disagree.
    """
    rows = [row for row, request in enumerate(imported.requests) if request.prefix_hashes]
    if not rows:
        imported.block_tokens = None
        return
    listed = np.array([len(imported.requests[row].prefix_hashes or ()) for row in rows])
    prompts = np.array([imported.requests[row].prompt_tokens for row in rows])
    if asked is not None and imported.carries_blocks and asked != imported.block_tokens:
        raise ValueError(
            f"--block-tokens {asked}: {imported.where(rows[0])} says {imported.block_tokens} "
            "itself; leave it out"
        )
    stated = asked or imported.block_tokens
    if asked is None and not imported.carries_blocks:
        told = _told(listed, prompts, imported.block_tokens)
        if told is not None and told != stated:
            imported.notes[f"blocks of {told} tokens, told from the counts of hashes"] = len(rows)
            stated = told
    if stated is None:
        raise ValueError(
            f"{imported.where(rows[0])}: hashes of blocks whose size is not said; "
            "give --block-tokens"
        )
    imported.block_tokens = stated
    _check_most(imported, rows, listed, prompts, stated)
    few = listed < prompts // stated
    if few.any():
        row = rows[int(np.argmax(few))]
        if asked is None and not imported.carries_blocks:
            raise ValueError(
                f"{imported.where(row)}: {listed[np.argmax(few)]} hash_ids, but "
                f"{prompts[np.argmax(few)]} tokens make {-(-prompts[np.argmax(few)] // stated)} "
                f"blocks of {stated}; give the right --block-tokens, or --block-tokens {stated} if "
                "the rest is meant to be shared with nobody"
            )
        imported.notes["fewer hashes than blocks: the rest of those prompts is not shared"] = int(
            few.sum()
        )
    _chain(imported)


def _told(listed: Ints, prompts: Ints, documented: int | None) -> int | None:
    """The block size that all counts agree on; the documented one where they allow it.

    A prompt of n tokens has n / size hashes, rounded up where the partly filled last block has one,
    else down. None where no size or several fit, or no request has enough hashes to tell.
    """

    def fits(size: int) -> bool:
        return bool(((listed >= prompts // size) & (listed <= -(-prompts // size))).all())

    if documented is not None and fits(documented):
        return documented
    if listed.max() < _EVIDENCE:
        return None
    found = [size for size in _SIZES if fits(size)]
    return found[0] if len(found) == 1 else None


def _check_most(
    imported: Imported, rows: list[int], listed: Ints, prompts: Ints, size: int
) -> None:
    most = -(-prompts // size)
    many = listed > most
    if many.any():
        at = int(np.argmax(many))
        raise ValueError(
            f"{imported.where(rows[at])}: {listed[at]} hash_ids, but input_length {prompts[at]} "
            f"makes at most {most[at]} blocks of {size}; give the right --block-tokens"
        )


def _chain(imported: Imported) -> None:
    """Number hashes by all that stand before them, where the source's stand for one block alone."""
    lists = [request.prefix_hashes for request in imported.requests if request.prefix_hashes]
    if _chained(lists):
        for request in imported.requests:
            if request.prefix_hashes:
                request.prefix_hashes = [_small(h) for h in request.prefix_hashes]
        return
    numbers: dict[tuple[int, int | str], int] = {}
    for request in imported.requests:
        before = -1
        chained: list[int | str] = []
        for value in request.prefix_hashes or ():
            before = numbers.setdefault((before, value), len(numbers))
            chained.append(before)
        if chained:
            request.prefix_hashes = chained
    imported.notes["hashes that stand for their block alone, chained to what is before them"] = sum(
        map(len, lists)
    )


def _chained(lists: Iterable[list[int | str]]) -> bool:
    """Whether every hash always follows the same one."""
    first: dict[int | str, int | str | None] = {}
    for hashes in lists:
        before: int | str | None = None
        for value in hashes:
            if first.setdefault(value, before) != before:
                return False
            before = value
    return True


def _small(value: int | str) -> int | str:
    """Numbers beyond 63 bits, as some hash functions make, become texts."""
    return value if isinstance(value, str) or -(2**63) <= value < 2**63 else str(value)
