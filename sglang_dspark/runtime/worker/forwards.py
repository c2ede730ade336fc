"""The three forward passes of a round: a block of drafts, a uniform verify, a ragged verify.

Owns how each is described to SGLang's runners, attention backends and CUDA graphs. Knows neither
policies nor sampling.

Shapes: R requests, K draft positions, M = sum(1 + l_r) rows the target computes, D hidden,
C captured, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
)
from sglang.srt.speculative.dflash_info import DFlashVerifyInput
from torch import Tensor

from sglang_dspark.runtime.worker.sampling.rows import on_device


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Where each request's rows of a step lie: row 0 is its anchor, row j its draft token j."""

    lengths_R: Tensor
    """Draft tokens to verify, int64 on the device."""
    lengths: list[int]
    """The same on the host."""
    start_R: Tensor
    """First row of each request."""
    request_M: Tensor
    """Request of each row."""
    column_M: Tensor
    """Row within its request: 0 the anchor."""

    @classmethod
    def of(cls, lengths: list[int], device: Any) -> Rows:
        """The layout of these verification lengths; copies them to the device once."""
        lengths_R = on_device(lengths, dtype=torch.int64, device=torch.device(device))
        widths_R = lengths_R + 1
        start_R = widths_R.cumsum(0) - widths_R
        count = len(lengths) + sum(lengths)
        request_M = torch.arange(len(lengths), device=device).repeat_interleave(
            widths_R, output_size=count
        )
        column_M = torch.arange(count, device=device) - start_R[request_M]
        return cls(
            lengths_R=lengths_R,
            lengths=lengths,
            start_R=start_R,
            request_M=request_M,
            column_M=column_M,
        )


def verify_input(*, width: int, capture: bool, positions: Tensor | None = None) -> Any:
    """What attention backends ask of a chain of ``width`` tokens for every request.

    SGLang's own chain description serves: its type decides nothing but the causal mask.
    """
    mode = CaptureHiddenMode.FULL if capture else CaptureHiddenMode.NULL
    return DFlashVerifyInput(
        draft_token=None, positions=positions, draft_token_num=width, capture_hidden_mode=mode
    )


def locations(req_to_token: Tensor, pool_R: Tensor, first_R: Tensor, column: Tensor) -> Tensor:
    """KV locations of the tokens at ``first_R + column`` of requests ``pool_R`` (any shapes)."""
    return req_to_token[pool_R, first_R + column].long()


def _native_lengths(runner: Any, forward: ForwardBatch, prefix_R: Tensor, width: int) -> None:
    """The torch backend plans a verify as an extend: lengths with the new tokens, and theirs."""
    if isinstance(runner.attn_backend, TorchNativeAttnBackend):
        forward.seq_lens = prefix_R + width
        forward.extend_prefix_lens = prefix_R.to(torch.int32)
        forward.extend_seq_lens = torch.full_like(forward.extend_prefix_lens, width)


def draft_block(
    runner: Any,
    *,
    tokens_RK: Tensor,
    pool_R: Tensor,
    prefix_R: Tensor,
    prefix_cpu_R: Tensor,
    algorithm: Any,
) -> Tensor:
    """The drafter's final-normed states [R, K, D] of blocks that start at ``prefix_R``.

    The slots' keys and values go to the locations of the tokens that will come there, in the
    drafter's pool; the context that is committed later overwrites them.
    """
    requests, gamma = tokens_RK.shape
    columns = torch.arange(gamma, device=prefix_R.device)
    positions_RK = prefix_R[:, None] + columns
    table = runner.req_to_token_pool.req_to_token
    forward = ForwardBatch(
        forward_mode=ForwardMode.TARGET_VERIFY,
        batch_size=requests,
        input_ids=tokens_RK.flatten(),
        req_pool_indices=pool_R,
        seq_lens=prefix_R,
        out_cache_loc=locations(table, pool_R[:, None], prefix_R[:, None], columns).flatten(),
        seq_lens_sum=int(prefix_cpu_R.sum()),
        seq_lens_cpu=prefix_cpu_R,
        positions=positions_RK.flatten(),
        spec_algorithm=algorithm,
        spec_info=verify_input(width=gamma, capture=False, positions=positions_RK.flatten()),
        capture_hidden_mode=CaptureHiddenMode.NULL,
    )
    _native_lengths(runner, forward, prefix_R, gamma)
    hidden: Tensor = runner.forward(forward).logits_output.hidden_states
    return hidden.view(requests, gamma, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Verified:
    """What the target said of every row."""

    logits_MV: Tensor
    captured_MC: Tensor
    """States of the captured layers."""
    locations_M: Tensor
    """KV locations that the rows were written to."""
    positions_M: Tensor
    computed_tokens: int
    """Tokens in the forward pass, padding excluded."""
    shape: str
    """``uniform`` or ``ragged``."""
    output: Any
    """SGLang's own logits output."""


def verify(
    worker: Any, batch: Any, *, anchors_R: Tensor, drafts_RK: Tensor, rows: Rows
) -> Verified:
    """Run the target over the anchors and the drafts that the plan keeps.

    Two shapes: when every request keeps all K drafts, the uniform one that CUDA graphs capture;
    else only the planned rows are computed, and all of them keep their logits. Changes fields of
    ``batch``, which the scheduler restores after the step.
    """
    runner = worker.model_runner
    gamma = drafts_RK.shape[1]
    prefix_R = batch.seq_lens.long()
    prefix_M = prefix_R[rows.request_M]
    positions_M = prefix_M + rows.column_M
    tokens_RT = torch.cat([anchors_R[:, None], drafts_RK], dim=1)
    table, pool_M = runner.req_to_token_pool.req_to_token, batch.req_pool_indices[rows.request_M]
    batch.input_ids = tokens_RT[rows.request_M, rows.column_M]
    batch.out_cache_loc = locations(table, pool_M, prefix_M, rows.column_M)
    batch.capture_hidden_mode = CaptureHiddenMode.FULL
    uniform = all(length == gamma for length in rows.lengths)
    if uniform:
        batch.forward_mode = ForwardMode.TARGET_VERIFY
        batch.spec_info = verify_input(width=gamma + 1, capture=True, positions=positions_M)
        forward = ForwardBatch.init_new(batch, runner)
        _native_lengths(runner, forward, prefix_R, gamma + 1)
    else:
        widths = [length + 1 for length in rows.lengths]
        batch.forward_mode = ForwardMode.DRAFT_EXTEND_V2
        batch.spec_info = verify_input(width=gamma + 1, capture=True)
        batch.prefix_lens = batch.seq_lens_cpu.tolist()
        batch.extend_lens = widths
        batch.extend_num_tokens = sum(widths)
        batch.seq_lens = batch.seq_lens + (rows.lengths_R + 1).to(batch.seq_lens.dtype)
        batch.seq_lens_cpu = batch.seq_lens_cpu + torch.tensor(widths)
        batch.seq_lens_sum = int(batch.seq_lens_cpu.sum())
        forward = ForwardBatch.init_new(batch, runner)
    computed = len(forward.input_ids)
    done = worker.forward_batch_generation(batch=None, forward_batch=forward, is_verify=True)
    return Verified(
        logits_MV=done.logits_output.next_token_logits,
        captured_MC=done.logits_output.hidden_states,
        locations_M=batch.out_cache_loc,
        positions_M=positions_M,
        computed_tokens=computed,
        shape="uniform" if uniform else "ragged",
        output=done,
    )
