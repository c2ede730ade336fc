"""The DSPARK worker. One round is ``draft -> plan -> verify -> commit``: read ``decode``.

Owns the order of things and what a round hands to the next. How forwards are described is
``forwards``, what a policy sees ``planning``, how tokens are chosen ``sampling``.

Shapes: R requests, K draft positions, T = K + 1, M rows the target computes, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sglang.srt.distributed import get_tp_group
from sglang.srt.managers.scheduler import GenerationBatchResult
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from torch import Tensor

from sglang_dspark.core.state import BatchState, VerifyPlan
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.runtime.kernels.head import DraftBlock, draft_block
from sglang_dspark.runtime.worker import forwards
from sglang_dspark.runtime.worker.algorithm import draft_arguments
from sglang_dspark.runtime.worker.assembly import assemble, check_room, refusing
from sglang_dspark.runtime.worker.clock import PhaseClock
from sglang_dspark.runtime.worker.draft_input import DraftInput
from sglang_dspark.runtime.worker.forwards import Rows, Verified
from sglang_dspark.runtime.worker.sampling.draw import RowSampling, committed
from sglang_dspark.runtime.worker.sampling.penalties import TokenHistories, resume
from sglang_dspark.runtime.worker.sampling.rows import on_device
from sglang_dspark.runtime.worker.warm_up import decide_once, launch_once


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """What one round knows before it starts."""

    batch: Any
    anchors_R: Tensor
    prefix_R: Tensor
    pool_R: Tensor
    pool: np.ndarray[Any, Any]
    """``pool_R`` on the host."""
    sampling: RowSampling
    uniform_RT: Tensor
    """Randomness of acceptance and of the token after it."""
    clock: PhaseClock


class DSparkWorker(BaseSpecWorker):  # type: ignore[misc]
    """Drives the drafter and the target; the scheduler calls it once for every batch."""

    @refusing
    def __init__(self, *, target_worker: TpModelWorker, server_args: Any, **ranks: Any) -> None:
        ModelRegistry.register("sglang_dspark.runtime.worker", overwrite=True, strict=True)
        self._target_worker = target_worker
        self.model_runner = target_worker.model_runner
        self.device = target_worker.device
        self._draft_worker = TpModelWorker(
            server_args=draft_arguments(server_args),
            pp_rank=0,
            is_draft_worker=True,
            context_length=self.model_runner.model_config.context_len,
            **ranks,
        )
        self.draft_runner = self._draft_worker.draft_runner = self._draft_worker.model_runner
        self.drafter = self.draft_runner.model
        self.drafter.share(self.model_runner.model)
        self.model_runner.model.set_dflash_layers_to_capture(list(self.drafter.layers_captured))
        self.gamma = self.drafter.gamma
        self.ranks = ranks
        self.histories = TokenHistories(vocab_size=self.drafter.vocab_size, device=self.device)
        self.generator = torch.Generator(self.device).manual_seed(server_args.random_seed)
        self.steps = 0
        self.pending: deque[Callable[[list[int]], StepRecord]] = deque()

    # What the scheduler asks.

    @property
    def target_worker(self) -> TpModelWorker:
        """The target's own worker."""
        return self._target_worker

    @property
    def draft_worker(self) -> TpModelWorker:
        """The drafter's own worker."""
        return self._draft_worker

    @property
    def spec_v2_attn_backends(self) -> tuple[Any, Any]:
        """Every attention backend that a round touches."""
        return self.model_runner.attn_backend, self.draft_runner.attn_backend

    @refusing
    def alloc_memory_pool(
        self,
        memory_pool_config: Any = None,
        req_to_token_pool: Any = None,
        token_to_kv_pool_allocator: Any = None,
    ) -> None:
        """The drafter's pool: its own keys and values at the target's locations."""
        self.drafter.fit_pool(self.draft_runner.model_config)
        self._draft_worker.alloc_memory_pool(
            memory_pool_config=memory_pool_config,
            req_to_token_pool=req_to_token_pool,
            token_to_kv_pool_allocator=token_to_kv_pool_allocator,
        )
        if torch.device(self.device).type == "cuda":
            check_room(
                requests=self.model_runner.max_running_requests,
                gamma=self.gamma,
                vocab_size=self.drafter.vocab_size,
                free_bytes=torch.cuda.mem_get_info()[0],
            )
        self.planning, self.urgency, self.observers = assemble(
            self.drafter,
            max_requests=self.model_runner.max_running_requests,
            pool_size=self.model_runner.req_to_token_pool.req_to_token.shape[0],
            ranks=self.ranks,
        )

    def init_attention_backends(self) -> None:
        """The drafter's backend."""
        self._draft_worker.init_attention_backends()

    def init_cuda_graphs(self) -> None:
        """The drafter's graphs; the target's are captured by the scheduler. Before them, all else
        that the first request would wait for."""
        decide_once(self.planning.planner)
        launch_once(
            self.drafter,
            device=torch.device(self.device),
            most_requests=self.model_runner.max_running_requests,
        )
        self._draft_worker.init_cuda_graphs(
            capture_decode_cuda_graph=not self._target_worker.server_args.disable_cuda_graph
        )

    def clear_cache_pool(self) -> None:
        """Nothing is cached beside the KV locations, which the scheduler frees."""

    def on_verify_complete_cpu(
        self, num_correct_drafts_per_req: list[int], batch_size: int = 0
    ) -> None:
        """A round's results are on the host: say what came of it."""
        self.observers.observe(self.pending.popleft()(num_correct_drafts_per_req))

    def forward_batch_generation(
        self, batch: Any, on_publish: Callable[[Tensor], None] | None = None
    ) -> GenerationBatchResult:
        """One prefill or one round; ``on_publish`` takes the new lengths [R] for overlap."""
        if batch.forward_mode.is_extend():
            return self.prefill(batch, on_publish)
        return self.decode(batch, on_publish)

    def prefill(
        self, batch: Any, on_publish: Callable[[Tensor], None] | None
    ) -> GenerationBatchResult:
        """The target's prefill; its states become the drafter's context at once.

        At once, because a finished prefill may enter the radix cache before the first round.
        """
        batch.capture_hidden_mode = CaptureHiddenMode.FULL
        resume(batch.reqs, batch.sampling_info)
        result = self._target_worker.forward_batch_generation(batch)
        if on_publish is not None:
            on_publish(batch.seq_lens)
        prefix = on_device(batch.prefix_lens, dtype=torch.int64, device=torch.device(self.device))
        rows = Rows.of([length - 1 for length in batch.extend_lens], self.device)
        self._extend_context(
            result.logits_output.hidden_states,
            batch.out_cache_loc,
            prefix[rows.request_M] + rows.column_M,
        )
        result.logits_output.hidden_states = None
        self.planning.begin(batch.req_pool_indices_cpu.numpy())
        self.histories.begin(batch.reqs, result.next_token_ids)
        result.new_seq_lens = batch.seq_lens
        result.next_draft_input = DraftInput(
            bonus_tokens=result.next_token_ids.long(), new_seq_lens=batch.seq_lens
        )
        return result

    def decode(
        self, batch: Any, on_publish: Callable[[Tensor], None] | None
    ) -> GenerationBatchResult:
        """One round of every running request."""
        step = self._begin(batch)
        with step.clock.part("draft"):
            block = self.draft(step)
        with step.clock.part("plan"):
            state, plan, degraded, rows = self.plan(step, block)
        with step.clock.part("verify"):
            verified = self.verify(step, block, rows)
        with step.clock.part("commit"):
            result = self.commit(step, block, rows, verified, on_publish)
        self._remember(step, state, plan, degraded, verified)
        return result

    # The four parts.

    def draft(self, step: Round) -> DraftBlock:
        """K tokens for each request that the last plan wants a draft for."""
        requests, device = len(step.pool), self.device
        uniform_RK = self._uniforms(requests, self.gamma)
        choice = step.sampling.drafter_choice(uniform_RK)
        wanted = self.planning.drafts(step.pool)
        if wanted.all():
            return self._draft_rows(step.anchors_R, step.pool_R, step.prefix_R, step.batch, choice)
        vocab_size = self.drafter.vocab_size if wanted.any() else 1
        block = DraftBlock.nothing(requests, self.gamma, vocab_size=vocab_size, device=device)
        if wanted.any():
            here = np.flatnonzero(wanted)
            picked = on_device(here.tolist(), dtype=torch.int64, device=torch.device(device))
            part = self._draft_rows(
                step.anchors_R[picked],
                step.pool_R[picked],
                step.prefix_R[picked],
                step.batch,
                choice.of(picked),
                torch.from_numpy(here),
            )
            block.fill(picked, part)
        return block

    def plan(self, step: Round, block: DraftBlock) -> tuple[BatchState, VerifyPlan, str, Rows]:
        """Ask the policy; every rank takes rank 0's answer and rank 0's drafts."""
        group = get_tp_group()
        if group.world_size > 1:
            group.broadcast(block.tokens_RK, src=0)
            group.broadcast(block.confidence_RK, src=0)
        logits_RK = block.confidence_RK.double().cpu().numpy()
        context_R = step.batch.seq_lens_cpu.numpy().astype(np.int64)
        state, plan, degraded = self.planning.plan(
            pool_R=step.pool,
            logits_RK=logits_RK,
            context_tokens_R=context_R,
            urgency=self.urgency.read(step.batch.reqs, context_R),
        )
        if group.world_size > 1:
            plan = _rank_0s(plan, group)
        self.planning.remember(step.pool, plan)
        return state, plan, degraded, Rows.of(plan.lengths.tolist(), self.device)

    def verify(self, step: Round, block: DraftBlock, rows: Rows) -> Verified:
        """The target over the anchors and the planned drafts."""
        return forwards.verify(
            self._target_worker,
            step.batch,
            anchors_R=step.anchors_R,
            drafts_RK=block.tokens_RK,
            rows=rows,
        )

    def commit(
        self,
        step: Round,
        block: DraftBlock,
        rows: Rows,
        verified: Verified,
        on_publish: Callable[[Tensor], None] | None,
    ) -> GenerationBatchResult:
        """Accept a run of each draft, add the token after it, extend the drafter's context."""
        where = {"start_R": rows.start_R, "lengths_R": rows.lengths_R}
        sampling = step.sampling
        accepted_R, next_R = sampling.verify(
            sampling.adjust(verified.logits_MV, drafts_RK=block.tokens_RK, **where),
            block=block,
            positions_M=verified.positions_M,
            uniform_RT=step.uniform_RT,
            overwrite=not step.batch.return_logprob,
            **where,
        )
        group = get_tp_group()
        if group.world_size > 1:
            group.broadcast(accepted_R, src=0)
            group.broadcast(next_R, src=0)
        counts_R = accepted_R + 1
        new_seq_lens = step.prefix_R.to(step.batch.seq_lens.dtype) + counts_R
        if on_publish is not None:
            on_publish(new_seq_lens)
        tokens_RT = committed(block.tokens_RK, accepted_R=accepted_R, next_R=next_R)
        # Rejected rows too: the next block overwrites their locations before anything reads them.
        self._extend_context(verified.captured_MC, verified.locations_M, verified.positions_M)
        self.histories.commit(step.batch.reqs, tokens_RT, counts_R)
        output = verified.output.logits_output
        output.hidden_states = None
        if step.batch.return_logprob:
            sampling.logprobs(
                step.batch,
                output,
                drafts_RK=block.tokens_RK,
                start_R=rows.start_R,
                accepted_R=accepted_R,
                next_R=next_R,
            )
        return GenerationBatchResult(
            logits_output=output,
            next_token_ids=tokens_RT.flatten(),
            accept_lens=counts_R.to(torch.int32),
            new_seq_lens=new_seq_lens,
            next_draft_input=DraftInput(bonus_tokens=next_R, new_seq_lens=new_seq_lens),
            speculative_num_draft_tokens=self.gamma + 1,
            can_run_cuda_graph=verified.output.can_run_cuda_graph,
        )

    # Details of a round.

    def _begin(self, batch: Any) -> Round:
        return Round(
            batch=batch,
            anchors_R=batch.spec_info.bonus_tokens,
            prefix_R=batch.seq_lens.long(),
            pool_R=batch.req_pool_indices.long(),
            pool=batch.req_pool_indices_cpu.numpy(),
            sampling=RowSampling(
                batch.reqs,
                batch.sampling_info,
                histories=self.histories,
                gamma=self.gamma,
            ),
            uniform_RT=self._uniforms(len(batch.reqs), self.gamma + 1),
            clock=PhaseClock(self.device),
        )

    def _uniforms(self, rows: int, columns: int) -> Tensor:
        return torch.rand(
            rows, columns, generator=self.generator, dtype=torch.float64, device=self.device
        )

    def _draft_rows(
        self,
        anchors_R: Tensor,
        pool_R: Tensor,
        prefix_R: Tensor,
        batch: Any,
        choice: Any,
        picked: Tensor | None = None,
    ) -> DraftBlock:
        tokens_RK = anchors_R.new_full((len(anchors_R), self.gamma), self.drafter.mask_token_id)
        tokens_RK[:, 0] = anchors_R
        prefix_cpu = batch.seq_lens_cpu if picked is None else batch.seq_lens_cpu[picked]
        hidden_RKD = forwards.draft_block(
            self.draft_runner,
            tokens_RK=tokens_RK,
            pool_R=pool_R,
            prefix_R=prefix_R,
            prefix_cpu_R=prefix_cpu,
            algorithm=batch.spec_algorithm,
        )
        logits = self.drafter.base_logits(hidden_RKD.flatten(0, 1)).float()
        return draft_block(
            markov_head=self.drafter.markov_head,
            confidence_head=self.drafter.confidence_head,
            hidden_RKD=hidden_RKD,
            logits_RKV=logits.view(len(anchors_R), self.gamma, -1),
            anchors_R=anchors_R,
            chooser=choice,
        )

    def _extend_context(
        self, captured_TC: Tensor, locations_T: Tensor, positions_T: Tensor
    ) -> None:
        self.drafter.write_context(
            self.draft_runner.token_to_kv_pool,
            locations_T=locations_T,
            positions_T=positions_T,
            context_TD=self.drafter.context(captured_TC),
        )

    def _remember(
        self, step: Round, state: BatchState, plan: VerifyPlan, degraded: str, verified: Verified
    ) -> None:
        self.steps += 1
        number, clock = self.steps, step.clock
        computed_tokens, shape = verified.computed_tokens, verified.shape
        request_ids = tuple(request.rid for request in step.batch.reqs)

        def record(accepted: list[int]) -> StepRecord:
            return StepRecord(
                step=number,
                end_s=time.time(),
                request_ids=request_ids,
                state=state,
                plan=plan,
                accepted=np.array(accepted, dtype=np.int64),
                computed_tokens=computed_tokens,
                shape=shape,
                degraded=degraded,
                **{
                    f"{part}_s": clock.seconds(part)
                    for part in ("draft", "plan", "verify", "commit")
                },
            )

        self.pending.append(record)


def _rank_0s(plan: VerifyPlan, group: Any) -> VerifyPlan:
    """Rank 0's plan on every rank: two processors may differ in a last bit, and ranks whose
    lengths differ wait for each other forever."""
    decided = torch.from_numpy(np.stack([plan.lengths, plan.draft_next]).astype(np.int64))
    torch.distributed.broadcast(decided, src=group.ranks[0], group=group.cpu_group)
    lengths, draft_next = decided.numpy()
    return dataclasses.replace(plan, lengths=lengths, draft_next=draft_next.astype(np.bool_))
