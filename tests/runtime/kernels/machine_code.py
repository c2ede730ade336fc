"""The machine code of the Triton kernels, for GPUs that need not be there, within its bounds.

Collected by no name: ``test_triton`` runs this file in a process of its own, without Triton's
interpreter. What the interpreter forgives, types and shapes above all, the compiler does not.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.compiled import command, traffic
from benchmarks.compiled.launches import Shape, caught, decode_round, version
from benchmarks.provenance import ROOT
from sglang_dspark.runtime.kernels import head, rejection, triton_head, triton_rejection
from sglang_dspark.runtime.worker import warm_up
from tests.runtime.kernels.kernel_cases import heads

CAPABILITIES = (80, 90, 100)
SHIPPED = ROOT / "benchmarks" / "results" / "compiled_kernels.json"


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    """Everything compiled afresh, unless Triton's own cache has it."""
    return command.measure(CAPABILITIES)


@pytest.mark.law
def test_every_kernel_compiles_for_three_generations_within_its_bounds(
    table: dict[str, Any],
) -> None:
    """Law: no spill, no TF32, half of the shared memory at most, eight warps resident."""
    for capability in CAPABILITIES:
        rows = [row for row in table["compiled"] if row["capability"] == capability]
        assert {row["kernel"] for row in rows} == set(traffic.COUNTED)
        wide = [row for row in rows if row["kernel"] == "_bias" and row["constants"]["BIASED"]]
        halves = [row for row in wide if row["constants"]["BLOCK_r"] == 64]
        assert {row["constants"]["BLOCK_R"] for row in halves} == {16, 32, 64}
        assert all(row["tensor_cores"] for row in halves), "bfloat16 without tensor cores"
    assert [row for row in table["compiled"] if row["broken"]] == []


@pytest.mark.law
def test_the_bounds_can_be_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: too few registers are seen as a spill, and TF32 as what it is."""
    original = triton_head._bias.__class__.__getitem__

    def starved(kernel: Any, grid: Any) -> Any:
        launch = original(kernel, grid)
        return lambda *args, **given: launch(*args, **given, maxnreg=64)

    monkeypatch.setattr(triton_head._bias.__class__, "__getitem__", starved)
    with caught(80) as found:
        decode_round(Shape(requests=33), slots=1)
    row = command.used(found[0], 80)
    assert row["spilled_bytes"] > 0
    assert command.broken(row) == [f"spills {row['spilled_bytes']} bytes"]
    assert command.broken({**row, "spilled_bytes": 0, "tf32": True}) == ["multiplies in TF32"]
    assert len(command.broken({**row, "resident_warps": 7, "shared_bytes": 120_000})) == 3


@pytest.mark.example
def test_the_shipped_table_is_todays(table: dict[str, Any]) -> None:
    """Golden: the same kernels and bytes; the same registers where Triton is the same."""
    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert shipped["bytes"] == table["bytes"]
    assert shipped["bounds"] == json.loads(json.dumps(table["bounds"]))
    if shipped["triton"] == version():
        assert shipped["compiled"] == json.loads(json.dumps(table["compiled"]))


def variants(*batches: int) -> set[tuple[str, str]]:
    """What Triton compiles for rounds of so many requests."""
    found = set()
    for requests in batches:
        shape = Shape(requests=requests, vocabulary=512, rank=64, device="cpu")
        with caught(90, build=False) as launches:
            decode_round(shape)
        found |= {(launch.kernel, launch.variant) for launch in launches}
    return found


@pytest.mark.law
def test_a_served_batch_of_any_size_compiles_nothing_that_three_have_not() -> None:
    """Law: the warm-up's batches reach every kernel, for every slot and every batch."""
    warm = variants(*warm_up.BATCHES)
    assert variants(2, 3, 7, 8, 15, 16, 24, 32, 40, 48, 64, 128) <= warm
    names = [name for name, _ in warm]
    assert {name: names.count(name) for name in traffic.COUNTED} == {
        name: 3 if name == "_bias" else 1 for name in traffic.COUNTED
    }


@pytest.mark.law
def test_the_warm_up_compiles_what_rounds_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: of head and acceptance; the lengths' kernels are the steer lane's."""
    markov, confidence = heads("vanilla", vocabulary=512, rank=64, dtype=torch.bfloat16)
    drafter = SimpleNamespace(
        gamma=7,
        vocab_size=512,
        fc=torch.nn.Linear(12, 12, dtype=torch.bfloat16),
        markov_head=markov,
        confidence_head=confidence,
    )
    monkeypatch.setattr(head, "fill_slot", triton_head.fill_slot)
    monkeypatch.setattr(rejection, "verify_chain_torch", triton_rejection.verify_chain)
    # Nothing runs, so what is drawn is whatever the memory held.
    monkeypatch.setattr(torch, "empty", torch.zeros)
    with caught(90, build=False) as launches:
        for requests in warm_up.BATCHES:
            warm_up._launch(drafter, requests, torch.device("cpu"))
    found = {(launch.kernel, launch.variant) for launch in launches}
    rounds = {one for one in variants(*warm_up.BATCHES) if one[0] not in ("_survival", "_assign")}
    assert found == rounds


@pytest.mark.law
def test_nothing_is_copied_before_a_launch() -> None:
    """Law: head and acceptance launch on the tensors that they are given, not on copies."""
    shape = Shape(requests=4, vocabulary=512, rank=64, device="cpu")
    with caught(90, build=False) as launches:
        decode_round(shape)
    by_kernel = {launch.kernel: launch.arguments for launch in launches}
    assert by_kernel["_bias"]["logits"].dtype == torch.float32
    assert by_kernel["_bias"]["weight"].shape == (512, 64)
    assert by_kernel["_accept"]["draft"].data_ptr() == by_kernel["_next"]["draft"].data_ptr()
