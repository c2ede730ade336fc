"""From a finished simulation to numbers: the formulas of ``docs/metrics.md``, nothing else.

Latencies are over completed and truncated requests; attainment is over all requests sent, so that
a rejected, shed or unfinished one counts against it. Knows no files, and not which requests are
judged.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.engine.latency import itl_percentile_s
from simulator.engine.layout import COMPLETED, REJECTED, SHED, TRUNCATED, Records
from simulator.fleet.scenario import Outcome
from simulator.slo import Slo, bounds_s
from simulator.study.part import Part, steady_part, whole_run

Floats = npt.NDArray[np.float64]
PERCENTILES = {50: 1, 90: 10, 99: 100}
"""The percentiles, and how many values each asks for: one beyond it, but for the median."""
_BATCHES = 20


def is_finished(requests: Records) -> npt.NDArray[np.bool_]:
    """[N] whether the request got all its tokens, or all that fit in the KV memory."""
    return np.isin(requests["status"], (COMPLETED, TRUNCATED))


def request_times(requests: Records) -> dict[str, Floats]:
    """Per request, seconds, NaN where unfinished: TTFT, TPOT and end-to-end latency.

    TTFT = first_token - arrival; e2e = finish - arrival; TPOT = (finish - first_token) /
    (output tokens - 1), NaN for a single token.
    """
    finished = is_finished(requests)
    ttft = np.where(finished, requests["first_token_s"] - requests["arrival_s"], np.nan)
    e2e = np.where(finished, requests["finish_s"] - requests["arrival_s"], np.nan)
    several = finished & (requests["generated"] > 1)
    tpot = np.full(requests.size, np.nan)
    span = requests["finish_s"][several] - requests["first_token_s"][several]
    tpot[several] = span / (requests["generated"][several] - 1)
    return {"ttft": ttft, "tpot": tpot, "e2e": e2e}


def _percentiles_ms(values_s: Floats) -> dict[str, float | None]:
    known = values_s[~np.isnan(values_s)]
    return {
        f"p{p}": round(float(np.percentile(known, p)) * 1e3, 4) if known.size >= least else None
        for p, least in PERCENTILES.items()
    }


def _ratio(numerator: float, denominator: float) -> float | None:
    return round(float(numerator / denominator), 6) if denominator > 0 else None


def met_slo(outcome: Outcome, slo: Slo) -> npt.NDArray[np.bool_]:
    """[N] whether the request finished with TTFT and TPOT within its bounds, in trace order."""
    times = request_times(outcome.requests)
    ttft_bound, tpot_bound = bounds_s(outcome.scenario.trace, slo)
    met = is_finished(outcome.requests) & (times["ttft"] <= ttft_bound)
    return np.asarray(met & (np.isnan(times["tpot"]) | (times["tpot"] <= tpot_bound)))


def measure(outcome: Outcome, slo: Slo) -> dict[str, Any]:
    """The row of one policy in ``summary.json``; ``None`` where a figure has no data.

    The figures are those of the steady state, all ``None`` where there is none; ``whole_run`` has
    the same with ramp-up and drain. What became of the requests is counted over the whole run.
    """
    requests = outcome.requests
    finished = is_finished(requests)
    truncated = requests["status"] == TRUNCATED
    refused = np.isin(requests["status"], (REJECTED, SHED))
    times, met = request_times(requests), met_slo(outcome, slo)
    figures = _figures(outcome, whole_run(outcome), times, met)
    steady = steady_part(outcome)
    return {
        "requests": int(requests.size),
        "completed": int((finished & ~truncated).sum()),
        "truncated": int(truncated.sum()),
        "rejected": int((requests["status"] == REJECTED).sum()),
        "shed": int((requests["status"] == SHED).sum()),
        "unfinished": int((~finished & ~refused).sum()),
        "retried": int((requests["retries"] > 0).sum()),
        "replicas_most": _most_at_once(outcome),
        **(_figures(outcome, steady, times, met) if steady else dict.fromkeys(figures)),
        "whole_run": figures,
    }


def _figures(
    outcome: Outcome, part: Part, times_s: dict[str, Floats], met: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Of the part's time and of the requests that are judged in it; ``times_s`` and ``met`` are of
    all requests."""
    requests = outcome.requests[part.judged]
    times = {name: values[part.judged] for name, values in times_s.items()}
    met = met[part.judged]
    refused = np.isin(requests["status"], (REJECTED, SHED))
    sent = refused | (requests["arrival_s"] <= part.now_s)
    finished = is_finished(requests)
    duration_s = part.duration_s
    replica_s = _replica_seconds(outcome, part)
    request_steps = part.counted("request_steps")
    undrafted = part.counted("undrafted") + request_steps - int(part.lengths[0].sum())
    prompt = part.counted("prefill_tokens") + part.counted("cached_tokens")
    speeds = 1.0 / times["tpot"][~np.isnan(times["tpot"])]
    return {
        "judged": int(requests.size),
        "from_s": round(float(part.start_s.mean()), 6),
        "duration_s": round(duration_s, 6),
        "output_tok_s": _ratio(part.counted("committed_tokens"), duration_s),
        "tok_s_user_p50": round(float(np.median(speeds)), 4) if speeds.size else None,
        "ttft_ms": _percentiles_ms(times["ttft"]),
        "tpot_ms": _percentiles_ms(times["tpot"]),
        "itl_ms": _itl_ms(part.itl),
        "e2e_ms": _percentiles_ms(times["e2e"]),
        "slo_attainment": _ratio(float(met.sum()), float(sent.sum())),
        "slo_goodput_req_s": _ratio(float(met.sum()), duration_s),
        "drafted_share": _ratio(request_steps - undrafted, request_steps),
        "accept_len_mean": _ratio(request_steps + part.counted("accepted_tokens"), request_steps),
        "verify_tokens_per_request_step": _ratio(
            part.counted("verified_tokens") + request_steps, request_steps
        ),
        "verified_by_length": part.lengths[0].tolist(),
        "accepted_by_length": part.lengths[1].tolist(),
        "steps": part.counted("steps"),
        "utilisation": _ratio(part.busy_s, float(replica_s.sum())),
        "requests_in_system_mean": _ratio(_in_system_s(outcome.requests, part), duration_s),
        "prefix_hit_share": _ratio(part.counted("cached_tokens"), prompt),
        "retractions": part.counted("retractions"),
        "transfer_ms": _percentiles_ms(np.where(finished, requests["transfer_s"], np.nan)),
        "replicas_mean": _ratio(float(replica_s.sum()), duration_s),
        "gpu_hours": round(float((replica_s * _gpus(outcome)).sum()) / 3600, 6),
    }


