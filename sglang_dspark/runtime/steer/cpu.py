"""What SGLang 0.5.21 lacks when its built-in DSPARK runs on a CPU: for tests and demonstrations.

Owns the torch versions and hooks them in where SGLANG_USE_CPU_ENGINE=1; ``sgl_kernel`` has to be
stood in for as well, since SGLang imports it before it loads plugins. Knows no policy.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.arg_groups import choices, speculative_hook
from sglang.srt.managers import overlap_utils
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from torch import Tensor

DRAFT_BACKEND = "torch_native"


class _SaysCuda:
    """A view of the server's arguments that calls its device ``cuda``."""

    device = "cuda"

    def __init__(self, view: Any) -> None:
        self._view = view

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


def through_the_gate(original: Any, server_args: Any) -> None:
    """``_handle_dspark`` refuses every device but CUDA and NPU, and asks about it nowhere else."""
    view = speculative_hook.resolving_view
    speculative_hook.resolving_view = lambda args: _SaysCuda(view(args))
    try:
        original(server_args)
    finally:
        speculative_hook.resolving_view = view


def with_verify_lengths(
    original: Any,
    backend: Any,
    q: Any,
    k: Any,
    v: Any,
    layer: Any,
    batch: Any,
    *args: Any,
    **kw: Any,
) -> Any:
    """``TorchNativeAttnBackend.forward_extend`` does not know the lengths of a verified batch.

    Prefix lengths are ``seq_lens`` there; each request adds its drafted block, or what the ragged
    layout gives it.
    """
    if not batch.forward_mode.is_target_verify():
        return original(backend, q, k, v, layer, batch, *args, **kw)
    layout = getattr(batch.spec_info, "ragged_verify_layout", None)
    prefix = batch.seq_lens
    if layout is None:
        added = torch.full_like(prefix, q.shape[0] // max(len(prefix), 1))
    else:
        added = layout.verify_lens.to(prefix.dtype)
    before = batch.seq_lens, batch.extend_prefix_lens, batch.extend_seq_lens
    batch.seq_lens, batch.extend_prefix_lens, batch.extend_seq_lens = prefix + added, prefix, added
    try:
        return original(backend, q, k, v, layer, batch, *args, **kw)
    finally:
        batch.seq_lens, batch.extend_prefix_lens, batch.extend_seq_lens = before


def sample_chain(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float,
    threshold_acc: float,
    deterministic: bool,
) -> None:
    """Speculative sampling along one chain: accept with min(1, p/q), then draw from max(p - q, 0).

    All that follows the first rejection is dropped; a chain that is accepted whole draws its bonus
    token from p. Writes the first three arguments.
    """
    requests, slots = candidates.shape
    for r in range(requests):
        at, accepted = int(retrive_index[r, 0]), 0
        accept_index[r, 0] = at
        for step in range(1, slots):
            token = int(candidates[r, step])
            p, q = target_probs[r, step - 1, token], draft_probs[r, step - 1, token]
            if not (0 < q <= 1 and uniform_samples[r, step - 1] * q < p):
                break
            accepted = step
            predicts[at] = token
            at = int(retrive_index[r, step])
            accept_index[r, step] = at
        weights = target_probs[r, accepted].clone()
        if accepted < slots - 1:
            draft = draft_probs[r, accepted]
            weights -= torch.where((draft >= 0) & (draft <= 1), draft, 0.0)
        cumulative = weights.clamp_(min=0.0).double().cumsum(0)
        drawn = uniform_samples_for_final_sampling[r].double() * cumulative[-1]
        last = len(cumulative) - 1
        predicts[at] = min(int(torch.searchsorted(cumulative, drawn, right=True)), last)
        accept_token_num[r] = accepted


def make_ring(_: None, relay: Any, confidence: Tensor) -> None:
    """After ``ConfidenceRelay._lazy_init``: its ring, which otherwise only CUDA has.

    Without it the relay answers with whatever its buffer holds for a slot of the request pool: the
    confidences of the step before, or those of the slot's previous request.
    """
    depth = overlap_utils.CONFIDENCE_RELAY_RING_DEPTH
    relay.conf_ring = torch.zeros(depth, relay.req_pool_size, confidence.shape[-1])
    relay.gen_ring = torch.zeros(depth, relay.req_pool_size, dtype=torch.int64)


def copy_into_ring(relay: Any, *, stream: Any, publish_ready: Any) -> None:
    """``ConfidenceRelay.issue_ring_copy`` without a stream."""
    if relay.initialized:
        slot = relay.ring_pos % overlap_utils.CONFIDENCE_RELAY_RING_DEPTH
        relay.conf_ring[slot].copy_(relay.confidence_buf)
        relay.gen_ring[slot].copy_(relay.pool.req_generation)
        relay.ring_pos += 1


def resolve_from_ring(relay: Any, batch: Any, *, stream: Any, publish_ready: Any) -> Any:
    """``ConfidenceRelay.resolve`` as on CUDA: two steps old, with their requests' generations."""
    draft_input = batch.spec_info
    futures = None if draft_input is None else draft_input.future_indices
    lag = overlap_utils.CONFIDENCE_RELAY_RING_LAG
    if futures is None or not len(futures) or relay.ring_pos < lag:
        return None
    slot = (relay.ring_pos - lag) % overlap_utils.CONFIDENCE_RELAY_RING_DEPTH
    rows = batch.req_pool_indices_cpu
    return overlap_utils.ResolvedConfidence(
        confidence=relay.conf_ring[slot][rows], generation=relay.gen_ring[slot][rows]
    )


class _Over:
    """The event of a copy that is already whole."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def dump_without_a_stream(original: Any, dumper: Any, *args: Any, **given: Any) -> None:
    """``DsparkInfoDumper`` makes a CUDA stream for the copies of its ``reqs`` component."""
    stream = torch.cuda.Stream
    torch.cuda.Stream = lambda *_, **__: None  # type: ignore[assignment,misc]
    try:
        original(dumper, *args, **given)
    finally:
        torch.cuda.Stream = stream  # type: ignore[misc]


def copy_at_once(cls: Any, found: dict[str, Any], *, d2h_stream: Any) -> Any:
    """``FutureTensors.device_to_host`` where the device is the host."""
    copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in found.items()}
    return cls(_data=copies, _event=_Over())


def register() -> None:
    """Hook all of it in."""
    if DRAFT_BACKEND not in choices.DRAFT_ATTENTION_BACKEND_CHOICES:
        choices.add_draft_attention_backend_choices([DRAFT_BACKEND])
    record_stream = Tensor.record_stream

    def recorded(tensor: Tensor, stream: Any) -> None:
        if tensor.is_cuda:
            record_stream(tensor, stream)

    Tensor.record_stream = recorded  # type: ignore[method-assign,assignment]
    srt = "sglang.srt"
    relay = f"{srt}.managers.overlap_utils.ConfidenceRelay"
    chain = "sglang.kernels.ops.speculative.reject_sampling.chain_speculative_sampling_triton"
    for target, hook, kind in (
        (f"{srt}.arg_groups.speculative_hook._handle_dspark", through_the_gate, HookType.AROUND),
        (
            f"{srt}.layers.attention.torch_native_backend.TorchNativeAttnBackend.forward_extend",
            with_verify_lengths,
            HookType.AROUND,
        ),
        (chain, sample_chain, HookType.REPLACE),
        (f"{relay}._lazy_init", make_ring, HookType.AFTER),
        (f"{relay}.issue_ring_copy", copy_into_ring, HookType.REPLACE),
        (f"{relay}.resolve", resolve_from_ring, HookType.REPLACE),
        (
            f"{srt}.speculative.dspark_components.dspark_observability.DsparkInfoDumper.__init__",
            dump_without_a_stream,
            HookType.AROUND,
        ),
        (
            f"{srt}.kv_canary.runner.future_tensor.FutureTensors.device_to_host",
            copy_at_once,
            HookType.REPLACE,
        ),
    ):
        HookRegistry.register(target, hook, kind)
