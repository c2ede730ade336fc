"""The comparison with another simulator: what is counted, and what is said where it is missing."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from statistics import median

import pytest

from benchmarks import peers
from traces import load_trace
from traces.convert import main as convert


@pytest.mark.example
def test_start_up_is_not_counted() -> None:
    """4 s for 40,000 requests more, whatever both have in common."""
    assert peers.Cost(5.0, 9.0).rate == 10_000


@pytest.mark.example
def test_each_length_has_its_own_median() -> None:
    found = [peers.Cost(5.0, 9.0), peers.Cost(6.0, 7.0), peers.Cost(4.0, 8.0)]
    assert peers.pick(found, median) == peers.Cost(5.0, 8.0)
    assert peers.pick(found, min) == peers.Cost(4.0, 7.0)


@pytest.mark.example
def test_without_the_peer_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ValueError, match=r"^ai-dynamo-runtime is not installed here; run nox -s"):
        peers.check_installed()
    monkeypatch.setattr(metadata, "version", lambda name: "1.6.0")
    with pytest.raises(ValueError, match=r"is 1\.6\.0; compared is 1\.4\.2: run nox -s peers"):
        peers.check_installed()


@pytest.mark.law
def test_both_read_the_same_requests(tmp_path: Path) -> None:
    """Law: converted, the peer's trace has its lengths, and nobody shares a block."""
    theirs, ours = tmp_path / "mooncake.jsonl", tmp_path / "ours.jsonl"
    peers.write_mooncake(theirs, 50)
    assert convert([str(theirs), "-o", str(ours), "--format", "mooncake"]) == 0
    rows = [json.loads(line) for line in theirs.read_text().splitlines()]
    trace = load_trace(ours)
    assert trace.prompt_tokens.tolist() == [row["input_length"] for row in rows]
    assert trace.output_tokens.tolist() == [row["output_length"] for row in rows]
    assert trace.n_blocks == sum(len(row["hash_ids"]) for row in rows)
