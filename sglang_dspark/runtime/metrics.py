"""What the server decided and what came of it: Prometheus metrics and the block of /server_info.

Owns the sums over steps. The metrics' names are in ``exporter.py``. Knows neither SGLang nor a
policy: it reads ``StepRecord``. Every sum is over the server's life; rates are the reader's.

The scheduler's thread only adds to a few arrays. A thread of its own carries the growth over to
prometheus_client twice a second, since each of its counters takes a lock and writes a mapped file,
and judges the confidences meanwhile (``drift.py``).
"""

from __future__ import annotations

import logging
import math
import threading
from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sglang_dspark.core.calibration import Calibration
from sglang_dspark.core.correction import PARTS
from sglang_dspark.core.state import Floats, Ints
from sglang_dspark.logs.records import StepRecord
from sglang_dspark.runtime.drift import Drift
from sglang_dspark.runtime.exporter import BATCH_BOUNDS, COUNTERS, PHASES, POLICY, Exporter, Key

if TYPE_CHECKING:
    from sglang_dspark.core.corrected_planner import CorrectedPlanner
    from sglang_dspark.logs.step_log import StepLog

logger = logging.getLogger(__name__)

BATCH_NAMES = ("1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65+")
"""The buckets as ``summary`` names them: it counts all above 64 together."""

_DRAFTED, _COMPUTED = ("drafted_tokens", ""), ("computed_tokens", "")
_DRAFT_S, _PLAN_S, _VERIFY_S, _COMMIT_S = (("phase_seconds", phase) for phase in PHASES)
_PREDICTED_S, _ACTUAL_S = (("forecast_step_seconds", k) for k in ("predicted", "actual"))
_EXPECTED, _ACTUAL = (("forecast_tokens", k) for k in ("expected", "actual"))


class _Sums:
    """What ``observe`` adds up. ``joint[b, l, a]``: requests in batches of bucket b, verified to
    length l, with a tokens accepted; nearly everything else follows from it."""

    def __init__(self, gamma: int) -> None:
        buckets = len(BATCH_BOUNDS) + 1
        self.joint: Ints = np.zeros((buckets, (gamma + 1) ** 2), dtype=np.int64)
        self.steps_of_bucket = [0] * buckets
        self.counts: dict[Key, float] = {}

    def copy(self, gamma: int) -> _Sums:
        twin = _Sums(gamma)
        twin.joint = self.joint.copy()
        twin.steps_of_bucket = list(self.steps_of_bucket)
        twin.counts = dict(self.counts)
        return twin


