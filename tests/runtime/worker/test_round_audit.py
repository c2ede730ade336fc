"""A round's operators, host waits and allocations: as written down, whatever the requests.

``ROUND_AUDIT=FILE`` writes what was found to FILE, which is how ``benchmarks/results`` got its
table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.provenance import ROOT, provenance
from benchmarks.round_audit import FILE, Round, counting
from sglang_dspark.files import write_json
from tests.runtime.servers import Nursery, dspark_arguments
from tests.runtime.serving_client import Job, serve
from tests.runtime.serving_scenes import Greedy, Pair, write_costs

SHIPPED = ROOT / "benchmarks" / "results" / "round_audit.json"
BATCHES = (1, 3, 8)
PARTS = ("begin", "draft", "plan", "verify", "commit", "prefill")
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.6},
    "filtered": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
}
"""The last is what SGLang's endpoints fill in for Qwen3."""


def audited(
    policy: str, folder: Path, pair: Pair, nursery: Nursery, greedy: Greedy
) -> list[dict[str, Any]]:
    """Every round of a server, its kind of sampling beside it."""
    costs = write_costs(folder / "costs.json", token_share=0.2, requests=8)
    file = folder / "rounds.jsonl"
    found: list[dict[str, Any]] = []
    arguments = dspark_arguments(
        pair.target_folder, pair.drafter_folder, policy=policy, cost_model=costs
    )
    with nursery.start(
        arguments, environment={FILE: str(file)}, patch="benchmarks.round_audit:watch"
    ) as server:
        for kind, sampling in KINDS.items():
            for batch in BATCHES:
                jobs = [
                    Job(prompt=one, sampling={**sampling, "max_new_tokens": 32, "ignore_eos": True})
                    for one in greedy.prompts[:batch]
                ]
                serve(server.url, jobs, concurrency=batch)
            lines = file.read_text().splitlines()[len(found) :]
            found += [json.loads(line) | {"kind": kind} for line in lines]
    return found


@pytest.fixture(scope="module")
def rounds(
    tmp_path_factory: pytest.TempPathFactory, pair: Pair, nursery: Nursery, greedy: Greedy
) -> list[dict[str, Any]]:
    """Of a server that verifies everything, and of one that trims."""
    return [
        one
        for policy in ("fixed", "global")
        for one in audited(policy, tmp_path_factory.mktemp(policy), pair, nursery, greedy)
        # A server warms itself up by a request of its own.
        if one["sampling"]
        == [KINDS[one["kind"]]["temperature"], KINDS[one["kind"]].get("top_p", 1)]
    ]


def table(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each kind of sampling and shape: the most of any of its rounds."""
    rows: list[dict[str, Any]] = []
    for kind, shape in sorted({(one["kind"], one["shape"]) for one in rounds}):
        these = [one for one in rounds if (one["kind"], one["shape"]) == (kind, shape)]
        parts = {
            part: most([one["parts"].get(part, {}) for one in these])
            for part in PARTS
            if any(part in one["parts"] for one in these)
        }
        waits = max(
            ([wait for wait in one["host_waits"] if "in SGLang" not in wait] for one in these),
            key=len,
        )
        rows.append({"sampling": kind, "shape": shape, "parts": parts, "host_waits": waits})
        rows[-1]["launches"] = sum(launched(part) for part in parts.values())
    return rows


def most(counts: list[dict[str, int]]) -> dict[str, int]:
    """The largest of each count; SGLang's own are left out, see ``round_audit``."""
    names = sorted({name for one in counts for name in one if not name.startswith("sglang")})
    return {name: max(one.get(name, 0) for one in counts) for name in names}


def launched(part: dict[str, int]) -> int:
    """On a GPU, models' passes apart: three Triton kernels a slot, two an acceptance."""
    slots, acceptances = part.get("kernels_slots", 0), part.get("kernels_acceptances", 0)
    return part.get("operators", 0) + 3 * slots + 2 * acceptances


@pytest.mark.law
def test_nothing_of_a_round_grows_with_its_requests(rounds: list[dict[str, Any]]) -> None:
    """Law: a round of eight asks for no more than the most that a round of up to three does."""
    few = table([one for one in rounds if one["requests"] <= 3])
    many = table([one for one in rounds if one["requests"] > 3])
    assert {one["requests"] for one in rounds} >= set(BATCHES)
    assert [(one["sampling"], one["shape"]) for one in few] == [
        (kind, shape) for kind in sorted(KINDS) for shape in ("prefill", "ragged", "uniform")
    ]
    assert few == many


@pytest.mark.law
def test_a_round_waits_for_the_device_once(rounds: list[dict[str, Any]]) -> None:
    """Law: for the confidences, and for nothing else, however requests sample; a prefill never."""
    for row in table(rounds):
        expected = [] if row["shape"] == "prefill" else ["plan: cpu"]
        assert row["host_waits"] == expected, (row["sampling"], row["shape"])


@pytest.mark.golden
def test_a_round_asks_for_what_is_written_down(rounds: list[dict[str, Any]]) -> None:
    found = table(rounds)
    if file := os.environ.get("ROUND_AUDIT"):
        command = "ROUND_AUDIT=FILE pytest tests/runtime/worker/test_round_audit.py"
        write_json(Path(file), provenance(command) | {"rounds": found})
    assert json.loads(SHIPPED.read_text(encoding="utf-8"))["rounds"] == found


@pytest.mark.example
def test_what_waits_is_seen_and_what_does_not_is_not() -> None:
    device = torch.arange(6)
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("item", lambda: device.sum().item()),
        ("__bool__", lambda: bool((device > 2).all())),
        ("nonzero", lambda: (device > 2).nonzero()),
        ("cpu", lambda: (device + 1).cpu().numpy()),
        ("indexing by a mask", lambda: device[device > 2]),
        ("blocking copy to the device", lambda: torch.tensor([1, 2]).to("cpu")),
        ("blocking copy to the device", lambda: torch.tensor([1, 2], device="cpu")),
        ("repeat_interleave", lambda: device.repeat_interleave(device)),
    ]
    harmless: list[Callable[[], Any]] = [
        lambda: torch.tensor([1, 2]).tolist(),
        lambda: torch.from_numpy(np.arange(3)).sum().item(),
        lambda: torch.tensor([1, 2]).to("cpu", non_blocking=True),
        lambda: device.masked_fill(device > 2, 0),
        lambda: device.repeat_interleave(device, output_size=15),
        lambda: device[torch.tensor([1, 2], device=None)],
    ]
    for expected, call in [*cases, *((None, call) for call in harmless)]:
        counted = Round(1)
        with counting(counted):
            call()
        assert counted.waits == ([] if expected is None else [f"begin: {expected}"])
    counted = Round(1)
    with counting(counted):
        (device.view(2, 3).T + 1).mul_(2)
    assert counted.told()["parts"] == {"begin": {"operators": 2, "allocations": 1}}
