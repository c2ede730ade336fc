"""SGLang's own account of its DSPARK steps (0.5.16 and later) as step records.

Owns the reading of ``dspark_info_record`` of /server_info and what is new in it since the last
look. Knows no network and no file.

What SGLang does not say stands like this in a ``StepRecord``:

- ``logits`` are the logits of its calibrated confidences, which it rounds to four digits: the
  largest stands at 9.9. A server without confidences (``static`` mode) has +inf, nothing doubted.
- ``stale_logits`` are the request's logits of ``lag_steps`` steps before, where these were seen.
- parts that it did not time are 0, and the rest of the step stands under ``verify_s``.
- ``end_s`` is counted back from the moment of looking, by step times.
- ``stop_reason`` is "exhausted" where everything is verified and "no-gain" elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_dspark.core.state import BatchState, VerifyPlan
from sglang_dspark.logs.records import StepRecord

_DIGITS = 1e-4
"""What SGLang rounds a confidence to."""
_LAG_STEPS = 2
_REMEMBERED = 4096
"""Requests whose last logits are kept."""


@dataclass(frozen=True, kw_only=True)
class InfoDump:
    """One scheduler's ``dspark_info_record``, its outside checked."""

    mode: str
    gamma: int
    components: tuple[str, ...]
    records: list[Any]


def dumps_of(info: Any) -> list[InfoDump | None]:
    """One for each scheduler in an answer of /server_info; None where it has no records.

    ``ValueError`` when the answer is not what SGLang answers.
    """
    states = info.get("internal_states") if isinstance(info, dict) else None
    if not isinstance(states, list) or not all(isinstance(state, dict) for state in states):
        raise ValueError("no internal_states in the answer; give the URL of an SGLang server")
    return [_dump(state.get("dspark_info_record")) for state in states]


def _dump(value: Any) -> InfoDump | None:
    if value is None:
        return None
    try:
        gamma, records = value["gamma"], value["records"]
        if not isinstance(records, list) or not isinstance(gamma, int) or not 0 < gamma < 1024:
            raise TypeError(f"gamma {gamma!r}, records of type {type(records).__name__}")
        return InfoDump(
            mode=str(value.get("mode", "")),
            gamma=gamma,
            components=tuple(str(name) for name in value.get("components") or ()),
            records=records,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"dspark_info_record is not as SGLang 0.5.16 to 0.5.23 writes it ({error!r})"
        ) from None


@dataclass(kw_only=True)
class Ledger:
    """What was seen of one scheduler: tells new records from known ones, and a restart.

    Law: while the scheduler lives, each of its records is returned once however often it is shown;
    after a restart everything shown is new, though the count began again.
    """

    run: int = 0
    """Restarts seen."""
    last: int = -1
    """Largest ``forward_ct`` seen in this run."""
    unusable: int = 0
    """Records that could not be read."""
    _seen: dict[int, int] = field(default_factory=dict)

    def new(self, records: Sequence[Any]) -> list[dict[str, Any]]:
        """The records not seen before, in their order; what has no ``forward_ct`` is counted."""
        good = [r for r in records if isinstance(r, dict) and type(r.get("forward_ct")) is int]
        self.unusable += len(records) - len(good)
        shown = {record["forward_ct"]: _digest(record) for record in good}
        old = {count: digest for count, digest in shown.items() if count <= self.last}
        # A record that was there before is there unchanged or gone: any other is another server's.
        if any(self._seen.get(count) != digest for count, digest in old.items()):
            self.run += 1
            self.last, old = -1, {}
        found = [record for record in good if record["forward_ct"] not in old]
        self.last = max([self.last, *shown])
        self._seen = shown
        return found


def _digest(record: dict[str, Any]) -> int:
    return hash(json.dumps(record, sort_keys=True, default=str))


