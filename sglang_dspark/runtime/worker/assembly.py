"""From the server's arguments and settings to the worker's planner, step log and metrics.

Owns what is built once on the host, and the refusals that need the loaded drafter. Knows nothing
of a round.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.server_args import get_global_server_args

from sglang_dspark.logs.records import StepRecord
from sglang_dspark.runtime.metrics import LiveSummary
from sglang_dspark.runtime.observers import Observers
from sglang_dspark.runtime.settings import Settings, check
from sglang_dspark.runtime.worker import control
from sglang_dspark.runtime.worker.planning import StepPlanner
from sglang_dspark.runtime.worker.urgency import UrgencyReader

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

WARN_EVERY_S = 60.0


def refusing(build: Callable[P, T]) -> Callable[P, T]:
    """Turn a ``ValueError`` of a start into one line and the end of this process.

    SGLang prints other exceptions of a scheduler as a page of traceback.
    """

    @functools.wraps(build)
    def built(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return build(*args, **kwargs)
        except ValueError as error:
            raise SystemExit(f"sglang-dspark: {error}") from None

    return built


def warn_of_degraded() -> Callable[[StepRecord], None]:
    """A listener that tells of a round verified in full for a fault, once a minute."""
    quiet_until_s = 0.0

    def tell(record: StepRecord) -> None:
        nonlocal quiet_until_s
        if record.degraded and record.end_s >= quiet_until_s:
            quiet_until_s = record.end_s + WARN_EVERY_S
            logger.warning(
                "DSPARK: a step was verified in full, without the policy: %s; "
                "sglang:dspark_degraded_steps counts them",
                record.degraded,
            )

    return tell


def labels_of(server_args: Any, ranks: Mapping[str, Any]) -> dict[str, Any]:
    """The labels of SGLang's own scheduler metrics, so that both can be joined."""
    labels = {
        "model_name": server_args.served_model_name,
        "engine_type": DisaggregationMode.to_engine_type(server_args.disaggregation_mode),
        "tp_rank": ranks["tp_rank"],
        "pp_rank": 0,
        "moe_ep_rank": ranks["moe_ep_rank"],
    }
    if ranks["dp_rank"] is not None:
        labels["dp_rank"] = ranks["dp_rank"]
    return labels | (server_args.extra_metric_labels or {})


def logits_bytes(*, gamma: int, vocab_size: int) -> int:
    """What one request's logits take in a round at most, beyond the captured graphs.

    A block's in bfloat16 and float32, a verify's likewise, and the verify's of the round before,
    which under overlap scheduling nobody has read yet.
    """
    return (6 * gamma + 10 * (gamma + 1)) * vocab_size


def check_room(*, requests: int, gamma: int, vocab_size: int, free_bytes: int) -> None:
    """``ValueError`` when a full batch's logits cannot fit into what the pools leave free.

    Graphs and activations come on top: this refuses only what is sure to run out in the middle of
    serving, where it would end the server.
    """
    each = logits_bytes(gamma=gamma, vocab_size=vocab_size)
    if requests * each > free_bytes:
        raise ValueError(
            f"--max-running-requests {requests}: a round of so many takes "
            f"{requests * each / 2**30:.1f} GiB of logits, and the memory pools leave "
            f"{free_bytes / 2**30:.1f} GiB; give at most {free_bytes // each}, or lower "
            "--mem-fraction-static"
        )


def assemble(
    drafter: Any, *, max_requests: int, pool_size: int, ranks: Mapping[str, Any]
) -> tuple[StepPlanner, UrgencyReader, Observers]:
    """The policy's side of a worker; ``ValueError`` when settings do not fit the drafter."""
    settings = Settings.from_environment()
    deployed = check(
        settings,
        gamma=drafter.gamma,
        has_confidence_head=drafter.confidence_head is not None,
        max_requests=max_requests,
    )
    server_args = get_global_server_args()
    observers = Observers(
        settings,
        deployed,
        gamma=drafter.gamma,
        max_requests=max_requests,
        labels=labels_of(server_args, ranks),
        sharing=server_args.dp_size,
    )
    # Read by /server_info among the server's arguments.
    server_args.dspark = LiveSummary(observers.metrics)
    planner = StepPlanner(deployed.planner, pool_size)
    observers.listeners += [warn_of_degraded(), control.install(planner).observe]
    urgency = UrgencyReader(
        deployed.planner,
        by_priority=server_args.enable_priority_scheduling,
        low_first=server_args.schedule_low_priority_values_first,
    )
    return planner, urgency, observers
