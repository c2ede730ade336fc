"""What SGLang's own sampling lacks on a CPU, put into the servers that tests start there."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def masks_on_cpu() -> None:
    """Grammars' masks are applied without Triton."""
    from sglang.srt.constrained.xgrammar_backend import XGrammarGrammar

    from sglang_dspark.runtime.worker.sampling.grammar import apply_packed_mask

    def apply_vocab_mask(_: Any, logits: Tensor, vocab_mask: Tensor) -> None:
        apply_packed_mask(logits, vocab_mask)

    XGrammarGrammar.apply_vocab_mask = apply_vocab_mask


def masks_on_cpu_and_retractions() -> None:
    """Besides, SGLang's own test switch: every so many batches some requests are retracted."""
    from sglang.srt.managers import scheduler

    masks_on_cpu()
    scheduler.TEST_RETRACT, scheduler.TEST_RETRACT_INTERVAL = True, 8


def seeds_on_cpu() -> None:
    """Seeded tokens are drawn without Triton, and deterministic inference lets itself be asked
    for (these attention kernels are not invariant to the batch, but close enough)."""
    from sglang.srt import batch_invariant_ops, server_args
    from sglang.srt.layers import sampler

    from sglang_dspark.runtime.worker.sampling.seeds import multinomial_with_seed

    sampler.multinomial_with_seed = multinomial_with_seed
    batch_invariant_ops.enable_batch_invariant_mode = lambda: None
    server_args.DETERMINISTIC_ATTENTION_BACKEND_CHOICES.append("torch_native")
