"""The answer of the capacity report: the headline and the sentences of its first page.

How many, how much, which policy and what binds. Reads the record of ``report`` and nothing else,
so that a sentence cannot say what the record does not hold.
"""

from __future__ import annotations

from typing import Any

from analysis.capacity.words import count, number, objective, percent, signed

LEAST_MISSES = 5
"""Fewer requests that may miss make an attainment a matter of luck."""


def answer_in_words(report: dict[str, Any]) -> dict[str, Any]:
    """``headline`` and ``sentences`` of the first page."""
    chosen = report["chosen"]
    if all(found["replica_req_s"] is None for found in report["traffic"].values()):
        return {
            "headline": "No policy holds this objective, however little the traffic.",
            "sentences": [
                f"Even an almost idle replica misses {objective(report)} under every policy: "
                "choose a looser SLO, a faster GPU or a smaller model."
            ],
        }
    first, last = report["fleets"][0], report["fleets"][-1]
    sentences = [
        *_fleet(report, first, chosen),
        compared_in_words(report, first["choice"]),
        f"One replica ({count(report['cost_model']['gpus'], 'GPU')}) holds {_held(report)} "
        f"requests/s under {chosen}.{_closest(report)}",
    ]
    if last is not first:
        wanted = last["choice"]["policy"] if last["choice"] else chosen
        sentences += [_headline(last, report["current"]), *_fleet(report, last, wanted)]
    sentences += [*_headroom(report), *classes_in_words(report)]
    return {
        "headline": _headline(first, report["current"]),
        "sentences": list(dict.fromkeys(text for text in sentences if text)),
    }


def _headline(fleet: dict[str, Any], current: str) -> str:
    """How many GPUs at which traffic, and whether to change the policy for them."""
    rate = f"{number(fleet['offered_req_s'])} requests/s"
    gpus = {label: found["gpus"] for label, found in fleet["policies"].items()}
    known = {label: found for label, found in gpus.items() if found is not None}
    if not known:
        bound = max(found["bound"] for found in fleet["policies"].values())
        return f"{rate}: not held by up to {count(bound, 'replica')} under any policy."
    wanted = fleet["choice"]["policy"] if fleet["choice"] else current
    if wanted != current and wanted in known:
        instead = f" instead of {known[current]}" if known.get(current, 0) > known[wanted] else ""
        return f"{rate}: deploy {wanted}, {count(known[wanted], 'GPU')}{instead}."
    if len(gpus) > 1 and len(known) == len(gpus) and len(set(known.values())) == 1:
        return f"{rate}: any policy, {count(known[wanted], 'GPU')}."
    if wanted not in known:
        wanted = min(known, key=lambda label: known[label])
        return (
            f"{rate}: deploy {wanted}, {count(known[wanted], 'GPU')}; {current} does not hold it."
        )
    return f"{rate}: keep {wanted}, {count(known[wanted], 'GPU')}."


def _traffic(report: dict[str, Any], fleet: dict[str, Any]) -> str:
    how = "times the users" if report["grown_by"] == "users" else "times as fast"
    rate = fleet["rate"]
    return "the trace as it is" if rate == 1 else f"the trace {number(rate)} {how}"


def _fleet(report: dict[str, Any], fleet: dict[str, Any], wanted: str) -> list[str]:
    """How well the smallest fleet under ``wanted`` does, what is to spare, and what it costs."""
    found = fleet["policies"][wanted]
    if found["gpus"] is None:
        return []
    goal, text = report["attainment"], f"{percent(found['attainment'])} % in SLO"
    text += f"{_interval(found)}{_small(report)}"
    if found["interval"] is not None and found["interval"][0] < goal:
        text += f", an interval that reaches below {percent(goal, 0)} %: one replica more is safer"
    spare = ""
    if found["one_less"] is not None:
        spare = f" With one replica less it is {percent(found['one_less'])} %: none is to spare."
    return [
        f"That is {_traffic(report, fleet)}. {count(found['gpus'], 'GPU')} under {wanted}"
        f"{_others(fleet, wanted)}: {text}.{spare}",
        *_doubted(report, fleet, wanted),
        *_money(report, fleet, wanted),
    ]


def _doubted(report: dict[str, Any], fleet: dict[str, Any], wanted: str) -> list[str]:
    """How many it may be with the doubt about prices."""
    sizes = fleet["doubted_gpus"]
    if not sizes or wanted != report["chosen"]:
        return []
    low, high = sizes[0], sizes[-1]
    until = f"to {count(high, 'GPU')}" if high else "to more than any tried"
    if low == high and high:
        return [f"The doubt about prices leaves it at {count(high, 'GPU')}."]
    return [
        f"With the doubt about prices it may be {low} {until}, in {len(sizes)} ways of being off; "
        "dspark prices calibrate narrows it with a benchmark of your server."
    ]


def _interval(found: dict[str, Any]) -> str:
    if found["interval"] is None:
        return ""
    low, high = found["interval"]
    return f" [{percent(low)}, {percent(high)}]"


def _small(report: dict[str, Any]) -> str:
    """A mark on an attainment that a handful of requests decides."""
    judged = sum(one["requests"] for one in report["classes"])
    allowed = judged * (1.0 - report["attainment"])
    if allowed >= LEAST_MISSES:
        return ""
    return f" (of {count(judged, 'request')}, {number(allowed, 2)} may miss: too few to be sure)"


