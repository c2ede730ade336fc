"""Who is told of every step of a server, in either lane: corrections, metrics, step log, others.

Owns what is built of the settings to watch a server, and the order in which it is told. Knows
neither SGLang nor torch; the lanes say whose labels these are and when a step is over.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

from sglang_dspark.core.corrected_planner import CorrectedPlanner
from sglang_dspark.core.policy import policy_label
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.logs.step_log import StepLog
from sglang_dspark.logs.step_parts import header_of
from sglang_dspark.runtime.drift import outcome_of
from sglang_dspark.runtime.metrics import WorkerMetrics
from sglang_dspark.runtime.settings import Deployment, Settings


class Observers:
    """The metrics, the planner's own correction and the step log where there are any.

    ``labels`` are those of SGLang's own scheduler metrics; the first tensor-parallel rank writes
    the log. ``sharing``: servers that write into one folder, and so share its limit.
    """

    def __init__(
        self,
        settings: Settings,
        deployed: Deployment,
        *,
        gamma: int,
        max_requests: int,
        labels: Mapping[str, Any],
        sharing: int = 1,
    ) -> None:
        self._log = None
        if settings.step_log is not None and not labels["tp_rank"]:
            header = header_of(
                policy=deployed.policy_file,
                cost_model=deployed.cost_model,
                gamma=gamma,
                max_requests=max_requests,
                versions={name: importlib.metadata.version(name) for name in ("sglang", "torch")},
            )
            limit_mb = max(1, settings.step_log_mb // sharing)
            self._log = StepLog(settings.step_log, header=header, limit_mb=limit_mb)
        planner = deployed.planner
        self._corrected = planner if isinstance(planner, CorrectedPlanner) else None
        self.metrics = WorkerMetrics(
            gamma=gamma,
            policy=policy_label(deployed.policy_file.policy),
            cost_model=deployed.cost_model.name if deployed.priced else None,
            calibration=deployed.policy_file.calibration,
            corrected=self._corrected,
            labels=labels,
            step_log=self._log,
        )
        self.listeners: list[Callable[[StepRecord], None]] = []
        """Told last, in order."""

    def observe(self, record: StepRecord) -> None:
        """One step's outcome."""
        if self._corrected is not None:
            self._corrected.learn(outcome_of(record))
        self.metrics.observe(record)
        if self._log is not None:
            self._log.observe(record)
        for listener in self.listeners:
            listener(record)
