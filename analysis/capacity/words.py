"""The sentences of the capacity report: how sure the answer is, what the model does not know.

Owns wording and rounding. Reads the record of ``report`` and nothing else, so that a sentence
cannot say what the record does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REGRET = 0.02
"""Loss at low load from which the answer warns."""
_ORIGIN_SAYS = {
    "measured": "was timed on the hardware it names, with the error of its fit",
    "published": "was timed and published by others; your engine and settings may differ",
    "composed": "is a sum of operators that were timed one by one on the hardware it names; whole "
    "steps of a server were not",
    "analytic": "is computed from a data sheet and proves nothing about your GPU; replace it by a "
    "measured one (python -m sglang_dspark.runtime.profile) before money depends on it",
}


_GROWN = {
    "faster": "More traffic is the same trace with its arrivals closer together: bursts get denser "
    "and conversations faster, too (--grow users adds users instead).",
    "users": "More traffic is more users: copies of the trace at other times, so that bursts meet "
    "by chance; what one replica holds is still searched with the same requests closer together.",
}


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits, thousands separated, never an exponent; a dash for none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - len(str(int(abs(rounded))))) if abs(rounded) >= 1 else None
    if decimals is None:
        text = f"{rounded:.10f}".rstrip("0").rstrip(".")
        return text
    text = f"{rounded:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float | None, decimals: int = 1) -> str:
    """A share as per cent without its sign: 0.9012 -> 90.1."""
    return "–" if share is None else f"{100 * share:.{decimals}f}"


def signed(share: float) -> str:
    """A gain in per cent without its unit: 0.012 -> +1.2."""
    return f"{100 * share:+.1f}".replace("-", "−")


def count(value: int, noun: str) -> str:
    """1 GPU, 2 GPUs."""
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def objective(report: dict[str, Any]) -> str:
    """The goal in words."""
    share = f"at least {percent(report['attainment'], 0)} % of requests within"
    classes = [_bounds(one) for one in report["classes"]]
    if len(classes) > 1:
        return f"{share} the bounds of their class ({'; '.join(classes)})"
    slo = report["slo"]
    return f"{share} TTFT {number(slo['ttft_ms'])} ms and TPOT {number(slo['tpot_ms'])} ms"


def _bounds(slo: dict[str, Any]) -> str:
    return f"{slo['class']}: TTFT {number(slo['ttft_ms'])}, TPOT {number(slo['tpot_ms'])} ms"


def sureness_in_words(report: dict[str, Any]) -> list[str]:
    """How far the answer can be trusted, a sentence each."""
    model, chosen = report["cost_model"], report["chosen"]
    said = [
        f"Cost model {model['name']} ({model['origin']}) {_ORIGIN_SAYS[model['origin']]}."
        + _parts(model)
        + _fit(model)
    ]
    said += [f"Whose acceptance: {sentence}." for sentence in report["acceptance_mismatch"]]
    if report["traffic"][chosen]["replica_req_s"] is None:
        return said
    said.append(
        f"A policy is to be changed when it has more requests/s within the SLO than "
        f"{report['current']} on windows of the trace that were held out, with nothing against it "
        "at low load or under wrong beliefs: the test of dspark tune, at the load of one replica."
    )
    said.append(_compared(report))
    regret = report["low_load_regret"][chosen]
    said.append(
        f"With 1 to 4 requests at a time {chosen} loses {percent(regret)} % of throughput to the "
        "best policy there" + ("." if regret <= REGRET else ": a quiet night costs something.")
    )
    if chosen in report["mistakes"]["policies"]:
        said.append(_robust(report))
    return said


def _parts(model: dict[str, Any]) -> str:
    """The parts that are less than the whole claims to be."""
    less = [part for part, origin in model["origins"].items() if origin == "analytic"]
    if model["origin"] == "analytic" or not less:
        return ""
    verb = "is" if len(less) == 1 else "are"
    return f" Its {_listed(less)} {verb} analytic all the same."


def _fit(model: dict[str, Any]) -> str:
    error = model["fit_error"]
    if error is None:
        return ""
    composed = model["origin"] == "composed"
    where = "from the steps that were composed" if composed else "where it was fitted"
    return (
        f" Its {'form' if composed else 'fit'} is off by {percent(error['median_rel'])} % in the "
        f"median and {percent(error['max_rel'])} % at most, {where}."
    )


def _compared(report: dict[str, Any]) -> str:
    choice, current = report["fleets"][0]["choice"], report["current"]
    if choice is None or not choice["gains"]:
        return "No policies were compared window by window."
    parts = [
        f"{label} {signed(g['mean'])} [{signed(g['low'])}, {signed(g['high'])}] %"
        for label, g in choice["gains"].items()
    ]
    rate = report["trace"]["offered_req_s"] * choice["replica_rate"]
    return (
        f"At {number(rate)} requests/s on one replica, requests/s within the SLO against {current} "
        f"(paired by window, 95 % intervals): {', '.join(parts)}."
    )


def _robust(report: dict[str, Any]) -> str:
    """The chosen policy's worst change under a wrong belief, and what then beats it."""
    mistakes, chosen = report["mistakes"], report["chosen"]
    parts = []
    for i, load in enumerate(mistakes["concurrency"]):
        changes = mistakes["policies"][chosen][i]
        worst = min(range(len(changes)), key=lambda k: changes[k])
        if changes[worst] <= -0.0005:
            parts.append(
                f"at most {percent(-changes[worst])} % at {count(load, 'concurrent request')} "
                f"({mistakes['labels'][worst]})"
            )
        else:
            parts.append(f"nothing at {count(load, 'concurrent request')}")
    return (
        "Wrong beliefs (step costs ±20 %, confidences shifted or scaled) cost it "
        f"{' and '.join(dict.fromkeys(parts))} of its throughput."
    )