@dataclass(kw_only=True)
class Converter:
    """Makes step records of one scheduler's, oldest first; remembers each request's last logits."""

    gamma: int
    mode: str
    history: dict[str, list[tuple[int, npt.NDArray[np.float64]]]] = field(default_factory=dict)
    unusable: int = 0
    """Records that could not be converted: no ``reqs``, or values that do not fit together."""
    without_confidence: int = 0
    """Converted ones that had no confidences."""

    def convert(
        self, records: Sequence[dict[str, Any]], *, now_s: float, since_s: float = 0.0
    ) -> list[StepRecord]:
        """The usable ones, read at ``now_s``; none of them ended before ``since_s``."""
        ends, end_s = [], now_s
        for record in reversed(records):
            ends.append(max(end_s, since_s))
            end_s -= _seconds(record)
        found = []
        for record, end in zip(records, reversed(ends), strict=True):
            try:
                found.append(self._step(record, end))
            except (KeyError, TypeError, ValueError):
                self.unusable += 1
        return found

    def _step(self, record: dict[str, Any], end_s: float) -> StepRecord:
        reqs = record["reqs"]
        if not isinstance(reqs, list) or not all(isinstance(req, dict) for req in reqs):
            raise TypeError("no reqs")
        count, step = len(reqs), int(record["forward_ct"])
        rids = tuple(str(req.get("rid", req["req_pool_index"])) for req in reqs)
        lengths_R = np.array([req["verify_len"] - 1 for req in reqs], dtype=np.int64)
        accepted_R = np.array([req["acc_len"] - 1 for req in reqs], dtype=np.int64)
        context_R = np.array([req["prefix_len"] for req in reqs], dtype=np.int64)
        if ((lengths_R < 0) | (lengths_R > self.gamma)).any():
            raise ValueError(f"lengths {lengths_R.tolist()} are not within 0..{self.gamma}")
        if ((accepted_R < 0) | (accepted_R > lengths_R)).any():
            raise ValueError(f"accepted {accepted_R.tolist()} of {lengths_R.tolist()}")
        logits_RK = np.full((count, self.gamma), np.inf)
        known = [req.get("confidence") is not None for req in reqs]
        for row in np.flatnonzero(known):
            logits_RK[row] = logit(reqs[row]["confidence"], self.gamma)
        self.without_confidence += not all(known)
        lag = record.get("lag_steps") or _LAG_STEPS
        stale_RK, age_R = self._stale(rids, step, logits_RK, int(lag))
        ragged = self.mode == "compact"
        draft_s, verify_s, commit_s = _parts(record)
        return StepRecord(
            step=step,
            end_s=end_s,
            request_ids=rids,
            state=BatchState(
                logits=logits_RK,
                stale_logits=stale_RK,
                stale_age=age_R,
                context_tokens=context_R,
            ),
            plan=VerifyPlan(
                lengths=lengths_R,
                draft_next=np.ones(count, dtype=np.bool_),
                predicted_step_s=_ms(record, "predicted_step_ms", math.nan),
                expected_tokens=_expected(record),
                stop_reason="exhausted" if (lengths_R == self.gamma).all() else "no-gain",
            ),
            accepted=accepted_R,
            computed_tokens=count + int(lengths_R.sum()) if ragged else count * (self.gamma + 1),
            shape="ragged" if ragged else "uniform",
            draft_s=draft_s,
            plan_s=0.0,
            verify_s=verify_s,
            commit_s=commit_s,
        )

    def _stale(
        self, rids: tuple[str, ...], step: int, logits_RK: npt.NDArray[np.float64], lag: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        stale_RK = np.full_like(logits_RK, np.nan)
        age_R = np.zeros(len(rids), dtype=np.int64)
        for row, rid in enumerate(rids):
            past = self.history.pop(rid, [])  # popped, so that the longest unseen go first below
            if len(past) >= lag and past[-lag][0] < step:
                stale_RK[row], age_R[row] = past[-lag][1], lag
            self.history[rid] = [*past[-lag:], (step, logits_RK[row])]
        while len(self.history) > _REMEMBERED:
            del self.history[next(iter(self.history))]
        return stale_RK, age_R


def logit(confidences: Any, gamma: int) -> npt.NDArray[np.float64]:
    """Of confidences rounded to four digits; 0 and 1 stand for the farthest they may have been."""
    values = np.asarray(confidences, dtype=np.float64)
    if values.shape != (gamma,) or not np.isfinite(values).all():
        raise ValueError(f"confidences {confidences} are not {gamma} numbers")
    values = np.clip(values, _DIGITS / 2, 1 - _DIGITS / 2)
    logits: npt.NDArray[np.float64] = np.log(values) - np.log1p(-values)
    return logits


def _ms(record: dict[str, Any], name: str, missing: float) -> float:
    value = record.get(name)
    return missing if value is None else float(value) / 1e3


def _seconds(record: dict[str, Any]) -> float:
    """Of a step, 0 where no time is a number."""
    for name in ("step_cpu_ms", "step_gpu_ms"):
        value = record.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value) / 1e3
    return 0.0


def _parts(record: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds of draft, verification and commit."""
    draft_s = _ms(record, "draft_gpu_ms", 0.0)
    verify_s = _ms(record, "target_verify_gpu_ms", 0.0)
    rest_s = max(0.0, _seconds(record) - draft_s - verify_s)
    return (draft_s, verify_s, rest_s) if verify_s else (draft_s, rest_s, 0.0)


def _expected(record: dict[str, Any]) -> float:
    """SGLang forecasts tokens a second."""
    theta = record.get("predicted_theta")
    step_s = _ms(record, "predicted_step_ms", math.nan)
    return math.nan if theta is None else float(theta) * step_s
