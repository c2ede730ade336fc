"""A recording judged: the first part fitted, all of it replayed, the rest compared.

Owns where the recording is cut, what is compared and with which tolerances, the machine's drift and
what the log says of policies that did not serve. Knows no file but the acceptance log it writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.core.costs.schema import Provenance
from sglang_dspark.core.policy import PolicyFile
from simulator.acceptance.load import load_acceptance
from simulator.fit.calibrate import Calibrated, calibrate
from simulator.twin.outside import Outside
from simulator.twin.recording import Recording
from simulator.twin.replay import Twin, offered_req_s, trace_of
from simulator.twin.speed import at_speed, drift
from simulator.twin.timings import Segment, Timings, measured, served_of
from traces import Trace

TOLERANCE = {
    "output_tok_s": 0.03,
    "tpot_p50_ms": 0.05,
    "ttft_p50_ms": 0.10,
    "verified_tokens": 0.05,
}
"""Relative errors that a prediction may have."""
BESIDE = ("ttft_p90_ms", "ttft_p99_ms", "requests_per_step", "tokens_per_request_step")
"""Figures that are shown and not judged: few bursts make a high percentile."""
SATURATED = 0.9
"""Share of the capacity from which waiting in the queue is the TTFT, and not judged."""
_DRIFTS = 8
"""Parts of the rest that the machine's speed is told of."""
_NEAR = 0.1
"""How far from the share asked for, in the same share, an idle moment to cut at is looked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """What the first part of a recording gave."""

    calibrated: Calibrated
    twin: Twin
    trace: Trace
    first: int
    """Request at which the rest begins."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Measured beside predicted, for the policy that served."""

    measured: dict[str, float]
    predicted: dict[str, float]
    at_speed: dict[str, float]
    """Predicted with the cost model at the speed that the machine ran at in the rest."""
    drift: list[float]
    """Of the rest's parts: time that steps took over what the fitted model says of them."""
    offered_req_s: float
    capacity_req_s: float | None
    """What the server could finish; None where the recording is too short to tell."""

    @property
    def of_capacity(self) -> float | None:
        """Offered over what it could finish."""
        return self.offered_req_s / self.capacity_req_s if self.capacity_req_s else None

    def error(self, name: str, kind: str = "predicted") -> float:
        """Relative, of one figure."""
        found: dict[str, float] = getattr(self, kind)
        return found[name] / self.measured[name] - 1.0

    @property
    def saturated(self) -> bool:
        """Whether the queue, and not the engine, is the TTFT."""
        return self.of_capacity is not None and self.of_capacity >= SATURATED

    @property
    def missed(self) -> list[str]:
        """The figures beyond their tolerance."""
        judged = [name for name in TOLERANCE if not (self.saturated and name == "ttft_p50_ms")]
        return [name for name in judged if not abs(self.error(name)) <= TOLERANCE[name]]


def cut_of(segment: Segment, share: float) -> int:
    """The request at which the rest begins: the first after ``share`` of the time, or the nearest
    one that found nothing running. ``ValueError`` when either part would hold too few."""
    sent = np.array([one.sent_s for one in segment.seen])
    ended = np.maximum.accumulate([one.end_s for one in segment.seen])
    span = sent[-1] - sent[0]
    wanted = sent[0] + share * span
    first = int(np.searchsorted(sent, wanted))
    idle = 1 + np.flatnonzero(ended[:-1] < sent[1:])
    if idle.size:
        nearest = int(idle[np.argmin(np.abs(sent[idle] - wanted))])
        if abs(sent[nearest] - wanted) <= _NEAR * span:
            first = nearest
    least = 20
    if not least <= first <= len(sent) - least:
        raise ValueError(
            f"{len(sent)} requests leave {min(first, len(sent) - first)} on one side of the cut at "
            f"{share:g} of the time; at least {least} are needed: record longer"
        )
    return first


