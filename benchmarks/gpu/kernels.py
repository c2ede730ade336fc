"""Time the Triton kernels against their PyTorch versions on one GPU, and check that they agree.

    python -m benchmarks.gpu.kernels -o benchmarks/results/gpu_kernels.json

Sequential head, survival with lengths, and rejection, at the vocabulary of Qwen3, gamma 7 and a
bfloat16 head of rank 256. Prints a table and writes the file. ``--tiny-on-cpu`` takes the same path
through Triton's interpreter and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if (
    "--tiny-on-cpu" in sys.argv
):  # whether kernels are interpreted is settled when triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton

from sglang_dspark.draft.model.heads import ConfidenceHead, MarkovHead
from sglang_dspark.files import write_json
from sglang_dspark.runtime.kernels import (
    head,
    lengths,
    rejection,
    triton_head,
    triton_lengths,
    triton_rejection,
)

REQUESTS = (1, 8, 32, 64, 128)
WARMUP, TIMED = 5, 30


class Shapes:
    """As much of a drafter's config as its heads read."""

    head = "vanilla"
    confidence_head_with_markov = True

    def __init__(self, *, vocabulary: int, slots: int, rank: int, hidden: int) -> None:
        self.vocab_size, self.slots = vocabulary, slots
        self.markov_rank, self.hidden_size = rank, hidden


FULL = Shapes(vocabulary=151_936, slots=7, rank=256, hidden=4096)
TINY = Shapes(vocabulary=700, slots=2, rank=16, hidden=32)


