"""SGLang's plain decoding of one request, token by token, and ragged steps to hold against it.

Everything of SGLang's is real: requests, sampling parameters, batch info, penalties, sampler. Only
the model is missing: its logits are a table by the token before.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sglang")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sglang.srt.layers import sampler
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.runtime_context import get_context
    from sglang.srt.sampling import sampling_batch_info
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
    from sglang.srt.sampling.sampling_params import SamplingParams

    from sglang_dspark.runtime.kernels.head import DraftBlock
    from sglang_dspark.runtime.worker.sampling.draw import RowSampling
    from sglang_dspark.runtime.worker.sampling.penalties import TokenHistories
    from sglang_dspark.runtime.worker.sampling.rows import starts

V, K = 41, 4


class Batch(SimpleNamespace):
    """What sampling reads of a ScheduleBatch; SGLang refers to it weakly."""

    __slots__ = ("__weakref__",)


TOKENIZER = SimpleNamespace(eos_token_id=5, additional_stop_token_ids={7})


@contextmanager
def server(*, deterministic: bool = False) -> Iterator[None]:
    """The server arguments that SGLang's sampling asks for, and no compiler."""
    arguments = SimpleNamespace(
        enable_deterministic_inference=deterministic,
        enable_custom_logit_processor=False,
        rl_on_policy_target=None,
    )
    context, scale = get_context(), sampling_batch_info.apply_scaling_penalties
    plain_scale = getattr(scale, "_torchdynamo_orig_callable", scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "_server_args", arguments)
        patch.setattr(context.flags, "sampling_backend", "pytorch")
        patch.setattr(sampling_batch_info, "apply_scaling_penalties", plain_scale)
        yield


def request(
    rid: str = "a", *, output: Sequence[int] = (), grammar: Any = None, **kinds: Any
) -> Any:
    """A request that has generated ``output``."""
    params = SamplingParams(**kinds)
    params.normalize(TOKENIZER)
    params.verify(V)
    req = Req(rid, "", array("q", [1, 2, 3]), params, vocab_size=V)
    req.tokenizer, req.grammar = TOKENIZER, grammar
    req.output_ids.extend(output)
    return req


def batch_info(reqs: Sequence[Any]) -> tuple[Any, Any]:
    """(the batch, its sampling info); the former has to outlive the latter."""
    batch = Batch(reqs=list(reqs), device="cpu")
    return batch, SamplingBatchInfo.from_schedule_batch(batch, V)


class Plain:
    """One request alone, decoded without speculation."""

    def __init__(self, req: Any) -> None:
        self.req = req
        self.batch, self.info = batch_info([req])
        for token in req.output_ids:
            self.see(token)

    def see(self, token: int) -> None:
        """Commit a token."""
        self.info.penalizer_orchestrator.cumulate_output_tokens(torch.tensor([token]))

    def adjusted(self, logits_V: Tensor) -> Tensor:
        """What the sampler is given."""
        info = self.info.copy_for_forward()
        info.grammars = [self.req.grammar] if self.req.grammar else None
        info.update_regex_vocab_mask()
        logits = logits_V.clone()[None]
        info.apply_logits_bias(logits)
        return logits[0]

    def sampled(self, adjusted_V: Tensor, *, position: int = 0) -> int:
        """The stock sampler's token."""
        stock = torch.nn.Module.__new__(sampler.Sampler)
        torch.nn.Module.__init__(stock)
        stock.rl_on_policy_target, stock.use_ascend_backend = None, False
        stock.use_log_softmax_logprob = False
        stock.enable_deterministic = self.info.sampling_seed is not None
        output = SimpleNamespace(next_token_logits=adjusted_V.clone()[None])
        tokens = stock(output, self.info, False, [], [], torch.tensor([position]))
        return int(tokens[0])

    def weights(self, adjusted_V: Tensor) -> Tensor:
        """The distribution that the stock sampler draws from, read at its draw."""
        drawn: list[Tensor] = []
        column = 0

        def read(weights: Tensor, num_samples: int) -> Tensor:
            drawn.append(weights[0])
            return torch.full((1, num_samples), column)

        result = torch.zeros(V)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "multinomial", read)
            for column in range(V):
                token = self.sampled(adjusted_V)
                result[token] = drawn[-1][column] if drawn else 1.0
        return result / result.sum()


class Step:
    """A ragged step of some requests: logits, drafts and where the rows lie."""

    def __init__(self, reqs: Sequence[Any], *, lengths: Sequence[int], seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        self.reqs, self.lengths = list(reqs), list(lengths)
        self.lengths_R = torch.tensor(self.lengths)
        self.start_R = starts(self.lengths_R)
        rows = int((self.lengths_R + 1).sum())
        self.logits_MV = 3 * torch.randn(rows, V, generator=draws)
        # Few tokens, so that histories and drafts repeat.
        self.drafts_RK = torch.randint(0, 9, (len(self.reqs), K), generator=draws)
        self.positions_M = torch.randint(0, 999, (rows,), generator=draws)

    @property
    def layout(self) -> dict[str, Tensor]:
        """What adjusting takes besides logits."""
        return {
            "drafts_RK": self.drafts_RK,
            "start_R": self.start_R,
            "lengths_R": self.lengths_R,
        }

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """(request, j, row)."""
        for i, length in enumerate(self.lengths):
            for j in range(length + 1):
                yield i, j, int(self.start_R[i]) + j


def row_sampling(reqs: Sequence[Any], histories: TokenHistories | None = None) -> RowSampling:
    """Built as the worker builds it, from the copy that a forward is given."""
    if histories is None:
        histories = TokenHistories(vocab_size=V, device="cpu")
    batch, info = batch_info(reqs)
    return RowSampling(batch.reqs, info.copy_for_forward(), histories=histories, gamma=K)


def block(drafts_RK: Tensor, weights_RKV: Tensor) -> DraftBlock:
    """A draft of which only tokens and weights matter."""
    return DraftBlock(
        tokens_RK=drafts_RK,
        weights_RKV=weights_RKV,
        confidence_RK=torch.zeros(drafts_RK.shape),
    )
