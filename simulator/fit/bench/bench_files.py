"""Files that benchmarks leave, as points: SGLang's, vLLM's, GuideLLM's, and a CSV.

Owns the formats, which are told by content, and what is said of a file as a whole: failed requests,
random prompts. Knows no price.
"""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_dspark.files import did_you_mean, read_text
from simulator.fit.bench.points import Point

_MOST_FAILED = 0.05
COLUMNS = {
    "policy": str, "concurrency": int, "rate": float, "requests": int, "prompt_tokens": int,
    "output_tokens": int, "spread": float, "accepted_length": float, "output_tok_s": float,
    "tpot_ms": float, "ttft_ms": float,
}  # fmt: skip
"""Of a CSV: what each column is of."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What flags say where a file does not."""

    policy: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    requests: int | None = None


def read_points(path: str, told: Told) -> list[Point]:
    """The runs in a file. ``ValueError`` naming the file, the line, and what would mend it."""
    text = read_text(path).removeprefix("\ufeff")
    stripped = text.lstrip()
    if not stripped:
        raise ValueError(f"{path}: is empty; give a benchmark's result")
    if stripped[0] not in "{[":
        return _csv_points(path, text, told)
    runs = _json_runs(path, text)
    points = []
    for where, run in runs:
        if "benchmarks" in run and isinstance(run["benchmarks"], list):
            for i, one in enumerate(run["benchmarks"], start=1):
                points.append(_guidellm(f"{where}: benchmark {i}", one, told))
        elif "completed" in run and ("output_throughput" in run or "itls" in run):
            points.append(_serving(where, run, told))
        else:
            raise ValueError(
                f"{where}: no result of SGLang's or vLLM's bench_serving (no 'completed' with "
                "'output_throughput' or 'itls') nor of GuideLLM (no 'benchmarks'); or write a CSV "
                f"with columns {', '.join(COLUMNS)}"
            )
    if not points:
        raise ValueError(f"{path}: holds no run; give a benchmark's result")
    return points