class WorkerMetrics:
    """Observes steps; ``summary`` and Prometheus show them.

    ``labels`` are those of SGLang's own scheduler metrics (model_name, tp_rank, ...). To be made
    where ``PROMETHEUS_MULTIPROC_DIR`` is already set, else the server's ``/metrics`` does not see
    it. ``cost_model`` None: the policy needs no prices, and predicted seconds mean nothing.
    ``calibration`` is the policy's, by which its confidences are judged; ``corrected`` is the
    planner of a policy that is corrected online, whose factors are shown. With ``interval_s`` 0
    only ``flush`` carries over.
    """

    def __init__(
        self,
        *,
        gamma: int,
        policy: str,
        cost_model: str | None,
        labels: Mapping[str, Any],
        calibration: Calibration | None = None,
        corrected: CorrectedPlanner | None = None,
        step_log: StepLog | None = None,
        interval_s: float = 0.5,
        registry: Any = None,
    ) -> None:
        self.gamma = gamma
        self.policy = policy
        self.cost_model = cost_model
        self._width = gamma + 1
        self._step_log = step_log
        self._corrected = corrected
        self._sums = _Sums(gamma)
        self._drift = Drift(gamma, calibration)
        self._decider = POLICY
        self._last: StepRecord | None = None
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._exporter = Exporter(
            gamma=gamma,
            labels=labels,
            info={"gamma": gamma, "policy": policy, "cost_model": cost_model or "none"},
            registry=registry,
        )
        self._closing = threading.Event()
        self._interval_s = interval_s
        self._thread: threading.Thread | None = None
        if interval_s > 0:
            self._thread = threading.Thread(target=self._run, name="dspark-metrics", daemon=True)
            self._thread.start()

    def observe(self, record: StepRecord) -> None:
        """Add one step; called on the scheduler's thread."""
        plan = record.plan
        lengths = plan.lengths
        rows = lengths.size
        if rows == 0:
            return
        width = self._width
        joint = np.bincount(lengths * width + record.accepted, minlength=width * width)
        # A row without a draft is -inf from its first position on.
        drafted = int(np.count_nonzero(record.state.logits[:, 0] != -math.inf)) * self.gamma
        bucket = bisect_left(BATCH_BOUNDS, rows)
        predicted_s, expected = plan.predicted_step_s, plan.expected_tokens
        draft_s, plan_s = record.draft_s, record.plan_s
        verify_s, commit_s = record.verify_s, record.commit_s
        with self._lock:
            sums = self._sums
            sums.joint[bucket] += joint
            sums.steps_of_bucket[bucket] += 1
            counts = sums.counts
            get = counts.get
            key: Key = ("steps", record.shape)
            counts[key] = get(key, 0) + 1
            key = ("stop_reasons", plan.stop_reason)
            counts[key] = get(key, 0) + 1
            counts[_DRAFTED] = get(_DRAFTED, 0) + drafted
            counts[_COMPUTED] = get(_COMPUTED, 0) + record.computed_tokens
            counts[_DRAFT_S] = get(_DRAFT_S, 0.0) + draft_s
            counts[_PLAN_S] = get(_PLAN_S, 0.0) + plan_s
            counts[_VERIFY_S] = get(_VERIFY_S, 0.0) + verify_s
            counts[_COMMIT_S] = get(_COMMIT_S, 0.0) + commit_s
            decider = record.degraded or POLICY
            if decider != self._decider:
                self._decider = decider
                key = ("policy_changes", decider)
                counts[key] = get(key, 0) + 1
            if record.degraded:
                key = ("degraded_steps", record.degraded)
                counts[key] = get(key, 0) + 1
            else:
                if self.cost_model is not None and math.isfinite(predicted_s):
                    actual_s = draft_s + plan_s + verify_s + commit_s
                    counts[_PREDICTED_S] = get(_PREDICTED_S, 0.0) + predicted_s
                    counts[_ACTUAL_S] = get(_ACTUAL_S, 0.0) + actual_s
                if math.isfinite(expected):
                    counts[_EXPECTED] = get(_EXPECTED, 0.0) + expected
                    counts[_ACTUAL] = get(_ACTUAL, 0) + record.committed_tokens
            self._last = record
        self._drift.observe(record)

    def totals(self) -> tuple[_Sums, dict[Key, float], Floats, StepRecord | None]:
        """The sums so far, every counter, the calibration error [K], and the last step."""
        with self._lock:
            sums, last = self._sums.copy(self.gamma), self._last
        judged = self._drift.read()
        width = self._width
        joint = sums.joint.sum(axis=0).reshape(width, width)
        verified, accepted = joint.sum(axis=1), joint.sum(axis=0)
        requests = int(joint.sum())
        # Plain numbers, whatever the caller counted in: they go into JSON.
        counts: dict[Key, float] = {
            key: float(n) if isinstance(n, float) else int(n) for key, n in sums.counts.items()
        }
        position = np.arange(width)
        counts["verified_tokens", ""] = int(verified @ position)
        counts["accepted_tokens", ""] = int(accepted @ position)
        counts["committed_tokens", ""] = requests + counts["accepted_tokens", ""]
        counts["planned_tokens", ""] = requests + counts["verified_tokens", ""]
        counts["trimmed_tokens", ""] = max(
            counts.get(_DRAFTED, 0) - counts["verified_tokens", ""], 0
        )
        for k in range(1, width):
            label = str(k)
            counts["proposed_by_position", label] = int(joint[k:].sum())
            counts["reached_by_position", label] = int(joint[k:, k - 1 :].sum())
            counts["accepted_by_position", label] = int(joint[:, k:].sum())
            counts["calibration_rows", label] = int(judged.rows[k - 1])
            counts["calibration_confidence", label] = float(judged.confidence[k - 1])
            counts["calibration_accepted", label] = int(judged.accepted[k - 1])
        if self._step_log is not None:
            counts["step_log_records", ""] = self._step_log.written
            counts["step_log_dropped", ""] = self._step_log.dropped
        return sums, counts, judged.error, last

    def flush(self) -> None:
        """Carry everything observed so far over to Prometheus."""
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        sums, counts, errors, last = self.totals()
        width = self._width
        stopped = self.log_stopped not in ("", "closed")
        gauges: dict[Key, float] = {("step_log_stopped", ""): float(stopped)}
        for k, error in enumerate(errors.tolist(), start=1):
            if math.isfinite(error):
                gauges["calibration_error", str(k)] = error
        for metric, found in self._corrections().items():
            gauges |= {(metric, label): factor for label, factor in found.items()}
        if last is not None:
            gauges["budget_tokens", ""] = int(last.plan.lengths.sum())
            gauges["last_step_seconds", ""] = last.step_s
            if self.cost_model is not None:
                gauges["last_predicted_step_seconds", ""] = last.plan.predicted_step_s
        self._exporter.export(
            counts=counts,
            gauges=gauges,
            lengths=sums.joint.reshape(-1, width, width).sum(axis=(0, 2)),
            batches=sums.steps_of_bucket,
        )

    def close(self) -> None:
        """End the thread and flush."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def _run(self) -> None:
        try:
            while not self._closing.wait(self._interval_s):
                self.flush()
        except Exception as error:
            # Whatever it is, the server goes on; /server_info still tells.
            logger.warning("DSPARK metrics stopped, the server goes on without them: %s", error)

    def _corrections(self) -> dict[str, dict[str, float]]:
        if self._corrected is None:
            return {}
        seconds, odds = (found.tolist() for found in self._corrected.in_force())
        return {
            "correction_seconds_factor": dict(zip(PARTS, seconds, strict=True)),
            "correction_odds_factor": {str(k): f for k, f in enumerate(odds, start=1)},
        }

    @property
    def log_stopped(self) -> str:
        """Why the step log stopped; empty while it runs or when there is none."""
        return self._step_log.stopped if self._step_log is not None else ""

    def summary(self) -> dict[str, Any]:
        """The same for ``/server_info``: plain JSON values, None where nothing was counted yet.

        ``accepted_length`` counts the bonus token, as SGLang does. ``acceptance`` at a position is
        of the tokens verified there; ``conditional_acceptance`` of those whose prefix was accepted,
        which is what a confidence predicts; ``calibration`` compares the two where it did.
        """
        sums, counts, errors, last = self.totals()
        width = self._width
        by_bucket = sums.joint.reshape(-1, width, width).sum(axis=2)
        verified = dict.fromkeys(BATCH_NAMES, 0)
        requests = dict.fromkeys(BATCH_NAMES, 0)
        steps = dict.fromkeys(BATCH_NAMES, 0)
        for bucket, row in enumerate(by_bucket):
            name = BATCH_NAMES[min(bucket, len(BATCH_NAMES) - 1)]
            verified[name] += int(row @ np.arange(width))
            requests[name] += int(row.sum())
            steps[name] += sums.steps_of_bucket[bucket]

        def labelled(metric: str) -> dict[str, float]:
            return {label: n for (name, label), n in counts.items() if name == metric}

        def by_position(metric: str) -> list[float]:
            return [counts[metric, str(k)] for k in range(1, width)]

        def ratios(above: list[float], below: list[float]) -> list[float | None]:
            return [_ratio(a, b) for a, b in zip(above, below, strict=True)]

        accepted = by_position("accepted_by_position")
        proposed, reached = by_position("proposed_by_position"), by_position("reached_by_position")
        plain = [name for name, (label, _) in COUNTERS.items() if not label]
        return {
            "gamma": self.gamma,
            "policy": self.policy,
            "cost_model": self.cost_model,
            "steps": sum(sums.steps_of_bucket),
            **{name: counts.get((name, ""), 0) for name in plain if "log" not in name},
            "accepted_length": _ratio(counts["committed_tokens", ""], sum(requests.values())),
            "verified_per_request": {n: _ratio(verified[n], requests[n]) for n in BATCH_NAMES},
            "steps_by_batch_size": steps,
            "requests_by_length": by_bucket.sum(axis=0).tolist(),
            "acceptance": ratios(accepted, proposed),
            "conditional_acceptance": ratios(accepted, reached),
            "proposed": proposed,
            "accepted": accepted,
            "calibration": {
                "rows": by_position("calibration_rows"),
                "confidence": ratios(
                    by_position("calibration_confidence"), by_position("calibration_rows")
                ),
                "acceptance": ratios(
                    by_position("calibration_accepted"), by_position("calibration_rows")
                ),
                "error": [e if math.isfinite(e) else None for e in errors.tolist()],
            },
            "steps_by_shape": labelled("steps"),
            "stop_reasons": labelled("stop_reasons"),
            "degraded_steps": labelled("degraded_steps"),
            "policy_changes": labelled("policy_changes"),
            "phase_seconds": labelled("phase_seconds"),
            "forecast_step_seconds": labelled("forecast_step_seconds"),
            "forecast_tokens": labelled("forecast_tokens"),
            **self._corrections(),
            "last_step": _last_step(last),
            "step_log": {
                "records": counts.get(("step_log_records", ""), 0),
                "dropped": counts.get(("step_log_dropped", ""), 0),
                "stopped": self.log_stopped,
            },
        }


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _last_step(record: StepRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    predicted_s = float(record.plan.predicted_step_s)
    return {
        "step": int(record.step),
        "requests": record.requests,
        "budget_tokens": int(record.plan.lengths.sum()),
        "computed_tokens": int(record.computed_tokens),
        "predicted_step_s": predicted_s if math.isfinite(predicted_s) else None,
        "actual_step_s": float(record.step_s),
    }


class LiveSummary(dict[str, Any]):
    """A dictionary that is ``metrics.summary()`` whenever its items are read.

    ``/server_info`` copies the attributes of SGLang's server arguments by reading the items of
    every dictionary among them: put there once, this one is never out of date.
    """

    def __init__(self, metrics: WorkerMetrics) -> None:
        super().__init__(metrics.summary())
        self._metrics = metrics

    def items(self) -> Any:
        """Fresh items."""
        self.update(self._metrics.summary())
        return super().items()

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (self._metrics.summary(),)  # threads and locks do not travel
