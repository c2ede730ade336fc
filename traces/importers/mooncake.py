"""Mooncake traces: JSONL with timestamp (ms), input_length, output_length, hash_ids.

Knows that a hash stands for a block and all before it, the partly filled last block included.
"""

from __future__ import annotations

from pathlib import Path

from traces.importers.imported import Imported, json_lines, seconds, tokens
from traces.schema import Request
from traces.store import shown

BLOCK_TOKENS = 512


def read_mooncake(path: Path, *, block_tokens: int = BLOCK_TOKENS) -> Imported:
    """The requests of a Mooncake file, their times still rounded as the file has them."""
    imported = Imported(block_tokens=block_tokens)
    for number, (where, record) in enumerate(json_lines(path)):
        prompt_tokens = tokens(where, record, "input_length")
        hashes = record.get("hash_ids", [])
        if not isinstance(hashes, list) or not all(type(h) in (int, str) for h in hashes):
            raise ValueError(
                f"{where}: hash_ids {shown(hashes)} must be a list of numbers or texts"
            )
        most = -(-prompt_tokens // block_tokens)
        if len(hashes) > most:
            raise ValueError(
                f"{where}: {len(hashes)} hash_ids, but input_length {prompt_tokens} makes at most "
                f"{most} blocks of {block_tokens}; give the right --block-tokens"
            )
        imported.keep(
            Request(
                request_id=f"r{number}",
                arrival_s=seconds(where, record, "timestamp") / 1e3,
                prompt_tokens=prompt_tokens,
                output_tokens=tokens(where, record, "output_length"),
                prefix_hashes=hashes or None,
            )
        )
    return imported