def _json_runs(path: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    """One object, a list of them, or one a line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        found = []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                found.append((where, json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: is no JSON ({error.msg}); mend it") from None
    else:
        whole = value if isinstance(value, list) else [value]
        found = [(f"{path}:{i}" if len(whole) > 1 else path, one) for i, one in enumerate(whole, 1)]
    for where, one in found:
        if not isinstance(one, dict):
            raise ValueError(f"{where}: is no JSON object; give a benchmark's result")
    return found


def _number(where: str, run: Mapping[str, Any], name: str) -> float | None:
    value = run.get(name)
    if value is None or value == "inf":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where}: {name} {value!r} is no number; mend it")
    return float(value) if math.isfinite(value) else None


def _serving(where: str, run: dict[str, Any], told: Told) -> Point:
    """``bench_serving`` of SGLang, and vLLM's ``bench serve``, whose keys are nearly the same."""
    completed = int(_number(where, run, "completed") or 0)
    failed = int(_number(where, run, "failed") or 0)
    failed = max(failed, sum(1 for text in run.get("errors") or () if text))
    if completed < 1:
        raise ValueError(f"{where}: no request completed; run the benchmark again")
    if failed > _MOST_FAILED * (completed + failed):
        raise ValueError(
            f"{where}: {failed} of {completed + failed} requests failed, so that its rates are of "
            "another load; run it again"
        )
    if failed:
        warnings.warn(f"{where}: {failed} requests failed; its rates leave them out", stacklevel=2)
    accepted = _accepted(where, run)
    clients = _number(where, run, "max_concurrency")
    rate = _number(where, run, "request_rate")
    mean = {
        side: _mean_tokens(where, run, side, completed, flag)
        for side, flag in (("input", told.prompt_tokens), ("output", told.output_tokens))
    }
    ratio = _number(where, run, "random_range_ratio")
    if accepted is not None and str(run.get("dataset_name", "")).startswith("random"):
        warnings.warn(
            f"{where}: random prompts: what is accepted of their drafts does not transfer to real "
            "ones; its accepted length is taken for this run alone",
            stacklevel=2,
        )
    return Point(
        where=where,
        policy=_policy(where, told, accepted),
        concurrency=None if clients is None else int(clients),
        rate=rate if clients is None else None,
        requests=completed,
        prompt_tokens=mean["input"],
        output_tokens=mean["output"],
        spread=_spread(run, ratio),
        accepted_length=accepted,
        engine=_engine(run),
        output_tok_s=_rate(where, run),
        **_latencies(where, run),
    )


def _engine(run: Mapping[str, Any]) -> str:
    """Whose server it was, by the client that was told so."""
    said = str(run.get("backend") or run.get("endpoint_type") or "").lower()
    return next((engine for engine in ("vllm", "sglang") if engine in said), "")


def _accepted(where: str, run: Mapping[str, Any]) -> float | None:
    for name in ("accept_length", "spec_decode_acceptance_length"):
        found = _number(where, run, name)
        if found is not None and found >= 1.0:
            return found
    return None


def _policy(where: str, told: Told, accepted: float | None) -> str:
    if told.policy:
        return told.policy
    if accepted is not None:
        raise ValueError(
            f"{where}: speculated (accepted length {accepted:g}), but nobody says how much was "
            f"verified; give the file as POLICY={where.split(':')[0]}, for example fixed:7=..."
        )
    return "none"


def _mean_tokens(
    where: str, run: Mapping[str, Any], side: str, completed: int, flag: int | None
) -> int:
    total = _number(where, run, f"total_{side}_tokens")
    if not total and flag:
        return flag
    if not total:
        raise ValueError(
            f"{where}: says no total_{side}_tokens; give --{'prompt' if side == 'input' else side}"
            "-tokens"
        )
    return max(1, round(total / completed))


def _spread(run: Mapping[str, Any], ratio: float | None) -> float:
    """SGLang draws random lengths from ratio x length to length."""
    lengths = run.get("output_lens")
    if isinstance(lengths, list) and len(lengths) > 1 and all(lengths):
        mean = float(np.mean(lengths))
        return min(1.0, float(math.sqrt(3.0) * np.std(lengths) / mean))
    if ratio is not None and 0 <= ratio <= 1:
        return (1.0 - ratio) / (1.0 + ratio)
    return 0.0


def _rate(where: str, run: Mapping[str, Any]) -> float | None:
    found = _number(where, run, "output_throughput")
    if found is None:
        total, seconds = (_number(where, run, n) for n in ("total_output_tokens", "duration"))
        found = total / seconds if total and seconds else None
    return found


def _latencies(where: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """TPOT and TTFT in ms: means, medians where there are no means, else from single requests."""
    for median, kind in ((False, "mean"), (True, "median")):
        found = {n: _number(where, run, f"{kind}_{n}") for n in ("tpot_ms", "ttft_ms")}
        if found["tpot_ms"] is not None:
            return found | {"median": median}
    gaps, first = run.get("itls"), run.get("ttfts")
    lengths = run.get("output_lens")
    if not (isinstance(gaps, list) and isinstance(lengths, list)):
        return {}
    tpot = [1e3 * sum(g) / (n - 1) for g, n in zip(gaps, lengths, strict=False) if n and n > 1]
    answered = [1e3 * t for t in first if t] if isinstance(first, list) else []
    return {
        "tpot_ms": float(np.mean(tpot)) if tpot else None,
        "ttft_ms": float(np.mean(answered)) if answered else None,
    }


def _guidellm(where: str, run: dict[str, Any], told: Told) -> Point:
    """One benchmark of a GuideLLM report."""
    metrics = run.get("metrics")
    if not isinstance(metrics, dict):
        raise ValueError(f"{where}: has no 'metrics'; write GuideLLM's full report, --outputs json")

    def metric(name: str) -> float | None:
        entry: Any = metrics.get(name)
        entry = entry.get("successful", entry) if isinstance(entry, dict) else None
        return _number(where, entry, "mean") if isinstance(entry, dict) else None

    totals = metrics.get("request_totals") or {}
    completed = int(totals.get("successful") or metrics.get("request_count") or 0)
    failed = int(totals.get("errored") or 0)
    if failed > _MOST_FAILED * max(completed + failed, 1):
        raise ValueError(f"{where}: {failed} of {completed + failed} requests failed; run it again")
    config = run.get("config") or run.get("args") or {}
    strategy = config.get("strategy") or {}
    clients = strategy.get("streams") or strategy.get("max_concurrency")
    rate = None if clients else strategy.get("rate")
    prompt = metric("prompt_token_count") or told.prompt_tokens
    output = metric("output_token_count") or told.output_tokens
    if not prompt or not output:
        raise ValueError(f"{where}: says no token counts; give --prompt-tokens and --output-tokens")
    return Point(
        where=where,
        policy=_policy(where, told, None),
        concurrency=int(clients) if clients else None,
        rate=float(rate) if rate else None,
        requests=completed or told.requests or 1,
        prompt_tokens=round(prompt),
        output_tokens=round(output),
        output_tok_s=metric("output_tokens_per_second"),
        tpot_ms=metric("inter_token_latency_ms"),
        ttft_ms=metric("time_to_first_token_ms"),
    )


def _csv_points(path: str, text: str, told: Told) -> list[Point]:
    """A header of ``COLUMNS``, in any order, then a run a line; commas or semicolons."""
    first = text.splitlines()[0]
    delimiter = ";" if first.count(";") > first.count(",") else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    names = [(name or "").strip() for name in reader.fieldnames or ()]
    for name in names:
        if name not in COLUMNS:
            raise ValueError(
                f"{path}:1: column {name!r} is not known; {did_you_mean(name, COLUMNS)}"
                f"known: {', '.join(COLUMNS)}"
            )
    reader.fieldnames = names
    defaults = {
        "policy": told.policy, "prompt_tokens": told.prompt_tokens,
        "output_tokens": told.output_tokens, "requests": told.requests,
    }  # fmt: skip
    points = []
    for row in reader:
        where = f"{path}:{reader.line_num}"
        values: dict[str, Any] = {n: v for n, v in defaults.items() if v is not None}
        for name, cell in row.items():
            if name is None or isinstance(cell, list):
                raise ValueError(f"{where}: has more cells than the header has columns; mend it")
            if cell is not None and cell.strip():
                values[name] = _cell(where, name, cell.strip())
        if told.policy and values["policy"] != told.policy:
            raise ValueError(
                f"{where}: policy {values['policy']!r}, but the file was given as {told.policy}=; "
                "drop one of the two"
            )
        for name in ("policy", "prompt_tokens", "output_tokens"):
            if name not in values:
                flag = "POLICY=FILE" if name == "policy" else f"--{name.replace('_', '-')}"
                raise ValueError(f"{where}: says no {name}; fill the column or give {flag}")
        values.setdefault("requests", 4 * values.get("concurrency", 64))
        points.append(Point(where=where, **values))
    if not points:
        raise ValueError(f"{path}: holds no run below its header; add one a line")
    return points


def _cell(where: str, name: str, cell: str) -> Any:
    try:
        return COLUMNS[name](cell)
    except ValueError:
        raise ValueError(
            f"{where}: {name} {cell!r} is no {'whole ' * (COLUMNS[name] is int)}number; mend it"
        ) from None
