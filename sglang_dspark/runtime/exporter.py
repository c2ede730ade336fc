"""DSPARK's metrics in prometheus_client: names, labels, and who has been told what.

Owns the names, in SGLang's manner with the prefix ``sglang:dspark_``, and turns sums into growth:
a counter can only be added to. Knows neither SGLang nor how the sums come about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sglang_dspark.core.state import STOP_REASONS, Ints
from sglang_dspark.logs.records import SHAPES

Key = tuple[str, str]
"""A series: its name without prefix, and the value of its extra label."""

BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Upper ends of the batch-size buckets; larger batches share one more."""
POLICY = "policy"
"""Who decides a step that is not degraded, in the counter of changes."""
PHASES = ("draft", "plan", "verify", "commit")

PREFIX = "sglang:dspark_"
COUNTERS = {
    "steps": ("shape", "Decode steps by how the target ran them: full width or planned tokens."),
    "degraded_steps": ("reason", "Steps verified in full without the policy, by reason."),
    "policy_changes": ("to", "Times the decision went to the policy, or from it for a reason."),
    "stop_reasons": ("reason", "Steps by why the plan verified no more."),
    "drafted_tokens": ("", "Tokens drafted."),
    "verified_tokens": ("", "Draft tokens verified."),
    "trimmed_tokens": ("", "Draft tokens drafted but not verified."),
    "accepted_tokens": ("", "Draft tokens accepted."),
    "committed_tokens": ("", "Tokens added to outputs: accepted ones and one bonus per request."),
    "planned_tokens": ("", "Rows the plans asked the target to compute."),
    "computed_tokens": ("", "Rows the target computed, padding excluded."),
    "proposed_by_position": ("position", "Draft tokens verified at the position (1 is first)."),
    "reached_by_position": ("position", "Those of them whose prefix was accepted."),
    "accepted_by_position": ("position", "Draft tokens accepted at the position."),
    "calibration_rows": ("position", "Drafts whose confidence at the position met its outcome."),
    "calibration_confidence": ("position", "Sum of their confidences: acceptances expected."),
    "calibration_accepted": ("position", "Those of them that were accepted."),
    "phase_seconds": ("phase", "Seconds in each phase of the steps."),
    "forecast_step_seconds": ("kind", "Seconds of the steps whose plan predicted them."),
    "forecast_tokens": ("kind", "Committed tokens of the steps whose plan expected some."),
    "step_log_records": ("", "Step records on disk."),
    "step_log_dropped": ("", "Step records dropped."),
}
"""Name without prefix -> (extra label, help). prometheus_client appends ``_total``."""

GAUGES = {
    "budget_tokens": ("", "Draft tokens that the last step verified."),
    "calibration_error": ("position", "Recent |confidence - acceptance|, mean over ten bins."),
    "correction_seconds_factor": ("part", "Online correction of the part's predicted seconds."),
    "correction_odds_factor": ("position", "Online correction of the odds of acceptance."),
    "last_predicted_step_seconds": ("", "Seconds the last step's plan predicted."),
    "last_step_seconds": ("", "Seconds the last step took."),
    "step_log_stopped": ("", "1 when the step log gave up; the server's log says why."),
}
"""Like ``COUNTERS``, under their own names. One with a label is absent until it is known."""
HISTOGRAMS = {
    "verified_tokens_per_request": "Draft tokens verified for a request in a step.",
    "batch_size": "Requests in a step.",
}
INFO = "info"


class Exporter:
    """The metrics themselves, and what they have been told so far."""

    def __init__(
        self,
        *,
        gamma: int,
        labels: Mapping[str, Any],
        info: Mapping[str, Any],
        registry: Any = None,
    ) -> None:
        # prometheus_client chooses between memory and mapped files when it is imported.
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        names = list(labels)
        place: dict[str, Any] = {"registry": REGISTRY if registry is None else registry}
        gauge: dict[str, Any] = {**place, "multiprocess_mode": "mostrecent"}
        self._labels = dict(labels)
        self._told: dict[Key, float] = {}
        self._told_lengths = [0] * (gamma + 1)
        self._told_batches = [0] * (len(BATCH_BOUNDS) + 1)
        self._counters = {
            name: Counter(PREFIX + name, text, names + [label] * bool(label), **place)
            for name, (label, text) in COUNTERS.items()
        }
        for key in _known(gamma):
            self._counter(key)
        Gauge(PREFIX + INFO, "What decides; always 1.", [*names, *info], **gauge).labels(
            **labels, **info
        ).set(1)
        self._gauges = {
            name: Gauge(PREFIX + name, text, names + [label] * bool(label), **gauge)
            for name, (label, text) in GAUGES.items()
        }
        for name, (label, _) in GAUGES.items():
            if not label:
                self._gauge((name, ""))

        def histogram(name: str, bounds: Sequence[int]) -> Any:
            text = HISTOGRAMS[name]
            return Histogram(PREFIX + name, text, names, buckets=bounds, **place).labels(**labels)

        self._lengths = histogram("verified_tokens_per_request", range(gamma + 1))
        self._batches = histogram("batch_size", BATCH_BOUNDS)

    def _counter(self, key: Key) -> Any:
        name, value = key
        label = COUNTERS[name][0]
        return self._counters[name].labels(**self._labels, **({label: value} if label else {}))

    def _gauge(self, key: Key) -> Any:
        name, value = key
        label = GAUGES[name][0]
        return self._gauges[name].labels(**self._labels, **({label: value} if label else {}))

    def export(
        self,
        *,
        counts: Mapping[Key, float],
        gauges: Mapping[Key, float],
        lengths: Ints,
        batches: list[int],
    ) -> None:
        """Tell what has grown since the last call.

        ``lengths`` [K+1]: requests verified to each length; ``batches``: steps in each batch-size
        bucket.
        """
        for key, value in counts.items():
            grown = value - self._told.get(key, 0)
            if grown > 0:
                self._counter(key).inc(grown)
        requests = int(lengths.sum()) - sum(self._told_lengths)
        grown_lengths = [int(n) - t for n, t in zip(lengths, self._told_lengths, strict=True)]
        verified = sum(length * n for length, n in enumerate(grown_lengths))
        _observe_many(self._lengths, [*grown_lengths, 0], verified)  # none above gamma
        grown_batches = [n - t for n, t in zip(batches, self._told_batches, strict=True)]
        _observe_many(self._batches, grown_batches, requests)
        for key, value in gauges.items():
            self._gauge(key).set(value)
        self._told = dict(counts)
        self._told_lengths = lengths.tolist()
        self._told_batches = list(batches)


def _known(gamma: int) -> list[Key]:
    """The counters that shall read 0 before the first step."""
    values = {
        "": ("",),
        "shape": SHAPES,
        "position": tuple(str(k) for k in range(1, gamma + 1)),
        "phase": PHASES,
    }
    known = [(name, v) for name, (label, _) in COUNTERS.items() for v in values.get(label, ())]
    known += [("stop_reasons", reason) for reason in STOP_REASONS]
    known += [("policy_changes", POLICY)]
    known += [("forecast_step_seconds", kind) for kind in ("predicted", "actual")]
    return [*known, *(("forecast_tokens", kind) for kind in ("expected", "actual"))]


def _observe_many(histogram: Any, counts: list[int], total: float) -> None:
    """Add ``counts`` to the buckets at once; ``Histogram`` itself takes one value at a time.

    SGLang reaches into the same two attributes for its token latencies.
    """
    if total:
        histogram._sum.inc(total)
    for bucket, count in zip(histogram._buckets, counts, strict=True):
        if count:
            bucket.inc(count)
