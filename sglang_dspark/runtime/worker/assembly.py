"""From the server's arguments and settings to the worker's planner, step log and metrics.

Owns what is built once on the host, and the refusals that need the loaded drafter. Knows nothing
of a round.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.server_args import get_global_server_args

from sglang_dspark.core.corrected_planner import CorrectedPlanner
from sglang_dspark.core.policy import policy_label
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.logs.step_log import StepLog
from sglang_dspark.logs.step_parts import header_of
from sglang_dspark.runtime.drift import outcome_of
from sglang_dspark.runtime.metrics import LiveSummary, WorkerMetrics
from sglang_dspark.runtime.settings import Deployment, Settings, check
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


class Observers:
    """Who is told of every round: the metrics, and the step log where one was asked for."""

    def __init__(
        self,
        settings: Settings,
        deployed: Deployment,
        *,
        gamma: int,
        max_requests: int,
        ranks: Mapping[str, Any],
    ) -> None:
        server_args = get_global_server_args()
        self._log = None
        if settings.step_log is not None and not ranks["tp_rank"]:
            header = header_of(
                policy=deployed.policy_file,
                cost_model=deployed.cost_model,
                gamma=gamma,
                max_requests=max_requests,
                versions={name: importlib.metadata.version(name) for name in ("sglang", "torch")},
            )
            # Data-parallel replicas share the folder, and so its limit.
            limit_mb = max(1, settings.step_log_mb // server_args.dp_size)
            self._log = StepLog(settings.step_log, header=header, limit_mb=limit_mb)
        planner = deployed.planner
        self._corrected = planner if isinstance(planner, CorrectedPlanner) else None
        self._metrics = WorkerMetrics(
            gamma=gamma,
            policy=policy_label(deployed.policy_file.policy),
            cost_model=deployed.cost_model.name if deployed.priced else None,
            calibration=deployed.policy_file.calibration,
            corrected=self._corrected,
            labels=labels_of(server_args, ranks),
            step_log=self._log,
        )
        self._quiet_until_s = 0.0
        self.control: control.Control | None = None
        # Read by /server_info among the server's arguments.
        server_args.dspark = LiveSummary(self._metrics)

    def observe(self, record: StepRecord) -> None:
        """One round's outcome; a round verified in full for a fault is told, once a minute."""
        if record.degraded and record.end_s >= self._quiet_until_s:
            self._quiet_until_s = record.end_s + WARN_EVERY_S
            logger.warning(
                "DSPARK: a step was verified in full, without the policy: %s; "
                "sglang:dspark_degraded_steps counts them",
                record.degraded,
            )
        if self._corrected is not None:
            self._corrected.learn(outcome_of(record))
        self._metrics.observe(record)
        if self._log is not None:
            self._log.observe(record)
        if self.control is not None:
            self.control.observe(record)


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
    observers = Observers(
        settings, deployed, gamma=drafter.gamma, max_requests=max_requests, ranks=ranks
    )
    planner = StepPlanner(deployed.planner, pool_size)
    observers.control = control.install(planner)
    server_args = get_global_server_args()
    urgency = UrgencyReader(
        deployed.planner,
        by_priority=server_args.enable_priority_scheduling,
        low_first=server_args.schedule_low_priority_values_first,
    )
    return planner, urgency, observers