def limits_in_words(report: dict[str, Any]) -> list[str]:
    """What the model does not know, a sentence each."""
    model, watts = report["cost_model"], report["cost_model"]["watts"]
    origins = ", ".join(f"{part} {origin}" for part, origin in model["origins"].items())
    said = [
        f"Step times come from {model['name']} ({model['model']} on {model['hardware']}, "
        f"{model['engine']}); its parts: {origins}. No interval in this report contains its error.",
        "Intervals cover the sampling of this one trace under one seed, from batch means over "
        "consecutive arrivals. Another day's traffic may differ by more.",
        f"{_GROWN[report['grown_by']]} A fleet starts empty and its caches cold; the first and the "
        f"last {percent(report['warm_up'], 0)} % of the time are not judged. {_shortest(report)}",
        f"Replicas are equal and stand behind one router ({report['router']}); "
        f"{'they fail as configured' if report['replicas_fail'] else 'none fails'}, none is added "
        "or removed. A size holds when no larger count up to the bound it was checked to misses; "
        "reserve for maintenance comes on top.",
        "Money is GPU-hours times a price; hosts, network and people are not in it.",
    ]
    if watts is None:
        said.append("The cost model states no power, so there is no energy here.")
    else:
        said.append(
            f"Power is {watts['origin']}: {number(watts['idle'])} W idle and "
            f"{number(watts['busy'])} W busy per replica ({watts['note']}), weighted by the share "
            "of time in which a step runs. Hosts and cooling are not in it."
        )
    if report["assumed_acceptance"]:
        said.append(
            f"Of acceptance profile {report['acceptance']}, {_listed(report['assumed_acceptance'])}"
            " are assumed; replay your own step logs (--acceptance LOG.parquet) where you can."
        )
    if report["trace"]["idle_cut_s"]:
        said.append(
            f"{number(report['trace']['idle_cut_s'] / 3600)} h without requests were cut from the "
            "trace: rates are those of busy time, and so are the fleets."
        )
    held = report["traffic"][report["chosen"]]
    if held["rate"] is not None and held["misses_at_rate"] is None:
        said.append("This trace is too short to saturate a replica: it may hold more than is said.")
    elif held["load"] is not None and held["load"] >= 1.0:
        said.append(
            "This trace is over before a queue can grow: a replica is said to hold what it can "
            "finish, and would hold less of traffic that lasts."
        )
    return said + _lost(report)


def _shortest(report: dict[str, Any]) -> str:
    last = report["fleets"][-1]
    taken_ms = last["policies"][report["chosen"]]["e2e_ms_p50"]
    lasts = f"At ×{number(last['rate'])} the trace lasts {number(last['lasts_s'])} s"
    if not taken_ms:
        return f"{lasts}."
    times = number(1e3 * last["lasts_s"] / taken_ms, 2)
    return f"{lasts}, {times} times as long as its median request."


def _lost(report: dict[str, Any]) -> list[str]:
    """Requests that did not fit the memory, which no number of replicas changes."""
    first = report["fleets"][0]["policies"][report["chosen"]]
    said = []
    if first["rejected"]:
        said.append(
            f"{count(first['rejected'], 'request')} of {report['trace']['requests']:,} were "
            "rejected, since the prompt does not fit the KV memory; they count as missed."
        )
    if first["truncated"]:
        said.append(
            f"{count(first['truncated'], 'request')} of {report['trace']['requests']:,} were cut "
            "short, since prompt and output exceed the KV memory."
        )
    return said


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