def milliseconds(call: Callable[[], Any], device: str) -> float:
    """Median of one call, by the GPU's own clock where there is one."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    for _ in range(WARMUP):
        call()
    times = []
    event: Any = torch.cuda.Event
    for _ in range(TIMED):
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def agree(name: str, ok: bool) -> None:
    """Stops with a sentence when two versions differ."""
    if not ok:
        raise SystemExit(f"{name}: Triton and PyTorch disagree; do not serve with these kernels")


def equal_share(one: torch.Tensor, other: torch.Tensor) -> float:
    """Share of equal elements: a draw at the edge of two tokens may fall to either."""
    return float((one == other).double().mean())


def time_head(shapes: Shapes, requests: int, device: str) -> dict[str, float]:
    """The whole block: K slots of bias, probabilities and draw; half the requests greedy."""
    config: Any = shapes
    markov = MarkovHead(config).to(device, torch.bfloat16)
    confidence = ConfidenceHead(config).to(device, torch.bfloat16)
    size = (requests, shapes.slots)
    logits_RKV = torch.randn(*size, shapes.vocab_size, device=device)
    given: dict[str, Any] = {
        "markov_head": markov,
        "confidence_head": confidence,
        "hidden_RKD": torch.randn(*size, shapes.hidden_size, device=device, dtype=torch.bfloat16),
        "anchors_R": torch.randint(shapes.vocab_size, (requests,), device=device),
        "chooser": head.RowChoice(
            temperature_R=(torch.arange(requests, device=device) % 2).float(),
            uniform_RK=torch.rand(size, dtype=torch.float64, device=device),
        ),
    }

    def block(logits: torch.Tensor, slot: head.FillsSlot) -> head.DraftBlock:
        return head.draft_block(logits_RKV=logits, slot=slot, **given)

    plain = block(logits_RKV.clone(), head.fill_slot)
    found = block(logits_RKV.clone(), triton_head.fill_slot)
    uniform_R = given["chooser"].uniform_RK.flatten()
    own_R = head.drawn(found.weights_RKV.flatten(0, 1), uniform_R=uniform_R)
    agree("head's draw", torch.equal(found.tokens_RK.flatten(), own_R))
    # Where a token differs, by the last bits of q at its edge, the slots after it may.
    same_RK = (found.tokens_RK == plain.tokens_RK).long().cumprod(-1).roll(1, -1).bool()
    same_RK[:, 0] = True
    for k in range(shapes.slots):
        rows = same_RK[:, k]
        q, expected = found.weights_RKV[rows, k], plain.weights_RKV[rows, k]
        agree("head", torch.allclose(q, expected, rtol=1e-4, atol=1e-9))
    share = equal_share(found.tokens_RK, plain.tokens_RK)
    del plain, found
    return {
        "pytorch_ms": milliseconds(lambda: block(logits_RKV, head.fill_slot), device),
        "triton_ms": milliseconds(lambda: block(logits_RKV, triton_head.fill_slot), device),
        "equal_share": share,
    }


def time_lengths(shapes: Shapes, requests: int, device: str) -> dict[str, float]:
    """Survival from logits, then half of all candidates chosen."""
    slots = shapes.slots
    given = {
        "logits_RK": torch.randn(requests, slots, device=device) + 1,
        "inverse_temperature_K": torch.linspace(0.8, 1.2, slots, device=device).double(),
        "bias_K": torch.zeros(slots, dtype=torch.float64, device=device),
    }
    budget = requests * slots // 2

    def plain() -> torch.Tensor:
        survival_RK = lengths.survival_torch(**given)
        return lengths.assign_lengths_torch(survival_RK=survival_RK, budget=budget)

    def found() -> torch.Tensor:
        survival_RK = triton_lengths.survival(**given)
        return triton_lengths.assign_lengths(survival_RK=survival_RK, budget=budget)

    share = equal_share(plain(), found())
    agree("lengths", share == 1)
    return {
        "pytorch_ms": milliseconds(plain, device),
        "triton_ms": milliseconds(found, device),
        "equal_share": share,
    }


def time_rejection(shapes: Shapes, requests: int, device: str) -> dict[str, float]:
    """Full width, p close to q, so that runs of every length occur."""
    size = (requests, shapes.slots)
    draft_RKV = (2 * torch.randn(*size, shapes.vocab_size, device=device)).softmax(-1)
    target_RTV = torch.cat([draft_RKV, draft_RKV[:, :1]], 1)
    target_RTV *= 0.5 + torch.rand_like(target_RTV)
    target_RTV /= target_RTV.sum(-1, keepdim=True)
    width = shapes.slots + 1
    given = {
        "drafts_RK": torch.multinomial(draft_RKV.flatten(0, 1), 1).view(size),
        "draft_RKV": draft_RKV,
        "target_MV": target_RTV.flatten(0, 1),
        "start_R": width * torch.arange(requests, device=device),
        "lengths_R": torch.full((requests,), shapes.slots, device=device),
        "uniform_RT": torch.rand(requests, width, dtype=torch.float64, device=device),
    }
    plain = rejection.verify_chain_torch(**given)
    found = triton_rejection.verify_chain(**given)
    share = equal_share(plain[1], found[1])
    agree("rejection", torch.equal(plain[0], found[0]) and share > 0.99)
    return {
        "pytorch_ms": milliseconds(lambda: rejection.verify_chain_torch(**given), device),
        "triton_ms": milliseconds(lambda: triton_rejection.verify_chain(**given), device),
        "equal_share": share,
    }


def main() -> None:
    """Time, check, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu_kernels.json"))
    parser.add_argument("--tiny-on-cpu", action="store_true", help="a smoke test, no timings")
    given = parser.parse_args()
    tiny = given.tiny_on_cpu
    if not tiny and not torch.cuda.is_available():
        print("no CUDA device here; --tiny-on-cpu tries the path without one", file=sys.stderr)
        raise SystemExit(2)
    device, shapes = ("cpu", TINY) if tiny else ("cuda", FULL)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    print(f"{'kernel':<10}{'requests':>9}{'PyTorch ms':>12}{'Triton ms':>11}{'equal':>9}")
    for name, timed in (
        ("head", time_head),
        ("lengths", time_lengths),
        ("rejection", time_rejection),
    ):
        for requests in (1, 3) if tiny else REQUESTS:
            found = timed(shapes, requests, device)
            rows.append({"kernel": name, "requests": requests, **found})
            print(
                f"{name:<10}{requests:>9}{found['pytorch_ms']:>12.3f}{found['triton_ms']:>11.3f}"
                f"{found['equal_share']:>9.4f}"
            )
    if not tiny:
        result = {
            "command": f"python -m benchmarks.gpu.kernels -o {given.output.name}",
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "vocabulary": shapes.vocab_size,
            "slots": shapes.slots,
            "rank": shapes.markov_rank,
            "rows": rows,
        }
        write_json(given.output, result)


if __name__ == "__main__":
    main()
