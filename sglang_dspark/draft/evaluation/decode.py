"""Lossless speculative decoding of one batch: draft -> plan -> verify -> commit, again and again.

The reference for what a server does, and what evaluation runs. Owns the order of a round and its
bookkeeping: anchors, ragged lengths, stale confidences, stop tokens. The parts are elsewhere: the
probabilities in ``sampling``, the accept-or-resample rule in ``rejection``, how many tokens to
verify in any policy of ``sglang_dspark.core``.

Shapes: R live requests, K draft positions, T = longest verified length + 1, V vocabulary, C what
the target's captured layers give.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sglang_dspark.core.history import ConfidenceMemory
from sglang_dspark.core.state import BatchState, VerifyPlan
from sglang_dspark.draft.evaluation import rejection
from sglang_dspark.draft.evaluation.sampling import Sampling, draw, probabilities, uniforms
from sglang_dspark.draft.model.target import Target
from sglang_dspark.logs.rounds import Floats, Ints

PARTS = ("prefill", "draft_backbone", "draft_head", "plan", "verify", "commit")
"""What ``Decoded.seconds`` tells apart."""


class PlansLengths(Protocol):
    """``sglang_dspark.core.Planner``, or a stand-in for tests."""

    gamma: int

    def plan(self, state: BatchState) -> VerifyPlan:
        """How many draft tokens of each request to verify."""


class VerifyAll:
    """Verifies every draft whole, which is what acceptance is measured with."""

    def __init__(self, gamma: int) -> None:
        self.gamma = gamma

    def plan(self, state: BatchState) -> VerifyPlan:
        """All gamma tokens of everyone."""
        return VerifyPlan(
            lengths=np.full(state.requests, self.gamma, dtype=np.int64),
            draft_next=np.ones(state.requests, dtype=bool),
            predicted_step_s=0.0,
            expected_tokens=0.0,
            stop_reason="fixed",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundLog:
    """Every round of every request, in the order of decoding; N rounds."""

    request: Ints
    """[N] index into the prompts."""
    step: Ints
    """[N] the request's rounds, from 0."""
    logits: Floats
    """[N, K] confidence logits; -inf where nothing was drafted."""
    lengths: Ints
    """[N] draft tokens verified."""
    accepted: Ints
    """[N] of those, the leading ones accepted; counts tokens after a stop token too."""
    context: Ints
    """[N] tokens before the drafts, the prompt's and the anchor counted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """What came out, and what it took."""

    tokens: list[list[int]]
    """Per prompt, the stop token included."""
    log: RoundLog
    seconds: dict[str, float]
    """By part of a round, see ``PARTS``."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What the drafter proposes for the live requests, and the very weights it was drawn from."""

    tokens_RK: Tensor
    weights_RKV: Tensor
    logits_RK: Floats
    """Confidences; row r says nothing of the token it stands beside, only of those before."""


def headless_confidence(weights_RV: Tensor) -> Tensor:
    """Logit [R] of the most likely token's probability: for drafters without a confidence head.

    Of the most likely, not of the drawn one: a confidence that knows its own token would let a
    policy look at what it cuts off.
    """
    most = weights_RV.max(-1).values.double().clamp(1e-6, 1 - 1e-6)
    return torch.logit(most)


