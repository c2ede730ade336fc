"""The training objective, computed in pieces so that no [N*K, V] tensor ever exists.

Owns total = 0.1 CE + 0.9 L1 + 1.0 BCE (paper 3.3): cross-entropy to the next token, L1 distance
sum |p_d - p_t| of the drafter's distribution to the target's (twice the total variation), binary
cross-entropy of the confidence to the acceptance 1 - L1/2; each a mean weighted by position.
Knows drafters only as ``LossHead``. The target is never trained.

Shapes: N blocks, K slots, P = N*K positions, V vocabulary, D hidden, r Markov rank; a piece is
p positions by v tokens of the vocabulary.

Memory. Above its inputs the loss holds, with w bytes a number (4; 8 in float64):
``w * (5*p*v + 2*V*r + P*(2*D + 2*r + 8))``: at most five piece-sized buffers (draft, teacher,
softcap slope, two temporaries), the gradient of W2 and, while it is scaled, a copy, those of the
states and latents. Half-precision inputs add one piece in that dtype. Unchunked it is at least
``w * 6 * P * V`` (7 with a softcap).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import binary_cross_entropy_with_logits

PIECE_ELEMENTS = 1 << 24
"""Positions times vocabulary of one piece: 64 MiB a float32 buffer."""


class LossHead(Protocol):
    """What the loss reads of a drafter: every kind has it."""

    config: Any
    """Its ``softcap``."""
    lm_head: nn.Linear

    def head_states(self, hidden: Tensor) -> Tensor:
        """What the lm_head reads of slot states."""

    def latent(
        self, *, hidden_NKD: Tensor, previous_NK: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(u_NKr, W2 [V, r], confidence_NK): logits are base + u W2^T."""


@dataclass(frozen=True, kw_only=True)
class LossMix:
    """Weights of the parts; the defaults are the paper's."""

    ce: float = 0.1
    """Cross-entropy to the next token."""
    tv: float = 0.9
    """L1 distance to the target's distribution."""
    confidence: float = 1.0
    """Binary cross-entropy of the confidence; ignored without a confidence head."""

    def __post_init__(self) -> None:
        for name in ("ce", "tv", "confidence"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"loss weight {name} is {value}; it must be finite and >= 0")


DFLASH = LossMix(ce=1.0, tv=0.0, confidence=0.0)
"""Cross-entropy only: how DFlash and the autoregressive baseline are trained."""