def _in_system_s(requests: Records, part: Part) -> float:
    """Seconds that requests spent in the system within the part, summed."""
    here = ~np.isin(requests["status"], (REJECTED, SHED))
    gone_s = np.where(is_finished(requests), requests["finish_s"], part.now_s)
    overlap_s = np.minimum(gone_s, part.end_s.mean()) - np.maximum(
        requests["arrival_s"], part.start_s.mean()
    )
    return float(np.clip(np.nan_to_num(overlap_s[here]), 0.0, None).sum())


def _replica_seconds(outcome: Outcome, part: Part) -> Floats:
    """[replicas] seconds of the part in which each was paid for."""
    bounds = zip(outcome.spans, part.start_s, part.end_s, strict=True)
    return np.array(
        [
            sum(max(0.0, min(to, end_s) - max(since, start_s)) for since, to in spans)
            for spans, start_s, end_s in bounds
        ]
    )


def _most_at_once(outcome: Outcome) -> int:
    """Most replicas paid for at one time; one that goes when another starts is not counted."""
    changes = [(since, 1) for spans in outcome.spans for since, _ in spans]
    changes += [(to, -1) for spans in outcome.spans for _, to in spans]
    return int(np.cumsum([change for _, change in sorted(changes)]).max())


def _gpus(outcome: Outcome) -> Floats:
    """[replicas] GPUs of each."""
    pools = outcome.scenario.pools
    return np.repeat([float(pool.cost_model.gpus) for pool in pools], [p.most for p in pools])


def _itl_ms(counts: npt.NDArray[np.int64]) -> dict[str, float | None]:
    total = int(counts.sum())
    return {
        f"p{p}": round(itl_percentile_s(counts, p) * 1e3, 4) if total >= least else None
        for p, least in PERCENTILES.items()
    }


def batch_interval(values: Floats) -> tuple[float, float, float] | None:
    """(mean, low, high) of per-request values at 95 %; NaN entries are left out.

    Neighbouring requests share queues and are not independent, so the interval comes from batch
    means: 20 batches of consecutive arrivals, Student's t on their means. None below two batches.
    """
    batches = np.array_split(values, _BATCHES)
    means = np.array([b[~np.isnan(b)].mean() for b in batches if (~np.isnan(b)).any()])
    if means.size < 2:
        return None
    mean = float(means.mean())
    spread = float(means.std(ddof=1)) / math.sqrt(means.size)
    from scipy.special import stdtrit  # Student's t, of a package that is slow to import

    half = float(stdtrit(means.size - 1, 0.975)) * spread
    return mean, mean - half, mean + half


def paired_difference(ours: Records, theirs: Records) -> dict[str, dict[str, float] | None]:
    """95 % confidence intervals of the mean difference (ours - theirs) in TTFT, TPOT and e2e, ms.

    Paired by request under common random numbers, see ``batch_interval``.
    """
    ours_s, theirs_s = request_times(ours), request_times(theirs)
    found: dict[str, dict[str, float] | None] = {}
    for name in ("ttft", "tpot", "e2e"):
        interval = batch_interval(ours_s[name] - theirs_s[name])
        found[f"{name}_ms"] = interval and {
            key: round(value * 1e3, 5)
            for key, value in zip(("mean", "low", "high"), interval, strict=True)
        }
    return found