def compared_in_words(report: dict[str, Any], choice: dict[str, Any] | None) -> str:
    """What the tuner's test says of the policies at a fleet's load, in a sentence."""
    current = report["current"]
    if choice is None:
        return (
            "The trace is too short to tell the policies apart; the sizes above are all there is."
        )
    if not choice["gains"]:
        return ""
    best = max(choice["gains"], key=lambda label: choice["gains"][label]["mean"])
    found = choice["gains"][best]
    gain = f"{signed(found['mean'])} [{signed(found['low'])}, {signed(found['high'])}] %"
    rate = report["trace"]["offered_req_s"] * choice["replica_rate"]
    text = (
        f"With {number(rate)} requests/s on one replica {best} has {gain} requests/s within the "
        f"SLO over {current}, which runs today"
    )
    if found["low"] <= 0:
        return f"{text}: within noise, so no change of policy is called for."
    against = choice["reasons"].get(best)
    if against:
        return f"{text}, but is not to be rolled out: {' '.join(against)}"
    return f"{text}, proven on windows that were held out (95 %)."


def _held(report: dict[str, Any]) -> str:
    found = report["traffic"][report["chosen"]]
    least = "" if found["misses_at_rate"] or not found["replica_req_s"] else "at least "
    return f"{least}{number(found['replica_req_s'])}"


def _closest(report: dict[str, Any]) -> str:
    others = {
        label: found["replica_req_s"]
        for label, found in report["traffic"].items()
        if label != report["chosen"] and found["replica_req_s"] is not None
    }
    if not others:
        return "" if len(report["traffic"]) == 1 else " No other policy holds any traffic."
    best = max(others, key=lambda label: others[label])
    return f" Of the others {best} holds most, {number(others[best])}."


def _others(fleet: dict[str, Any], chosen: str) -> str:
    """Which policies need more or fewer, in brackets."""
    ours = fleet["policies"][chosen]["gpus"]
    more = {
        label: found["gpus"] for label, found in fleet["policies"].items() if found["gpus"] != ours
    }
    parts = [
        f"{label} {found}" if found else f"{label} more than any tried"
        for label, found in more.items()
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _money(report: dict[str, Any], fleet: dict[str, Any], wanted: str) -> list[str]:
    """What the fleet costs, and what that saves over what runs today."""
    current, currency = report["current"], report["currency"]
    found, today = fleet["policies"][wanted], fleet["policies"][current]
    if found["cost_per_hour"] is None:
        return []
    text = (
        f"It costs {number(found['cost_per_hour'])} {currency} an hour, "
        f"{number(found['cost_per_month'])} a month, {number(found['cost_per_mtok'])} per million "
        "output tokens"
    )
    if wanted != current and today["cost_per_month"]:
        saved = today["cost_per_month"] - found["cost_per_month"]
        text += f"; against {current} {number(saved)} {currency} a month are saved"
    return [f"{text}."]


def _headroom(report: dict[str, Any]) -> list[str]:
    """What is left of a fleet that stands already, under the policy that is advised."""
    found = report["headroom"].get(report["chosen"])
    if found is None:
        return []
    gpus = count(found["replicas"] * report["cost_model"]["gpus"], "GPU")
    now, more, one = found["now"], found["more"], gpus == "1 GPU"
    if found["headroom"] is None:
        left = f"{'holds' if one else 'hold'} nothing of it"
    elif found["headroom"] < 0:
        share = percent(1 + found["headroom"], 0)
        left = f"{'is' if one else 'are'} too few for it: room for {share} % of it"
    else:
        left = f"{'has' if one else 'have'} room for {percent(found['headroom'], 0)} % more"
    holds = "still held" if more["holds"] else "not held"
    return [
        f"Your {gpus} {left} ({percent(now['attainment'])} % in SLO now); 30 % more traffic is "
        f"{holds} ({percent(more['attainment'])} %)."
    ]


def classes_in_words(report: dict[str, Any]) -> list[str]:
    """Who misses what, and why the bound that binds does."""
    classes = report["classes"]
    missed = sum(one["missed"] for one in classes)
    if not missed:
        return []
    several = len(classes) > 1
    parts = []
    for one in (one for one in classes if one["missed"]):
        name = f" {one['class']}" if several else ""
        bounds = [f"{one[key]:,} {key.upper()}" for key in ("ttft", "tpot") if one[key]]
        bounds += [f"{one['both']:,} of these both"] if one["both"] else []
        bounds += [f"{one['unserved']:,} were not served"] if one["unserved"] else []
        parts.append(
            f"{one['missed']:,} of {one['requests']:,}{name} requests ({', '.join(bounds)})"
        )
    worst = max(classes, key=lambda one: one["missed"])
    fleet = report["fleets"][0]
    size = fleet["policies"][report["chosen"]]["gpus"]
    where = f"Misses at {number(fleet['offered_req_s'])} requests/s"
    where += f" on {count(size, 'GPU')}" if size else ""
    said = [f"{where}: {'; '.join(parts)}."]
    of = f" of {worst['class']}" if several else ""
    if worst["tpot"] >= worst["ttft"] and worst["tpot"]:
        why = "most of those who fail it decode in steps that are too slow for it"
        if worst["short_share"] > 0.5:
            why = (
                f"{percent(worst['short_share'], 0)} % of those who fail it are answers of under "
                "20 tokens, slow because another request's prefill came between their tokens"
            )
        said.append(f"TPOT{of} binds: {why}.")
    elif worst["ttft"]:
        said.append(
            f"TTFT{of} binds: those who fail it wait {number(worst['queued_ms'])} ms in the "
            "median, behind other prompts or for a place in the batch."
        )
    return said