class _Batch:
    """The live state of one batch. Arrays over all requests are on the host, tensors beside."""

    def __init__(
        self,
        *,
        target: Target,
        drafter: Any,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        new_tokens: int,
        stops: Set[int],
        generator: torch.Generator,
    ) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise ValueError("every prompt needs at least one token; drop the empty ones")
        if new_tokens < 1:
            raise ValueError(f"{new_tokens} new tokens to decode; ask for at least 1")
        self.target, self.drafter, self.sampling = target, drafter, sampling
        self.new_tokens, self.generator = new_tokens, generator
        self.stops = torch.tensor(sorted(stops), dtype=torch.int64)
        self.device = target.device
        count = len(prompts)
        self.gamma: int = drafter.config.gamma
        self.rows = torch.arange(count)
        """Requests not done yet."""
        self.index = torch.tensor([len(prompt) for prompt in prompts])
        """Position of each request's anchor: its last committed token, which the target has not
        computed yet."""
        self.generated = torch.zeros(count, dtype=torch.int64)
        self.output = torch.zeros(count, new_tokens + self.gamma + 1, dtype=torch.int64)
        self.memory = ConfidenceMemory(count, self.gamma)
        """Confidences of earlier rounds."""
        self.drafts_next = np.ones(count, dtype=bool)
        self.notes = np.full(count, np.nan)
        self.steps = np.zeros(count, dtype=np.int64)
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.log: list[tuple[Any, ...]] = []
        with self.timed("prefill"):
            self._prefill(prompts)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[part] += time.perf_counter() - start_s

    @property
    def live(self) -> list[int] | None:
        """Cache rows of the live requests; None for all, which spares a copy of the cache."""
        return None if len(self.rows) == len(self.index) else self.rows.tolist()

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        longest = int(self.index.max())
        capacity = longest + self.new_tokens + self.gamma + 1
        tokens_RT = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens_RT[row, : len(prompt)] = torch.tensor(prompt)
        tokens_RT = tokens_RT.to(self.device)
        lengths = self.index.tolist()
        self.cache = self.target.new_cache(requests=len(prompts), capacity=capacity)
        hidden_RTD, captured_RTC = self.target.extend(
            self.cache, tokens_RT=tokens_RT, lengths=lengths
        )
        last = (torch.arange(len(prompts)), self.index - 1)
        weights_RV = self._probabilities(self.target.logits(hidden_RTD[last]))
        first_R = draw(weights=weights_RV, uniform=self._uniforms(1)[:, 0])
        self.draft_cache = self.drafter.new_cache(
            requests=len(prompts), capacity=capacity + self.gamma
        )
        follow_RT = torch.cat([tokens_RT[:, 1:], first_R[:, None]], dim=1)
        follow_RT[last] = first_R
        self._extend_context(captured_RTC, follow_RT, self.index)
        self._append(first_R[:, None], torch.ones_like(self.index))

    def _probabilities(self, logits: Tensor) -> Tensor:
        return probabilities(logits=logits, sampling=self.sampling)

    def _uniforms(self, columns: int) -> Tensor:
        return uniforms(len(self.rows), columns, generator=self.generator).to(self.device)

    def _extend_context(self, captured_RTC: Tensor, follow_RT: Tensor, kept_R: Tensor) -> None:
        """Give the drafter the first ``kept_R`` states of each live row, and the tokens that
        follow them (only the autoregressive baseline looks at those)."""
        keep = torch.arange(captured_RTC.shape[1]) < kept_R[:, None]
        keep = keep.to(self.device)
        self.drafter.append(
            self.draft_cache,
            rows=self.rows.tolist(),
            context_TD=self.drafter.context(captured_BSC=captured_RTC[keep]),
            lengths=kept_R.tolist(),
            tokens_T=follow_RT[keep],
        )

    def _append(self, tokens_RT: Tensor, count_R: Tensor) -> None:
        """Commit each live row's first ``count_R`` tokens, up to a stop token or the limit."""
        tokens_RT, columns = tokens_RT.cpu(), torch.arange(tokens_RT.shape[1])
        before_R = self.generated[self.rows]
        done_R = before_R + count_R >= self.new_tokens
        count_R = torch.minimum(count_R, self.new_tokens - before_R)
        stops = torch.isin(tokens_RT, self.stops) & (columns < count_R[:, None])
        done_R |= stops.any(1)
        count_R = torch.where(stops.any(1), stops.int().argmax(1) + 1, count_R)
        keep = columns < count_R[:, None]
        places = before_R[:, None] + columns
        self.output[self.rows[:, None].expand_as(keep)[keep], places[keep]] = tokens_RT[keep]
        self.generated[self.rows] = before_R + count_R
        self.rows = self.rows[~done_R]

    def anchors(self) -> Tensor:
        """[R] the last committed token of each live request."""
        return self.output[self.rows, self.generated[self.rows] - 1].to(self.device)

    def draft(self) -> Draft:
        """K tokens for each live request that the last plan wants a draft for."""
        wanted = torch.from_numpy(np.flatnonzero(self.drafts_next[self.rows.numpy()]))
        count = len(self.rows)
        uniform_RK = self._uniforms(self.gamma)[wanted.to(self.device)]
        tokens_RK = torch.zeros(count, self.gamma, dtype=torch.int64, device=self.device)
        logits_RK = np.full((count, self.gamma), -np.inf)
        if not len(wanted):
            return Draft(
                tokens_RK=tokens_RK,
                weights_RKV=torch.zeros(
                    count, self.gamma, self.target.vocab_size, device=self.device
                ),
                logits_RK=logits_RK,
            )
        rows = self.rows[wanted]
        with self.timed("draft_backbone"):
            hidden_RKD, state = self.drafter.begin(
                self.draft_cache,
                anchor_tokens_R=self.anchors()[wanted.to(self.device)],
                anchor_index_R=self.index[rows].to(self.device),
                rows=None if len(rows) == len(self.index) else rows.tolist(),
            )
        with self.timed("draft_head"):
            previous_R = self.anchors()[wanted.to(self.device)]
            tokens, weights, logits = [], [], []
            for k in range(self.gamma):
                logits_RV, confidence_R, state = self.drafter.step(
                    hidden_RD=hidden_RKD[:, k], previous_R=previous_R, state=state
                )
                weights_RV = self._probabilities(logits_RV)
                previous_R = draw(weights=weights_RV, uniform=uniform_RK[:, k])
                if confidence_R is None:
                    confidence_R = headless_confidence(weights_RV)
                tokens.append(previous_R)
                weights.append(weights_RV)
                logits.append(confidence_R.double())
            tokens_RK[wanted] = torch.stack(tokens, 1)
            logits_RK[wanted.numpy()] = torch.stack(logits, 1).cpu().numpy()
            weights_RKV = torch.stack(weights, 1)
            if len(wanted) < count:
                drafted_RKV = weights_RKV
                weights_RKV = drafted_RKV.new_zeros(count, *drafted_RKV.shape[1:])
                weights_RKV[wanted] = drafted_RKV
        return Draft(tokens_RK=tokens_RK, weights_RKV=weights_RKV, logits_RK=logits_RK)

    def state(self, draft: Draft) -> BatchState:
        """What the policy may see."""
        rows = self.rows.numpy()
        drafted = np.isfinite(draft.logits_RK[:, 0])
        stale, stale_age = self.memory.advance(rows, draft.logits_RK, drafted)
        return BatchState(
            logits=draft.logits_RK,
            stale_logits=stale,
            stale_age=stale_age,
            note=self.notes[rows],
            context_tokens=self.index[self.rows].numpy(),
        )

    def verify(self, draft: Draft, lengths_R: Tensor) -> tuple[Tensor, Tensor]:
        """The target's (probabilities [R, T, V], captured states [R, T, C]) of what is verified."""
        longest = int(lengths_R.max())
        tokens_RT = torch.cat([self.anchors()[:, None], draft.tokens_RK[:, :longest]], dim=1)
        logits_RTV, captured_RTC = self.target.step(
            self.cache, tokens_RT=tokens_RT, lengths=(lengths_R + 1).tolist(), rows=self.live
        )
        return self._probabilities(logits_RTV), captured_RTC

    def commit(
        self,
        draft: Draft,
        plan: VerifyPlan,
        lengths_R: Tensor,
        checked: tuple[Tensor, Tensor],
    ) -> None:
        """Accept a run of each draft, add the token after it, and bring both caches up to date."""
        target_RTV, captured_RTC = checked
        longest = target_RTV.shape[1] - 1
        lengths = lengths_R.to(self.device)
        uniform = self._uniforms(self.gamma + 1)
        draft_RKV = draft.weights_RKV[:, : max(longest, 1)]
        accepted_R = rejection.accepted_run(
            drafts_RK=draft.tokens_RK[:, :longest],
            draft_RKV=draft_RKV[:, :longest],
            target_RTV=target_RTV,
            lengths_R=lengths,
            uniform_RK=uniform[:, :longest],
        )
        weights_RV = rejection.next_weights(
            draft_RKV=draft_RKV, target_RTV=target_RTV, lengths_R=lengths, accepted_R=accepted_R
        )
        next_R = draw(weights=weights_RV, uniform=uniform[:, -1])
        columns = torch.arange(longest + 1, device=self.device)
        tokens_RT = torch.cat([draft.tokens_RK[:, :longest], next_R[:, None]], dim=1)
        tokens_RT = torch.where(columns == accepted_R[:, None], next_R[:, None], tokens_RT)

        rows, accepted, live = self.rows, accepted_R.cpu(), self.rows.numpy()
        context = self.index[rows].numpy() + 1
        self.log.append(
            (live, self.steps[live], draft.logits_RK, plan.lengths, accepted.numpy(), context)
        )
        self.steps[live] += 1
        self.drafts_next[live] = plan.draft_next
        self.notes[live] = plan.note if plan.note.size else np.nan
        self.index[rows] += accepted + 1
        self.cache.crop(rows=rows.tolist(), lengths=self.index[rows].tolist())
        self._extend_context(captured_RTC, tokens_RT, accepted + 1)
        self._append(tokens_RT, accepted + 1)

    def result(self) -> Decoded:
        """Outputs by prompt, rounds in order."""
        empty: tuple[Any, ...] = (*[np.zeros(0, np.int64)] * 2, np.zeros((0, self.gamma)))
        parts = self.log or [(*empty, *[empty[0]] * 3)]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        names = ("request", "step", "logits", "lengths", "accepted", "context")
        return Decoded(
            tokens=[
                row[:count].tolist()
                for row, count in zip(self.output, self.generated.tolist(), strict=True)
            ],
            log=RoundLog(**dict(zip(names, columns, strict=True))),
            seconds=self.seconds,
        )


