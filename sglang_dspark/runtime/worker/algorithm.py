"""DSPARK as SGLang 0.5.15 knows algorithms: its name, its server arguments, its relay, its worker.

Owns the registration and every hook into SGLang that the worker needs on all devices; what CPU
needs besides is in ``cpu``. Knows nothing of a step.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from sglang.srt.managers.overlap_utils import FutureMap
from sglang.srt.mem_cache.common import get_alloc_reserve_per_decode
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo
from sglang.srt.utils.hf_transformers_utils import get_config

from sglang_dspark.draft.model.config import DrafterConfig
from sglang_dspark.runtime import refusals
from sglang_dspark.runtime.worker import cpu
from sglang_dspark.runtime.worker.draft_model import drafter_config as read_config

NAME = "DSPARK"

MOST_REQUESTS = 48
"""That run at once unless --max-running-requests says so, as with SGLang's own algorithms: without
speculation it allows thousands, and each takes megabytes of logits in a round."""

ROW_MARGIN = 4
"""Columns that SGLang itself adds to a row for its own offsets."""


def drafter_config(server_args: Any) -> DrafterConfig:
    """The drafter that the arguments name. ``ValueError`` says what is wrong with it."""
    path = server_args.speculative_draft_model_path
    if not path:
        raise ValueError(
            "--speculative-algorithm DSPARK needs a drafter; give its folder or repository as "
            "--speculative-draft-model-path"
        )
    try:
        found = get_config(
            path,
            trust_remote_code=server_args.trust_remote_code,
            revision=server_args.speculative_draft_model_revision,
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        raise ValueError(
            f"--speculative-draft-model-path {path}: no drafter can be read there "
            f"({reason[0] if reason else type(error).__name__}); give the folder or the repository "
            "of a DSpark checkpoint"
        ) from None
    return read_config(found)


class RelayMap(FutureMap):  # type: ignore[misc]
    """Carries anchors from step to step; lengths always reach the host, which plans with them."""

    def __init__(self, device: Any, algorithm: Any, pool: Any) -> None:
        super().__init__(device, algorithm, pool, needs_cpu_seq_lens=True)

    def _resolve_spec_extras(self, batch: Any) -> None:
        draft_input = batch.spec_info
        if draft_input is not None and len(draft_input.future_indices):
            draft_input.bonus_tokens = self.output_tokens_buf[draft_input.future_indices]


class DSparkAlgorithm(CustomSpecAlgo):  # type: ignore[misc]
    """What the scheduler and the runners ask an algorithm."""

    def carries_draft_hidden_states(self) -> bool:
        """Nothing but tokens goes from a prefill to a decode server."""
        return False

    def need_topk(self) -> bool:
        """Drafts are made in the step that verifies them: no proposals to relay."""
        return False

    def has_draft_kv(self) -> bool:
        """The drafter's keys and values live at the target's locations, in a pool of its own."""
        return True

    def supports_target_verify_for_draft(self) -> bool:
        """A block is a verify-shaped forward of the drafter, and captured as one."""
        return True

    def create_future_map(
        self, device: Any, pool: Any, needs_cpu_seq_lens: bool = True
    ) -> RelayMap:
        """The relay of overlap scheduling."""
        return RelayMap(device, self, pool)

    def handle_server_args(self, server_args: Any) -> None:
        """Fill in what follows from the drafter, refuse what cannot be served."""
        config = drafter_config(server_args)
        given = server_args.speculative_num_draft_tokens
        if given not in (None, config.gamma + 1):
            raise ValueError(
                f"--speculative-num-draft-tokens {given} does not fit the drafter, which makes "
                f"{config.gamma} tokens after the anchor; leave it out or give {config.gamma + 1}"
            )
        server_args.speculative_num_draft_tokens = config.gamma + 1
        server_args.speculative_num_steps = config.gamma
        server_args.speculative_eagle_topk = 1
        server_args.enable_mixed_chunk = False
        if server_args.max_running_requests is None:
            server_args.max_running_requests = MOST_REQUESTS
        refusals.check_server_args(server_args)


def draft_arguments(server_args: Any) -> Any:
    """Arguments for the drafter's runner: a block is gamma wide, a verify gamma + 1.

    Attention backends read the width from the arguments and bake it into their plans.
    """
    arguments = copy.copy(server_args)
    arguments.speculative_num_draft_tokens = server_args.speculative_num_draft_tokens - 1
    return arguments


def _capture_spec_info(original: Any, runner: Any, num_tokens: int) -> Any:
    """A verify input of the right capture mode for CUDA graphs, where SGLang makes none."""
    model_runner = runner.model_runner
    if not isinstance(model_runner.spec_algorithm, DSparkAlgorithm):
        return original(runner, num_tokens)
    from sglang_dspark.runtime.worker.forwards import verify_input

    return verify_input(
        width=model_runner.server_args.speculative_num_draft_tokens,
        capture=not model_runner.is_draft_worker,
    )


def _dummy_verify_input(
    original: Any,
    spec_algorithm: Any,
    server_args: Any,
    custom_mask: Any,
    num_tokens_per_bs: int,
    is_draft_worker: bool,
) -> Any:
    if not isinstance(spec_algorithm, DSparkAlgorithm):
        return original(
            spec_algorithm, server_args, custom_mask, num_tokens_per_bs, is_draft_worker
        )
    from sglang_dspark.runtime.worker.forwards import verify_input

    return verify_input(width=num_tokens_per_bs, capture=not is_draft_worker)


def _cell_size(size: int, configurator: Any, runner: Any, num_layers: int) -> int:
    """Bytes of a KV token: the target's layers and the drafter's."""
    if isinstance(runner.spec_algorithm, DSparkAlgorithm) and not runner.is_draft_worker:
        config = drafter_config(runner.server_args)
        element = torch.empty(0, dtype=runner.kv_cache_dtype).element_size()
        heads = max(1, config.num_key_value_heads // runner.server_args.tp_size)
        size += 2 * config.num_hidden_layers * heads * config.head_dim * element
    return size


def _row_headroom(extra: int, server_args: Any) -> int:
    """Columns of a request's row beyond the context: all that a decode step reserves.

    SGLang reserves two rounds beyond what is committed and widens the row by one, which overflows
    into the next request's row where a request of gamma 8 or more ends at the context's limit.
    """
    if not refusals.asks(server_args):
        return extra
    return max(extra, ROW_MARGIN + get_alloc_reserve_per_decode(server_args))


def register() -> None:
    """Make DSPARK known to this process. Hooks do nothing for other algorithms."""

    def worker_class(server_args: Any) -> type:
        from sglang_dspark.runtime.worker.worker import DSparkWorker

        return DSparkWorker

    SpeculativeAlgorithm.register(NAME, supports_overlap=True, spec_class=DSparkAlgorithm)(
        worker_class
    )
    runner = "sglang.srt.model_executor"
    for target, hook, kind in (
        (
            f"{runner}.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner.get_spec_info",
            _capture_spec_info,
            HookType.AROUND,
        ),
        (
            "sglang.srt.speculative.spec_info.create_dummy_verify_input",
            _dummy_verify_input,
            HookType.AROUND,
        ),
        (
            f"{runner}.pool_configurator.DefaultPoolConfigurator._compute_cell_size",
            _cell_size,
            HookType.AFTER,
        ),
        (
            "sglang.srt.mem_cache.common.get_req_to_token_extra_context_len",
            _row_headroom,
            HookType.AFTER,
        ),
    ):
        HookRegistry.register(target, hook, kind)
    cpu.register()
