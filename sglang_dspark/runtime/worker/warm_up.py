"""Everything that is compiled at its first use, used before the first request.

Owns which batches reach every kernel: the head's is compiled once for up to 16, 32 and more
requests (``tests/runtime/kernels/machine_code.py`` holds that against every batch). On a processor
there is nothing to compile but the policy; one request walks the same code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sglang_dspark.core.planner import Planner
from sglang_dspark.core.state import BatchState
from sglang_dspark.runtime.kernels.head import RowChoice, draft_block
from sglang_dspark.runtime.kernels.rejection import verify_chain

BATCHES = (1, 17, 33)
"""Requests of a round that together compile all that any round needs."""


def decide_once(planner: Planner) -> None:
    """One decision about one request, which numba compiles where its cache is cold."""
    nothing_RK = np.full((1, planner.gamma), np.nan)
    planner.plan(
        BatchState(
            logits=np.zeros((1, planner.gamma)),
            stale_logits=nothing_RK,
            stale_age=np.zeros(1, dtype=np.int64),
            context_tokens=np.zeros(1, dtype=np.int64),
        )
    )


def launch_once(drafter: Any, *, device: torch.device, most_requests: int) -> None:
    """Head and acceptance for made-up batches; nothing of them is kept."""
    for requests in BATCHES if device.type == "cuda" else BATCHES[:1]:
        if requests <= max(most_requests, BATCHES[0]):
            _launch(drafter, requests, device)


@torch.no_grad()
def _launch(drafter: Any, requests: int, device: torch.device) -> None:
    gamma, vocab_size, weight = drafter.gamma, drafter.vocab_size, drafter.fc.weight
    uniform_RT = torch.full((requests, gamma + 1), 0.5, dtype=torch.float64, device=device)
    block = draft_block(
        markov_head=drafter.markov_head,
        confidence_head=drafter.confidence_head,
        hidden_RKD=weight.new_zeros(requests, gamma, weight.shape[0]),
        logits_RKV=torch.zeros(requests, gamma, vocab_size, device=device),
        anchors_R=torch.zeros(requests, dtype=torch.int64, device=device),
        chooser=RowChoice(
            temperature_R=torch.ones(requests, device=device),
            uniform_RK=uniform_RT[:, :gamma].contiguous(),
        ),
    )
    # One draft of each is verified, the others are cut.
    verify_chain(
        drafts_RK=block.tokens_RK,
        draft_RKV=block.weights_RKV,
        target_MV=torch.full((2 * requests, vocab_size), 1 / vocab_size, device=device),
        start_R=2 * torch.arange(requests, device=device),
        lengths_R=torch.ones(requests, dtype=torch.int64, device=device),
        uniform_RT=uniform_RT,
    )
