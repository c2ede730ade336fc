"""Who misses what: by SLO class, which bound binds and what the requests that fail it look like.

Owns the counts. What is said of them is the report's. Knows no file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.engine.layout import Records
from simulator.fleet.scenario import Outcome
from simulator.slo import PRESETS, Slo, bounds_s
from simulator.study.metrics import is_finished, request_times

_SHORT = 20
"""Output tokens below which one step behind another's prefill is most of a TPOT."""


def misses_by_class(outcome: Outcome, slo: Slo, judged: slice) -> list[dict[str, Any]]:
    """Of the ``judged`` requests, per class: how many miss which bound; the largest class first.

    ``ttft`` and ``tpot`` are finished requests that fail this bound, ``both`` those of them that
    fail both, ``unserved`` those that did not finish. ``short_share`` is the share of requests
    failing TPOT that have fewer than 20 output tokens; ``queued_ms`` the median TTFT of those that
    fail it.
    """
    trace = outcome.scenario.trace
    requests = outcome.requests[judged]
    times = request_times(requests)
    ttft_s, tpot_s = (bounds[judged] for bounds in bounds_s(trace, slo))
    failed = {
        "ttft": times["ttft"] > ttft_s,
        "tpot": np.nan_to_num(times["tpot"]) > tpot_s,
        "unserved": ~is_finished(requests),
    }
    classes = [slo, *(PRESETS[name] for name in trace.slo_names)]
    names = np.array([one.name for one in classes])[np.asarray(trace.slo)[judged] + 1]
    rows = [
        _row(one, requests[mine], {k: v[mine] for k, v in failed.items()}, times["ttft"][mine])
        for one in dict.fromkeys(classes)
        if (mine := names == one.name).any()
    ]
    return sorted(rows, key=lambda row: -row["requests"])


def _row(slo: Slo, requests: Records, failed: dict[str, Any], ttft_s: Any) -> dict[str, Any]:
    any_failed = failed["ttft"] | failed["tpot"] | failed["unserved"]
    short = requests["generated"] < _SHORT
    slow = failed["tpot"]
    return {
        "class": slo.name,
        "ttft_ms": slo.ttft_ms,
        "tpot_ms": slo.tpot_ms,
        "requests": int(requests.size),
        "missed": int(any_failed.sum()),
        "attainment": float(1.0 - any_failed.mean()),
        "ttft": int(failed["ttft"].sum()),
        "tpot": int(slow.sum()),
        "both": int((failed["ttft"] & slow).sum()),
        "unserved": int(failed["unserved"].sum()),
        "short_share": float(short[slow].mean()) if slow.any() else None,
        "queued_ms": float(np.median(ttft_s[failed["ttft"]]) * 1e3)
        if failed["ttft"].any()
        else None,
    }