@torch.no_grad()
def speculate(
    *,
    target: Target,
    drafter: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    planner: PlansLengths,
    new_tokens: int,
    generator: torch.Generator,
    stops: Set[int] = frozenset(),
) -> Decoded:
    """Continue every prompt by up to ``new_tokens``, distributed exactly as the target samples.

    ``drafter`` is a ``Drafter`` or the Eagle3 baseline; the target captures the layers it reads.
    Whatever ``planner`` decides changes speed, never the distribution, provided that a request's
    length does not depend on the tokens it cuts off. ``stops`` end a request.
    """
    if planner.gamma != drafter.config.gamma:
        raise ValueError(
            f"the planner is for {planner.gamma} draft tokens, the drafter makes "
            f"{drafter.config.gamma}; build the planner with the drafter's gamma"
        )
    if tuple(target.captured) != tuple(drafter.config.layers_captured):
        raise ValueError(
            f"the target captures layers {list(target.captured)}, the drafter reads "
            f"{list(drafter.config.layers_captured)}; call target.capture with the latter"
        )
    batch = _Batch(
        target=target,
        drafter=drafter,
        prompts=prompts,
        sampling=sampling,
        new_tokens=new_tokens,
        stops=stops,
        generator=generator,
    )
    while len(batch.rows):
        draft = batch.draft()
        with batch.timed("plan"):
            plan = planner.plan(batch.state(draft))
            lengths_R = torch.from_numpy(np.asarray(plan.lengths, dtype=np.int64))
        with batch.timed("verify"):
            checked = batch.verify(draft, lengths_R)
        with batch.timed("commit"):
            batch.commit(draft, plan, lengths_R, checked)
    return batch.result()
