"""Penalties that look at what a request has generated: presence, frequency, repetition, min tokens.

Additive ones come first and the repetition's scale after them: the order that SGLang keeps when it
accumulates them (otherwise it goes by a set's order). SGLang's plain decoding forgets what was
generated before a retraction and, under overlap scheduling, penalises each token one step late;
here neither happens.

Owns the committed tokens of requests that need them, as the worker knows them: under overlap
scheduling a request's own ``output_ids`` lag a step behind. Knows nothing of temperatures,
grammars or of how tokens are chosen.

Shapes: R requests, P those with penalties, K draft positions, T = K + 1, V vocabulary, M rows,
S stop tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sglang_dspark.runtime.worker.sampling.rows import on_device, walk


def penalised(params: Any) -> bool:
    """Whether these sampling parameters look at what was generated."""
    return bool(
        params.presence_penalty != 0
        or params.frequency_penalty != 0
        or params.repetition_penalty != 1
        or params.min_new_tokens > 0
    )


def stop_tokens(req: Any) -> list[int]:
    """Tokens that end a request, those that ``min_new_tokens`` forbids for a while."""
    tokenizer = req.tokenizer
    stops = set(req.sampling_params.stop_token_ids or ())
    stops |= set(getattr(tokenizer, "additional_stop_token_ids", None) or ())
    stops.add(getattr(tokenizer, "eos_token_id", None))
    return sorted(token for token in stops if token is not None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Penalties:
    """The penalised requests of one batch, and where their histories are kept."""

    requests_P: Tensor
    """Index in the batch."""
    slots_P: Tensor
    """Row in the histories."""
    presence_P1: Tensor
    frequency_P1: Tensor
    repetition_P1: Tensor
    least_P1: Tensor
    """min_new_tokens."""
    stops_PS: Tensor
    """Stop tokens; shorter lists repeat their first."""

    @classmethod
    def of(
        cls, reqs: Sequence[Any], *, where: Sequence[int], slots: Sequence[int], device: Any
    ) -> Penalties:
        """Those of ``reqs[i]`` for i in ``where``."""
        params = [reqs[i].sampling_params for i in where]
        stops = [
            stop_tokens(reqs[i]) if one.min_new_tokens > 0 else []
            for i, one in zip(where, params, strict=True)
        ]
        widest = max(map(len, stops))
        stops = [row + [row[0] if row else 0] * (widest - len(row)) for row in stops]

        def column(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
            values = [[getattr(one, name)] for one in params]
            return on_device(values, dtype=dtype, device=device)

        return cls(
            requests_P=on_device(where, dtype=torch.int64, device=device),
            slots_P=on_device(slots, dtype=torch.int64, device=device),
            presence_P1=column("presence_penalty"),
            frequency_P1=column("frequency_penalty"),
            repetition_P1=column("repetition_penalty"),
            least_P1=column("min_new_tokens", torch.int64),
            stops_PS=on_device(stops, dtype=torch.int64, device=device),
        )

    def additive(self, *, counts_PV: Tensor, generated_P1: Tensor) -> Tensor:
        """[P, V] what is added to logits, before they are scaled."""
        shift_PV = -(self.presence_P1 * (counts_PV > 0) + self.frequency_P1 * counts_PV)
        if self.stops_PS.shape[1]:
            kept_PS = shift_PV.gather(1, self.stops_PS)
            kept_PS = torch.where(generated_P1 < self.least_P1, float("-inf"), kept_PS)
            shift_PV.scatter_(1, self.stops_PS, kept_PS)
        return shift_PV

    def scale(self, *, counts_PV: Tensor) -> Tensor:
        """[P, V] what negative logits are multiplied with and others divided by."""
        return torch.where(counts_PV > 0, self.repetition_P1, 1.0)


def resume(reqs: Sequence[Any], sampling_info: Any) -> None:
    """Before a prefill: let the stock sampler know what retracted requests had generated.

    SGLang's penalties start empty with every prefill, those of a retracted request too, whose next
    token would come out unpenalised.
    """
    additive_RV = sampling_info.acc_additive_penalties
    if additive_RV is None:
        return
    device, scale_RV = additive_RV.device, sampling_info.acc_scaling_penalties
    for row, req in enumerate(reqs):
        if not len(req.output_ids) or not penalised(req.sampling_params):
            continue
        penalties = Penalties.of(reqs, where=[row], slots=[0], device=device)
        output = on_device(list(req.output_ids), dtype=torch.int64, device=device)
        counts_1V = torch.bincount(output, minlength=additive_RV.shape[1])[None]
        generated_11 = torch.full((1, 1), len(output), device=device)
        additive_RV[row] = penalties.additive(counts_PV=counts_1V, generated_P1=generated_11)[0]
        if scale_RV is not None:
            scale_RV[row] = penalties.scale(counts_PV=counts_1V)[0]


class TokenHistories:
    """How often each request with penalties has generated each token, by request id.

    ``begin`` at every prefill, ``commit`` at every decode step: requests that a decode step does
    not have are forgotten (a chunk of a prompt still being computed is begun again with the next).
    Memory: 4 bytes for each token of the vocabulary and request with penalties.
    """

    def __init__(self, *, vocab_size: int, device: Any) -> None:
        self.vocab_size, self.device = vocab_size, torch.device(device)
        self._slots: dict[str, int] = {}
        self._counts_SV = torch.zeros(0, vocab_size, dtype=torch.int32, device=self.device)
        self._generated_S = torch.zeros(0, dtype=torch.int64, device=self.device)
        self._last: tuple[tuple[str, ...], Penalties | None] | None = None

    def __len__(self) -> int:
        """Requests kept."""
        return len(self._slots)

    def begin(self, reqs: Sequence[Any], first_tokens_R: Tensor | None = None) -> None:
        """Start anew from ``output_ids`` (not empty after a retraction) and the first token [R].

        At a prefill the former are complete even under overlap scheduling: what was in flight when
        the request was retracted is dropped.
        """
        where = [i for i, req in enumerate(reqs) if penalised(req.sampling_params)]
        if not where:
            return
        self._last = None
        slots = [self._slot(reqs[i].rid) for i in where]
        slots_P = on_device(slots, dtype=torch.int64, device=self.device)
        self._counts_SV.index_fill_(0, slots_P, 0)
        self._generated_S.index_fill_(0, slots_P, 0)
        for place, i in enumerate(where):
            if output := list(reqs[i].output_ids):
                tokens_1T = on_device([output], dtype=torch.int64, device=self.device)
                count_1 = on_device([len(output)], dtype=torch.int64, device=self.device)
                self._add(slots_P[place : place + 1], tokens_1T, count_1)
        if first_tokens_R is not None:
            requests_P = on_device(where, dtype=torch.int64, device=self.device)
            self._add(slots_P, first_tokens_R[requests_P, None], torch.ones_like(slots_P))

    def commit(self, reqs: Sequence[Any], tokens_RT: Tensor, counts_R: Tensor) -> None:
        """Add the first ``counts_R`` of each request's tokens; forget who is not in ``reqs``."""
        if not self._slots:
            return
        penalties = self.penalties(reqs)
        live = {req.rid for req in reqs}
        for rid in [rid for rid in self._slots if rid not in live]:
            del self._slots[rid]
        if penalties is not None:
            here_P = penalties.requests_P
            self._add(penalties.slots_P, tokens_RT[here_P], counts_R[here_P])

    def penalties(self, reqs: Sequence[Any]) -> Penalties | None:
        """Of this batch; None when nobody has any. A request never begun starts from its
        ``output_ids``."""
        ids = tuple(req.rid for req in reqs)
        if self._last is None or self._last[0] != ids:
            where = [i for i, req in enumerate(reqs) if penalised(req.sampling_params)]
            self.begin([reqs[i] for i in where if reqs[i].rid not in self._slots])
            slots = [self._slots[reqs[i].rid] for i in where]
            made = None
            if where:
                made = Penalties.of(reqs, where=where, slots=slots, device=self.device)
            self._last = ids, made
        return self._last[1]

    def penalise(
        self,
        penalties: Penalties,
        logits_MV: Tensor,
        *,
        drafts_RK: Tensor,
        start_R: Tensor,
        lengths_R: Tensor,
    ) -> None:
        """In place; row j sees the committed tokens and drafts 1 to j of this step."""
        here_P = penalties.requests_P
        counts_PV = self._counts_SV[penalties.slots_P]
        generated_P1 = self._generated_S[penalties.slots_P, None]
        drafts_PK = drafts_RK[here_P].long()
        one_P1 = torch.ones_like(drafts_PK[:, :1], dtype=counts_PV.dtype)
        positions = drafts_PK.shape[1]
        steps = walk(here_P, start_R=start_R, lengths_R=lengths_R, positions=positions)
        for position, (rows_P, used_P1) in enumerate(steps):
            if position:
                counts_PV.scatter_add_(1, drafts_PK[:, position - 1 : position], one_P1)
            before_PV = logits_MV[rows_P]
            after_PV = before_PV + penalties.additive(
                counts_PV=counts_PV, generated_P1=generated_P1 + position
            )
            scale_PV = penalties.scale(counts_PV=counts_PV)
            after_PV = torch.where(after_PV < 0, after_PV * scale_PV, after_PV / scale_PV)
            logits_MV[rows_P] = torch.where(used_P1, after_PV, before_PV)

    def _slot(self, rid: str) -> int:
        if rid not in self._slots:
            taken = set(self._slots.values())
            free = next(slot for slot in range(len(taken) + 1) if slot not in taken)
            self._slots[rid] = free
            if free >= len(self._counts_SV):
                self._grow(max(8, 2 * len(self._counts_SV)))
        return self._slots[rid]

    def _grow(self, rows: int) -> None:
        more = rows - len(self._counts_SV)
        self._counts_SV = torch.cat(
            [self._counts_SV, self._counts_SV.new_zeros(more, self.vocab_size)]
        )
        self._generated_S = torch.cat([self._generated_S, self._generated_S.new_zeros(more)])

    def _add(self, slots_P: Tensor, tokens_PT: Tensor, counts_P: Tensor) -> None:
        columns_T = torch.arange(tokens_PT.shape[1], device=self.device)
        added_PT = (columns_T < counts_P[:, None]).to(self._counts_SV.dtype)
        places = (slots_P[:, None].expand_as(added_PT), tokens_PT.long())
        # Columns beyond the count may hold anything, and add nothing to a token there is.
        places = (places[0], torch.where(added_PT > 0, places[1], 0))
        self._counts_SV.index_put_(places, added_PT, accumulate=True)
        self._generated_S.index_add_(0, slots_P, counts_P.to(self._generated_S.dtype))
