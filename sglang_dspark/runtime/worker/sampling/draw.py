"""From the target's logits to committed tokens, for every row of a ragged step and each request.

Owns the order that SGLang's plain decoding has: penalties, grammar, logit bias, temperature,
softmax, filters, and then acceptance instead of a draw. Exact at every row: row j of a request is
treated as if drafts 1 to j had been committed one by one. Knows neither models nor plans, and has
no randomness of its own. For ordinary requests nothing waits for the device.

Shapes: R requests, K draft positions, T = K + 1, M = sum(1 + length) rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.layers.utils.logprob import compute_spec_v2_logprobs
from sglang.srt.sampling.sampling_params import TOP_K_ALL
from sglang.srt.utils.async_probe import sanitize_nan_logits
from torch import Tensor

from sglang_dspark.runtime.kernels.head import DraftBlock, RowChoice
from sglang_dspark.runtime.kernels.rejection import verify_chain
from sglang_dspark.runtime.worker.sampling.filters import (
    FILTER_WEIGHTS,
    filtered,
    filtered_by_kernels,
    renorm_kernels,
)
from sglang_dspark.runtime.worker.sampling.grammar import constrained, mask_rows
from sglang_dspark.runtime.worker.sampling.penalties import TokenHistories
from sglang_dspark.runtime.worker.sampling.rows import on_device, owners, starts, walk
from sglang_dspark.runtime.worker.sampling.seeds import seeded_tokens


class RowSampling:
    """How the requests of one step sample. Built anew for each step."""

    def __init__(
        self,
        reqs: Sequence[Any],
        sampling_info: Any,
        *,
        histories: TokenHistories,
        gamma: int,
    ) -> None:
        self.reqs, self.info, self.histories = reqs, sampling_info, histories
        self.device, self.gamma = histories.device, gamma
        params = [req.sampling_params for req in reqs]
        self.all_greedy: bool = all(one.top_k <= 1 for one in params)
        self.any_greedy: bool = any(one.top_k <= 1 for one in params)
        self.filtered = [
            i
            for i, one in enumerate(params)
            if one.top_k > 1 and (one.top_k < TOP_K_ALL or one.top_p < 1 or one.min_p > 0)
        ]
        self.biased = [i for i, one in enumerate(params) if one.logit_bias is not None]
        self.constrained = constrained(reqs)
        self.greedy_R: Tensor = sampling_info.top_ks <= 1
        self.temperature_R: Tensor = sampling_info.temperatures.view(-1)
        self.seeds_R: Tensor | None = sampling_info.sampling_seed
        """Set for all requests or none: with --enable-deterministic-inference."""

    def drafter_choice(self, uniform_RK: Tensor) -> RowChoice:
        """How the drafter chooses: by temperature alone, see ``head``.

        Seeded requests get the most likely tokens: whatever is drafted, their tokens are the
        seed's, and these agree the most often.
        """
        zero_R = self.greedy_R if self.seeds_R is None else torch.ones_like(self.greedy_R)
        return RowChoice(
            temperature_R=torch.where(zero_R, 0.0, self.temperature_R), uniform_RK=uniform_RK
        )

    def adjust(
        self, logits_MV: Tensor, *, drafts_RK: Tensor, start_R: Tensor, lengths_R: Tensor
    ) -> Tensor:
        """Penalties, grammar and logit bias, in place; float32 logits as the target gives them."""
        layout = {"start_R": start_R, "lengths_R": lengths_R}
        penalties = self.histories.penalties(self.reqs)
        if penalties is not None:
            self.histories.penalise(penalties, logits_MV, drafts_RK=drafts_RK, **layout)
        if self.constrained:
            mask_rows(self.reqs, self.constrained, logits_MV, drafts_RK=drafts_RK, **layout)
        if self.biased:
            self._bias(logits_MV, positions=drafts_RK.shape[1], **layout)
        sanitize_nan_logits(logits_MV, "verify: target logits")
        return logits_MV

    def _bias(
        self, logits_MV: Tensor, *, positions: int, start_R: Tensor, lengths_R: Tensor
    ) -> None:
        here_P = on_device(self.biased, dtype=torch.int64, device=self.device)
        bias_PV = self.info.logit_bias[here_P]
        for rows_P, used_P1 in walk(
            here_P, start_R=start_R, lengths_R=lengths_R, positions=positions
        ):
            logits_MV.index_add_(0, rows_P, torch.where(used_P1, bias_PV, 0.0))

    def probabilities(
        self, logits_MV: Tensor, *, lengths_R: Tensor, overwrite: bool = False
    ) -> Tensor:
        """float32 [M, V] from which tokens are drawn; one-hot for greedy requests.

        ``overwrite`` turns the logits into them, which spares their memory again; not for steps
        whose log-probabilities are wanted.
        """
        start_R = starts(lengths_R)
        owner_M = owners(start_R, len(logits_MV))
        # Cut from a padded vocabulary, the logits would make probabilities with gaps.
        overwrite = overwrite and logits_MV.is_contiguous()
        best_M1 = logits_MV.argmax(-1, keepdim=True) if self.any_greedy else None
        if self.all_greedy and best_M1 is not None:
            weights_MV = logits_MV.zero_() if overwrite else torch.zeros_like(logits_MV)
            return weights_MV.scatter_(1, best_M1, 1.0)
        heat_M1 = self.temperature_R[owner_M, None]
        weights_MV = logits_MV.div_(heat_M1) if overwrite else logits_MV / heat_M1
        torch.softmax(weights_MV, dim=-1, out=weights_MV)
        if self.filtered:
            self._filter(weights_MV, owner_M=owner_M, start_R=start_R, lengths_R=lengths_R)
        if best_M1 is not None:
            greedy_M1 = self.greedy_R[owner_M, None]
            weights_MV.masked_fill_(greedy_M1, 0.0)
            weights_MV.scatter_add_(1, best_M1, greedy_M1.to(weights_MV.dtype))
        return weights_MV

    def _filter(
        self, weights_MV: Tensor, *, owner_M: Tensor, start_R: Tensor, lengths_R: Tensor
    ) -> None:
        """Top-k, top-p and min-p, in place, on the rows of requests that have any."""
        step = max(1, FILTER_WEIGHTS // weights_MV.shape[1])
        if len(self.filtered) == len(self.reqs):
            for first in range(0, len(weights_MV), step):
                rows = slice(first, first + step)
                weights_MV[rows] = self._filtered(weights_MV[rows], owner_M[rows])
            return
        for chunk in range(0, len(self.filtered), step):
            here = self.filtered[chunk : chunk + step]
            here_F = on_device(here, dtype=torch.int64, device=self.device)
            for rows_F, used_F1 in walk(
                here_F, start_R=start_R, lengths_R=lengths_R, positions=self.gamma
            ):
                before_FV = weights_MV[rows_F]
                after_FV = self._filtered(before_FV, here_F)
                weights_MV[rows_F] = torch.where(used_F1, after_FV, before_FV)

    def _filtered(self, weights_NV: Tensor, owner_N: Tensor) -> Tensor:
        limits = {
            "top_k_N": self.info.top_ks[owner_N],
            "top_p_N": self.info.top_ps[owner_N],
            "min_p_N": self.info.min_ps[owner_N],
        }
        kernels = renorm_kernels() if weights_NV.is_cuda and self.seeds_R is None else None
        if kernels is not None:
            return filtered_by_kernels(weights_NV, kernels=kernels, **limits)
        # Seeded rows go by rank, so that ties have to stand in one order: that of the whole sort.
        most = max(self.reqs[i].sampling_params.top_k for i in self.filtered)
        return filtered(weights_NV, most=TOP_K_ALL if self.seeds_R is not None else most, **limits)

    def choose(
        self,
        probabilities_MV: Tensor,
        *,
        block: DraftBlock,
        start_R: Tensor,
        lengths_R: Tensor,
        positions_M: Tensor,
        uniform_RT: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(draft tokens accepted [R], the token after them [R]).

        Speculative sampling's rule; with seeds, the stock seeded sampler's token at each row, and
        drafts are accepted for as long as they are these. ``positions_M`` are the rows' places in
        their sequences, which the seeded sampler hashes.
        """
        if self.seeds_R is None:
            return verify_chain(
                drafts_RK=block.tokens_RK,
                draft_RKV=block.weights_RKV,
                target_MV=probabilities_MV,
                start_R=start_R,
                lengths_R=lengths_R,
                uniform_RT=uniform_RT,
            )
        owner_M = owners(start_R, len(probabilities_MV))
        ranked_M = None
        if self.filtered:
            ranked_R = torch.zeros_like(self.greedy_R)
            ranked_R[on_device(self.filtered, dtype=torch.int64, device=self.device)] = True
            ranked_M = ranked_R[owner_M]
        tokens_M = seeded_tokens(
            probabilities_MV,
            seeds_M=self.seeds_R[owner_M],
            positions_M=positions_M,
            ranked_M=ranked_M,
        )
        return agreed(tokens_M, drafts_RK=block.tokens_RK, start_R=start_R, lengths_R=lengths_R)

    def verify(
        self,
        logits_MV: Tensor,
        *,
        block: DraftBlock,
        start_R: Tensor,
        lengths_R: Tensor,
        positions_M: Tensor,
        uniform_RT: Tensor,
        overwrite: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """``probabilities`` and ``choose`` of adjusted logits; without the former when greedy."""
        if self.all_greedy:
            return agreed(
                logits_MV.argmax(-1),
                drafts_RK=block.tokens_RK,
                start_R=start_R,
                lengths_R=lengths_R,
            )
        return self.choose(
            self.probabilities(logits_MV, lengths_R=lengths_R, overwrite=overwrite),
            block=block,
            start_R=start_R,
            lengths_R=lengths_R,
            positions_M=positions_M,
            uniform_RT=uniform_RT,
        )

    def logprobs(
        self,
        batch: Any,
        logits_output: Any,
        *,
        drafts_RK: Tensor,
        start_R: Tensor,
        accepted_R: Tensor,
        next_R: Tensor,
    ) -> None:
        """Fill the log-probabilities of what was committed, as the scheduler reads them.

        From the adjusted logits in ``logits_output.next_token_logits``, K + 1 to a request; those
        past its last token repeat it. ``batch`` is the ScheduleBatch, its rows are these requests.
        """
        gamma = drafts_RK.shape[1]
        emitted_M = next_R.new_zeros(len(logits_output.next_token_logits))
        columns_T = torch.arange(gamma + 1, device=self.device)
        rows_RT = start_R[:, None] + torch.minimum(columns_T, accepted_R[:, None])
        tokens_RT = committed(drafts_RK, accepted_R=accepted_R, next_R=next_R)
        emitted_M[rows_RT] = tokens_RT.gather(1, torch.minimum(columns_T, accepted_R[:, None]))
        compute_spec_v2_logprobs(batch, logits_output, emitted_M, rows_RT, gamma)


def committed(drafts_RK: Tensor, *, accepted_R: Tensor, next_R: Tensor) -> Tensor:
    """[R, T] accepted drafts and then the next token; what follows is left over, not committed."""
    tokens_RT = torch.cat([drafts_RK, next_R[:, None].to(drafts_RK.dtype)], dim=1)
    return tokens_RT.scatter(1, accepted_R[:, None], next_R[:, None].to(drafts_RK.dtype))


def agreed(
    tokens_M: Tensor, *, drafts_RK: Tensor, start_R: Tensor, lengths_R: Tensor
) -> tuple[Tensor, Tensor]:
    """(drafts that are the target's own tokens [R], the target's token after them [R])."""
    positions_K = torch.arange(drafts_RK.shape[1], device=drafts_RK.device)
    rows_RK = start_R[:, None] + torch.minimum(positions_K, lengths_R[:, None])
    passed_RK = (drafts_RK == tokens_M[rows_RK]) & (positions_K < lengths_R[:, None])
    accepted_R = passed_RK.long().cumprod(-1).sum(-1)
    return accepted_R, tokens_M[start_R + accepted_R]