def position_weights(
    *, gamma: int, decay: float | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """exp(-k / decay) for slots k = 0..gamma-1; ``decay`` None: gamma (paper); DeepSpec: 4."""
    decay = float(gamma) if decay is None else decay
    if not decay > 0:
        raise ValueError(f"decay is {decay}; it must be > 0")
    return torch.exp(-torch.arange(gamma, device=device) / decay)


def training_loss(
    *,
    drafter: LossHead,
    hidden_NKD: Tensor,
    previous_NK: Tensor,
    labels_NK: Tensor,
    teacher_hidden_NKD: Tensor | None,
    weights_NK: Tensor,
    mix: LossMix | None = None,
    denominator: Tensor | None = None,
    positions_per_piece: int | None = None,
    vocabulary_per_piece: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(total, parts) of teacher-forced blocks; ``total`` is the one to differentiate.

    hidden: the drafter's final slot states. previous, labels: token before and at each slot (the
    anchor before slot 0). teacher_hidden: the target's final-normed states at label - 1; may be
    None when ``mix`` only has ``ce``. weights: 0 where a slot has no label (any label then),
    else ``position_weights``. denominator: what the weighted sums are divided by, sum(weights)
    when None; give the global one when several processes share a batch.

    parts, detached: ``total``, ``ce``, ``tv`` (L1), ``confidence``, ``weight`` (sum of weights);
    ``acceptance_K`` (mean 1 - L1/2 a slot), ``count_K`` and ``accepted_length`` (expected, bonus
    included, blocks with a label).
    """
    mix = mix or LossMix()
    latent_NKr, markov_Vr, confidence_NK = drafter.latent(
        hidden_NKD=hidden_NKD, previous_NK=previous_NK
    )
    if teacher_hidden_NKD is None and (mix.tv or (mix.confidence and confidence_NK is not None)):
        raise ValueError("tv and confidence need teacher_hidden_NKD; give it or use DFLASH")
    vocabulary = drafter.lm_head.weight.shape[0]
    columns = min(vocabulary_per_piece or vocabulary, vocabulary)
    positions = positions_per_piece or max(1, PIECE_ELEMENTS // columns)
    weights_NK = weights_NK.to(hidden_NKD.dtype if _wide(hidden_NKD) else torch.float32)
    sum_weighted, ce_P, l1_P = _VocabularyLoss.apply(  # type: ignore[no-untyped-call]
        drafter.head_states(hidden_NKD).flatten(0, 1),
        None if latent_NKr is None else latent_NKr.flatten(0, 1),
        markov_Vr,
        drafter.lm_head.weight,
        None if teacher_hidden_NKD is None else teacher_hidden_NKD.flatten(0, 1),
        labels_NK.flatten().clamp(0, vocabulary - 1),
        weights_NK.flatten(),
        mix,
        drafter.config.softcap,
        (positions, columns),
        torch.is_grad_enabled(),
    )
    weight = weights_NK.sum()
    divisor = (weight if denominator is None else denominator).clamp(min=1e-6)
    total = sum_weighted / divisor
    ce_NK = ce_P.view_as(weights_NK)
    parts = {"weight": weight, "ce": (ce_NK * weights_NK).sum() / divisor}
    if teacher_hidden_NKD is not None:
        l1_NK = l1_P.view_as(weights_NK)
        acceptance_NK = (1 - 0.5 * l1_NK).clamp(0, 1)
        parts["tv"] = (l1_NK * weights_NK).sum() / divisor
        parts |= _acceptance(acceptance_NK, weights_NK > 0)
        if confidence_NK is not None and mix.confidence:
            bce_NK = binary_cross_entropy_with_logits(
                confidence_NK.to(acceptance_NK.dtype), acceptance_NK, reduction="none"
            )
            confidence = (bce_NK * weights_NK).sum() / divisor
            total = total + mix.confidence * confidence
            parts["confidence"] = confidence
    parts["total"] = total
    return total, {name: part.detach() for name, part in parts.items()}


def _acceptance(acceptance_NK: Tensor, has_label_NK: Tensor) -> dict[str, Tensor]:
    kept_NK = acceptance_NK * has_label_NK
    count_K = has_label_NK.sum(dim=0)
    blocks = has_label_NK.any(dim=1).sum().clamp(min=1)
    return {
        "acceptance_K": kept_NK.sum(dim=0) / count_K.clamp(min=1),
        "count_K": count_K,
        "accepted_length": 1 + kept_NK.cumprod(dim=1).sum() / blocks,
    }


def _wide(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64)


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    """The pieces choose their own dtypes; devices without autocast (meta) have none to stop."""
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()


class _VocabularyLoss(torch.autograd.Function):
    """sum_P weight * (ce * CE + tv * L1), with CE_P and L1_P beside it (not differentiable).

    The gradient is found in the forward pass, piece by piece while its logits exist, and only
    scaled in the backward pass. With s = sign(p_d - p_t), d L1 / d z = p_d (s - sum s p_d).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: Tensor,
        latent_Pr: Tensor | None,
        markov_Vr: Tensor | None,
        lm_head_VD: Tensor,
        teacher_PD: Tensor | None,
        labels_P: Tensor,
        weights_P: Tensor,
        mix: LossMix,
        softcap: float | None,
        piece: tuple[int, int],
        differentiate: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide, positions = weights_P.dtype, len(hidden_PD)
        head_VD = lm_head_VD.detach().to(hidden_PD.dtype)
        ce_P = weights_P.new_zeros(positions)
        l1_P = weights_P.new_zeros(positions)
        ctx.with_latent = latent_Pr is not None
        grad_PD = torch.zeros_like(hidden_PD) if differentiate else None
        grad_Pr = grad_Vr = None
        if latent_Pr is not None and markov_Vr is not None:
            markov_Vr = markov_Vr.to(latent_Pr.dtype)
            if differentiate:
                grad_Pr = torch.zeros_like(latent_Pr)
                grad_Vr = markov_Vr.new_zeros(markov_Vr.shape, dtype=wide)
        with _no_autocast(hidden_PD.device.type):
            for first in range(0, positions, piece[0]):
                part = slice(first, first + piece[0])
                rows = _Rows(
                    hidden_pD=hidden_PD[part],
                    latent_pr=None if latent_Pr is None else latent_Pr[part],
                    teacher_pD=None if teacher_PD is None else teacher_PD[part].to(head_VD.dtype),
                    head_VD=head_VD,
                    markov_Vr=markov_Vr,
                    softcap=softcap,
                    columns=piece[1],
                    wide=wide,
                )
                ce_P[part], l1_P[part], sign_mean_p = rows.losses(labels_P[part])
                if grad_PD is not None:
                    rows.add_gradients(
                        labels_p=labels_P[part],
                        weights_p=weights_P[part],
                        sign_mean_p=sign_mean_p,
                        mix=mix,
                        into=(
                            grad_PD[part],
                            None if grad_Pr is None else grad_Pr[part],
                            grad_Vr,
                        ),
                    )
                del rows  # before the next piece is made, not after
        ctx.save_for_backward(grad_PD, grad_Pr, grad_Vr)
        ctx.mark_non_differentiable(ce_P, l1_P)
        loss = (weights_P * (mix.ce * ce_P + mix.tv * l1_P)).sum()
        return loss, ce_P, l1_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_PD, grad_Pr, grad_Vr = (
            None if saved is None else saved * upstream[0].to(saved.dtype)
            for saved in ctx.saved_tensors
        )
        return (grad_PD, grad_Pr, grad_Vr, *(None,) * 8)


class _Rows:
    """Some positions and all of the vocabulary, taken ``columns`` at a time.

    With one piece of columns its logits are made once; with several, each of three passes (log
    normalisers, distances, gradients) makes them again.
    """

    def __init__(
        self,
        *,
        hidden_pD: Tensor,
        latent_pr: Tensor | None,
        teacher_pD: Tensor | None,
        head_VD: Tensor,
        markov_Vr: Tensor | None,
        softcap: float | None,
        columns: int,
        wide: torch.dtype,
    ) -> None:
        self.hidden_pD, self.latent_pr, self.teacher_pD = hidden_pD, latent_pr, teacher_pD
        self.head_VD, self.markov_Vr = head_VD, markov_Vr
        self.softcap, self.wide = softcap, wide
        size = len(head_VD)
        self.pieces = [
            slice(first, min(first + columns, size)) for first in range(0, size, columns)
        ]
        self.kept: tuple[Tensor, Tensor | None, Tensor | None] | None = None
        self.draft_norm_p = self.teacher_norm_p = torch.empty(0)

    def _draft(self, piece: slice) -> tuple[Tensor, Tensor | None]:
        """Draft logits [p, v] and the slope of the softcap."""
        logits = (self.hidden_pD @ self.head_VD[piece].T).to(self.wide)
        slope = None
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_()
            slope = logits.square().neg_().add_(1)
            logits.mul_(self.softcap)
        if self.latent_pr is not None and self.markov_Vr is not None:
            if self.latent_pr.dtype == self.wide:
                logits.addmm_(self.latent_pr, self.markov_Vr[piece].T)
            else:
                logits.add_(self.latent_pr @ self.markov_Vr[piece].T)
        return logits, slope

    def _teacher(self, piece: slice) -> Tensor | None:
        if self.teacher_pD is None:
            return None
        logits = (self.teacher_pD @ self.head_VD[piece].T).to(self.wide)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def _probabilities(self, piece: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """p_d, p_d - p_t (None without a teacher) and the softcap's slope."""
        if self.kept is not None:
            return self.kept
        draft, slope = self._draft(piece)
        draft.sub_(self.draft_norm_p[:, None]).exp_()
        gap = self._teacher(piece)
        if gap is not None:
            gap.sub_(self.teacher_norm_p[:, None]).exp_().neg_().add_(draft)
        return draft, gap, slope

    def losses(self, labels_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(CE_p, L1_p, sum of sign * p_d); L1 is 0 without a teacher."""
        count = len(labels_p)
        new = self.hidden_pD.new_empty
        draft_norm = new(count, dtype=self.wide).fill_(-math.inf)
        teacher_norm = draft_norm.clone()
        at_label = new(count, dtype=self.wide).zero_()
        single = len(self.pieces) == 1
        for piece in self.pieces:
            draft, slope = self._draft(piece)
            draft_norm = torch.logaddexp(draft_norm, draft.logsumexp(-1))
            inside = (labels_p >= piece.start) & (labels_p < piece.stop)
            column = (labels_p - piece.start).clamp(0, piece.stop - piece.start - 1)
            at_label += draft.gather(1, column[:, None])[:, 0] * inside
            if not single:
                del draft, slope
            teacher = self._teacher(piece)
            if teacher is not None:
                teacher_norm = torch.logaddexp(teacher_norm, teacher.logsumexp(-1))
            if single:
                draft.sub_(draft_norm[:, None]).exp_()
                if teacher is not None:
                    teacher.sub_(teacher_norm[:, None]).exp_().neg_().add_(draft)
                self.kept = (draft, teacher, slope)
            del teacher
        self.draft_norm_p, self.teacher_norm_p = draft_norm, teacher_norm
        l1_p, sign_mean_p = torch.zeros_like(at_label), torch.zeros_like(at_label)
        if self.teacher_pD is not None:
            for piece in self.pieces:
                draft, gap, _ = self._probabilities(piece)
                assert gap is not None
                l1_p += torch.linalg.vector_norm(gap, ord=1, dim=-1)
                sign_mean_p += torch.sign(gap).mul_(draft).sum(-1)
                del draft, gap
        return draft_norm - at_label, l1_p, sign_mean_p

    def add_gradients(
        self,
        *,
        labels_p: Tensor,
        weights_p: Tensor,
        sign_mean_p: Tensor,
        mix: LossMix,
        into: tuple[Tensor, Tensor | None, Tensor | None],
    ) -> None:
        """Add the weighted sum's gradient by states, latents and W2; uses up the piece."""
        grad_pD, grad_pr, grad_Vr = into
        for piece in self.pieces:
            draft, gap, slope = self._probabilities(piece)
            self.kept = None
            if gap is not None and mix.tv:
                grad = gap.sign_().sub_(sign_mean_p[:, None]).mul_(mix.tv).add_(mix.ce).mul_(draft)
            else:
                grad = draft.mul_(mix.ce)
            del draft, gap
            inside = (labels_p >= piece.start) & (labels_p < piece.stop)
            column = (labels_p - piece.start).clamp(0, piece.stop - piece.start - 1)
            grad.scatter_add_(1, column[:, None], (-mix.ce * inside.to(grad.dtype))[:, None])
            grad.mul_(weights_p[:, None])
            if grad_pr is not None and grad_Vr is not None and self.markov_Vr is not None:
                assert self.latent_pr is not None
                grad_pr += grad.to(grad_pr.dtype) @ self.markov_Vr[piece]
                grad_Vr[piece] += grad.to(self.latent_pr.dtype).T @ self.latent_pr
            if slope is not None:
                grad.mul_(slope)
            grad_pD += grad.to(grad_pD.dtype) @ self.head_VD[piece]
            del grad, slope