def fit_first(recording: Recording, folder: Path, *, share: float, source: str) -> Fitted:
    """Everything that the first part tells; its files are written to ``folder``."""
    whole = recording.segment
    first = cut_of(whole, share)
    cut_s = whole.seen[first].sent_s
    head = dataclasses.replace(
        whole,
        seen=whole.seen[:first],
        steps=[step for step in whole.steps if step.end_s < cut_s],
    )
    engine = recording.settings.engine
    found = calibrate(
        head.steps,
        served_of([whole]),
        name="fitted",
        provenance=_provenance(source),
        chunk_tokens=engine.chunked_prefill_size,
        torn={one.rid for one in whole.seen if one.end_s >= cut_s},
    )
    found.save(folder, seed=0)
    model = found.cost.model
    twin = Twin(
        cost_model=model,
        acceptance=load_acceptance(folder / "acceptance.parquet"),
        belief=recording.belief or model,
        engine=engine,
        outside=Outside.of([_ended_by(head, cut_s)], model),
    )
    return Fitted(calibrated=found, twin=twin, trace=trace_of(whole), first=first)


def _ended_by(segment: Segment, cut_s: float) -> Segment:
    """Without the requests whose last token is not in the segment."""
    whole = [one for one in segment.seen if one.end_s < cut_s]
    return dataclasses.replace(segment, seen=whole)


def _provenance(source: str) -> Provenance:
    return Provenance(
        origin="measured",
        source=source,
        hardware="unknown",
        model="unknown",
        dtype="unknown",
        tp=1,
        engine="SGLang with sglang-dspark",
        date=date.today().isoformat(),
        command="python -m simulator.twin",
    )


def judge(recording: Recording, fitted: Fitted, *, seeds: int) -> Verdict:
    """The rest, measured and predicted."""
    policy, twin, rest = recording.served, fitted.twin, _rest(fitted)
    real = measured(recording.segment, fitted.first)
    drifts = drifts_of(recording.segment, fitted)
    speed = float(np.mean(drifts)) if drifts else 1.0
    paced = dataclasses.replace(twin, cost_model=at_speed(twin.cost_model, speed))
    return Verdict(
        measured=real.figures(),
        predicted=_predict(twin, fitted, policy, seeds).figures(),
        at_speed=_predict(paced, fitted, policy, seeds).figures(),
        drift=drifts,
        offered_req_s=offered_req_s(rest),
        capacity_req_s=twin.capacity_req_s(rest, policy),
    )


def _rest(fitted: Fitted) -> Trace:
    return fitted.trace.part(fitted.first, len(fitted.trace))


def _predict(twin: Twin, fitted: Fitted, policy: PolicyFile, seeds: int) -> Timings:
    return twin.predict(fitted.trace, policy, seeds=seeds, first=fitted.first)


def drifts_of(segment: Segment, fitted: Fitted) -> list[float]:
    """The machine's speed in equal parts of the rest, as ``speed.drift`` says it."""
    since_s = segment.seen[fitted.first].sent_s
    steps = [step for step in segment.steps if step.end_s - step.step_s >= since_s]
    parts = [part.tolist() for part in np.array_split(np.arange(len(steps)), _DRIFTS)]
    found = [
        drift([steps[n] for n in part], fitted.twin.cost_model) for part in parts if len(part) > 1
    ]
    return [value for value in found if np.isfinite(value)]


def others(
    recording: Recording,
    fitted: Fitted,
    verdict: Verdict,
    policies: Sequence[tuple[str, PolicyFile]],
    *,
    seeds: int,
) -> list[dict[str, Any]]:
    """What the log says of every policy on the same traffic: figures, and the capacity.

    Of the one that served, the verdict has them.
    """
    rows = []
    rest = _rest(fitted)
    for label, policy in policies:
        if policy == recording.served:
            figures, capacity = verdict.predicted, verdict.capacity_req_s
        else:
            figures = _predict(fitted.twin, fitted, policy, seeds).figures()
            capacity = fitted.twin.capacity_req_s(rest, policy)
        served = policy.policy == recording.served.policy
        rows.append({"policy": label, "served": served, **figures, "capacity_req_s": capacity})
    return rows
